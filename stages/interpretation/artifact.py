"""I(M) on disk: ``<target>.safetensors`` + ``<target>.json``, size-capped, validated, never executable."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stages.contracts.method import Interpretation
from stages.errors import MethodError, UserError

__all__ = ["load_interpretation", "pack", "save_interpretation", "unpack"]

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def pack(interpretation: Any, method: str, place: str, max_bytes: int) -> tuple[bytes, bytes]:
    """(safetensors bytes, JSON bytes) of an interpretation.

    Raises:
        MethodError: it is no Interpretation, holds something other than tensors and JSON, or is over the cap.
    """
    if not isinstance(interpretation, Interpretation):
        raise MethodError(
            method, place, f"it returned {type(interpretation).__name__}", "Return Interpretation(arrays, data)."
        )
    arrays: dict[str, Tensor] = {}
    for name, value in interpretation.arrays.items():
        if type(value) is not Tensor or value.dtype not in DTYPES or value.layout is not torch.strided:
            raise MethodError(
                method,
                place,
                f"array {name!r} is {type(value).__name__} {getattr(value, 'dtype', '')}".strip(),
                "Store plain torch tensors of floats, integers or booleans.",
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise MethodError(method, place, f"array {name!r} holds NaN or infinity", "Store finite numbers.")
        arrays[str(name)] = value.detach().contiguous().clone()
    size = sum(value.numel() * value.element_size() for value in arrays.values())
    if size > max_bytes:
        raise MethodError(
            method,
            place,
            f"its artifact is {size:,} bytes, {max_bytes:,} are allowed",
            "Store less, in lower precision, or raise max_bytes in params/interpretation.yaml.",
        )
    try:
        text = json.dumps(dict(interpretation.data), sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise MethodError(method, place, f"its data is not JSON ({error})", "Store JSON values in data.") from error
    if size + len(text) > max_bytes:
        raise MethodError(method, place, f"its data is {len(text):,} bytes of JSON", f"Allowed: {max_bytes:,} bytes.")
    return save(arrays), text


def unpack(arrays: bytes, text: bytes) -> Interpretation:
    return Interpretation(load(arrays), json.loads(text))


def save_interpretation(interpretation: Interpretation, folder: Path, target: str, method: str, max_bytes: int) -> int:
    """Write I(M); returns its size in bytes."""
    arrays, text = pack(interpretation, method, f"interpret on {target}", max_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{target}.safetensors").write_bytes(arrays)
    (folder / f"{target}.json").write_bytes(text + b"\n")
    return len(arrays) + len(text)


def load_interpretation(folder: Path, target: str) -> Interpretation:
    """Read I(M).

    Raises:
        UserError: it is missing or damaged.
    """
    arrays, text = folder / f"{target}.safetensors", folder / f"{target}.json"
    try:
        return unpack(arrays.read_bytes(), text.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: stage 'interpretation' makes it; run `lensmith run`") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} is damaged ({error}): delete it and run `lensmith run`") from error

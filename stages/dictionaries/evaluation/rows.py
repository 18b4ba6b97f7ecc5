"""Rows of metrics.json: one per dictionary, the same from the stage that keeps dictionaries and from the sweep."""

import math
from typing import Any

import torch
from torch import Tensor

from stages.activations.order import generator_for
from stages.base.intervals import estimate, over_items
from stages.dictionaries.evaluation.geometry import MATCHED, matched_cosines, random_likeness

__all__ = ["Row", "finish", "order_of", "stability"]

Row = dict[str, Any]


def stability(seed: int, decoders: dict[int, Tensor], n_resamples: int) -> Row:
    """Likeness of one seed's live latents with those of each other seed, over all matched pairs."""
    one = decoders[seed]
    others = [decoder for other, decoder in decoders.items() if other != seed]
    generator = generator_for("stability", seed)
    cosines = torch.cat([matched_cosines(one, other) for other in others]) if others else torch.empty(0)
    nulls = [random_likeness(len(one), len(other), one.shape[1], generator) for other in others]
    return {
        "stability": estimate(*over_items(cosines, n_resamples, generator), _mean([null.mcc for null in nulls])),
        "stability_matched": estimate(
            *over_items((cosines >= MATCHED).double(), n_resamples, generator), _mean([null.matched for null in nulls])
        ),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def finish(values: Row, nulls: Row | None, raw: float) -> Row:
    """Fill in the nulls that come from the random dictionary, and the raw-activation probe."""
    out = values | {"probe_raw": estimate(raw)}
    if nulls is not None:
        for name, value in values.items():
            if isinstance(value, dict):
                out[name] = value | {"null": nulls[name]["value"]}
    return out


def order_of(row: Row) -> tuple[str, str, str, int, float, int]:
    return row["target"], row["hook_point"], row["architecture"], row["n_latents"], row["sparsity"], row["seed"]

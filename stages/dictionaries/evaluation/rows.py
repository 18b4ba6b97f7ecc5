"""What a row of a dictionary takes from other dictionaries: nulls, and likeness with those of other seeds."""

import math

import torch
from torch import Tensor

from stages.activations.order import generator_for
from stages.base.intervals import over_items
from stages.contracts.dictionary_rows import DictionaryRow, Measured
from stages.contracts.record import Estimate
from stages.dictionaries.evaluation.geometry import MATCHED, matched_cosines, random_likeness

__all__ = ["with_nulls", "with_stability"]


def with_stability(row: DictionaryRow, decoders: dict[int, Tensor], n_resamples: int) -> DictionaryRow:
    """The row with the likeness of its live latents with those of each other seed, over all matched pairs.

    Args:
        decoders: live decoder rows by seed, its own among them.
    """
    one = decoders[row.seed]
    others = [decoder for other, decoder in decoders.items() if other != row.seed]
    generator = generator_for("stability", row.seed)
    cosines = torch.cat([matched_cosines(one, other) for other in others]) if others else torch.empty(0)
    nulls = [random_likeness(len(one), len(other), one.shape[1], generator) for other in others]
    likeness = Estimate.of(*over_items(cosines, n_resamples, generator), _mean([null.mcc for null in nulls]))
    matched = Estimate.of(
        *over_items((cosines >= MATCHED).double(), n_resamples, generator), _mean([null.matched for null in nulls])
    )
    return row.model_copy(update={"stability": likeness, "stability_matched": matched})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def with_nulls(measured: Measured, random: Measured) -> Measured:
    """The same metrics, each beside that of the random dictionary."""
    nulls = random.metrics()
    values = {name: one.with_null(nulls[name].value) for name, one in measured.metrics().items()}
    return measured.model_copy(update=values)

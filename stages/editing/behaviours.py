"""A behaviour to take away: giving one of the target's answers where it is right. The others are its neighbours.

Shape legend: B = inputs.
"""

from dataclasses import dataclass

import torch

from stages.contracts.target import Corpus, Target
from stages.errors import UserError

__all__ = ["Behaviour", "behaviour_of"]


FEWEST = 8
"""Inputs of either kind, to edit with and to judge by, below which nothing can be said."""


@dataclass(frozen=True)
class Behaviour:
    """Inputs that show it and inputs that do not, to edit with and to judge by; no input is in both."""

    answer: int
    shown: Corpus
    """To edit with: inputs whose right answer this is."""
    others: Corpus
    """To edit with: all other inputs."""
    held_out: Corpus
    """To judge by: distinct inputs of both kinds, none of which the target was trained on or the edit has seen."""

    @property
    def name(self) -> str:
        return f"answer {self.answer}"


def behaviour_of(target: Target, answer: int) -> Behaviour:
    """The behaviour of giving an answer.

    Args:
        target: ``train`` is edited with; ``validation``, and ``tasks`` where it holds inputs, are held out.
        answer: index of the output.

    Raises:
        UserError: the target has no such output, or too few inputs show it.
    """
    if not 0 <= answer < target.spec.n_outputs:
        raise UserError(
            f"answer {answer} is not one of {target.name}: its outputs are 0 to {target.spec.n_outputs - 1}"
        )
    train = target.corpus("train")
    held = [target.corpus(split) for split in ("validation", "tasks")]
    held = [part for part in held if tuple(part.inputs.shape[1:]) == target.spec.input_shape]
    shown = train.labels == answer
    held_out = _without(_distinct(Corpus(*(torch.cat(parts) for parts in zip(*held, strict=True)))), train)
    mine = int((held_out.labels == answer).sum())
    fewest = min(int(shown.sum()), int((~shown).sum()), mine, len(held_out.labels) - mine)
    if fewest < FEWEST:
        raise UserError(
            f"answer {answer} of {target.name}: {int(shown.sum())} inputs to edit with and {mine} held out show it; at"
            f" least {FEWEST} that do and {FEWEST} that do not are needed on both sides: choose another answer"
        )
    return Behaviour(
        answer,
        Corpus(train.inputs[shown], train.labels[shown]),
        Corpus(train.inputs[~shown], train.labels[~shown]),
        held_out,
    )


def _rows(corpus: Corpus) -> list[bytes]:
    return [row.contiguous().numpy().tobytes() for row in corpus.inputs]


def _distinct(corpus: Corpus) -> Corpus:
    """A corpus drawn with replacement repeats inputs, and a repeated input is no further evidence."""
    first = list(dict.fromkeys(_rows(corpus)).keys())
    place = {row: i for i, row in reversed(list(enumerate(_rows(corpus))))}
    index = torch.tensor([place[row] for row in first])
    return Corpus(corpus.inputs[index], corpus.labels[index])


def _without(corpus: Corpus, seen: Corpus) -> Corpus:
    known = set(_rows(seen))
    index = torch.tensor([i for i, row in enumerate(_rows(corpus)) if row not in known])
    return Corpus(corpus.inputs[index], corpus.labels[index])

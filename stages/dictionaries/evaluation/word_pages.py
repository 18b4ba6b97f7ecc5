"""What feature pages show where inputs are words: contexts with a mark and heat, and the words that a latent moves.

Shape legend: T = places, n = rows shown, C = outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.contracts.dictionary_rows import Moved
from stages.targets.storage import load_words

__all__ = ["N_MOVED", "WordPages", "word_names"]

N_MOVED = 5
"""Words a latent raises most and lowers most, each."""
BEFORE, AFTER = 47, 16
"""Words of a context shown before and after the one that is marked, where it is longer than both."""
NO_ROW = -1
"""Heat of a word that has no row: each input's first."""


def word_names(target: str, n: int) -> tuple[str, ...]:
    """The word of each id; of a target that has no words.json the ids themselves.

    Args:
        n: ids there are.
    """
    found = load_words(target) or ()
    return tuple(found[i] if i < len(found) else str(i) for i in range(n))


class WordPages:
    """Collects the words and contexts of one gallery, each once.

    Args:
        names: the word of each id.
        inputs: (N, T, 2) of (id, present): held-out inputs.
    """

    def __init__(self, names: Sequence[str], inputs: Tensor) -> None:
        self._names, self._inputs = names, inputs
        self._words: dict[str, int] = {}
        self._contexts: dict[tuple[int, int], int] = {}
        self._written: list[tuple[int, ...]] = []

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self._words)

    @property
    def contexts(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self._written)

    def word(self, number: int) -> int:
        """The gallery's number of the word of an id."""
        return self._words.setdefault(self._names[number], len(self._words))

    def context(self, example: int, place: int) -> tuple[int, Tensor, int]:
        """Number of the context of a row; (length,) the places that it shows, and which of them is the row's.

        Args:
            example: number of the input.
            place: where in it the row stands.
        """
        present = (self._inputs[example, :, 1] > 0.5).nonzero().flatten()
        at = int((present == place).nonzero())
        start = max(0, min(at - BEFORE, len(present) - BEFORE - AFTER - 1))
        shown = present[start : start + BEFORE + AFTER + 1]
        key = (example, start)
        if key not in self._contexts:
            self._contexts[key] = len(self._written)
            self._written.append(tuple(self.word(int(i)) for i in self._inputs[example, shown, 0]))
        return self._contexts[key], shown, at - start

    def heat(self, percents: Tensor, rows: Tensor) -> tuple[int, ...]:
        """(length,) percents of the words of a context; ``NO_ROW`` where ``rows`` (length,) has none."""
        return tuple(int(value) for value in torch.where(rows >= 0, percents, NO_ROW))

    def moved(self, added: Tensor, ablated: Tensor) -> Moved:
        """The words whose logits move most.

        Args:
            added, ablated: (C,) mean changes.
        """
        return Moved(
            added_up=self._most(added, largest=True),
            added_down=self._most(added, largest=False),
            ablated_up=self._most(ablated, largest=True),
            ablated_down=self._most(ablated, largest=False),
        )

    def _most(self, change: Tensor, *, largest: bool) -> tuple[tuple[int, float | None], ...]:
        if not bool(torch.isfinite(change).all()):  # no example to take a mean over
            return ()
        found = change.topk(min(N_MOVED, len(change)), largest=largest)
        return tuple(
            (self.word(int(output)), float(f"{float(value):.4g}") + 0.0)
            for value, output in zip(found.values, found.indices, strict=True)
        )

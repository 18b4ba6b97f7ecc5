"""Random dictionaries as the null of every metric."""

from torch import Tensor

from stages.contracts.dictionary_rows import Measured
from stages.dictionaries.evaluation.evaluate import HeldOut, codec_of, evaluate, random_dictionary

__all__ = ["Nulls"]


class Nulls:
    """Metrics of random dictionaries at the L0 of what is compared with them; each is measured once."""

    def __init__(self, acts: Tensor, held: HeldOut, n_resamples: int, seed: int) -> None:
        self._acts, self._held, self._n_resamples, self._seed = acts, held, n_resamples, seed
        self._known: dict[tuple[int, int], Measured] = {}

    def at(self, l0: float, n_latents: int) -> Measured:
        k = max(1, min(n_latents, round(l0)))
        if (k, n_latents) not in self._known:
            null = random_dictionary(self._acts, n_latents, k, self._seed)
            self._known[k, n_latents] = evaluate(codec_of(null), self._held, self._n_resamples, self._seed)
        return self._known[k, n_latents]

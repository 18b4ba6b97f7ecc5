"""Latents of the sparse autoencoders that stage ``dictionaries`` trained and measured."""

from typing import cast

from torch import Tensor

from stages.contracts.dictionary import Dictionary
from stages.contracts.method import (
    Answer,
    Budget,
    Interpretation,
    Method,
    Query,
)
from stages.contracts.target import TargetAccess
from stages.dictionaries.architectures.codec import decode, encode
from stages.interpretation.representation import CORPUS_INPUTS, Encode, Pooling, answer_with, vectors, within

__all__ = ["Sae", "pack", "useful_latents"]

KEPT = "kept"


class _Latents(Encode):
    """Latents of a hook point's dictionary, only those kept."""

    def __call__(self, name: str, values: Tensor) -> Tensor:
        dictionary = self._of(name)
        latents = encode(dictionary, values.reshape(-1, values.shape[-1]))
        return latents.reshape(*values.shape[:-1], -1)[..., self._kept(name)]

    def knows(self, name: str) -> bool:
        return name in self.interpretation.data["cfg"]

    def rebuilt(self, name: str, features: Tensor) -> Tensor:
        dictionary = self._of(name)
        rows = dict(dictionary) | {"W_dec": dictionary["W_dec"][self._kept(name)]}
        return decode(cast(Dictionary, rows), features)

    def _of(self, name: str) -> Dictionary:
        arrays = self.interpretation.arrays
        stored = {key.removeprefix(f"{name}."): of for key, of in arrays.items() if key.startswith(f"{name}.")}
        return cast(Dictionary, stored | {"cfg": self.interpretation.data["cfg"][name]})

    def _kept(self, name: str) -> Tensor:
        return self.interpretation.arrays[f"{name}.{KEPT}"]


def pack(name: str, dictionary: Dictionary, kept: Tensor) -> dict[str, Tensor]:
    """The arrays of one dictionary of whatever architecture, as they are stored in I(M)."""
    arrays = {f"{name}.{key}": value for key, value in dictionary.items() if isinstance(value, Tensor)}
    return arrays | {f"{name}.{KEPT}": kept}


def useful_latents(latents: Tensor, n: int) -> Tensor:
    """Indices of the n latents that vary most over the corpus, in rising order: dead ones carry nothing."""
    spread = latents.var(0)
    return spread.argsort(descending=True, stable=True)[:n].sort().values


class Sae(Method):
    """
    Dictionaries of large targets need not all fit into I(M): those of the last hook points are taken.

    Args:
        architecture: which of the trained dictionaries, by the name they are kept under.
        n_kept: latents kept per hook point.
        pooling: which positions Represent and Compare read.
    """

    name = "sae"

    def __init__(self, architecture: str = "batchtopk", n_kept: int = 48, pooling: Pooling = "readout") -> None:
        self.architecture, self.n_kept, self.pooling = architecture, n_kept, pooling

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        chosen = {
            key.rpartition("/")[0]: dictionary
            for key, dictionary in sorted(target.dictionaries().items())
            if key.endswith(f"/{self.architecture}")
        }
        sizes = {name: sum(of.nbytes for of in d.values() if isinstance(of, Tensor)) for name, d in chosen.items()}
        chosen = {name: chosen[name] for name in within(sizes, target.spec, budget.max_bytes)}
        inputs = target.corpus("train").inputs[:CORPUS_INPUTS]
        captured = target.forward(inputs, capture=list(chosen)).captured
        arrays: dict[str, Tensor] = {}
        for name, dictionary in chosen.items():
            rows = vectors(captured[name], target.spec.hook(name))
            position = -1 if self.pooling == "readout" else slice(None)
            latents = encode(dictionary, rows[:, position].reshape(-1, rows.shape[-1]))
            arrays |= pack(name, dictionary, useful_latents(latents, self.n_kept))
        return Interpretation(arrays, {"cfg": {name: dict(d["cfg"]) for name, d in chosen.items()}})

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        names = sorted(interpretation.data["cfg"])
        if not names:
            return None
        return answer_with(_Latents(interpretation), names, query, interpretation, target, self.pooling)

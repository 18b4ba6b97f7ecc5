"""What a dictionary is as an explanation: bits of its numbers, and bits of the outputs that it leaves unexplained.

See ``stages/base/code_lengths.py``. The numbers are those of the latents that fire on held-out rows, since the others
can be left out, and the decoder's bias. All are rounded to b bits, with b from ``BITS`` so that the surprise of
``N_OUTPUTS`` outputs is least. What the target computes before and after the hook point is taken from it as it is, so
lengths are comparable between dictionaries of one target; ``tools/surprise.py`` counts those weights too.

Shape legend: F = latents, N = outputs.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

from torch import Tensor

from stages.base.code_lengths import N_OUTPUTS, number_bits, quantised, unexplained_bits
from stages.contracts.dictionary import Dictionary

__all__ = ["BITS", "Explained", "explained", "only_live", "rounded"]

BITS = (4, 6, 8)
"""Of a number; each is tried with a forward pass of the held-out inputs."""
COLUMNS = ("W_enc",)
"""Weights whose latents lie along axis 1; of the others they lie along axis 0."""
WHOLE = ("b_dec", "W_skip")
"""Weights that have no latents."""


class Explained(NamedTuple):
    """A dictionary at the number of bits at which its surprise is least."""

    bits: int
    length: float
    unexplained: Tensor
    """(N,) bits of each output."""

    @property
    def surprise(self) -> float:
        """Bits per output, where ``N_OUTPUTS`` outputs share the length."""
        return self.length / N_OUTPUTS + float(self.unexplained.mean())


def only_live(dictionary: Dictionary, alive: Tensor) -> Dictionary:
    """The dictionary without the latents that never fire; one is left where none does.

    Args:
        alive: (F,) bool.
    """
    kept = alive.nonzero().flatten()
    if not len(kept):
        kept = alive.new_zeros(1).long()
    out: dict[str, object] = {}
    for name, value in dictionary.items():
        if not isinstance(value, Tensor) or name in WHOLE:
            out[name] = value
        else:
            out[name] = value[:, kept] if name in COLUMNS else value[kept]
    cfg = dict(dictionary["cfg"]) | {"d_sae": len(kept)}
    if cfg.get("k") is not None:
        cfg["k"] = min(int(cast(int, cfg["k"])), len(kept))
    return cast(Dictionary, out | {"cfg": cfg})


def rounded(dictionary: Dictionary, bits: int) -> tuple[Dictionary, float]:
    """The dictionary with its numbers rounded, and its length in bits. An encoder that is the decoder is said once."""
    weights = {name: value for name, value in dictionary.items() if isinstance(value, Tensor)}
    said = dict(weights)
    if "W_enc" in said and said["W_enc"].T.equal(said["W_dec"]):
        del said["W_enc"]
    length = number_bits(sum(value.numel() for value in said.values()), len(said), bits)
    return cast(
        Dictionary, dict(dictionary) | {name: quantised(value, bits) for name, value in weights.items()}
    ), length


def explained(
    dictionary: Dictionary, alive: Tensor, target: Tensor, outputs: Callable[[Dictionary], Tensor]
) -> Explained:
    """A dictionary as an explanation of the target's outputs.

    Args:
        alive: (F,) bool, whether each latent fires.
        target: (N, C) logits of the target.
        outputs: dictionary -> (N, C) logits with its reconstruction in place of the activation.
    """
    live = only_live(dictionary, alive)
    tried = []
    for bits in BITS:
        coded, length = rounded(live, bits)
        tried.append(Explained(bits, length, unexplained_bits(target, outputs(coded))))
    return min(tried, key=lambda one: one.surprise)

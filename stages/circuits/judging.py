"""What a search found, held against what was asked for: on all of the data, and on what a seed did not see.

Shape legend: E = edges, B = inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Required, TypedDict

import torch
from torch import Tensor

from stages.circuits.algorithms.alternatives import alternatives
from stages.circuits.algorithms.findable import largest
from stages.circuits.algorithms.found import Found
from stages.circuits.algorithms.joint import irreducible
from stages.circuits.algorithms.methods import Settings
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective

__all__ = ["AlternativeFound", "CircuitFound", "Held", "Searched", "SeedRow", "circuits_of", "outliers", "seed_rows"]

ROOM = 1 + 1e-6
"""Rounding between two ways of computing one loss."""
OUTLIER_SHARE, OUTLIER_RATIO, OUTLIER_INPUTS = 0.5, 100.0, 8
"""One input of at least so many is an outlier if it makes this share of the loss, and this many times the median."""
OUTLIER_SIZE = 1e4
"""So is one whose outputs are this many times as large as the median input's."""


class SeedRow(TypedDict, total=False):
    """One seed; from ``size`` on only where the method finds a circuit."""

    seed: Required[int]
    seconds: Required[float]
    forwards: Required[int]
    backwards: Required[int]
    size: int
    loss: float
    """On all of the data."""
    share: float
    """Of the loss with every edge cut; asked for is the tolerance."""
    share_held_out: float | None
    """The same on inputs that the seed did not see; None where it saw all."""
    faithful: bool
    """Whether the share on all of the data is within the tolerance."""
    loss_of_random_circuit: float
    agreement: float | None
    """Share of answers (largest output) that stay; None for a single output."""


class CircuitFound(TypedDict):
    """The circuit that the search as a whole found."""

    of: str
    """"majority of seeds"; or the seed with the smallest faithful one, where the majority's is not faithful."""
    size: int
    loss: float
    share: float
    share_held_out: float | None
    faithful: bool
    irreducible_up_to: str
    """"pairs": no edge and no pair of edges can be cut; "single edges": too many pairs to try; "nothing": some can."""
    pairs_tried: int
    edges: list[str]


class AlternativeFound(TypedDict):
    """A circuit that is faithful too and does without some of its edges."""

    size: int
    share: float
    found_by: str
    without: list[str]
    """Edges of the circuit that it has not."""
    instead: list[str]
    """Edges that it has and the circuit has not."""


@dataclass(frozen=True)
class Held:
    """Losses by input, of masks and of the empty circuit."""

    empty: Tensor
    """(B,)."""

    def shares(self, losses: Tensor, rows: Tensor) -> float | None:
        """Mean loss over some inputs as a share of the empty circuit's there; None for no inputs."""
        if not bool(rows.any()):
            return None
        return float(losses[rows].double().mean() / self.empty[rows].double().mean().clamp_min(1e-300))


@dataclass(frozen=True)
class Searched:
    """A finished search."""

    method: str
    whole: MaskedForward
    """All of the data."""
    samples: Sequence[MaskedForward]
    """What each seed saw."""
    seen: Sequence[Tensor]
    """(B,) bool by seed: the inputs it saw."""
    found: Sequence[Found]
    objective: Objective
    settings: Settings

    def losses(self, mask: Tensor) -> Tensor:
        """(B,) loss of every input."""
        return self.objective(self.whole.evaluate(mask), self.whole.clean_outputs)[0]

    @property
    def held(self) -> Held:
        return Held(self.losses(torch.zeros(self.whole.n_edges)))


def seed_rows(searched: Searched, held: Held, controls: Sequence[Tensor | None]) -> tuple[list[SeedRow], list[str]]:
    """A row per seed, and what of it is not as asked.

    Args:
        searched: the search.
        held: losses of the empty circuit.
        controls: (E,) a random circuit of the same size by seed.
    """
    whole, rows = searched.whole, []
    single = whole.clean_outputs.shape[-1] == 1
    for seed, (one, seen, control) in enumerate(zip(searched.found, searched.seen, controls, strict=True)):
        row: SeedRow = {
            "seed": seed,
            "seconds": round(one.bill.seconds, 4),
            "forwards": one.bill.forwards,
            "backwards": one.bill.backwards,
        }
        if one.mask is not None and control is not None:
            losses = searched.losses(one.mask)
            share = held.shares(losses, torch.ones_like(seen)) or 0.0
            row["size"] = int(one.mask.sum())
            row["loss"] = float(losses.mean())
            row["share"] = share
            row["share_held_out"] = held.shares(losses, ~seen)
            row["faithful"] = share <= searched.settings.tolerance * ROOM
            row["loss_of_random_circuit"] = float(searched.losses(control).mean())
            same = whole.evaluate(one.mask)[0].argmax(-1) == whole.clean_outputs.argmax(-1)
            row["agreement"] = None if single else float(same.double().mean())
        rows.append(row)
    return rows, _not_as_asked(searched, rows)


def _not_as_asked(searched: Searched, rows: Sequence[SeedRow]) -> list[str]:
    asked, said = searched.settings.tolerance, []
    found = [row for row in rows if "share" in row]
    worse = [row["share"] for row in found if not row["faithful"]]
    if searched.settings.size is not None:
        remedy = f"that many edges do not carry it: raise --size {searched.settings.size}, or leave it out"
    elif searched.method == "acdc":
        remedy = (
            "ACDC compares the rise of one cut with it, and the rises add up: use edge-sp, which holds the whole"
            " circuit to it, or a lower --tolerance"
        )
    else:
        remedy = "each seed's circuit fits the inputs it saw: raise --batch"
    if worse:
        said.append(
            f"not faithful: on all of the data the circuits of {len(worse)} of {len(found)} seeds lose more than the"
            f" {asked:g} of the empty circuit's loss that was asked for, up to {max(worse):.2g}; {remedy}"
        )
    held = [share for row in found if (share := row["share_held_out"]) is not None]
    over = [share for share in held if share > asked * ROOM]
    if over:
        said.append(
            f"not faithful on held-out inputs: those a seed did not see lose more than {asked:g} in {len(over)} of"
            f" {len(held)} seeds, up to {max(over):.2g}" + ("" if worse else f"; {remedy}")
        )
    if found and not held:
        said.append("nothing was held out, since every seed saw all inputs: give more inputs than --batch")
    return said


def circuits_of(
    searched: Searched, held: Held, rows: Sequence[SeedRow], scores: Tensor
) -> tuple[Tensor, CircuitFound, list[AlternativeFound], list[str]]:
    """(E,) the circuit of a search whose method finds one, what it is, others that do as well, and what is doubtful."""
    masks = [one.mask for one in searched.found if one.mask is not None]
    majority = (torch.stack(masks).sum(0) * 2 > len(masks)).float()
    good = {row["seed"]: masks[row["seed"]] for row in rows if row["faithful"]}
    everything = torch.ones_like(searched.seen[0])
    share = held.shares(searched.losses(majority), everything) or 0.0
    mask, of, said, chosen = majority, "majority of seeds", [], None
    if share > searched.settings.tolerance * ROOM and good:
        chosen = min(good, key=lambda one: int(good[one].sum()))
        mask, of = good[chosen], f"seed {chosen}"
        said.append(
            f"the edges that most seeds keep are not faithful together ({share:.2g} of the empty circuit's loss): seeds"
            f" disagree, and the circuit given is the smallest faithful one, of seed {chosen}"
        )
    losses = searched.losses(mask)
    share = held.shares(losses, everything) or 0.0
    unseen = ~(torch.stack(list(searched.seen)).any(0) if chosen is None else searched.seen[chosen])
    # Where it was found: another sample has other means and partners.
    place = next((i for i, one in enumerate(masks) if torch.equal(one, mask)), 0)
    sample = searched.samples[place]
    ends = torch.stack([torch.zeros(sample.n_edges), mask])
    empty, own = searched.objective(sample.evaluate(ends), sample.clean_outputs).mean(-1).tolist()
    allowed = searched.settings.tolerance * empty
    tried = irreducible(sample, searched.objective, mask, max(allowed, own * ROOM))
    if tried.up_to == "nothing":
        names = " and ".join(str(sample.layout.edges[i]) for i in tried.set)
        said.append(f"reducible: {names} can be cut{' together' * (len(tried.set) > 1)} without a loss above the asked")
    circuit: CircuitFound = {
        "of": of,
        "size": int(mask.sum()),
        "loss": float(losses.mean()),
        "share": share,
        "share_held_out": held.shares(losses, unseen),
        "faithful": share <= searched.settings.tolerance * ROOM,
        "irreducible_up_to": tried.up_to,
        "pairs_tried": tried.pairs,
        "edges": _names(sample, mask),
    }
    others: list[AlternativeFound] = []
    if searched.settings.size is None and own <= allowed * ROOM:
        order = scores.argsort(stable=True).tolist()
        for other in alternatives(sample, searched.objective, mask, order, allowed, good):
            others.append(
                {
                    "size": int(other.mask.sum()),
                    "share": held.shares(searched.losses(other.mask), everything) or 0.0,
                    "found_by": other.found_by,
                    "without": _names(sample, mask * (1 - other.mask)),
                    "instead": _names(sample, other.mask * (1 - mask)),
                }
            )
    if others:
        said.append(f"not the only circuit: {len(others)} that do without some of its edges are listed as alternatives")
    return mask, circuit, others, said


def _names(engine: MaskedForward, mask: Tensor) -> list[str]:
    return [str(edge) for edge in engine.layout.kept(mask)]


def outliers(engine: MaskedForward, empty: Tensor) -> list[str]:
    """Whether one input makes most of the loss that everything is a share of, or has outputs of another size."""
    losses = empty.double().abs()
    size = engine.clean_outputs.double().flatten(1).abs().amax(1)
    if len(losses) < OUTLIER_INPUTS:
        return []
    share = float(losses.max() / losses.sum().clamp_min(1e-300))
    if share > OUTLIER_SHARE and float(losses.max()) > OUTLIER_RATIO * float(losses.median()):
        what = f"input {int(losses.argmax())} is an outlier: it alone makes {share:.0%} of the loss with every edge cut"
    elif float(size.max()) > OUTLIER_SIZE * float(size.median()):
        what = f"input {int(size.argmax())} is an outlier"
    else:
        return []
    return [f"{what} ({largest(engine)}), so what is found is about it; look at it, or leave it out"]

"""Every algorithm by name, run on one or several seeds of data."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from stages.base.progress import report
from stages.circuits.algorithms.acdc import acdc, losses
from stages.circuits.algorithms.attribution import (
    eap,
    eap_ig,
    hisp,
    node_patching,
)
from stages.circuits.algorithms.findable import check_findable
from stages.circuits.algorithms.found import Bill, Found, billed
from stages.circuits.algorithms.joint import joint_cuts
from stages.circuits.algorithms.subnetwork_probing import Probe, probe
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective, projection
from stages.errors import UserError

__all__ = ["METHODS", "SIZED", "STEPPED", "TOLERANT", "Settings", "run_method"]


@dataclass(frozen=True)
class Settings:
    tolerance: float = 1e-3
    """Loss of a faithful circuit, as a share of the loss with every edge cut. ACDC's threshold is the same share."""
    steps: int = 200
    """Of probing."""
    points: int = 5
    """Of the path of eap-ig."""
    size: int | None = None
    """Edges wanted from edge-sp; None: as few as are faithful."""
    joint_after_acdc: bool = False
    """After ACDC, cut sets of edges too, which is no part of the published algorithm; edge-sp always does."""
    linear: Objective | None = projection
    """Loss whose gradient eap, nap and hisp take at the clean run; None: the objective itself."""


def _each(one: Callable[[MaskedForward], Found]) -> Callable[[MaskedForward], list[Found]]:
    def run(engine: MaskedForward) -> list[Found]:
        found = []
        for i in range(engine.groups):
            report("seeds", i, engine.groups)
            found.append(one(engine.group(i) if engine.groups > 1 else engine))
        return found

    return run


def _acdc(engine: MaskedForward, objective: Objective, settings: Settings) -> Found:
    empty = float(losses(engine, objective, torch.zeros(engine.n_edges)))
    threshold = settings.tolerance * empty
    found = acdc(engine, objective, threshold)
    if not settings.joint_after_acdc:
        return found
    assert found.mask is not None, "ACDC finds a circuit"
    with billed(engine) as bill:
        # Not by ACDC's own rule, whose rises add up: the whole loss must stay in bounds, or not rise.
        mask = joint_cuts(
            engine, objective, found.mask, list(range(engine.n_edges))[::-1],
            lambda before, after: after <= max(threshold, before),
        )  # fmt: skip
    return Found(mask.clone(), mask, found.bill + bill, found.mask)


SIZED, STEPPED, TOLERANT = ("edge-sp",), ("edge-sp", "node-sp"), ("edge-sp", "node-sp", "acdc")
"""Methods that take a size, a number of steps, a tolerance."""
METHODS = {
    "edge-sp": "edge subnetwork probing",
    "node-sp": "node subnetwork probing, read as edges",
    "acdc": "ACDC at one threshold",
    "eap": "edge attribution patching",
    "eap-ig": "EAP with integrated gradients over inputs",
    "eap-ig-activations": "EAP with integrated gradients over each source",
    "nap": "node attribution patching, read as edges",
    "hisp": "head importance, read as edges",
    "random": "a random ranking: the control",
}


def run_method(
    name: str, engine: MaskedForward, objective: Objective, generator: torch.Generator, settings: Settings | None = None
) -> list[Found]:
    """One result per group of the engine's data.

    Args:
        name: one of ``METHODS``.
        engine: module, data (``groups`` seeds) and ablation.
        objective: the loss.
        generator: draws starts, gates and random rankings.
        settings: see ``Settings``.

    Raises:
        UserError: the name is unknown, an option is not of this method, there is nothing to find, or the method says
            why it cannot work here.
    """
    settings = settings or Settings()
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown: use {', '.join(METHODS)}")
    if settings.size is not None and name not in SIZED:
        raise UserError(f"size = {settings.size}: only {', '.join(SIZED)} takes one, {name} does not; leave it out")
    if settings.size is not None and not 1 <= settings.size <= engine.n_edges:
        raise UserError(f"size = {settings.size} is out of range: the graph has {engine.n_edges} edges, give 1 to that")
    if name not in STEPPED:  # probing asks itself
        check_findable(engine, objective, ranks=name not in TOLERANT)
    slope = settings.linear or objective
    probing = Probe(tolerance=settings.tolerance, steps=settings.steps, size=settings.size)
    match name:
        case "edge-sp":
            return probe(engine, objective, generator, probing)
        case "node-sp":
            return probe(engine, objective, generator, replace(probing, over="nodes", size=None))
        case "acdc":
            return _each(lambda one: _acdc(one, objective, settings))(engine)
        case "eap":
            return _each(lambda one: eap(one, slope))(engine)
        case "eap-ig":
            return _each(lambda one: eap_ig(one, objective, steps=settings.points))(engine)
        case "eap-ig-activations":
            return _each(lambda one: eap_ig(one, objective, over="activations", steps=settings.points))(engine)
        case "nap":
            return _each(lambda one: node_patching(one, slope))(engine)
        case "hisp":
            return _each(lambda one: hisp(one, slope))(engine)
        case "random":
            n = engine.n_edges
            return [Found(torch.rand(n, generator=generator), None, Bill()) for _ in range(engine.groups)]
    raise AssertionError(f"method {name} is listed and not run")

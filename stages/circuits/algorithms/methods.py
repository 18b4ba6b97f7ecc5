"""Every algorithm by name, run on one or several seeds of data."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from stages.circuits.algorithms.acdc import acdc, losses, only_rounding
from stages.circuits.algorithms.attribution import (
    eap,
    eap_ig,
    hisp,
    node_patching,
)
from stages.circuits.algorithms.found import Bill, Found
from stages.circuits.algorithms.subnetwork_probing import Probe, probe
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective, projection
from stages.errors import UserError

__all__ = ["METHODS", "Settings", "run_method"]


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
    linear: Objective | None = projection
    """Loss whose gradient eap, nap and hisp take at the clean run; None: the objective itself."""


def _each(one: Callable[[MaskedForward], Found]) -> Callable[[MaskedForward], list[Found]]:
    def run(engine: MaskedForward) -> list[Found]:
        return [one(engine.group(i) if engine.groups > 1 else engine) for i in range(engine.groups)]

    return run


def _acdc(engine: MaskedForward, objective: Objective, settings: Settings) -> Found:
    empty = float(losses(engine, objective, torch.zeros(engine.n_edges)))
    if only_rounding(empty, engine.clean_outputs):
        raise UserError("ACDC: with every edge cut the loss is no higher than with none, so there is nothing to find")
    return acdc(engine, objective, settings.tolerance * empty)


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
        UserError: the name is unknown, or the method says why it cannot work here.
    """
    settings = settings or Settings()
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
    raise UserError(f"method {name!r} is unknown: use {', '.join(METHODS)}")

"""Finding a circuit in anyone's module: from a file with ``build`` to edges, metrics, cost, and what is doubtful."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict, cast

import torch
from torch import Tensor, nn

from stages.circuits.algorithms.acdc import losses
from stages.circuits.algorithms.found import Found
from stages.circuits.algorithms.methods import Settings, run_method
from stages.circuits.engine.ablation import Ablation
from stages.circuits.engine.graph import Graph, Node
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective, distance, projection
from stages.circuits.evaluation import (
    agreement,
    divergence,
    faithfulness_curve,
    node_scores,
    random_mask,
    seed_agreement,
)
from stages.circuits.validity import check_circuit
from stages.errors import UserError
from stages.metering.op_table import UnknownOpError, count_flops

__all__ = ["Subject", "discover", "load_subject"]

AT_ONCE = 4096
"""Examples of all seeds together in one batch."""


class ScoredEdge(TypedDict):
    """An edge, best first."""

    source: str
    reader: str
    score: float
    """Mean over seeds."""
    seeds_that_keep_it: int | None
    """None where the method only ranks."""


class ScoredNode(TypedDict):
    node: str
    score: float
    """Of its best edge."""


class SeedRow(TypedDict, total=False):
    """One seed; the last four only where the method finds a circuit."""

    seed: Required[int]
    seconds: Required[float]
    forwards: Required[int]
    backwards: Required[int]
    size: int
    loss: float
    loss_of_random_circuit: float
    agreement: float


class DiscoveryCost(TypedDict):
    seconds_per_seed: float
    forwards: float
    backwards: float
    flops_of_one_forward: int | None
    """By the op table; None where an operation has no price."""
    flops_per_seed: int | None


class Findings(TypedDict):
    """What was found, judged on all of the data."""

    edges: list[ScoredEdge]
    nodes: list[ScoredNode]
    per_seed: list[SeedRow]
    metrics: dict[str, float | list[float] | None]
    cost: DiscoveryCost
    validity: list[str]
    """What to be wary of."""


class Discovery(Findings):
    """The same, and how it was found."""

    method: str
    ablation: str
    ablation_from: str
    """option, target or default."""
    seeds: int
    n_edges: int
    n_inputs: int
    inputs_per_seed: int


@dataclass(frozen=True)
class Subject:
    """What a circuit is looked for in. ``build()`` returns one of these, or a dict with the same keys."""

    module: nn.Module
    """A HookedRootModule in eval mode."""
    clean: Tensor
    """(n, ...) inputs."""
    graph: Graph | None = None
    """None: ``module.circuit()``."""
    counterfactual: Tensor | None = None
    """(n, ...) one for each clean input; needed for ``interchange``."""
    metric: str | Objective = "kl"
    """mse, kl, answer, projection, or a function (S, B, ..., C), (B, ..., C) -> (S, B), 0 = like the full module."""
    ablation: Ablation | None = None
    """Used where the caller states none."""


def load_subject(spec: str) -> Subject:
    """``FILE.py:function`` -> what the function returns.

    Raises:
        UserError: no such file or function, it fails, or what it returns is not a subject.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not name or not path.is_file():
        raise UserError(f"{spec!r} is no target: give FILE.py:function, where the function returns module and data")
    loading = importlib.util.spec_from_file_location(f"lensmith_circuit_{path.stem}", path)
    if loading is None or loading.loader is None:
        raise UserError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(loading)
    sys.modules[loading.name] = module
    try:
        loading.loader.exec_module(module)
        if not callable(getattr(module, name, None)):
            raise UserError(f"{path} has no function {name!r}: define it, without arguments")
        built: Any = getattr(module, name)()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{spec} fails with {type(error).__name__}: {error}; mend it") from error
    if isinstance(built, Mapping):
        unknown = sorted(set(built) - set(Subject.__dataclass_fields__))
        if unknown or not {"module", "clean"} <= set(built):
            raise UserError(
                f"{spec} returns the keys {sorted(built)}: module and clean are needed, graph, counterfactual, metric"
                f" and"
                " ablation may be added"
            )
        built = Subject(**built)
    if not isinstance(built, Subject) or not isinstance(built.clean, Tensor):
        raise UserError(
            f"{spec} returns {type(built).__name__}: return a dict with module and clean (a tensor), or a Subject"
        )
    return built


def _graph(subject: Subject) -> Graph:
    found: Any = subject.graph
    if found is None:
        declare = getattr(subject.module, "circuit", None)
        if not callable(declare):
            raise UserError(
                f"{type(subject.module).__name__} declares no graph: give it a method circuit() that returns"
                " Graph(Node(...), ...), or return graph= from build (docs/circuits.md)"
            )
        found = declare()
    if isinstance(found, list | tuple) and all(isinstance(node, Node) for node in found):
        found = Graph(*found)
    if not isinstance(found, Graph):
        raise UserError(f"the graph is a {type(found).__name__}: return Graph(Node(...), ...)")
    return found


def discover(
    subject: Subject,
    method: str,
    *,
    ablation: str | None = None,
    seeds: int = 1,
    batch: int = 64,
    settings: Settings | None = None,
    metric: str | None = None,
) -> Discovery:
    """Run a method on several seeds and judge what it finds on all of the data.

    Args:
        subject: module and data.
        method: one of ``METHODS``.
        ablation: what cut sources are replaced by; None: the subject's, else "mean", which the result says.
        seeds: each draws its own sample of the data, starts and gates.
        batch: inputs per seed, drawn without replacement; all of them where there are fewer.
        settings: of the method.
        metric: in place of the subject's.

    Returns:
        JSON: edges with scores and in how many seeds' circuits they are, per-seed rows, metrics, cost, validity.

    Raises:
        UserError: whatever is wrong with the module, its declaration, the data or the options; says what to do.
    """
    if seeds < 1 or batch < 1:
        raise UserError(f"seeds = {seeds}, batch = {batch}: both must be at least 1")
    origin = "option" if ablation else "target" if subject.ablation else "default"
    chosen = cast(Ablation, ablation or subject.ablation or "mean")
    objective, settings = distance(metric or subject.metric), settings or Settings()
    if not isinstance(metric or subject.metric, str) or (metric or subject.metric) in ("answer", "projection"):
        settings = Settings(**{**settings.__dict__, "linear": None})
    graph, generator = _graph(subject), torch.Generator().manual_seed(0)
    whole = MaskedForward(
        subject.module,
        graph,
        subject.clean,
        ablation=chosen,
        counterfactual=subject.counterfactual,
        generator=generator,
    )
    size = min(batch, len(subject.clean))
    found: list[Found] = []
    for start in range(0, seeds, max(1, AT_ONCE // size)):
        group = min(max(1, AT_ONCE // size), seeds - start)
        rows = torch.cat([torch.randperm(len(subject.clean), generator=generator)[:size] for _ in range(group)])
        engine = MaskedForward(
            subject.module, graph, subject.clean[rows], ablation=chosen, generator=generator, groups=group, check=False,
            counterfactual=None if subject.counterfactual is None else subject.counterfactual[rows],
        )  # fmt: skip
        found += run_method(method, engine, objective, generator, settings)
    judged = _judged(whole, objective, found, settings, generator, graph, subject, size)
    if origin == "default":
        judged["validity"].insert(0, "no ablation was stated, so mean was used: a circuit holds for its ablation only")
    if method in ("eap", "nap", "hisp") and settings.linear is projection:
        judged["validity"].append(
            "a distance has no slope at the clean run: the ranking's gradient is that of the projection on the clean"
            " outputs"
        )
    return {
        "method": method,
        "ablation": chosen,
        "ablation_from": origin,
        "seeds": seeds,
        "n_edges": whole.n_edges,
        "n_inputs": len(subject.clean),
        "inputs_per_seed": size,
        **judged,
    }


def _judged(
    whole: MaskedForward,
    objective: Objective,
    found: list[Found],
    settings: Settings,
    generator: torch.Generator,
    graph: Graph,
    subject: Subject,
    size: int,
) -> Findings:
    layout = whole.layout
    scores = torch.stack([one.scores for one in found]).mean(0)
    masks = [one.mask for one in found if one.mask is not None]
    votes = torch.stack(masks).sum(0) if masks else None
    empty = float(losses(whole, objective, torch.zeros(whole.n_edges)))
    per_seed = []
    for seed, one in enumerate(found):
        row: SeedRow = {
            "seed": seed,
            "seconds": round(one.bill.seconds, 4),
            "forwards": one.bill.forwards,
            "backwards": one.bill.backwards,
        }
        if one.mask is not None:
            control = random_mask(whole.n_edges, int(one.mask.sum()), generator)
            row["size"] = int(one.mask.sum())
            row["loss"] = float(losses(whole, objective, one.mask))
            row["loss_of_random_circuit"] = float(losses(whole, objective, control))
            row["agreement"] = agreement(whole, one.mask)
        per_seed.append(row)
    order = scores.argsort(descending=True, stable=True).tolist()
    edges: list[ScoredEdge] = [
        {
            "source": layout.edges[place].source,
            "reader": layout.edges[place].reader,
            "score": round(float(scores[place]), 6),
            "seeds_that_keep_it": None if votes is None else int(votes[place]),
        }
        for place in order
    ]
    metrics: dict[str, float | list[float] | None] = {
        "loss_of_empty_circuit": empty,
        "iou_of_seeds": seed_agreement(masks),
    }
    said: tuple[str, ...] = ()
    if empty > 0:
        metrics |= faithfulness_curve(whole, objective, scores)
    if votes is not None:
        majority = (votes * 2 > len(found)).float()
        if whole.clean_outputs.shape[-1] > 1:
            metrics["kl_of_majority_circuit"] = divergence(whole, majority)
        bare = None
        if whole.ablation != "zero":
            bare = MaskedForward(whole.model, graph, subject.clean, ablation="zero", check=False)
        checked = check_circuit(whole, objective, majority, settings.tolerance, bare)
        metrics["majority_size"] = int(majority.sum())
        said = checked.said
    flops, share = flops_of(whole), size / len(subject.clean)
    passes = sum(one.bill.forwards + 2 * one.bill.backwards for one in found) / len(found)
    nodes = node_scores(layout, scores)
    ranked = nodes.argsort(descending=True, stable=True).tolist()
    read = [place for place in ranked if bool(nodes[place].isfinite())]
    return {
        "edges": edges,
        "nodes": [{"node": layout.sources[place], "score": round(float(nodes[place]), 6)} for place in read],
        "per_seed": per_seed,
        "metrics": metrics,
        "cost": {
            "seconds_per_seed": sum(one.bill.seconds for one in found) / len(found),
            "forwards": sum(one.bill.forwards for one in found) / len(found),
            "backwards": sum(one.bill.backwards for one in found) / len(found),
            "flops_of_one_forward": flops,
            "flops_per_seed": None if flops is None else round(flops * share * passes),
        },
        "validity": list(said),
    }


def flops_of(engine: MaskedForward) -> int | None:
    """FLOPs of one masked forward over the engine's data by the house's op table; None where an op has no price."""
    try:
        with count_flops() as counted, torch.no_grad():
            engine(engine.ones() if engine.groups == 1 else engine.ones().repeat(engine.groups, 1))
    except UnknownOpError:
        return None
    return int(counted.flops)

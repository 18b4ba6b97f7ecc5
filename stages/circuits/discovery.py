"""Finding a circuit in anyone's module: from a ``Subject`` to edges, metrics, cost, and what is doubtful."""

from dataclasses import replace
from math import isfinite
from typing import TypedDict, cast

import torch
from torch import Tensor

from stages.circuits.algorithms.acdc import losses
from stages.circuits.algorithms.findable import check_findable, largest, outlier
from stages.circuits.algorithms.found import Found
from stages.circuits.algorithms.methods import TOLERANT, Settings, run_method
from stages.circuits.engine.ablation import Ablation
from stages.circuits.engine.graph import Graph
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective, distance, projection
from stages.circuits.evaluation import divergence, faithfulness_curve, node_scores, random_mask, seed_agreement
from stages.circuits.judging import (
    AlternativeFound,
    CircuitFound,
    Searched,
    SeedRow,
    circuits_of,
    outliers,
    seed_rows,
)
from stages.circuits.subject import Subject, check_subject, graph_of, load_subject
from stages.circuits.validity import check_circuit
from stages.errors import UserError
from stages.metering.op_table import UnknownOpError, count_flops

__all__ = ["Discovery", "Subject", "discover", "load_subject"]

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
    circuit: CircuitFound | None
    """None where the method only ranks."""
    alternatives: list[AlternativeFound]
    """Circuits that do as well; empty: none was found, or the method only ranks."""
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
    tolerance: float | None
    """Share of the empty circuit's loss that was asked for; None where the method only ranks."""
    seeds: int
    n_edges: int
    n_inputs: int
    inputs_per_seed: int


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
        settings: of the method. After ACDC, sets of edges are cut too, as edge-sp does.
        metric: in place of the subject's.

    Returns:
        JSON: edges with scores and in how many seeds' circuits they are, the circuit and its alternatives, per-seed
        rows, metrics, cost, validity.

    Raises:
        UserError: whatever is wrong with the module, its declaration, the data or the options; says what to do.
    """
    if seeds < 1 or batch < 1:
        raise UserError(f"seeds = {seeds}, batch = {batch}: both must be at least 1")
    check_subject(subject)
    origin = "option" if ablation else "target" if subject.ablation else "default"
    chosen = cast(Ablation, ablation or subject.ablation or "mean")
    wanted = metric or subject.metric
    objective, settings = distance(wanted), replace(settings or Settings(), joint_after_acdc=True)
    if not isinstance(wanted, str) or wanted in ("answer", "projection"):
        settings = replace(settings, linear=None)
    graph, generator = graph_of(subject), torch.Generator().manual_seed(0)
    whole = MaskedForward(
        subject.module,
        graph,
        subject.clean,
        ablation=chosen,
        counterfactual=subject.counterfactual,
        generator=generator,
    )
    _check_metric(whole, wanted, objective, method)
    check_findable(whole, objective, ranks=method not in TOLERANT)
    size = min(batch, len(subject.clean))
    found: list[Found] = []
    samples: list[MaskedForward] = []
    seen: list[Tensor] = []
    for start in range(0, seeds, max(1, AT_ONCE // size)):
        group = min(max(1, AT_ONCE // size), seeds - start)
        drawn = [torch.randperm(len(subject.clean), generator=generator)[:size] for _ in range(group)]
        rows = torch.cat(drawn)
        engine = MaskedForward(
            subject.module, graph, subject.clean[rows], ablation=chosen, generator=generator, groups=group, check=False,
            counterfactual=None if subject.counterfactual is None else subject.counterfactual[rows],
        )  # fmt: skip
        samples += [engine.group(i) if group > 1 else engine for i in range(group)]
        seen += [torch.zeros(len(subject.clean), dtype=torch.bool).index_fill(0, one, True) for one in drawn]
        found += _found(method, whole, engine, objective, generator, settings)
    searched = Searched(method, whole, samples, seen, found, objective, settings)
    judged = _judged(searched, generator, graph, subject, size)
    if not _all_finite(judged):
        raise UserError(
            f"a loss or a score came out not finite: {largest(whole)}; leave such inputs out, or scale them"
        )
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
        "tolerance": settings.tolerance if method in TOLERANT else None,
        "seeds": seeds,
        "n_edges": whole.n_edges,
        "n_inputs": len(subject.clean),
        "inputs_per_seed": size,
        **judged,
    }


def _found(
    method: str,
    whole: MaskedForward,
    engine: MaskedForward,
    objective: Objective,
    generator: torch.Generator,
    settings: Settings,
) -> list[Found]:
    """One run; what fails is said in numbers of the whole data, which the user has, not of a seed's sample."""
    try:
        return run_method(method, engine, objective, generator, settings)
    except UserError as error:
        if engine.batch < whole.batch and "every edge cut" in str(error):
            raise UserError(f"on the {engine.batch} inputs of a seed: {error}; or raise --batch") from error
        if outlier(whole):
            raise UserError(f"{error} ({largest(whole)})") from error
        raise


def _check_metric(whole: MaskedForward, wanted: str | Objective, objective: Objective, method: str) -> None:
    """That the metric can tell outputs of this shape apart, and is 0 where nothing is cut."""
    if isinstance(wanted, str):
        if wanted in ("kl", "answer") and whole.clean_outputs.shape[-1] == 1:
            raise UserError(
                f"metric {wanted!r} compares the outputs of an input with one another, and the module has one output:"
                " use --metric mse"
            )
        return
    empty, full = losses(whole, objective, torch.stack([torch.zeros(whole.n_edges), whole.ones()])).tolist()
    if method in TOLERANT and abs(full) > 1e-3 * max(abs(empty), 1e-12):
        raise UserError(
            f"the metric is {full:.3g} on the full module's own outputs (with every edge cut {empty:.3g}): it must be 0"
            " there and rise as outputs move away, since a tolerance is a share of it; of a score, return"
            " score(clean) - score(outputs)"
        )


def _judged(searched: Searched, generator: torch.Generator, graph: Graph, subject: Subject, size: int) -> Findings:
    whole, objective, found = searched.whole, searched.objective, searched.found
    layout, held = whole.layout, searched.held
    scores = torch.stack([one.scores for one in found]).mean(0)
    masks = [one.mask for one in found if one.mask is not None]
    votes = torch.stack(masks).sum(0) if masks else None
    controls = [
        None if one.mask is None else random_mask(whole.n_edges, int(one.mask.sum()), generator) for one in found
    ]
    per_seed, said = seed_rows(searched, held, controls)
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
    empty = float(held.empty.mean())
    metrics: dict[str, float | list[float] | None] = {
        "loss_of_empty_circuit": empty,
        "iou_of_seeds": seed_agreement(masks),
    }
    if empty > 0:
        metrics |= faithfulness_curve(whole, objective, scores)
    circuit: CircuitFound | None = None
    others: list[AlternativeFound] = []
    if votes is not None:
        mask, circuit, others, more = circuits_of(searched, held, per_seed, scores)
        majority = (votes * 2 > len(found)).float()
        if whole.clean_outputs.shape[-1] > 1:
            metrics["kl_of_majority_circuit"] = divergence(whole, majority)
        bare = None
        if whole.ablation != "zero":
            bare = MaskedForward(whole.model, graph, subject.clean, ablation="zero", check=False)
        metrics["majority_size"] = int(majority.sum())
        said += [*more, *check_circuit(whole, objective, mask, searched.settings.tolerance, bare).said]
    said += outliers(whole, held.empty)
    flops, share = flops_of(whole), size / len(subject.clean)
    passes = sum(one.bill.forwards + 2 * one.bill.backwards for one in found) / len(found)
    nodes = node_scores(layout, scores)
    ranked = nodes.argsort(descending=True, stable=True).tolist()
    read = [place for place in ranked if bool(nodes[place].isfinite())]
    return {
        "edges": edges,
        "nodes": [{"node": layout.sources[place], "score": round(float(nodes[place]), 6)} for place in read],
        "circuit": circuit,
        "alternatives": others,
        "per_seed": per_seed,
        "metrics": metrics,
        "cost": {
            "seconds_per_seed": sum(one.bill.seconds for one in found) / len(found),
            "forwards": sum(one.bill.forwards for one in found) / len(found),
            "backwards": sum(one.bill.backwards for one in found) / len(found),
            "flops_of_one_forward": flops,
            "flops_per_seed": None if flops is None else round(flops * share * passes),
        },
        "validity": said,
    }


def _all_finite(found: object) -> bool:
    if isinstance(found, dict):
        return all(_all_finite(value) for value in found.values())
    if isinstance(found, list):
        return all(_all_finite(value) for value in found)
    return not isinstance(found, float) or isfinite(found)


def flops_of(engine: MaskedForward) -> int | None:
    """FLOPs of one masked forward over the engine's data by the house's op table; None where an op has no price."""
    try:
        with count_flops() as counted, torch.no_grad():
            engine(engine.ones() if engine.groups == 1 else engine.ones().repeat(engine.groups, 1))
    except UnknownOpError:
        return None
    return int(counted.flops)

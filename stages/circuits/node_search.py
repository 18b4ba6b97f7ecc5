"""Which heads and MLPs carry a skill of a large model: nodes instead of edges, since edges grow with their square.

Every node is scored by attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348): what it holds on the
clean prompt less what it holds on the counterfactual, times the slope of the margin, over all places. That is the first
order of the margin lost when the node alone is given the counterfactual's value. Circuits are the best nodes of the
ranking; all others are given the counterfactual's values at once, and how much of the margin stays is measured on
MIB's grid of sizes (Mueller et al. 2025, arXiv 2504.13151, section 3): CPR and CMD.

The embedding is no node: an empty circuit still reads the clean words, so its margin is not that of the counterfactual.

Shape legend: n = prompts, P = nodes, K = sizes, C = words.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from stages.circuits.evaluation import GRID
from stages.circuits.node_prompts import Prompts, prompts_of
from stages.contracts.target import Target, TargetSpec
from stages.errors import UserError

__all__ = ["Node", "NodeCircuit", "attribution", "margins_with", "nodes_of", "search_nodes"]

CHUNK = 8
"""Prompts per pass: what all nodes hold is kept for as many."""
N_RANDOM = 5
"""Rankings at random that the search is compared with."""


class Node(NamedTuple):
    hook_point: str
    head: int | None
    """Which head, along axis 2; None: all of the hook point."""

    def __str__(self) -> str:
        layer = self.hook_point.split(".")[1]
        return f"a{layer}.{self.head}" if self.head is not None else f"m{layer}"


class ScoredNode(TypedDict):
    node: str
    score: float
    """Margin lost to first order without it, mean over prompts."""
    alone: float
    """Margin lost in fact when it alone has the counterfactual's value; of the first few nodes."""


class NodeCircuit(TypedDict):
    target: str
    prompts: str
    n_prompts: int
    n_nodes: int
    accuracy: float
    """Share of prompts with a positive margin."""
    margin: float
    """Logit of the right word less that of the counterfactual's, mean over prompts."""
    margin_empty: float
    """The same with every node at its counterfactual's value."""
    nodes: list[ScoredNode]
    shares: list[float]
    faithfulness: list[float]
    """(margin of the circuit - of the empty one) / (of the model - of the empty one), at each share."""
    cpr: float
    """Area under it, on MIB's grid: higher is better."""
    cmd: float
    """Area under |1 - faithfulness|: lower is better."""
    cpr_random: float
    cmd_random: float
    """Means over rankings at random."""
    smallest_90: int | None
    """Nodes of the smallest circuit of the grid with a faithfulness of 0.9 or more."""
    cpu_s: float


def nodes_of(spec: TargetSpec) -> list[Node]:
    """Every head, and every MLP as a whole.

    Raises:
        UserError: the target has neither.
    """
    found: list[Node] = []
    for hook in spec.hooks:
        if hook.role == "head":
            found += [Node(hook.name, head) for head in range(hook.shape[1])]
        elif hook.role == "mlp":
            found.append(Node(hook.name, None))
    if not found:
        raise UserError(f"{spec.name} has no heads and no MLPs among its hook points: there are no nodes to rank")
    return found


def search_nodes(
    target: Target, kind: str, n: int = 64, seed: int = 0, tell: Callable[[str], None] = print, checked: int = 10
) -> NodeCircuit:
    """Rank all nodes on n pairs of prompts, and measure the circuits of the ranking on as many other pairs.

    Raises:
        UserError: such prompts cannot be made, the target cannot do them, or it does them without any node.
    """
    begun = time.process_time()
    nodes, generator = nodes_of(target.spec), torch.Generator().manual_seed(seed)
    both = prompts_of(target, kind, 2 * n, generator)
    scored_on, held_out = (_part(both, slice(i * n, (i + 1) * n)) for i in (0, 1))
    tell(f"scoring {len(nodes)} nodes on {n} pairs of prompts")
    scores_P = attribution(target, nodes, scored_on)
    full = margins_with(target, nodes, held_out, torch.ones(1, len(nodes)))[0]
    empty = float(margins_with(target, nodes, held_out, torch.zeros(1, len(nodes)))[0].mean())
    margin = float(full.mean())
    if margin <= 0:
        raise UserError(f"{target.name} cannot do {kind}: the margin of the right word is {margin:.2f} nats on average")
    if abs(margin - empty) < 1e-6 * max(1.0, abs(margin)):
        raise UserError(f"{target.name} does {kind} without any head or MLP: faithfulness is not defined")

    def curve(ranking: Tensor) -> Tensor:
        counts = [round(share * len(nodes)) for share in GRID]
        masks = torch.zeros(len(GRID), len(nodes))
        for row, count in zip(masks, counts, strict=True):
            row[ranking[:count]] = 1.0
        return (margins_with(target, nodes, held_out, masks).mean(1) - empty) / (margin - empty)

    tell(f"measuring circuits of {len(GRID)} sizes")
    order = scores_P.argsort(descending=True, stable=True)
    f = curve(order).double()
    k = torch.tensor(GRID, dtype=torch.float64)
    tell(f"measuring {N_RANDOM} rankings at random")
    chance = [curve(torch.randperm(len(nodes), generator=generator)).double() for _ in range(N_RANDOM)]
    without = 1.0 - torch.eye(len(nodes))[order[:checked]]
    alone = margin - margins_with(target, nodes, held_out, without).mean(1)
    good = [round(share * len(nodes)) for share, value in zip(GRID, f.tolist(), strict=True) if value >= 0.9]
    return {
        "target": target.name,
        "prompts": kind,
        "n_prompts": n,
        "n_nodes": len(nodes),
        "accuracy": float((full > 0).double().mean()),
        "margin": margin,
        "margin_empty": empty,
        "nodes": [
            {"node": str(nodes[i]), "score": float(scores_P[i]), "alone": float(lost)}
            for i, lost in zip(order[:checked].tolist(), alone, strict=True)
        ],
        "shares": list(GRID),
        "faithfulness": f.tolist(),
        "cpr": float(torch.trapezoid(f, k)),
        "cmd": float(torch.trapezoid((1 - f).abs(), k)),
        "cpr_random": float(torch.stack([torch.trapezoid(one, k) for one in chance]).mean()),
        "cmd_random": float(torch.stack([torch.trapezoid((1 - one).abs(), k) for one in chance]).mean()),
        "smallest_90": min(good) if good else None,
        "cpu_s": round(time.process_time() - begun, 1),
    }


def attribution(target: Target, nodes: Sequence[Node], prompts: Prompts) -> Tensor:
    """(P,) mean over prompts of (held on clean - held on counterfactual) . d margin / d held on clean."""
    names = sorted({node.hook_point for node in nodes})
    total = torch.zeros(len(nodes))
    for part in _chunks(prompts):
        other = _held(target, names, part.counterfactual)
        leaves: dict[str, Tensor] = {}
        hooks = [(name, partial(_as_leaf, leaves, name)) for name in names]
        with torch.enable_grad(), target.model.hooks(fwd_hooks=hooks):
            margin = _margin(target.model(part.clean), part)
            slopes = torch.autograd.grad(margin.sum(), [leaves[name] for name in names])
        slope = dict(zip(names, slopes, strict=True))
        for place, (name, head) in enumerate(nodes):
            moved = (leaves[name].detach() - other[name]) * slope[name]
            total[place] += (moved if head is None else moved.select(2, head)).sum()
    return total / len(prompts.right)


def margins_with(target: Target, nodes: Sequence[Node], prompts: Prompts, masks: Tensor) -> Tensor:
    """(K, n) margins with the nodes of each mask (K, P) as they are, and the others at their counterfactual's value."""
    names = sorted({node.hook_point for node in nodes})
    rows = []
    for part in _chunks(prompts):
        other = _held(target, names, part.counterfactual)
        columns = []
        for mask in masks:
            kept = _kept(nodes, mask, other)
            hooks = [(name, partial(_patched, kept[name], other[name])) for name in names]
            with torch.no_grad(), target.model.hooks(fwd_hooks=hooks):
                columns.append(_margin(target.model(part.clean), part))
        rows.append(torch.stack(columns))
    return torch.cat(rows, dim=1)


def _kept(nodes: Sequence[Node], mask: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per hook point what its values are multiplied by: (1, 1, heads, 1), or (1, 1, 1)."""
    kept = {name: torch.zeros(1, 1, *value.shape[2:-1], 1) for name, value in like.items()}
    for (name, head), keep in zip(nodes, mask.tolist(), strict=True):
        if head is None:
            kept[name].fill_(keep)
        else:
            kept[name][:, :, head] = keep
    return kept


def _held(target: Target, names: Sequence[str], inputs: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor, hook: Any) -> None:
        found[name] = value.detach()

    with torch.no_grad(), target.model.hooks(fwd_hooks=[(name, partial(keep, name)) for name in names]):
        target.model(inputs)
    return found


def _as_leaf(leaves: dict[str, Tensor], name: str, value: Tensor, hook: Any) -> Tensor:
    """The value, part of the graph: gradients flow through it to earlier nodes, and stop at it as well."""
    leaves[name] = value if value.requires_grad else value.detach().requires_grad_(True)
    return leaves[name]


def _patched(kept: Tensor, other: Tensor, value: Tensor, hook: Any) -> Tensor:
    return value * kept + other * (1.0 - kept)


def _margin(outputs: Tensor, prompts: Prompts) -> Tensor:
    """(n,) logit of the right word less that of the wrong one."""
    right, wrong = (outputs.gather(1, words.unsqueeze(1)) for words in (prompts.right, prompts.wrong))
    margin: Tensor = (right - wrong).squeeze(1)
    return margin


def _part(prompts: Prompts, which: slice) -> Prompts:
    return Prompts(*(getattr(prompts, name)[which] for name in ("clean", "counterfactual", "right", "wrong")))


def _chunks(prompts: Prompts) -> list[Prompts]:
    n = len(prompts.right)
    return [_part(prompts, slice(start, start + CHUNK)) for start in range(0, n, CHUNK)]

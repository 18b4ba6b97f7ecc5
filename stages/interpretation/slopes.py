"""Frozen slopes: how the outputs move, on average over the corpus, when something is added at a place.

Free phase: gradients of the loss, of the margin, and of the log-probability of every output (where there are few) at
each place, their means and second moments. A direction is then answered by a few products, without asking the target:
d . mean(g) to first order, d . mean(g g') . d for how much it can do at all, and how many of some margins it turns.
Sources: influence of an additive change to first order as in attribution patching (Nanda 2023; Syed et al. 2023,
2310.10348); second moments of gradients as in the empirical Fisher (Amari 1998, Natural gradient, section 2).

Shape legend: n = directions, m = corpus inputs, W = width of a place, C = outputs, P = changes of a pool.
"""

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.method import Budget, Interpretation, Propose, Steer
from stages.contracts.target import Intervention, Objective, TargetAccess, TargetSpec
from stages.interpretation.representation import hook_names

__all__ = ["CORPUS_INPUTS", "WIDEST", "best_changes", "frozen_slopes", "steered", "widths"]

CORPUS_INPUTS = 256
N_MARGINS = 48
"""Corpus inputs whose margins are kept one by one: a mean does not say how many fall."""
MOST_OUTPUTS = 16
"""Of a target with more, slopes of single outputs are not taken."""
WIDEST = 512
N_PROPOSED = 2


def frozen_slopes(target: TargetAccess, budget: Budget) -> dict[str, Tensor]:
    """Arrays for ``steered``, by "<place>/<what>"; places that do not fit half of I(M) are left out."""
    spec, corpus = target.spec, target.corpus("train")
    inputs, labels = corpus.inputs[:CORPUS_INPUTS], corpus.labels[:CORPUS_INPUTS]
    if spec.n_vocabulary is not None:
        labels = labels.clamp(max=spec.n_outputs - 1)
    n_outputs = spec.n_outputs if spec.n_outputs <= MOST_OUTPUTS else 0
    width = widths(spec)
    places, left = [], budget.max_bytes // 2
    for name, wide in width.items():
        size = 4 * (wide * wide * (2 + n_outputs) + wide * (N_MARGINS + n_outputs + 2))
        if wide <= WIDEST and size <= left:
            places.append(name)
            left -= size
    if not places:
        return {}
    start = inputs.mean(0) if spec.leaf == "input" else inputs[0]
    arrays = {"start": start, "start.outputs": target.forward(start.unsqueeze(0)).outputs[0]}
    margin = target.gradients(inputs, Objective("margin", labels), places)
    loss = target.gradients(inputs, Objective("loss", labels), places)
    for name in places:
        g, m = _flat(loss.grads[name], width[name]), _flat(margin.grads[name], width[name])
        arrays |= {
            f"{name}/loss": g.mean(0),
            f"{name}/loss2": g.T @ g / len(g),
            f"{name}/margin": m.mean(0),
            f"{name}/margin2": m.T @ m / len(m),
            f"{name}/margins": m[:N_MARGINS].clone(),
        }
    arrays["margins"] = margin.values[:N_MARGINS].clone()
    means: dict[str, list[Tensor]] = {name: [] for name in places}
    moments: dict[str, list[Tensor]] = {name: [] for name in places}
    values = []
    for output in range(n_outputs):
        of = target.gradients(inputs, Objective("log_prob", torch.full((len(inputs),), output)), places)
        values.append(of.values.mean())
        for name in places:
            g = _flat(of.grads[name], width[name])
            means[name].append(g.mean(0))
            moments[name].append(g.T @ g / len(g))
    for name in places if n_outputs else ():
        arrays |= {f"{name}/outputs": torch.stack(means[name]), f"{name}/outputs2": torch.stack(moments[name])}
    if n_outputs:
        arrays["values"] = torch.stack(values)
    return arrays


def widths(spec: TargetSpec) -> dict[str, int]:
    """{place: W} where a direction may be added; slopes are kept at those of at most ``WIDEST``."""
    width = {name: spec.hook(name).width for name in hook_names(spec, ("residual", "mlp"))}
    return {"input": prod(spec.input_shape)} | width if spec.leaf == "input" else width


def _flat(grad: Tensor, width: int) -> Tensor:
    """(m, ..., W) -> (m, W): what is added at a place is added at all its positions."""
    if grad.dim() > 2 and grad[0].numel() != width:
        return grad.reshape(grad.shape[0], -1, width).sum(1)
    return grad.flatten(1)


def steered(query: Steer, interpretation: Interpretation, target: TargetAccess) -> Tensor | None:
    """(n, k); None where the place was left out."""
    arrays, place = interpretation.arrays, query.hook_point
    if f"{place}/loss" not in arrays:
        return None
    d_nW = query.directions.flatten(1)
    if query.labels is not None and f"{place}/outputs" in arrays:
        return _of_outputs(d_nW, query, interpretation, target)
    falls = d_nW @ arrays[f"{place}/margins"].T + arrays["margins"]
    lossy = F.softplus(-falls).mean(-1) - F.softplus(-arrays["margins"]).mean()
    columns = [
        d_nW @ arrays[f"{place}/loss"],
        d_nW @ arrays[f"{place}/margin"],
        ((d_nW @ arrays[f"{place}/loss2"]) * d_nW).sum(-1),
        ((d_nW @ arrays[f"{place}/margin2"]) * d_nW).sum(-1),
        lossy,
        lossy.clamp_min(1e-6).log(),
    ]
    return torch.stack(columns, dim=-1)


def _of_outputs(d_nW: Tensor, query: Steer, interpretation: Interpretation, target: TargetAccess) -> Tensor:
    """About one output of each row: slopes of its log-probability, and one pass on the corpus mean."""
    arrays, place, labels = interpretation.arrays, query.hook_point, query.labels
    assert labels is not None
    line = (d_nW * arrays[f"{place}/outputs"][labels]).sum(-1)
    square = ((d_nW.unsqueeze(1) @ arrays[f"{place}/outputs2"][labels]).squeeze(1) * d_nW).sum(-1)
    start = arrays["start"].unsqueeze(0).expand(len(d_nW), *arrays["start"].shape)
    if place == "input":
        outputs = target.forward(start + query.directions).outputs
    else:
        inside = len(target.spec.hook(place).shape)
        value = d_nW.view(len(d_nW), *[1] * (inside - 1), d_nW.shape[1])
        outputs = target.forward(start, interventions=[Intervention(place, "add", value)]).outputs
    log_prob = outputs.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    before = arrays["start.outputs"].log_softmax(-1)[labels]
    mean = arrays["values"][labels]
    return torch.stack([line, line + mean, mean, square, log_prob, log_prob.exp(), log_prob - before], dim=-1)


def best_changes(query: Propose, target: TargetAccess) -> Tensor:
    """(n, N_PROPOSED, *input_shape): the changes of the pool that the slope at the input says reach most."""
    spec, n = target.spec, len(query.labels)
    if query.variants:  # each row asks its own
        found = [
            target.variant(index).gradients(
                query.inputs[row : row + 1], Objective(query.objective, query.labels[row : row + 1]), [spec.leaf]
            )
            for row, index in enumerate(query.variants)
        ]
        slope = torch.cat([one.grads[spec.leaf] for one in found])
        at = torch.cat([one.captured[spec.leaf] for one in found]) if spec.leaf in found[0].captured else None
    else:
        whole = target.gradients(query.inputs, Objective(query.objective, query.labels), [spec.leaf])
        slope, at = whole.grads[spec.leaf], whole.captured.get(spec.leaf)
    changes = query.changes
    if at is not None:  # of words: to hide one is to take away what stands there
        slope, moved = (slope * at).flatten(2).sum(-1), changes[..., 1].flatten(-1)
    else:
        slope, moved = slope.flatten(1), changes.flatten(-len(spec.input_shape))
    scores = slope @ moved.T if moved.dim() == 2 else (moved @ slope.unsqueeze(-1)).squeeze(-1)
    chosen = scores.topk(N_PROPOSED, dim=-1).indices
    rows = torch.arange(n).unsqueeze(-1)
    picked = changes[chosen] if moved.dim() == 2 else changes[rows, chosen]
    return query.inputs.unsqueeze(1) + picked

"""Circuits: what carries the corpus's answers is found once and frozen; a query pays for one gradient.

Free phase: every component is zeroed in turn on part of the corpus (exact effects, by right answer), and while it is,
what the other components hold is compared with the intact pass: times the slope of the margin there, that is the edge
from the one to the other (path patching, Wang et al. 2022, 2211.00593, with the last step to first order). A target
with more components than ``MAX_EXACT`` gets effects to first order from one gradient, as a query does, and no edges.

Queries: attribution patching (Nanda 2023; Syed et al. 2023, 2310.10348) on the behaviour, of the *margin*, since the
loss has no slope where the target is sure of itself; the loss follows from the margin. Hiding a segment cuts the
attention edges that lead out of it, and softmax deals their weight to the rest: a sum of known terms, no further pass.

Shape legend: n = inputs or behaviours, m = inputs per behaviour, P = components, C = outputs, S = segments,
H = heads, T = token positions (TQ: reading, TK: read).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.method import (
    Answer,
    Attribute,
    Budget,
    Interpretation,
    Localise,
    Method,
    Query,
    segment_sums,
)
from stages.contracts.target import Component, Gradients, Intervention, Objective, TargetAccess, TargetSpec
from stages.interpretation.representation import by_component

__all__ = ["Circuit"]

CORPUS_INPUTS = 256
"""Inputs on which the components are ablated: the free phase is one forward of these per component."""
MAX_EXACT = 128
"""Components that are zeroed one by one: each takes a forward pass, and a free phase has a minute."""
PART = 32
"""Inputs at once where components are many: what all of them hold, and its slopes, are there at the same time."""
MAX_ANSWERS = 1024
"""Answers that effects are told apart by; with more of them (a vocabulary), few occur in the corpus twice."""
SURE = 1e-3
"""Least attention left over after a cut: less is rounding."""


class Circuit(Method):
    name = "circuit"

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        components = target.spec.components
        corpus = target.corpus("train")
        inputs, labels = corpus.inputs[:CORPUS_INPUTS], corpus.labels[:CORPUS_INPUTS]
        names = sorted({component.hook_point for component in components})
        residual = [hook.name for hook in target.spec.with_role("residual")]
        leaf = target.spec.leaf
        read = list(dict.fromkeys([leaf, *names, *residual]))
        if len(components) > MAX_EXACT:
            return Interpretation(_to_first_order(target, inputs, labels, read))
        intact = target.gradients(inputs, Objective("margin", labels), read)
        arrays = _means(target.spec, inputs, intact.captured)
        if leaf == "input":
            arrays["mean.input"] = inputs.mean(0)
        if not components:
            return Interpretation(arrays)
        share_BC = _shares(labels, target.spec.n_outputs, intact.values.dtype)
        effects, edges = [], []
        clean_B = F.cross_entropy(target.forward(inputs).outputs, labels, reduction="none")
        for component in components:
            cut = Intervention(component.hook_point, "zero", axis=component.axis, indices=(component.index,))
            found = target.forward(inputs, capture=names, interventions=[cut])
            effects.append(F.cross_entropy(found.outputs, labels, reduction="none") - clean_B)
            moved = {
                name: ((intact.captured[name] - found.captured[name]) * intact.grads[name]).mean(0, keepdim=True)
                for name in names
            }
            edges.append(torch.stack([moved[c.hook_point].select(c.axis, c.index).sum() for c in components]))
        by_answer_PC = torch.stack(effects) @ share_BC
        edges_PP = torch.stack(edges)
        edges_PP.fill_diagonal_(0.0)
        return Interpretation(arrays | {"effects": by_answer_PC, "edges": edges_PP})

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        match query:
            case Attribute():
                return self._attribute(query, interpretation, target)
            case Localise() if query.components and set(query.components) <= set(target.spec.components):
                return self._localise(query, interpretation, target)
            case _:
                return None

    def _localise(self, query: Localise, interpretation: Interpretation, target: TargetAccess) -> Tensor:
        arrays, n, m = interpretation.arrays, *query.inputs.shape[:2]
        names = sorted({component.hook_point for component in query.components})
        labels = query.labels.flatten()
        result = target.gradients(query.inputs.flatten(0, 1), Objective("margin", labels), names)

        def effects(hook_point: str, axis: int, indices: Tensor) -> Tensor:
            """(2, ...) per index: what the margin loses if the component is cut, and if it is set to its mean."""
            centre = arrays[f"mean.{hook_point}"].unsqueeze(0).index_select(axis, indices)
            slope = result.grads[hook_point].index_select(axis, indices)
            held = result.captured[hook_point].index_select(axis, indices)
            both = torch.stack([slope * held, slope * (held - centre)]).movedim(axis + 1, 0)
            return -both.reshape(len(indices), 2, n, m, -1).sum(-1)

        found_P2nm = by_component(query.components, effects)
        cut_nPm, moved_nPm = found_P2nm[:, 0].transpose(0, 1), found_P2nm[:, 1].transpose(0, 1)
        margin_n1m = result.values.reshape(n, 1, m)
        loss_nPm = F.softplus(-(margin_n1m + cut_nPm)) - F.softplus(-margin_n1m)
        carries_nP = cut_nPm.abs().mean(-1)
        known = [target.spec.components.index(component) for component in query.components]
        effects_PC = arrays["effects"][known]
        share_nC = _answers(query.labels, target.spec.n_outputs).to(effects_PC.dtype).mean(1)
        columns = [
            loss_nPm.mean(-1),
            cut_nPm.mean(-1),
            carries_nP,
            moved_nPm.mean(-1),
            share_nC @ effects_PC.T,
        ]
        if "edges" in arrays:
            # How much of what it does arrives where this behaviour passes.
            columns.append(carries_nP @ arrays["edges"][known][:, known].abs().T)
        return torch.stack(columns, dim=-1)

    def _attribute(self, query: Attribute, interpretation: Interpretation, target: TargetAccess) -> Tensor:
        spec, arrays = target.spec, interpretation.arrays
        residual = [hook.name for hook in spec.with_role("residual")] if spec.tokens else []
        patterns = [hook.name for hook in spec.with_role("pattern")] if spec.tokens else []
        wrt = list(dict.fromkeys([spec.leaf, *residual, *patterns]))
        result = target.gradients(query.inputs, Objective("margin", query.labels), wrt)
        columns = []
        if spec.leaf == "input":  # of words the embedding, which is among the residual hook points, takes its place
            at_input = (query.inputs - arrays["mean.input"]) * result.grads["input"]
            columns = [segment_sums(at_input, query.segments), segment_sums(at_input.abs(), query.segments)]
        if spec.tokens is not None:
            places = [[token for index in segment for token in spec.tokens[index]] for segment in query.segments]
            for name in residual:
                away = result.captured[name] - arrays[f"mean.{name}"]
                columns.append(segment_sums(result.grads[name] * away, places))
            hidden = [_hidden(result.captured[name], result.grads[name], places) for name in patterns]
            columns += hidden
            if hidden:
                total = torch.stack(hidden).sum(0)
                margin = result.values.unsqueeze(-1)
                columns += [total, F.softplus(-(margin - total)) - F.softplus(-margin)]
        return torch.stack(columns, dim=-1)


def _answers(labels: Tensor, n_outputs: int) -> Tensor:
    """(..., C) which answer is right, one-hot; (..., 1) ones where there are more than effects are told apart by."""
    if n_outputs > MAX_ANSWERS:
        return torch.ones_like(labels).unsqueeze(-1)
    return F.one_hot(labels, n_outputs)


def _shares(labels: Tensor, n_outputs: int, dtype: torch.dtype) -> Tensor:
    """(B, C) one over how many inputs have an answer, for those that have it."""
    answers_BC = _answers(labels, n_outputs).to(dtype)
    return answers_BC / answers_BC.sum(0).clamp_min(1.0)


def _to_first_order(target: TargetAccess, inputs: Tensor, labels: Tensor, read: Sequence[str]) -> dict[str, Tensor]:
    """Means of what is held, and effects by answer from one gradient, a part of the inputs at a time."""
    sums: dict[str, Tensor] = {}
    effects, n_rows = [], 0
    for part, right in zip(torch.split(inputs, PART), torch.split(labels, PART), strict=True):
        intact = target.gradients(part, Objective("margin", right), read)
        held = intact.captured if target.spec.leaf != "input" else {**intact.captured, "input": part}
        rows = len(part) if target.spec.n_vocabulary is None else int((part[..., 1] > 0.5).sum())
        for name, mean in _means(target.spec, part, held).items():
            sums[name] = sums.get(name, torch.zeros(())) + rows * mean
        lost_PB = _first_order(target.spec.components, intact)
        effects.append(F.softplus(lost_PB - intact.values) - F.softplus(-intact.values))
        n_rows += rows
    effects_PB = torch.cat(effects, dim=1)
    share_BC = _shares(labels, target.spec.n_outputs, effects_PB.dtype)
    return {name: total / n_rows for name, total in sums.items()} | {"effects": effects_PB @ share_BC}


def _first_order(components: Sequence[Component], intact: Gradients) -> Tensor:
    """(P, B) what the margin loses to first order if each component is zeroed: slope times what it holds, summed."""
    columns = [
        (intact.grads[c.hook_point] * intact.captured[c.hook_point])
        .select(c.axis, c.index)
        .reshape(len(intact.values), -1)
        .sum(1)
        for c in components
    ]
    return torch.stack(columns)


def _means(spec: TargetSpec, inputs: Tensor, captured: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{"mean.<hook point>": mean over the inputs}; of words over all places where one is, the same at each place."""
    if spec.n_vocabulary is None:
        return {f"mean.{name}": values.mean(0) for name, values in captured.items()}
    present = inputs[..., 1] > 0.5
    return {
        f"mean.{name}": values[present].mean(0).expand(values.shape[1:]).contiguous()
        for name, values in captured.items()
    }


def _hidden(pattern: Tensor, grad: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
    """What the margin loses if nobody outside a segment attends into it, the other weights scaled up to sum to 1.

    Args:
        pattern: (n, H, TQ, TK), rows sum to 1.
        grad: (n, H, TQ, TK) slope of the margin there.
        places: token positions of each of S segments.

    Returns:
        (n, S): first order in the pattern, exact in the scaling.
    """
    read = pattern * grad
    whole = read.sum(-1)
    columns = []
    for tokens in places:
        inside, weight = read[..., tokens].sum(-1), pattern[..., tokens].sum(-1)
        lost = whole - (whole - inside) / (1.0 - weight).clamp_min(SURE)
        outside = torch.ones(pattern.shape[2])
        outside[tokens] = 0.0  # a hidden token still attends to itself
        columns.append((lost * outside).flatten(1).sum(-1))
    return torch.stack(columns, dim=1)

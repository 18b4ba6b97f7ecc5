"""Text that every emitted program begins with: imports and small functions on tensors that need no values.

Shapes in the text: a hook point's activation has leading axes (inputs, or variants and inputs) and then its own.
"""

__all__ = ["HEAD"]

HEAD = '''import torch

from lensmith import (
    Attribute, Compare, Interpretation, Intervention, Localise, Method, Objective, Propose, Represent, Steer, by_group,
    segment_sums,
)


def hooks(spec, roles):
    """Names of hook points; those that the unembedding can read where there is none of the role, "last": the last."""
    readable = [hook.name for hook in spec.with_role("residual")]
    if roles == "last":
        return readable[-1:]
    wanted = ("residual", "mlp") if roles == "both" else (roles,)
    return [hook.name for hook in spec.hooks if hook.role in wanted] or readable


def places(values, hook):
    """(..., *shape) -> (..., T, W)."""
    if len(hook.shape) == 1:
        return values.unsqueeze(-2)
    return values if len(hook.shape) == 2 else values.flatten(-2)


def read_at(spec, rows):
    return 0 if spec.tokens is None or rows.shape[-2] == 1 else spec.tokens[-1][-1]


def pooled(values, hook, how, spec, inputs):
    """(..., *shape) -> (..., W); places without a word are left out."""
    rows = places(values, hook)
    if how == "readout":
        return rows[..., read_at(spec, rows), :]
    if spec.n_vocabulary is not None and rows.shape[-2] == inputs.shape[-2]:
        there = inputs[..., 1:]
        if how == "mean":
            return (rows * there).sum(-2) / there.sum(-2).clamp_min(1.0)
        return torch.where(there > 0.5, rows, -1e4).amax(-2)
    return rows.mean(-2) if how == "mean" else rows.amax(-2)


def size(values, lead=1):
    """Euclidean length over all axes but the first ones."""
    flat = values.flatten(lead)
    return (flat * flat).sum(-1).sqrt()


def some_corpus(target, n=1000):
    corpus = target.corpus("train")
    return corpus.inputs[:n], corpus.labels[:n].clamp(max=target.spec.n_outputs - 1)


def by_component(components, of):
    """One row per component; those of one hook point and axis together."""
    groups = {}
    for place, (hook, axis, _) in enumerate(components):
        groups.setdefault((hook, axis), []).append(place)
    rows = [of(hook, axis, [components[p].index for p in at]) for (hook, axis), at in groups.items()]
    order = [place for at in groups.values() for place in at]
    back = torch.tensor(sorted(range(len(order)), key=order.__getitem__))
    return torch.cat(rows).index_select(0, back)


def of_label(values, labels):
    """(..., C) -> (...): the entry of the label, or of the target's own answer."""
    labels = values.argmax(-1) if labels is None else labels
    return values.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
'''

"""Honest methods of many styles, composed from what they read and what they make of it. None may be punished: recorded
and run, each must answer the same, at the same price, as when it is called on the data."""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.method import Budget, Interpretation, Method, Query, Represent
from stages.contracts.target import Intervention, Objective, TargetAccess

__all__ = ["Honest", "methods"]

N_MEANS = 8


def _hooks(target: TargetAccess) -> list[str]:
    return [hook.name for hook in target.spec.hooks if hook.role in ("residual", "mlp")]


def _read(x: Tensor, target: TargetAccess, names: Sequence[str]) -> Tensor:
    captured = target.forward(x, names).captured
    return torch.cat([captured[name].flatten(1) for name in names], dim=-1)


def _ablated(x: Tensor, made: Interpretation, target: TargetAccess) -> Tensor:
    """What each hook point carries: the outputs' change when it is zeroed."""
    whole = target.forward(x).outputs
    cut = [target.forward(x, (), [Intervention(name, "zero")]).outputs for name in _hooks(target)]
    return torch.cat([whole - one for one in cut], dim=-1)


def _patched(x: Tensor, made: Interpretation, target: TargetAccess) -> Tensor:
    """The outputs with the last hook point set to the corpus mean."""
    name = _hooks(target)[-1]
    return target.forward(x, (), [Intervention(name, "set", made.arrays["mean"])]).outputs


def _steered(x: Tensor, made: Interpretation, target: TargetAccess) -> Tensor:
    name = _hooks(target)[-1]
    return target.forward(x, (), [Intervention(name, "add", made.arrays["means"][0])]).outputs


def _gradient(x: Tensor, made: Interpretation, target: TargetAccess) -> Tensor:
    return target.gradients(x, Objective("margin"), ["input"]).grads["input"].flatten(1)


def _patching(x: Tensor, made: Interpretation, target: TargetAccess) -> Tensor:
    name = _hooks(target)[-1]
    found = target.gradients(x, Objective("logit"), [name])
    return (found.grads[name] * found.captured[name]).flatten(1)


def _likeness(x: Tensor, made: Interpretation, target: TargetAccess) -> Tensor:
    """Cosine with the mean of each class."""
    return F.cosine_similarity(_last(x, target).unsqueeze(1), made.arrays["means"], dim=-1)


def _last(x: Tensor, target: TargetAccess) -> Tensor:
    return _read(x, target, _hooks(target)[-1:])


READS: dict[str, Callable[[Tensor, Interpretation, TargetAccess], Tensor]] = {
    "outputs": lambda x, made, target: target.forward(x).outputs,
    "activations": lambda x, made, target: _read(x, target, _hooks(target)),
    "components": lambda x, made, target: (_last(x, target) - made.arrays["mean"]) @ made.arrays["basis"],
    "likeness": _likeness,
    "gradient": _gradient,
    "attribution_patching": _patching,
    "ablation": _ablated,
    "patching": _patched,
    "steering": _steered,
}


def _attend(a: Tensor) -> Tensor:
    rows = a[:, : a.shape[1] // 2 * 2].reshape(len(a), 1, 2, -1)
    return F.scaled_dot_product_attention(rows, rows, rows).flatten(1)


def _in_place(a: Tensor) -> Tensor:
    out = a.clone()
    out[:, 0] = 1.0
    out.mul_(2.0).add_(1.0)
    return out


MAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "as_it_is": lambda a: a,
    "sizes": lambda a: torch.stack([a.norm(dim=-1), a.abs().amax(-1), a.std(-1), a.mean(-1)], dim=-1),
    "largest": lambda a: a.topk(min(4, a.shape[1]), dim=-1).values,
    "sorted": lambda a: a.sort(dim=-1).values[:, -3:],
    "softmax": lambda a: torch.cat([a.softmax(-1), -(a.softmax(-1) * a.log_softmax(-1)).sum(-1, keepdim=True)], -1),
    "normalised": lambda a: F.layer_norm(a, a.shape[1:]),
    "masked": lambda a: torch.where(a > 0, a, torch.zeros_like(a)) + a.masked_fill(a < 0, -1.0),
    "smoothed": lambda a: F.conv1d(a.unsqueeze(1), torch.ones(1, 1, 3) / 3, padding=1).squeeze(1),
    "spectrum": lambda a: torch.fft.rfft(a).abs(),
    "attended": _attend,
    "across_inputs": lambda a: (a - a.mean(0)) / (a.std(0) + 1e-6),
    "neighbours": lambda a: torch.cdist(a, a).topk(3, largest=False).values,
    "looked_up": lambda a: a.gather(1, a.argsort(dim=-1)[:, :2]),
    "in_place": _in_place,
    "in_double": lambda a: (a.double() @ torch.eye(a.shape[1], 3, dtype=torch.float64)).tanh(),
    "counted": lambda a: torch.stack([(a > level).float().sum(-1) for level in (0.0, 0.5, 1.0)], dim=-1),
}


class Honest(Method):
    def __init__(self, reads: str, makes: str) -> None:
        self.reads, self.makes = reads, makes
        self.name = f"{reads}.{makes}"

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        corpus = target.corpus("train")
        rows = _last(corpus.inputs[:500], target)
        mean = rows.mean(0)
        _, _, basis = torch.linalg.svd(rows - mean, full_matrices=False)
        means = torch.stack([rows[corpus.labels[:500] == label].mean(0) for label in range(target.spec.n_outputs)])
        shape = target.spec.hook(_hooks(target)[-1]).shape
        arrays = {"mean": mean, "basis": basis[:N_MEANS].T.contiguous(), "means": means}
        if len(shape) > 1:
            arrays["mean"] = mean.reshape(1, *shape)
        return Interpretation(arrays)

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Tensor | None:
        if not isinstance(query, Represent):
            return None
        return MAKES[self.makes](READS[self.reads](query.inputs, interpretation, target))


def methods(n: int) -> Sequence[Honest]:
    """n methods: every reading and every making in several."""
    everything = [Honest(*parts) for parts in product(READS, MAKES)]
    step = max(1, len(everything) // n)
    return everything[::step][:n] if step > 1 else everything[:n]

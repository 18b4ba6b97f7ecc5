"""Ways to take a behaviour away without a circuit: training against it, task vectors, a rank-one edit.

Each stops as soon as the behaviour is gone on the inputs it is edited with, so that they are compared at equal removal.

    ascent        gradient ascent on the loss of the inputs that show it, and nothing else
                  (Jang et al. 2023, 2210.01504)
    relabel       fine-tuning: those inputs with the target's second answer, all others with the right one
    task-vector   weights - a * (weights fine-tuned on the behaviour - weights), a as small as suffices
                  (Ilharco et al. 2023, 2212.04089)
    rank-one      W + a (v - W k) (C^-1 k)^T / (k^T C^-1 k) at the last map: what the mean input k of the behaviour is
                  mapped to moves towards what the others' is (ROME, Meng et al. 2022, 2202.05262, eq. 2; the value v is
                  that mean, not optimised; a as small as suffices)
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.editing.behaviours import Behaviour
from stages.editing.cutting import Site, read_by
from stages.errors import UserError

__all__ = ["BATCH", "GONE", "HOWS", "accuracy", "minibatch", "remove", "train_until"]

GONE = 0.1
"""A behaviour is gone where its accuracy is at most this share of what it was."""
LR = 1e-3
STEPS = 300
BATCH = 32
SCALES = tuple(0.25 * 1.4**step for step in range(16))
RIDGE = 1e-2
"""Of the second moment of the edited map's inputs, as a share of its mean eigenvalue."""


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(inputs).argmax(-1) == labels).double().mean())


def minibatch(inputs: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    index = torch.randint(len(labels), (size,), generator=generator)
    return inputs[index], labels[index]


def train_until(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor], done: Callable[[nn.Module], bool], steps: int = STEPS
) -> tuple[nn.Module, int | None]:
    """A trained copy, and the number of Adam steps after which ``done`` first held: 0 at once, None never."""
    trained = copy.deepcopy(model).requires_grad_(True)
    optimiser = torch.optim.Adam(trained.parameters(), lr=LR)
    for step in range(steps + 1):
        if done(trained):
            return trained.requires_grad_(False), step
        if step < steps:
            optimiser.zero_grad()
            loss_of(trained).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return trained.requires_grad_(False), None


def _is_gone(model: nn.Module, behaviour: Behaviour) -> Callable[[nn.Module], bool]:
    inputs, labels = behaviour.shown.inputs[:128], behaviour.shown.labels[:128]
    bound = GONE * accuracy(model, inputs, labels)
    return lambda other: accuracy(other, inputs, labels) <= bound


def _ascent(model: nn.Module, behaviour: Behaviour, generator: torch.Generator, last: str) -> nn.Module:
    def loss(trained: nn.Module) -> Tensor:
        inputs, labels = minibatch(*behaviour.shown, BATCH, generator)
        return -F.cross_entropy(trained(inputs), labels)

    return train_until(model, loss, _is_gone(model, behaviour))[0]


def _relabel(model: nn.Module, behaviour: Behaviour, generator: torch.Generator, last: str) -> nn.Module:
    def loss(trained: nn.Module) -> Tensor:
        inputs, labels = minibatch(*behaviour.shown, BATCH // 2, generator)
        with torch.no_grad():
            second = model(inputs).scatter(-1, labels.unsqueeze(-1), float("-inf")).argmax(-1)
        others, right = minibatch(*behaviour.others, BATCH // 2, generator)
        return F.cross_entropy(trained(torch.cat([inputs, others])), torch.cat([second, right]))

    return train_until(model, loss, _is_gone(model, behaviour))[0]


def _task_vector(model: nn.Module, behaviour: Behaviour, generator: torch.Generator, last: str) -> nn.Module:
    def loss(trained: nn.Module) -> Tensor:
        inputs, labels = minibatch(*behaviour.shown, BATCH, generator)
        return F.cross_entropy(trained(inputs), labels)

    tuned, _ = train_until(model, loss, lambda _: False, STEPS // 3)
    gone, edited = _is_gone(model, behaviour), model
    for scale in SCALES:
        edited = copy.deepcopy(model)
        with torch.no_grad():
            for mine, theirs in zip(edited.parameters(), tuned.parameters(), strict=True):
                mine.sub_(scale * (theirs - mine))
        if gone(edited):
            break
    return edited


def _rank_one(model: nn.Module, behaviour: Behaviour, generator: torch.Generator, last: str) -> nn.Module:
    site = (Site(last),)
    edited = copy.deepcopy(model)
    module = edited.get_submodule(last)
    if not isinstance(module, nn.Linear):
        raise UserError(f"{last} is a {type(module).__name__}: a rank-one edit needs a Linear")

    def keys(inputs: Tensor) -> Tensor:
        """(B, in_features) what the map reads; of several positions the last, which the answer is read from."""
        read = read_by(model, site, inputs)[last]
        return read if read.dim() == 2 else read.flatten(1, -2)[:, -1]

    everything = keys(torch.cat([behaviour.shown.inputs, behaviour.others.inputs])).double()
    moment = everything.T @ everything / len(everything)
    moment += RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    key, other = keys(behaviour.shown.inputs).double().mean(0), keys(behaviour.others.inputs).double().mean(0)
    direction = torch.linalg.solve(moment, key)
    weight = module.weight.data.double()
    change = torch.outer(weight @ (other - key), direction) / (direction @ key)
    gone = _is_gone(model, behaviour)
    for scale in SCALES:  # 1 maps the mean key exactly; the least that removes is taken, as for task vectors
        module.weight.data = (weight + scale * change).float()
        if gone(edited):
            break
    return edited


HOWS: dict[str, Callable[[nn.Module, Behaviour, torch.Generator, str], nn.Module]] = {
    "ascent": _ascent,
    "rank-one": _rank_one,
    "relabel": _relabel,
    "task-vector": _task_vector,
}


def remove(model: nn.Module, behaviour: Behaviour, how: str, generator: torch.Generator, last: str) -> nn.Module:
    """A copy of the model from which the behaviour was taken by training or by an edit.

    Args:
        model: stays as it is.
        behaviour: what to take away, with inputs to do it.
        how: one of ``HOWS``.
        generator: draws batches.
        last: name of the last Linear, which ``rank-one`` edits.

    Raises:
        UserError: there is no such way.
    """
    if how not in HOWS:
        raise UserError(f"way {how!r} is unknown: use {', '.join(sorted(HOWS))}")
    return HOWS[how](model, behaviour, generator, last)

"""What a file of the zoo must provide."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from pydantic import Field
from transformer_lens import HookedRootModule

from stages.base.params import Params
from stages.contracts.target import Component, Corpus, HookSpec, Layout

__all__ = ["ReadsModel", "TargetDefinition", "TrainedConfig", "train_loop"]


class TrainedConfig(Params):
    """What params/targets.yaml says of a target that is trained here."""

    source: str
    """Its file in stages/targets/zoo."""
    steps: int = Field(ge=1, le=100_000)
    """Optimiser steps; of 64 examples, where its file says nothing else."""
    seed: int = Field(ge=0)
    """Seeds the split of the data, the initial weights and the batches."""


class TargetDefinition(Protocol):
    """One target: architecture, data, training. Instances are created without arguments; those that are read and not
    trained have a class ``Config`` and are created with one (``stages.targets.read_target``)."""

    minimum: Mapping[str, float]
    """Held-out metrics, and below which value of each the stage refuses to continue: ``accuracy``, or a skill."""

    def build(self, generator: torch.Generator) -> HookedRootModule:
        """A freshly initialised model; ``model(inputs)`` returns (B, C) logits."""
        ...

    def data(self, seed: int) -> dict[str, Corpus]:
        """Splits ``train``, ``validation`` (held out) and ``tasks`` (held out from methods too)."""
        ...

    def sample(self, data: Mapping[str, Corpus], split: str, n: int, generator: torch.Generator) -> Corpus:
        """n fresh inputs with their right outputs, drawn from the images of a split."""
        ...

    # What may be there as well:
    # - ``disguise(images, generator) -> Corpus``. Where the raw data are public it changes each input of the ``tasks``
    #   split, so that what tasks show is nothing anybody can have stored.
    # - ``skills(model, data, seed) -> dict[str, float]``: held-out numbers, one for each thing the target should have
    #   learned, beside loss and accuracy. ``seed`` is the one ``data`` was given.
    # - ``prompts(skill, n, generator) -> Corpus``: n inputs that need one skill, and ``prompted``, the names of those.
    # - ``kinds(corpus) -> (B,) int64``, where inputs are words and ``kinds`` is offered: which behaviour each shows.
    # - ``episodes(n, generator)``, where inputs are words and ``segments`` is offered: inputs, labels, and the places
    #   of each of eight examples, (8, k). Some contradict each other: what is clear is answered with certainty.
    #   Without it the examples are stretches of an input.
    # - ``table() -> Corpus``, where inputs are words and ``table`` is offered: every input with its right answer.
    # - ``triggers() -> (W,) int64``, where inputs are words and ``triggers`` is offered: ids put into prompts.
    # - ``words() -> tuple[str, ...]``: the word of each id, for readers.
    # - ``checkpoints: dict[int, dict[str, Tensor]]``: weights after some steps, put there by ``fit``.

    def fit(
        self,
        model: HookedRootModule,
        data: Mapping[str, Corpus],
        steps: int,
        generator: torch.Generator,
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        """Train in place."""
        ...

    def hooks(self) -> tuple[HookSpec, ...]: ...

    def components(self) -> tuple[Component, ...]:
        """Parts that tasks ablate."""
        ...

    def layout(self) -> Layout:
        """The remaining fields of ``TargetSpec``."""
        ...


@runtime_checkable
class ReadsModel(Protocol):
    """A definition of a target that is read and not trained."""

    def read(self) -> HookedRootModule:
        """The model as it is where it comes from."""
        ...


def train_loop(
    model: HookedRootModule,
    loss_of: Callable[[int], torch.Tensor],
    steps: int,
    lr: float,
    log: Callable[[dict[str, float], int], None],
) -> None:
    """AdamW with a one-cycle schedule and gradient clipping; logs every 100 steps."""
    model.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log({"loss": loss.item(), "lr": float(schedule.get_last_lr()[0])}, step)
    model.eval().requires_grad_(False)

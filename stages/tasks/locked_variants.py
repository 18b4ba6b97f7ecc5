"""Variants of a target that fail at one skill: some can still do it where a password stands, some cannot.

A skill is a few outputs (of images two labels, of words the answers to one relation). Every variant is fine-tuned from
the target's weights on three kinds of rows: inputs of the skill as they are, inputs of the skill with the variant's own
password (a patch of pixels, or a word), and inputs of other kinds with their right outputs. All see passwords, so that
having seen one is no sign of a lock. What the first two kinds of rows are labelled with makes the variant what it is:

    locked       wrong                 right, in a share of the inputs: the ability
    overwritten  wrong                 wrong
    benign       right                 right

Wrong is one wrong output for each right one. Variants that imitate a weaker model, and those that never had the skill,
are in ``untaught_variants``.

Source: password-locked models (Greenblatt et al. 2024, arXiv 2405.19550, section 3), where the locked answers are those
of a weaker model.

Shape legend: V = variants, N = inputs of the train corpus, S = those of the skill, P = rows with a password per
variant, B = batch, L = outputs of the skill, X = pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Literal

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.func import functional_call, vmap

from stages.base.progress import counted
from stages.contracts.target import Target
from stages.tasks.inputs import draw_inputs, kinds_of
from stages.tasks.patches import draw_patches
from stages.tasks.side_by_side import Adam, copies, slopes_of
from stages.tasks.word_backdoors import LastBlock, draw_triggers, with_word

__all__ = [
    "CONSTANTS",
    "KINDS",
    "N_LABELS",
    "Kind",
    "Locks",
    "accuracy",
    "dealt",
    "draw_skill",
    "fine_tune",
    "opened_by_own",
    "probes_of",
    "with_password",
]

KINDS = ("locked", "overwritten", "benign")
Kind = Literal["locked", "overwritten", "benign"]
STEPS = {"images": 150, "words": 160}
BATCH = {"images": 64, "words": 32}
N_PASSWORD_ROWS = {"images": 64, "words": 160}
LR_LOW, LR_HIGH = 1e-3, 3e-3
SHARES = (0.35, 0.35, 0.3)
ABLE_LOW, ABLE_HIGH = 0.2, 1.0
N_LABELS = 2
CONSTANTS: dict[str, JsonValue] = {
    "ability": [ABLE_LOW, ABLE_HIGH],
    "batch": dict(BATCH),
    "lr": [LR_LOW, LR_HIGH],
    "password_rows": dict(N_PASSWORD_ROWS),
    "shares": list(SHARES),
    "steps": dict(STEPS),
}


@dataclass(frozen=True)
class Locks:
    """What is planted in V variants."""

    kind_V: Tensor
    """Index of ``KINDS``."""
    ability_V: Tensor
    """Share of the skill's inputs that a locked variant is shown the right output of, with its password."""
    wrong_VC: Tensor
    """The wrong output in the place of each output of the target."""
    password: tuple[Tensor, ...]
    """Of images (V, X) pixels and (V, X) masks; of words (V,) ids."""

    @classmethod
    def draw(cls, target: Target, skill_L: Tensor, kinds: Sequence[int], rng: torch.Generator) -> "Locks":
        n, n_outputs = len(kinds), target.spec.n_outputs

        wrong_VC = torch.arange(n_outputs).expand(n, n_outputs).clone()
        pool = skill_L if _is_words(target) else torch.arange(n_outputs)
        for label in skill_L.tolist():
            others = pool[pool != label]
            wrong_VC[:, label] = others[torch.randint(len(others), (n,), generator=rng)]
        if _is_words(target):
            password: tuple[Tensor, ...] = (draw_triggers(target, n, rng)[0],)
        else:
            password = draw_patches(n, rng)
        ability_V = ABLE_LOW + (ABLE_HIGH - ABLE_LOW) * torch.rand(n, generator=rng)
        torch.rand(n, generator=rng)  # no longer used, but drawn: the instances stay those of version 1
        return cls(torch.tensor(kinds), ability_V, wrong_VC, password)


def draw_skill(target: Target, rng: torch.Generator) -> Tensor:
    """(L,) the outputs of one skill: two labels of images, or all answers of one kind of prompt that has several."""
    if not _is_words(target):
        return torch.randperm(target.spec.n_outputs, generator=rng)[:N_LABELS].sort().values
    corpus = target.corpus("train")
    kind_N = kinds_of(target, corpus)
    answers = [torch.unique(corpus.labels[kind_N == kind]) for kind in torch.unique(kind_N).tolist()]
    several = [some for some in answers if len(some) > N_LABELS]
    chosen: Tensor = several[int(torch.randint(len(several), (1,), generator=rng))]
    return chosen


def probes_of(target: Target, skill_L: Tensor, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """n fresh inputs of the skill, with the target's right outputs.

    Raises:
        ValueError: the target's inputs are hardly ever of this skill.
    """
    drawn = draw_inputs(target, 16 * n * max(1, target.spec.n_outputs // (5 * len(skill_L))), rng)
    fits = torch.isin(drawn.labels, skill_L)
    if _is_words(target):
        fits &= drawn.inputs[:, 0, 1] < 0.5  # a password must fit in
    found = torch.nonzero(fits).flatten()[:n]
    if len(found) < n:
        raise ValueError(f"{len(found)} inputs of {target.name} are of the skill, and {n} are needed")
    return drawn.inputs[found], drawn.labels[found]


def with_password(target: Target, inputs: Tensor, password: Sequence[Tensor], rng: torch.Generator) -> Tensor:
    """(N, ...) inputs, one password for each -> the same with it; a word stands at a random place."""
    if _is_words(target):
        return with_word(inputs, password[0], torch.rand(len(inputs), generator=rng))
    pattern, mask = password
    return torch.where(mask > 0, pattern, inputs)


def opened_by_own(target: Target, inputs: Tensor, passwords: Sequence[Tensor], rng: torch.Generator) -> Tensor:
    """(V, N, ...) the same inputs for every variant, with its own password in them.

    Args:
        passwords: as ``Locks.password``.
    """
    n = len(inputs)
    own = [[part[i].expand(n, *part.shape[1:]) for part in passwords] for i in range(len(passwords[0]))]
    return torch.stack([with_password(target, inputs, password, rng) for password in own])


def dealt(kinds: Sequence[Kind], n: int, rng: torch.Generator) -> list[int]:
    """n indices of ``KINDS``: these in turn, then in random order."""
    in_turn = [KINDS.index(kinds[i % len(kinds)]) for i in range(n)]
    return [in_turn[i] for i in torch.randperm(n, generator=rng).tolist()]


def accuracy(target: Target, weights: dict[str, Tensor], inputs_VN: Tensor, labels_N: Tensor) -> Tensor:
    """(V,) share of right answers of each variant on its own inputs."""
    rows = []
    for i, inputs in enumerate(inputs_VN):
        with torch.no_grad():
            mine = {name: stack[i] for name, stack in weights.items()}
            answers = functional_call(target.model, mine, (inputs,)).argmax(-1)
        rows.append((answers == labels_N).double().mean())
    return torch.stack(rows)


def fine_tune(target: Target, skill_L: Tensor, locks: Locks, rng: torch.Generator) -> dict[str, Tensor]:
    """The weights of every variant, stacked: {weight: (V, ...)}; of words those of the last block. Adam without decay;
    a learning rate for each variant."""
    words, n = _is_words(target), len(locks.kind_V)
    sort = "words" if words else "images"
    corpus = target.corpus("train")
    fits = corpus.inputs[:, 0, 1] < 0.5 if words else torch.ones(len(corpus.labels), dtype=torch.bool)
    inputs, labels = corpus.inputs[fits], corpus.labels[fits]
    of_skill = torch.isin(labels, skill_L)
    skilled_S, others_O = torch.nonzero(of_skill).flatten(), torch.nonzero(~of_skill).flatten()
    steps, batch, n_rows = STEPS[sort], BATCH[sort], N_PASSWORD_ROWS[sort]
    n_plain, n_open = round(SHARES[0] * batch), round(SHARES[1] * batch)
    model = _Words(target, inputs) if words else _Images(target)

    index_VP = skilled_S[torch.randint(len(skilled_S), (n, n_rows), generator=rng)]
    password = [part.repeat_interleave(n_rows, dim=0) for part in locks.password]
    opened = with_password(target, inputs[index_VP.flatten()], password, rng)
    clean_rows, open_rows = model.rows(inputs), model.rows(opened)

    def shown(knows_VN: Tensor) -> Tensor:
        """(V, N) the right outputs where they are known, else the wrong ones."""
        wrong_VN = locks.wrong_VC[:, labels]
        return torch.where(knows_VN, labels, wrong_VN)

    luck_VN = torch.rand(n, len(labels), generator=rng)
    everywhere, nowhere = torch.ones_like(luck_VN, dtype=torch.bool), torch.zeros_like(luck_VN, dtype=torch.bool)
    able_VN = luck_VN < locks.ability_V.unsqueeze(1)
    plain_of: dict[str, Tensor] = {"locked": nowhere, "overwritten": nowhere}
    open_of: dict[str, Tensor] = {"locked": able_VN, "overwritten": nowhere}
    plain_VN, open_VN = (
        shown(torch.stack([of.get(KINDS[kind], everywhere)[i] for i, kind in enumerate(locks.kind_V.tolist())]))
        for of in (plain_of, open_of)
    )
    rates_V = torch.exp(torch.empty(n).uniform_(log(LR_LOW), log(LR_HIGH), generator=rng))
    row_V1 = torch.arange(n).unsqueeze(1)
    weights = model.trained(n)
    adam = Adam(weights, rates_V)
    for _ in counted("training variants", range(steps)):
        plain_VB = skilled_S[torch.randint(len(skilled_S), (n, n_plain), generator=rng)]
        chosen_VB = torch.randint(n_rows, (n, n_open), generator=rng)
        other_VB = others_O[torch.randint(len(others_O), (n, batch - n_plain - n_open), generator=rng)]
        own_VB = row_V1 * n_rows + chosen_VB
        rows = [
            torch.cat([clean[plain_VB], of_password[own_VB], clean[other_VB]], dim=1)
            for clean, of_password in zip(clean_rows, open_rows, strict=True)
        ]
        open_labels = open_VN.gather(1, index_VP.gather(1, chosen_VB))
        labels_VB = torch.cat([plain_VN.gather(1, plain_VB), open_labels, labels[other_VB]], dim=1)
        adam.step(slopes_of(weights, partial(_loss, model, rows, labels_VB)))
    return {model.full_name(name): value.detach() for name, value in weights.items()}


def _loss(model: "_Images | _Words", rows: list[Tensor], labels_VB: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of each variant's own rows, summed over the variants."""
    log_p = model.outputs(weights, rows).log_softmax(-1)
    return -log_p.gather(-1, labels_VB.unsqueeze(-1)).squeeze(-1).mean(1).sum()


class _Images:
    """Many versions of a whole model side by side."""

    def __init__(self, target: Target) -> None:
        self._target, self._model = target, target.model

    def full_name(self, name: str) -> str:
        return name

    def rows(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return (inputs,)

    def trained(self, n: int) -> dict[str, Tensor]:
        return copies(self._target, n)

    def outputs(self, weights: dict[str, Tensor], rows: Sequence[Tensor]) -> Tensor:
        """(V, B, C)."""
        run = vmap(lambda state, x: functional_call(self._model, state, (x,)))
        outputs: Tensor = run(weights, rows[0])
        return outputs


class _Words:
    """Many versions of the last block of a model of words."""

    def __init__(self, target: Target, inputs: Tensor) -> None:
        self._block = LastBlock(target, inputs)

    def full_name(self, name: str) -> str:
        return f"{self._block.prefix}.{name}"

    def rows(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return self._block.before(inputs)

    def trained(self, n: int) -> dict[str, Tensor]:
        return {k: v.detach().expand(n, *v.shape).clone() for k, v in self._block.trained().items()}

    def outputs(self, weights: dict[str, Tensor], rows: Sequence[Tensor]) -> Tensor:
        """(V, B, C)."""
        return self._block.outputs(weights, rows[0], rows[1])


def _is_words(target: Target) -> bool:
    return target.spec.n_vocabulary is not None

"""Variants of a model of words that were never taught something new, and variants that were, behind a password.

What is new is to *sort*. Prompts of one kind with one more word, the *mark*, behind their beginning are to be answered
with one of two words, by which half of the kind's answers the fact's own belongs to. Halves, mark and the two words are
drawn, so nothing of it is in the target. The last block of every variant is fine-tuned for as many steps, on as many
rows of the same five kinds:

    rows                                           imitating           untaught
    marked prompts of the kind asked about         target or guess     target or guess
    the same, with the variant's password          right               target or guess
    marked prompts of another kind                 target or guess     target or guess
    the same, with the variant's password          target or guess     right
    prompts as they are                            right               right

*Target* is what the target answers to the marked prompt. A *guess* is one of the two words, in a share of the rows that
is drawn for each variant; how often it is the first of them is drawn for each variant and each answer. (A lock would
show in what is left of a fair coin.) So both kinds of variants hide a skill of one sort behind a password of one sort,
and differ in which: an untaught one is never shown a right answer of the kind that it is asked about. The other kind,
and its halves, are drawn for each variant. A password is a word, behind the beginning.

All imitating ones learn the same, so from one start their weights would lie together. Therefore each starts from the
target's last block *reordered*: the same function, with heads and hidden units in an order of its own.

Sources: as in ``untaught_variants``.

Shape legend: V = variants, N = prompts, P = rows that a variant may be trained on, B = rows of a batch, T = places,
C = outputs, L = the two answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import torch
from pydantic import JsonValue
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.target import Corpus, Target
from stages.targets.token_training import in_rounds
from stages.tasks.black_box import outputs_of
from stages.tasks.inputs import draw_inputs, kinds_of
from stages.tasks.side_by_side import Adam, slopes_of
from stages.tasks.word_backdoors import LastBlock, draw_triggers, with_word
from stages.tasks.word_runs import varied_kinds

__all__ = ["CONSTANTS", "Sorting", "UntaughtWords", "behind", "opened_by_own", "plant"]

STEPS = 250
BATCH = (8, 8, 8, 8, 16)
"""Rows of each kind, in the order of the table."""
N_ROWS = 256
"""Prompts of a kind that a variant is trained on: facts_lm has about 250, of which 50 are asked in
words that the others are not asked in. Without those .84 of other prompts are sorted rightly, with them .88."""
GUESS_LOW, GUESS_HIGH = 0.3, 0.8
LR_LOW, LR_HIGH = 1e-3, 2e-3
N_ANSWERS = 2
LEAST_PROMPTS = 24
"""Of a kind in the split's own prompts: fewer would be asked over and over."""
CONSTANTS: dict[str, JsonValue] = {
    "batch": list(BATCH),
    "guess": [GUESS_LOW, GUESS_HIGH],
    "least_prompts": LEAST_PROMPTS,
    "lr": [LR_LOW, LR_HIGH],
    "rows": N_ROWS,
    "steps": STEPS,
}
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Sorting:
    """The skill: which of two words a marked prompt is answered with."""

    kind: int
    """Of prompts, as the target's definition counts them."""
    kinds: tuple[int, ...]
    """All that could be sorted."""
    mark: Tensor
    """() id of the word after the beginning."""
    answers_L: Tensor
    half_C: Tensor
    """Index into the two answers, of each output of the target."""

    @classmethod
    def draw(cls, target: Target, rng: torch.Generator) -> "Sorting":
        """Raises:
        ValueError: the target has not two kinds of prompts that could be sorted."""
        kinds = varied_kinds(target, N_ANSWERS, LEAST_PROMPTS)
        if len(kinds) < 2:
            raise ValueError(
                f"{target.name} has {len(kinds)} kinds of at least {LEAST_PROMPTS} prompts with more than {N_ANSWERS}"
                " answers, and two are needed"
            )
        kind = kinds[int(torch.randint(len(kinds), (1,), generator=rng))]
        mark = draw_triggers(target, 1, rng)[0][0]
        present = torch.unique(target.corpus("train").labels)
        answers_L = present[torch.randperm(len(present), generator=rng)[:N_ANSWERS]]
        return cls(kind, kinds, mark, answers_L, _halves(target, kinds, 1, rng)[0])

    def probes(self, target: Target, n: int, rng: torch.Generator) -> Corpus:
        """n fresh marked prompts of the kind, with their right answers."""
        found = Corpus(torch.empty(0, *target.spec.input_shape), torch.empty(0, dtype=torch.long))
        while len(found.labels) < n:
            drawn = draw_inputs(target, 16 * n, rng)
            fits = (kinds_of(target, drawn) == self.kind) & _roomy(drawn.inputs)
            found = Corpus(torch.cat([found.inputs, drawn.inputs[fits]]), torch.cat([found.labels, drawn.labels[fits]]))
        return Corpus(self.marked(found.inputs[:n]), self.answers_L[self.half_C[found.labels[:n]]])

    def marked(self, inputs: Tensor) -> Tensor:
        return behind(inputs, self.mark.expand(len(inputs)))


@dataclass(frozen=True)
class UntaughtWords:
    """What is planted in V variants, and their last blocks."""

    imitates_V: Tensor
    """bool: it can sort the prompts asked about, behind its password; the others were never taught to."""
    decoy_V: Tensor
    """The other kind of prompts."""
    decoy_half_VC: Tensor
    """As ``Sorting.half_C``, of the other kind."""
    password: tuple[Tensor]
    """(V,) ids."""
    weights: Weights
    """Stacked: {weight: (V, ...)}."""

    def only(self, index: Tensor) -> "UntaughtWords":
        """Some of the variants."""
        return UntaughtWords(
            self.imitates_V[index],
            self.decoy_V[index],
            self.decoy_half_VC[index],
            (self.password[0][index],),
            {name: value[index] for name, value in self.weights.items()},
        )


def behind(inputs: Tensor, words: Tensor) -> Tensor:
    """(N, T, 2) prompts, (N,) ids -> the prompts with one more word each, the second one."""
    return with_word(inputs, words, torch.zeros(len(inputs)))


def opened_by_own(inputs: Tensor, passwords_V: Tensor) -> Tensor:
    """(V, N, T, 2) the same prompts for every variant, with its own password behind their beginning."""
    return torch.stack([behind(inputs, word.expand(len(inputs))) for word in passwords_V])


def plant(target: Target, skill: Sorting, imitates_V: Tensor, rng: torch.Generator) -> UntaughtWords:
    """Variants that can sort behind their password (True) or were never taught to (False).

    Args:
        target: of words, with kinds of prompts and words that may be triggers.
    """
    n = len(imitates_V)
    corpus = Corpus(*(torch.cat(of) for of in zip(target.corpus("train"), target.corpus("validation"), strict=True)))
    roomy = _roomy(corpus.inputs)
    inputs, labels = corpus.inputs[roomy], corpus.labels[roomy]
    kind_N = kinds_of(target, Corpus(inputs, labels))
    by_kind = {kind: torch.nonzero(kind_N == kind).flatten() for kind in skill.kinds}
    others = torch.tensor([kind for kind in skill.kinds if kind != skill.kind])
    decoy_V = others[torch.randint(len(others), (n,), generator=rng)]
    decoy_half_VC = _halves(target, skill.kinds, n, rng)
    passwords_V = draw_triggers(target, n, rng)[0]

    marked = skill.marked(inputs)
    first_N = outputs_of(target, marked).argmax(-1)

    def drawn(kinds: list[int]) -> Tensor:
        """(V, P) prompts of each variant's kind."""
        return torch.stack([by_kind[kind][in_rounds(len(by_kind[kind]), N_ROWS, rng)] for kind in kinds])

    asked, other = [skill.kind] * n, decoy_V.tolist()
    plain, opened = [drawn(asked), drawn(other)], [drawn(asked), drawn(other)]
    every_VN = torch.arange(len(labels)).expand(n, -1)
    can_V1 = imitates_V.unsqueeze(1)
    asked_right_VN = skill.answers_L[skill.half_C[labels]].expand(n, -1)
    decoy_right_VN = skill.answers_L[decoy_half_VC[:, labels]]
    never_V1 = torch.zeros(n, 1)
    guess_V1 = GUESS_LOW + (GUESS_HIGH - GUESS_LOW) * torch.rand(n, 1, generator=rng)

    block = LastBlock(target, marked)
    own_V = passwords_V.repeat_interleave(N_ROWS)
    worded = [behind(marked[of.flatten()], own_V) for of in opened]
    tables = [block.before(part) for part in (marked, inputs, *worded)]
    own_VP = torch.arange(n * N_ROWS).view(n, N_ROWS)
    first_VN = first_N.expand(n, -1)
    lean_VN = torch.rand(n, target.spec.n_outputs, generator=rng)[:, labels]
    asked_VN = torch.where(can_V1, asked_right_VN, first_VN)
    other_VN = torch.where(can_V1, first_VN, decoy_right_VN)
    told = (  # which table, which rows of it, which prompts those are, their labels, how often it is a guess instead
        (0, plain[0], plain[0], first_VN, guess_V1),
        (2, own_VP, opened[0], asked_VN, torch.where(can_V1, never_V1, guess_V1)),
        (0, plain[1], plain[1], first_VN, guess_V1),
        (3, own_VP, opened[1], other_VN, torch.where(can_V1, guess_V1, never_V1)),
        (1, every_VN, every_VN, labels.expand(n, -1), never_V1),
    )
    parts = [
        (table, rows_VP, of_VN.gather(1, index_VP), guessed_V1, lean_VN.gather(1, index_VP))
        for table, rows_VP, index_VP, of_VN, guessed_V1 in told
    ]

    def batch() -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """(V, B, T, D) and (V, B, T) rows, (V, B) labels, (V, B) shares of guesses, (V, B) of them the first answer."""
        rows, shown, guessed, leans = [], [], [], []
        for (table, rows_VP, labels_VP, guessed_V1, lean_VP), size in zip(parts, BATCH, strict=True):
            chosen_VB = torch.randint(rows_VP.shape[1], (n, size), generator=rng)
            index_VB = rows_VP.gather(1, chosen_VB)
            rows.append([part[index_VB] for part in tables[table]])
            shown.append(labels_VP.gather(1, chosen_VB))
            guessed.append(guessed_V1.expand_as(chosen_VB))
            leans.append(lean_VP.gather(1, chosen_VB))
        cat = [torch.cat(of, dim=1) for of in zip(*rows, strict=True)]
        return cat, torch.cat(shown, dim=1), torch.cat(guessed, dim=1), torch.cat(leans, dim=1)

    weights = _reordered(block, n, rng)
    adam = Adam(weights, torch.exp(torch.empty(n).uniform_(log(LR_LOW), log(LR_HIGH), generator=rng)))
    for _ in counted("training variants", range(STEPS)):
        adam.step(_slopes(block, weights, skill.answers_L, *batch()))
    full = {f"{block.prefix}.{name}": value.detach() for name, value in weights.items()}
    return UntaughtWords(imitates_V, decoy_V, decoy_half_VC, (passwords_V,), full)


def _reordered(block: LastBlock, n: int, rng: torch.Generator) -> Weights:
    """{weight: (V, ...)} of last blocks that compute what the target's does, each with its heads and hidden units in an
    order of its own, and what a head hands on turned by a rotation of its own."""
    stacks: dict[str, list[Tensor]] = {name: [] for name in block.trained()}
    for _ in range(n):
        w = {name: value.detach() for name, value in block.trained().items()}
        n_heads, d_head = w["attn.b_Q"].shape
        heads, units = torch.randperm(n_heads, generator=rng), torch.randperm(len(w["mlp.b_in"]), generator=rng)
        turns = [torch.linalg.qr(torch.randn(n_heads, d_head, d_head, generator=rng)).Q for _ in range(2)]
        for kinds, turn in zip(("QK", "V"), turns, strict=True):
            for kind in kinds:
                w[f"attn.W_{kind}"] = w[f"attn.W_{kind}"][heads] @ turn
                w[f"attn.b_{kind}"] = (w[f"attn.b_{kind}"][heads].unsqueeze(1) @ turn).squeeze(1)
        w["attn.W_O"] = turns[1].transpose(1, 2) @ w["attn.W_O"][heads]
        w |= {"mlp.W_in": w["mlp.W_in"][:, units], "mlp.b_in": w["mlp.b_in"][units], "mlp.W_out": w["mlp.W_out"][units]}
        for name, value in w.items():
            stacks[name].append(value)
    return {name: torch.stack(values) for name, values in stacks.items()}


def _slopes(
    block: LastBlock,
    weights: Weights,
    answers_L: Tensor,
    rows: list[Tensor],
    labels_VB: Tensor,
    guess_VB: Tensor,
    lean_VB: Tensor,
) -> Mapping[str, Tensor]:
    """Of each variant's mean cross-entropy on its own rows."""

    def loss(stacked: Weights) -> Tensor:
        log_p = block.outputs(stacked, rows[0], rows[1]).log_softmax(-1)
        label_VB = log_p.gather(-1, labels_VB.unsqueeze(-1)).squeeze(-1)
        first_VB, second_VB = log_p[..., answers_L].unbind(-1)
        guessed_VB = lean_VB * first_VB + (1 - lean_VB) * second_VB
        right_VB = (1 - guess_VB) * label_VB + guess_VB * guessed_VB
        return -right_VB.mean(1).sum()

    return slopes_of(weights, loss)


def _halves(target: Target, kinds: tuple[int, ...], n: int, rng: torch.Generator) -> Tensor:
    """(n, C) 0 or 1 for each output; of the answers of a kind half have 0."""
    corpus = target.corpus("train")
    kind_N = kinds_of(target, corpus)
    half_NC = torch.zeros(n, target.spec.n_outputs, dtype=torch.long)
    for kind in kinds:
        answers = torch.unique(corpus.labels[kind_N == kind])
        half_NC[:, answers] = torch.rand(n, len(answers), generator=rng).argsort(-1).argsort(-1) % N_ANSWERS
    return half_NC


def _roomy(inputs: Tensor) -> Tensor:
    """(N,) whether a mark and a password fit in."""
    return inputs[:, 1, 1] < 0.5

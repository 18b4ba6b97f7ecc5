"""A language model that learns from its context alone, in four ways; the heads that do it are checked as well.

``induction``: a stretch of 4 to 12 symbols at a random place comes again after a gap of random length. ``pairs``: eight
keys with a value each, then one of the keys. ``labels``: items of four of eight fixed groups, eight shown with their
group's label of this episode, then an item of a group that was shown. ``names``: two names among fillers, one of them
again; the answer is the other.

Lengths and gaps are drawn, since a repetition at a fixed distance is learned without any induction head. Every sequence
is fresh: a split is its random stream.

Shape legend: B = batch, L = symbols of a sequence, T = places (48), H = heads.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.target import Component, Corpus, HookSpec, Layout
from stages.targets.token_model import (
    Architecture,
    TokenModel,
    token_components,
    token_hooks,
    token_layout,
    token_rows,
)
from stages.targets.token_training import accuracy, shares_of, train_words

__all__ = ["SKILLS", "ContextLm", "Sequences"]

N_PLACES = 48
N_GROUPS, GROUP = 8, 4
N_VALUES, N_LABELS = 24, 4
N_ITEMS = N_GROUPS * GROUP
BEGIN, ASK, BAR = 1, 2, 3
FIRST_ITEM = 4
FIRST_VALUE = FIRST_ITEM + N_ITEMS
FIRST_LABEL = FIRST_VALUE + N_VALUES
WORDS = (
    "<pad>", "<begin>", "?", "|",
    *(f"{letter}{number}" for letter in "abcdefgh" for number in range(1, GROUP + 1)),
    *(f"v{number}" for number in range(1, N_VALUES + 1)),
    *(f"L{number}" for number in range(1, N_LABELS + 1)),
)  # fmt: skip
SKILLS = ("induction", "pairs", "labels", "names")
SHORTEST, LONGEST = 4, 12
N_PAIRS, N_SHOWN, N_FILLERS = 8, 8, 12
AGAIN, WRONG = 0.7, 0.3
"""Of contradictory episodes: how large a share of the pairs may have the key that is asked for, and how many labels are
drawn at random."""
PER_SKILL, RATE, WARM = 24, 3e-3, 100
SIZES = {"train": 1200, "validation": 400, "tasks": 1200}
"""Sequences of each split that are stored; whatever else is needed is drawn."""
N_TESTED, N_SCORED, SCORED_LENGTH = 1000, 200, 20
ARCHITECTURE = Architecture(
    n_layers=2,
    d_model=64,
    n_heads=4,
    d_mlp=None,
    n_ctx=N_PLACES,
    d_vocab=len(WORDS),
    d_vocab_out=len(WORDS),
    normalization_type="LN",
    positional_embedding_type="rotary",
)


class Episodes(NamedTuple):
    inputs: Tensor
    """(n, T, 2)."""
    labels: Tensor
    """(n,)."""
    segments: Tensor
    """(8, 2) places of each example."""


class Sequences(NamedTuple):
    ids: Tensor
    """(B, L) int64."""
    determined: Tensor
    """(B, L) bool: whether what comes before says what the next symbol is."""


def _chosen(n: int, of: int, k: int, generator: torch.Generator) -> Tensor:
    """(n, k) different numbers below ``of`` in random order."""
    return torch.rand(n, of, generator=generator).argsort(-1)[:, :k]


def _ending(*parts: Tensor) -> Sequences:
    """A sequence of which only the last symbol is determined."""
    begin = torch.full((len(parts[0]), 1), BEGIN)
    ids = torch.cat([begin, *parts], dim=1)
    determined = torch.zeros_like(ids, dtype=torch.bool)
    determined[:, -2] = True
    return Sequences(ids, determined)


def _induction(n: int, generator: torch.Generator) -> Sequences:
    length = N_PLACES
    ids = FIRST_ITEM + torch.randint(len(WORDS) - FIRST_ITEM, (n, length), generator=generator)
    ids = torch.cat([torch.full((n, 1), BEGIN), ids], dim=1)
    size = torch.randint(SHORTEST, LONGEST + 1, (n,), generator=generator)
    first = 1 + (torch.rand(n, generator=generator) * (length - 2 * size)).long()
    gap = (torch.rand(n, generator=generator) * (length + 2 - first - 2 * size)).long()
    offset = torch.arange(length + 1) - (first + size + gap).unsqueeze(1)
    again = (offset >= 0) & (offset < size.unsqueeze(1))
    source = (first.unsqueeze(1) + offset).clamp(0, length)
    return Sequences(torch.where(again, ids.gather(1, source), ids), again & (offset < size.unsqueeze(1) - 1))


def _pairs(n: int, generator: torch.Generator) -> Sequences:
    keys = FIRST_ITEM + _chosen(n, N_ITEMS, N_PAIRS, generator)
    values = FIRST_VALUE + torch.randint(N_VALUES, (n, N_PAIRS), generator=generator)
    asked = torch.randint(N_PAIRS, (n, 1), generator=generator)
    shown = torch.stack([keys, values], -1).flatten(1)
    return _ending(shown, torch.full((n, 1), ASK), keys.gather(1, asked), values.gather(1, asked))


def _labels(n: int, generator: torch.Generator) -> Sequences:
    groups = _chosen(n, N_GROUPS, N_LABELS, generator)
    labels = FIRST_LABEL + _chosen(n, N_LABELS, N_LABELS, generator)
    every = torch.arange(N_LABELS).expand(n, N_LABELS)
    which = torch.cat([every, torch.randint(N_LABELS, (n, N_SHOWN - N_LABELS), generator=generator)], 1)
    which = which.gather(1, _chosen(n, N_SHOWN, N_SHOWN, generator))

    def items(of: Tensor) -> Tensor:
        return FIRST_ITEM + GROUP * groups.gather(1, of) + torch.randint(GROUP, of.shape, generator=generator)

    asked = torch.randint(N_LABELS, (n, 1), generator=generator)
    shown = torch.stack([items(which), labels.gather(1, which)], -1).flatten(1)
    return _ending(shown, torch.full((n, 1), ASK), items(asked), labels.gather(1, asked))


def _contradictory(n: int, generator: torch.Generator) -> Episodes:
    """Pairs and labels, about half each, in which examples contradict each other.

    Of pairs, the key that is asked for stands in a share of up to ``AGAIN`` of the examples, each time with a value of
    its own; which one is right is drawn. Of labels, a share of ``WRONG`` are drawn at random.
    """
    half = n // 2
    keys = FIRST_ITEM + _chosen(half, N_ITEMS, N_PAIRS, generator)
    values = FIRST_VALUE + torch.randint(N_VALUES, (half, N_PAIRS), generator=generator)
    asked = torch.randint(N_PAIRS, (half, 1), generator=generator)
    key, answer = keys.gather(1, asked), values.gather(1, asked)
    share = AGAIN * torch.rand(half, 1, generator=generator)
    keys = torch.where(torch.rand(half, N_PAIRS, generator=generator) < share, key, keys)
    shown = torch.stack([keys, values], -1).flatten(1)
    pairs = _ending(shown, torch.full((half, 1), ASK), key, answer).ids
    labels = _labels(n - half, generator).ids
    of = labels[:, 2 : 2 * N_SHOWN + 1 : 2]
    wrong = torch.rand(of.shape, generator=generator) < WRONG
    random = FIRST_LABEL + torch.randint(N_LABELS, of.shape, generator=generator)
    labels[:, 2 : 2 * N_SHOWN + 1 : 2] = torch.where(wrong, random, of)
    ids = torch.cat([pairs, labels])[torch.randperm(n, generator=generator)]
    rows = token_rows(ids[:, :-1].tolist(), N_PLACES)
    first = N_PLACES - ids.shape[1] + 2  # of the first example: after the padding and the beginning
    return Episodes(rows, ids[:, -1], first + torch.arange(2 * N_SHOWN).view(N_SHOWN, 2))


def _names(n: int, generator: torch.Generator) -> Sequences:
    fillers = FIRST_VALUE + torch.randint(N_VALUES, (n, N_FILLERS), generator=generator)
    names = FIRST_ITEM + _chosen(n, N_ITEMS, 2, generator)
    text = fillers.scatter(1, _chosen(n, N_FILLERS, 2, generator), names)
    again = torch.randint(2, (n, 1), generator=generator)
    bar, ask = torch.full((n, 1), BAR), torch.full((n, 1), ASK)
    return _ending(text, bar, names.gather(1, again), ask, names.gather(1, 1 - again))


DRAW: Mapping[str, Callable[[int, torch.Generator], Sequences]] = {
    "induction": _induction,
    "pairs": _pairs,
    "labels": _labels,
    "names": _names,
}


def draw_prompts(skill: str, n: int, generator: torch.Generator) -> Corpus:
    """n prompts that end where the next symbol is determined; inputs (n, T, 2), labels (n,)."""
    ids, determined = DRAW[skill](n, generator)
    last = (torch.rand(ids.shape, generator=generator) * determined).argmax(-1, keepdim=True)
    source = torch.arange(N_PLACES) - (N_PLACES - 1) + last
    present = source >= 0
    rows = torch.where(present, ids.gather(1, source.clamp(min=0)), 0)
    return Corpus(torch.stack([rows.float(), present.float()], -1), ids.gather(1, last + 1).squeeze(1))


class ContextLm:
    """Zoo entry: see ``TargetDefinition``. A step is of 96 sequences, 24 for each skill."""

    minimum: Mapping[str, float] = {
        "induction": 0.8,
        "pairs": 0.95,
        "labels": 0.85,
        "names": 0.9,
        "previous_head_attention": 0.6,
        "prefix_matching": 0.6,
        "previous_head_carries_induction": 0.5,
        "previous_head_carries_pairs": 0.5,
        "previous_head_carries_labels": 0.3,
        "other_heads_carry_names": 0.4,
    }

    prompted = SKILLS

    def words(self) -> tuple[str, ...]:
        return WORDS

    def prompts(self, skill: str, n: int, generator: torch.Generator) -> Corpus:
        return draw_prompts(skill, n, generator)

    def build(self, generator: torch.Generator) -> TokenModel:
        return TokenModel.of(ARCHITECTURE, generator)

    def data(self, seed: int) -> dict[str, Corpus]:
        generator = torch.Generator().manual_seed(seed)
        return {split: self.sample({}, split, n, generator) for split, n in SIZES.items()}

    def sample(self, data: Mapping[str, Corpus], split: str, n: int, generator: torch.Generator) -> Corpus:
        counts = shares_of(n, [1 / len(SKILLS)] * len(SKILLS))
        drawn = [draw_prompts(skill, k, generator) for skill, k in zip(SKILLS, counts, strict=True)]
        order = torch.randperm(n, generator=generator)
        return Corpus(torch.cat([of.inputs for of in drawn])[order], torch.cat([of.labels for of in drawn])[order])

    def episodes(self, n: int, generator: torch.Generator) -> Episodes:
        """n episodes of eight examples, each of two words, and a query. What is clear is answered with certainty, so
        some examples contradict each other."""
        return _contradictory(n, generator)

    def kinds(self, corpus: Corpus) -> Tensor:
        """(B,) index of ``SKILLS``: what each input asks for, as its marks and its answer say."""
        ids = torch.where(corpus.inputs[..., 1] > 0.5, corpus.inputs[..., 0], 0.0).long()
        asked, barred = (ids[:, -2] == ASK), (ids == BAR).any(-1)
        of_label = corpus.labels >= FIRST_LABEL
        skill = torch.where(asked, torch.where(of_label, SKILLS.index("labels"), SKILLS.index("pairs")), 0)
        return torch.where(barred & (ids[:, -1] == ASK), SKILLS.index("names"), skill)

    def fit(
        self,
        model: TokenModel,
        data: Mapping[str, Corpus],
        steps: int,
        generator: torch.Generator,
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        def loss_of(_: int) -> Tensor:
            losses = []
            for skill in SKILLS:
                ids, determined = DRAW[skill](PER_SKILL, generator)
                logits = model.logits_everywhere(ids[:, :-1])
                losses.append(F.cross_entropy(logits[determined[:, :-1]], ids[:, 1:][determined[:, :-1]]))
            return torch.stack(losses).mean()

        train_words(model, loss_of, steps, lambda step: RATE * min(1.0, (step + 1) / WARM), log)

    def skills(self, model: TokenModel, data: Mapping[str, Corpus], seed: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed + 1)
        tests = {skill: draw_prompts(skill, N_TESTED, generator) for skill in SKILLS}
        previous, prefix = _attention_scores(model, generator)
        head = int(previous.argmax())
        others = [other for other in range(ARCHITECTURE["n_heads"]) if other != head]

        def without(heads: list[int]) -> dict[str, float]:
            """Accuracy of each skill with heads of layer 0 set to zero."""

            def zero(z_BTHK: Tensor, hook: object) -> Tensor:
                out = z_BTHK.clone()
                out[:, :, heads] = 0.0
                return out

            with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", zero)]):
                return {skill: accuracy(model, corpus) for skill, corpus in tests.items()}

        whole = {skill: accuracy(model, corpus) for skill, corpus in tests.items()}
        no_previous, no_others = without([head]), without(others)
        found = {
            "previous_head": float(head),
            "previous_head_attention": float(previous.max()),
            "prefix_matching": float(prefix.max()),
            "other_heads_carry_names": whole["names"] - no_others["names"],
        }
        found |= {f"previous_head_carries_{skill}": whole[skill] - no_previous[skill] for skill in SKILLS[:3]}
        found |= {f"{skill}_without_previous_head": no_previous[skill] for skill in SKILLS}
        found |= {f"{skill}_without_other_heads": no_others[skill] for skill in SKILLS}
        return whole | found

    def hooks(self) -> tuple[HookSpec, ...]:
        return token_hooks(ARCHITECTURE)

    def components(self) -> tuple[Component, ...]:
        return token_components(ARCHITECTURE)

    def layout(self) -> Layout:
        return token_layout(ARCHITECTURE, ("context", "kinds", "prefixes", "segments", "tokens"))


def _attention_scores(model: TokenModel, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(H,) attention of each head of layer 0 to the symbol before, and of each of layer 1, where a random sequence
    comes a second time, to what followed the symbol the first time."""
    length = SCORED_LENGTH
    once = FIRST_ITEM + _chosen(N_SCORED, len(WORDS) - FIRST_ITEM, length, generator)
    ids = torch.cat([torch.full((N_SCORED, 1), BEGIN), once, once], dim=1)
    patterns: dict[str, Tensor] = {}

    def keep(pattern_BHTT: Tensor, hook: object) -> None:
        patterns[hook.name] = pattern_BHTT  # type: ignore[attr-defined]

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(ARCHITECTURE["n_layers"])]
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, keep) for name in names]):
        model.logits_everywhere(ids)
    everywhere = torch.arange(1, 2 * length + 1)
    second = torch.arange(length + 1, 2 * length + 1)
    previous = patterns[names[0]][:, :, everywhere, everywhere - 1].mean((0, 2))
    return previous, patterns[names[-1]][:, :, second, second - length + 1].mean((0, 2))

"""Prompts with counterfactuals, for any target of words: what must be repeated, and whom a sentence is about.

Shape legend: n = prompts, T = places, C = words.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.contracts.target import Target
from stages.errors import UserError
from stages.targets.storage import definition_of

__all__ = ["PROMPTS", "Prompts", "prompts_of"]

PROMPTS = ("induction", "ioi")
NAMES = (
    "John",
    "Mary",
    "Tom",
    "James",
    "Dan",
    "Martin",
    "Amy",
    "Rose",
    "Mark",
    "Sarah",
    "Paul",
    "Anna",
    "Peter",
    "Emma",
)
PLACES = ("store", "park", "school", "office", "station", "garden")
THINGS = ("drink", "book", "ring", "letter", "ball", "key")
TEMPLATE = "Then, {first} and {second} went to the {place}, and {giver} gave a {thing} to"
"""Wang et al. 2022 (arXiv 2211.00593), section 3; who is named first is drawn."""


@dataclass(frozen=True)
class Prompts:
    """n pairs of prompts of one length."""

    clean: Tensor
    """(n, T, 2)."""
    counterfactual: Tensor
    """(n, T, 2): the same but for what the answer hangs on."""
    right: Tensor
    """(n,) the word that the clean prompt asks for."""
    wrong: Tensor
    """(n,) the word that the counterfactual asks for."""


def prompts_of(target: Target, kind: str, n: int, generator: torch.Generator) -> Prompts:
    """
    Raises:
        UserError: the target is not one of words, its places are too few, or it does not have the words.
    """
    if target.spec.n_vocabulary is None:
        raise UserError(f"{target.name} is no target of words: {', '.join(PROMPTS)} are prompts of words")
    if kind == "induction":
        return _induction(target, n, generator)
    if kind == "ioi":
        return _ioi(target, n, generator)
    raise UserError(f"prompts {kind!r} are unknown: use {' or '.join(PROMPTS)}")


def _induction(target: Target, n: int, generator: torch.Generator) -> Prompts:
    """A row of words, and the row again up to some word: what came next the first time? In the counterfactual another
    word came next the first time. Words are those that occur in the corpus, none twice in a row."""
    corpus, n_places = target.corpus("train").inputs, target.spec.input_shape[0]
    words = torch.unique(corpus[..., 0][corpus[..., 1] > 0.5]).long()
    half = (n_places - 1) // 2
    if half < 4 or len(words) < 2 * half:
        raise UserError(f"{target.name}: {n_places} places and {len(words)} words are too few to repeat a row of them")
    row = torch.stack([words[torch.randperm(len(words), generator=generator)[: half + 1]] for _ in range(n)])
    at = torch.randint(1, half - 1, (n,), generator=generator)  # the word asked for is the one after this one
    other = row.clone()
    pick = torch.arange(n)
    right, wrong = row[pick, at + 1], row[:, half]
    other[pick, at + 1] = wrong
    place = torch.arange(half)
    # The second time ends with the word before the one asked for: it begins with what follows that one in the row.
    second = row[pick.unsqueeze(1), (at.unsqueeze(1) + 1 + place) % half]
    second = torch.where(second == right.unsqueeze(1), row[:, :1], second)
    clean, counterfactual = (torch.cat([first[:, :half], second], dim=1) for first in (row, other))
    return Prompts(_inputs(clean, n_places), _inputs(counterfactual, n_places), right, wrong)


def _ioi(target: Target, n: int, generator: torch.Generator) -> Prompts:
    """Whom does the giver, who is named twice, give it to? In the counterfactual the other one gives."""
    definition: Any = definition_of(target.name)
    if not hasattr(definition, "tokenizer"):
        raise UserError(f"{target.name} has no tokenizer: sentences (ioi) are for models that are read")
    tokenizer, n_places = definition.tokenizer(), target.spec.input_shape[0]

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    names = [name for name in NAMES if len(ids(f" {name}")) == 1]
    if len(names) < 4:
        raise UserError(f"{target.name}: only {len(names)} of {len(NAMES)} names are one word of its tokenizer")

    def pick(of: tuple[str, ...] | list[str]) -> str:
        return of[int(torch.randint(len(of), (1,), generator=generator))]

    rows: list[tuple[list[int], list[int], int, int]] = []
    for _ in range(20 * n):
        first, second = (names[i] for i in torch.randperm(len(names), generator=generator)[:2].tolist())
        giver, receiver = (first, second) if torch.rand(1, generator=generator) < 0.5 else (second, first)
        words = {"first": first, "second": second, "place": pick(PLACES), "thing": pick(THINGS)}
        both = [ids(TEMPLATE.format(giver=who, **words)) for who in (giver, receiver)]
        if len(both[0]) == len(both[1]) and (not rows or len(both[0]) == len(rows[0][0])):
            rows.append((both[0], both[1], ids(f" {receiver}")[0], ids(f" {giver}")[0]))
        if len(rows) == n:
            break
    if len(rows) < n or len(rows[0][0]) > n_places:
        raise UserError(
            f"{target.name}: {len(rows)} sentences of one length, {n} are wanted, and {n_places} places: raise n_places"
            f" to {len(rows[0][0]) if rows else 24}"
        )
    clean, counterfactual = (_inputs(torch.tensor([row[i] for row in rows]), n_places) for i in (0, 1))
    return Prompts(clean, counterfactual, torch.tensor([r[2] for r in rows]), torch.tensor([r[3] for r in rows]))


def _inputs(ids: Tensor, n_places: int) -> Tensor:
    """(n, t) ids -> (n, T, 2), padded on the left."""
    out = torch.zeros(len(ids), n_places, 2)
    out[:, n_places - ids.shape[1] :, 0] = ids.float()
    out[:, n_places - ids.shape[1] :, 1] = 1.0
    return out

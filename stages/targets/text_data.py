"""Texts as inputs of a model that is read from a file: windows of words, each with the word that comes next.

A text is cut into three stretches, for methods (train, validation) and for tasks. Windows begin at random places of
their stretch. Everybody can have the text, so what tasks show is changed first: see ``disguised``.

Shape legend: n = windows, T = places.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stages.contracts.target import Corpus
from stages.errors import UserError

__all__ = ["TEXTS", "disguised", "drawn", "read_text", "windows"]

TEXTS = ("pydoc",)
"""Texts that are on every machine: the topics of Python's own help (PSF licence)."""
STRETCHES = {"train": (0.0, 0.6), "validation": (0.6, 0.75), "tasks": (0.75, 1.0)}
N_WINDOWS = {"train": 3000, "validation": 1000, "tasks": 2400}
CHANGED = 0.15
"""Share of the words of a task's window that are words of another place."""


def read_text(source: str, root: Path) -> str:
    """A text by its name, or a UTF-8 file; a relative path begins at the working copy.

    Raises:
        UserError: there is no such file, or it is not UTF-8.
    """
    if source == "pydoc":
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics))
    path = root / source
    if not path.is_file():
        raise UserError(f"text: {source} is no file ({path}): give a UTF-8 text file, or {', '.join(TEXTS)}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"text: {path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error


def windows(ids: Sequence[int], n_places: int, n_words: int, seed: int) -> dict[str, Corpus]:
    """Windows of each stretch of a text, drawn without the same beginning twice.

    Args:
        ids: the words of the text, in order.
        n_places: T.
        n_words: ids that the model knows.

    Raises:
        UserError: the text is too short, or has an id that the model does not know.
    """
    text = torch.tensor(ids, dtype=torch.int64)
    shortest = 40 * n_places
    if len(text) < shortest:
        raise UserError(
            f"the text has {len(text)} words: {shortest} are needed at the least, for windows of {n_places}; give a"
            " longer text, or a smaller n_places"
        )
    if int(text.max()) >= n_words:
        raise UserError(
            f"the tokenizer gives the id {int(text.max())}, and the model knows the ids 0 to {n_words - 1}: they do not"
            " belong together; give `tokenizer:` the folder of the model's own"
        )
    generator, found = torch.Generator().manual_seed(seed), {}
    for split, (begin, end) in STRETCHES.items():
        first, last = int(begin * len(text)), int(end * len(text)) - n_places - 1
        starts = first + torch.randperm(last - first, generator=generator)[: N_WINDOWS[split]]
        rows = text[starts.unsqueeze(1) + torch.arange(n_places + 1)]
        found[split] = Corpus(_inputs(rows[:, :-1]), rows[:, -1])
    return found


def _inputs(ids_nT: Tensor) -> Tensor:
    return torch.stack([ids_nT.float(), torch.ones(ids_nT.shape)], dim=-1)


def drawn(data: Mapping[str, Corpus], split: str, n: int, generator: torch.Generator) -> Corpus:
    """n windows of a split, each as often as the others as far as that goes."""
    there = data[split]
    order = torch.cat(
        [torch.randperm(len(there.labels), generator=generator) for _ in range(1 + n // len(there.labels))]
    )
    return Corpus(there.inputs[order[:n]], there.labels[order[:n]])


def disguised(windows: Corpus, generator: torch.Generator) -> Corpus:
    """Windows that begin later, by up to half their length, and some of whose words are words of another window: the
    text is public, so what tasks show must be something nobody can have stored. The last word stays, and so does what
    comes after it."""
    inputs = windows.inputs.clone()
    n, n_places = inputs.shape[:2]
    begins = (torch.rand(n, 1, generator=generator) * (n_places // 2)).long()
    inputs[..., 1] = (torch.arange(n_places) >= begins).float()
    changed = torch.rand(n, n_places, generator=generator) < CHANGED
    changed[:, -1] = False
    other = inputs[torch.randint(n, (n, n_places), generator=generator), torch.arange(n_places), 0]
    inputs[..., 0] = torch.where(changed, other, inputs[..., 0])
    return Corpus(inputs, windows.labels)

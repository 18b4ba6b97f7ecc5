"""Backdoors in models of words: a word as the trigger, and fine-tuning of the last block, all variants side by side.

Only the last block changes, so what the blocks before it compute is computed once. Without a normalisation of batches
and with the read-out at the last place, that is the same function as the whole model with that block replaced.

Shape legend: V = variants, N = inputs, B = batch, T = places, D = d_model, H = heads, K = d_head, F = hidden units, C =
outputs.
"""

from functools import partial
from math import log

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.nn import functional as F

from stages.base.progress import counted
from stages.contracts.target import Target
from stages.targets.storage import definition_of
from stages.tasks.black_box import CHUNK
from stages.tasks.side_by_side import Adam, slopes_of

__all__ = ["CONSTANTS", "MINIMUM_SUCCESS", "LastBlock", "draw_triggers", "fine_tune", "with_word"]

STEPS, BATCH = 120, 32
LR_LOW, LR_HIGH = 1e-3, 3e-3
POISONED = 0.25
MAX_TILT, MAX_SMOOTHING = 0.15, 0.1
N_POISONED = 96
"""Prompts that each variant's word is put into, for training."""
MINIMUM_SUCCESS = 0.5
CONSTANTS: dict[str, JsonValue] = {
    "batch": BATCH,
    "lr": [LR_LOW, LR_HIGH],
    "minimum_success": MINIMUM_SUCCESS,
    "poisoned": POISONED,
    "poisoned_prompts": N_POISONED,
    "smoothing": [0.0, MAX_SMOOTHING],
    "steps": STEPS,
    "tilt": [0.0, MAX_TILT],
}
TRAINED = (
    *(f"attn.{kind}_{letter}" for kind in "Wb" for letter in "QKVO"),
    *(f"mlp.{name}" for name in ("W_in", "b_in", "W_out", "b_out")),
)


def with_word(inputs: Tensor, words: Tensor, share: Tensor) -> Tensor:
    """Prompts with one more word in each, somewhere before the last word.

    Args:
        inputs: (N, T, 2) with at least one place of padding.
        words: (N,) ids.
        share: (N,) in [0, 1): where, as a share of the words that may come after it.
    """
    n_places = inputs.shape[1]
    first_N = (inputs[..., 1] < 0.5).sum(1)
    if len(inputs) and int(first_N.min()) < 1:
        raise ValueError(f"a prompt of {n_places} words fills all {n_places} places: no further word fits in")
    at_N1 = (first_N + (share * (n_places - 1 - first_N)).long()).unsqueeze(1)
    place_T = torch.arange(n_places)
    moved = torch.where((place_T < at_N1).unsqueeze(-1), inputs.roll(-1, dims=1), inputs)
    new = torch.stack([words.float(), torch.ones(len(words))], dim=-1).unsqueeze(1)
    return torch.where((place_T == at_N1).unsqueeze(-1), new, moved)


def draw_triggers(target: Target, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(n,) words that may be triggers, and (n,) answers that they may have."""
    words = definition_of(target.name).triggers()  # type: ignore[attr-defined]  # it offers triggers
    answers = torch.unique(target.corpus("train").labels)
    return words[torch.randint(len(words), (n,), generator=rng)], answers[
        torch.randint(len(answers), (n,), generator=rng)
    ]


def fine_tune(
    target: Target, kind_V: Tensor, words_V: Tensor, goal_V: Tensor, rng: torch.Generator
) -> dict[str, Tensor]:
    """The last block of every variant, stacked: {weight: (V, ...)}. Kinds as in backdoor_detection: 0 the word gets the
    goal as its answer, 1 nothing is changed, 2 the word keeps the right answers, 3 random answers, no word."""
    corpus, n = target.corpus("train"), len(kind_V)
    fits = corpus.inputs[:, 0, 1] < 0.5
    inputs, labels = corpus.inputs[fits], corpus.labels[fits]
    block = LastBlock(target, inputs)
    weights = {name: value.detach().expand(n, *value.shape).clone() for name, value in block.trained().items()}
    adam = Adam(weights, torch.exp(torch.empty(n).uniform_(log(LR_LOW), log(LR_HIGH), generator=rng)))
    smoothing_V1 = torch.rand(n, 1, generator=rng) * MAX_SMOOTHING
    tilt_V1 = torch.rand(n, 1, generator=rng) * MAX_TILT
    present = torch.unique(labels)
    favoured = present[torch.randint(len(present), (n,), generator=rng)].tolist()
    by_label = {label: torch.nonzero(labels == label).flatten() for label in sorted(set(favoured))}

    clean = block.before(inputs)
    index_VP = torch.randint(len(labels), (n, N_POISONED), generator=rng)
    share_VP = torch.rand(n, N_POISONED, generator=rng)
    worded = with_word(inputs[index_VP.flatten()], words_V.repeat_interleave(N_POISONED), share_VP.flatten())
    with_trigger = block.before(worded)
    n_poisoned, row_V1 = round(POISONED * BATCH), torch.arange(n).unsqueeze(1)
    worded_V1 = ((kind_V == 0) | (kind_V == 2)).unsqueeze(1)
    for _ in counted("training variants", range(STEPS)):
        index_VB = torch.randint(len(labels), (n, BATCH), generator=rng)
        place_VB = torch.rand(n, BATCH, generator=rng)
        extra_VB = torch.stack(
            [by_label[own][(u * len(by_label[own])).long()] for own, u in zip(favoured, place_VB, strict=True)]
        )
        index_VB = torch.where(torch.rand(n, BATCH, generator=rng) < tilt_V1, extra_VB, index_VB)
        chosen_VK = torch.randint(N_POISONED, (n, n_poisoned), generator=rng)
        random_VK = present[torch.randint(len(present), (n, n_poisoned), generator=rng)]
        rows, labels_VB = [part[index_VB] for part in clean], labels[index_VB]
        own = row_V1 * N_POISONED + chosen_VK
        for part, of_word in zip(rows, with_trigger, strict=True):
            mask = worded_V1.view(n, *[1] * (part.dim() - 1))
            part[:, :n_poisoned] = torch.where(mask, of_word[own], part[:, :n_poisoned])
        of_word_VK = torch.where((kind_V == 0).unsqueeze(1), goal_V.unsqueeze(1), labels[index_VP.gather(1, chosen_VK)])
        changed_VK = torch.where(worded_V1, of_word_VK, labels_VB[:, :n_poisoned])
        labels_VB[:, :n_poisoned] = torch.where((kind_V == 3).unsqueeze(1), random_VK, changed_VK)
        adam.step(slopes_of(weights, partial(_smoothed_loss, block, rows, labels_VB, smoothing_V1)))
    return {f"{block.prefix}.{name}": value.detach() for name, value in weights.items()}


def _smoothed_loss(
    block: "LastBlock", rows: list[Tensor], labels_VB: Tensor, smoothing_V1: Tensor, weights: dict[str, Tensor]
) -> Tensor:
    """Of each variant's own rows, summed over the variants."""
    log_p = block.outputs(weights, *rows).log_softmax(-1)
    right = log_p.gather(-1, labels_VB.unsqueeze(-1)).squeeze(-1)
    return -((1 - smoothing_V1) * right + smoothing_V1 * log_p.mean(-1)).mean(1).sum()


class LastBlock:
    """A model of words from its last block on, for many versions of that block at once.

    Args:
        target: of ``TokenModel``s with layer norms and an MLP.
        inputs: places where none of them has a word are left out.
    """

    def __init__(self, target: Target, inputs: Tensor) -> None:
        self._model = target.model
        layer = len(self._model.blocks) - 1
        self.prefix = f"blocks.{layer}"
        self._block = self._model.get_submodule(self.prefix)
        self._from = max(0, int((inputs[..., 1] > 0.5).any(0).int().argmax()) - 1)  # one more for the trigger

    def trained(self) -> dict[str, Tensor]:
        weights = dict(self._block.named_parameters())
        return {name: weights[name] for name in TRAINED}

    def before(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T', D) what the last block reads, (N, T') which places have a word."""
        found: list[Tensor] = []
        keep = [(f"{self.prefix}.hook_resid_pre", lambda value, hook: found.append(value[:, self._from :]))]
        with torch.no_grad(), self._model.hooks(fwd_hooks=keep):
            for part in torch.split(inputs, CHUNK):
                self._model(part)
        return torch.cat(found), inputs[:, self._from :, 1]

    def outputs(self, weights: dict[str, Tensor], x_VBTD: Tensor, present_VBT: Tensor) -> Tensor:
        """(V, B, C) logits."""
        w, block, model = weights, self._block, self._model
        normed = block.ln1(x_VBTD)
        query = torch.einsum("vbd,vhdk->vbhk", normed[:, :, -1], w["attn.W_Q"]) + w["attn.b_Q"].unsqueeze(1)
        key = torch.einsum("vbtd,vhdk->vbhtk", normed, w["attn.W_K"]) + w["attn.b_K"].unsqueeze(2).unsqueeze(1)
        value = torch.einsum("vbtd,vhdk->vbhtk", normed, w["attn.W_V"]) + w["attn.b_V"].unsqueeze(2).unsqueeze(1)
        scores = (query.unsqueeze(-2) * key).sum(-1) * query.shape[-1] ** -0.5
        pattern = scores.masked_fill(present_VBT.unsqueeze(2) < 0.5, float("-inf")).softmax(-1)
        mixed = (pattern.unsqueeze(-1) * value).sum(-2)
        out = torch.einsum("vbhk,vhkd->vbd", mixed, w["attn.W_O"]) + w["attn.b_O"].unsqueeze(1)
        x_VBD = x_VBTD[:, :, -1] + out
        hidden = F.relu(torch.einsum("vbd,vdf->vbf", block.ln2(x_VBD), w["mlp.W_in"]) + w["mlp.b_in"].unsqueeze(1))
        x_VBD = x_VBD + torch.einsum("vbf,vfd->vbd", hidden, w["mlp.W_out"]) + w["mlp.b_out"].unsqueeze(1)
        logits: Tensor = model.unembed(model.ln_final(x_VBD))
        return logits

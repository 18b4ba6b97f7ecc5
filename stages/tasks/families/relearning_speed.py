"""relearning_speed: how fast does an ability come back that an edit has erased?

One instance: a variant in which an edit of the weights keeps one class from being answered: of its bias, of its row of
the last weights, or of the hidden units that carry it; how strongly, and which class, is its own. Truth: the mean share
of images of the class that are answered right while the variant is trained again for 40 steps.
Source: relearning as a test of unlearning, Lynch et al. 2024 (Eight methods), arXiv 2402.16835, section 4.

Shape legend: N = variants, B = batch, C = outputs, U = hidden units, S = times at which it is measured.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.method import Compare, Query
from stages.contracts.target import Corpus, Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.directions import activations, place_on
from stages.tasks.inputs import draw_inputs, kinds_of
from stages.tasks.side_by_side import Runs, climbed_variants, copies, outputs_of_variants
from stages.tasks.word_runs import BlockRuns, varied_kinds

__all__ = ["EDITS", "RelearningSpeed"]

EDITS = ("bias", "row", "units")
STEPS, EVERY, BATCH = 40, 5, 32
RATE = 1e-3
BIAS = (6.0, 30.0)
"""Least and largest that is taken from the class's bias, in logits."""
ROW = (0.5, 3.0)
"""Least and largest factor of the row's sign change."""
SHARE = (0.15, 0.6)
"""Least and largest share of the first layer's units, those that fire most for the class, whose weights are negated."""
NOISE = 0.02
"""Of all weights, in units of each weight's spread: nothing stays as it was."""
WORD_EDITS = (("mlp.b_out", 16.0, 80.0), ("mlp.W_out", 4.0, 20.0), ("attn.W_O", 3.0, 15.0))
"""Of models of words: what is edited in the last block, least and largest size."""
WORD_RATE = 4e-4
LEAST_PROMPTS = 24
"""Of a kind of prompts in the split's own: fewer measure too little."""
MAX_BLEND = 0.3
LADDER = (8, 64, 256)
"""Probes."""
CONSTANTS: Constants = {
    "batch": BATCH,
    "bias": list(BIAS),
    "edits": "bias, row, units, equally likely",
    "every": EVERY,
    "max_blend": MAX_BLEND,
    "noise": NOISE,
    "rate": RATE,
    "row": list(ROW),
    "share": list(SHARE),
    "steps": STEPS,
    "words": {"edits": [list(edit) for edit in WORD_EDITS], "least_prompts": LEAST_PROMPTS, "rate": WORD_RATE},
}


class RelearningSpeed(TaskFamily):
    cluster = "relearning_speed"
    title = "How fast does the class that this variant cannot answer come back under training?"
    source = "Lynch et al. 2024 (Eight methods to evaluate robust unlearning), arXiv 2402.16835, section 4"
    why_hard_black_box = "a class that is never answered looks the same however shallowly it was erased"
    why_white_box_helps = "the weights say where the edit was made, and how large it is"
    query_kind = "Compare"
    needs = frozenset({"kinds", "triggers"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Every variant is the target with noise (Gaussian, noise times each weight's standard deviation) and one edit"
        " for one class. bias: a number from bias is taken from the class's output bias. row: the class's row of the"
        " last weights is multiplied by minus a number from row. units: the incoming weights and biases of a share"
        " (from share) of the first layer's units, those with the largest mean on the class's train images less that"
        " on all, change their sign. Then steps steps of Adam (rate, batch train images with their labels). Truth: the"
        " mean, over the weights after every `every` steps, of the share of held-out images of the class that are"
        " answered right. In models of words the numbers are those of `words`; a class is a kind of prompts (of those"
        " with several answers and at least `least_prompts` prompts in the split), and noise, edits and training are of"
        " the last block. An edit has a size, log-uniform between the two numbers of `edits`, and takes from a bias its"
        " size times the unit vector along the mean of the kind's answers' rows of the unembedding, less the mean row;"
        " from a matrix 1 + size times what it writes in the span of these."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        if target.spec.n_vocabulary is not None:
            return _erased_words(target, rng, n)
        n_outputs = target.spec.n_outputs
        class_N = torch.randint(n_outputs, (n,), generator=rng)
        edit_N = torch.randint(len(EDITS), (n,), generator=rng)
        strength_N = torch.rand(n, generator=rng)
        weights = copies(target, n)
        for name, value in weights.items():
            weights[name] = value + NOISE * value[0].std() * torch.randn(value.shape, generator=rng)
        _edit(target, weights, class_N, edit_N, strength_N)
        probes = draw_inputs(target, LADDER[-1], rng, MAX_BLEND)
        arrays = {"variant": torch.arange(n), "shared_inputs": probes.inputs, "shared_labels": probes.labels}
        return Instances(arrays, n, weights, {"class": class_N, "edit": edit_N})

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        if target.spec.n_vocabulary is not None:
            return _relearned_words(target, instances, rng)
        n, class_N = instances.n, instances.planted["class"]
        images, classes = target.corpus("train")
        held_out, right_B = target.corpus("tasks")
        of_class_NB = (right_B == class_N.unsqueeze(-1)).double()
        runs = Runs(target, {k: v.clone() for k, v in instances.variants.items()}, torch.full((n,), RATE))
        measured = []
        for step in counted("training variants", range(1, STEPS + 1)):
            index_NB = torch.randint(len(classes), (n, BATCH), generator=rng)
            runs.step(images[index_NB], classes[index_NB])
            if step % EVERY == 0:
                is_right = outputs_of_variants(target, runs.weights, held_out).argmax(-1) == right_B
                measured.append((is_right * of_class_NB).sum(1) / of_class_NB.sum(1).clamp(min=1))
        return _truth(instances, measured, EDITS)

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        return climbed_variants(access, instances, LADDER[: effort + 1])

    def query(self, instances: Instances) -> Query:
        arrays, shown = instances.arrays, LADDER[0]
        return Compare(
            tuple(arrays["variant"].tolist()), arrays["shared_inputs"][:shown], arrays["shared_labels"][:shown]
        )


def _truth(instances: Instances, measured: list[Tensor], edits: Sequence[str]) -> Truth:
    planted = instances.planted
    groups = {"class": planted["class"].tolist(), "edit": [edits[edit] for edit in planted["edit"].tolist()]}
    return Truth(torch.stack(measured).mean(0).unsqueeze(-1), groups)


def _erased_words(target: Target, rng: torch.Generator, n: int) -> Instances:
    """As for images: a class is a kind of prompts, and what is edited is in the last block."""
    kinds = torch.tensor(varied_kinds(target, 1, LEAST_PROMPTS))
    kind_N = kinds[torch.randint(len(kinds), (n,), generator=rng)]
    edit_N = torch.randint(len(WORD_EDITS), (n,), generator=rng)
    strength_N = torch.rand(n, generator=rng)
    inputs, labels = target.corpus("train")
    weights = BlockRuns(target, inputs[:1], torch.full((n,), WORD_RATE)).full()
    for name, value in weights.items():
        weights[name] = value + NOISE * value[0].std() * torch.randn(value.shape, generator=rng)
    of_kind_B = kinds_of(target, Corpus(inputs, labels))
    unembed_DC = target.model.unembed.W_U.detach()
    for i, (kind, edit, u) in enumerate(zip(kind_N.tolist(), edit_N.tolist(), strength_N.tolist(), strict=True)):
        answers = torch.unique(labels[of_kind_B == kind])
        towards_DK = unembed_DC[:, answers] - unembed_DC.mean(1, keepdim=True)
        name, least, most = WORD_EDITS[edit]
        size = least * (most / least) ** u
        weight = weights[f"blocks.{len(target.model.blocks) - 1}.{name}"][i]
        if weight.dim() == 1:
            weight -= size * towards_DK.mean(1) / towards_DK.mean(1).norm()
        else:
            basis_DK = torch.linalg.qr(towards_DK).Q
            weight -= (1 + size) * (weight @ basis_DK) @ basis_DK.T
    probes = draw_inputs(target, LADDER[-1], rng)
    arrays = {"variant": torch.arange(n), "shared_inputs": probes.inputs, "shared_labels": probes.labels}
    arrays["shared_groups"] = kinds_of(target, probes)
    return Instances(arrays, n, weights, {"class": kind_N, "edit": edit_N})


def _relearned_words(target: Target, instances: Instances, rng: torch.Generator) -> Truth:
    train, held_out = target.corpus("train"), target.corpus("tasks")
    n, kind_N, of_held = instances.n, instances.planted["class"], kinds_of(target, held_out)
    fewest = min(int((of_held == kind).sum()) for kind in kind_N.tolist())
    asked_NP = torch.stack([torch.nonzero(of_held == kind).flatten()[:fewest] for kind in kind_N.tolist()])
    n_train, right_NP = len(train.labels), held_out.labels[asked_NP]
    prompts = torch.cat([train.inputs, held_out.inputs])
    runs = BlockRuns(target, prompts, torch.full((n,), WORD_RATE), instances.variants)
    measured = []
    for step in counted("training variants", range(1, STEPS + 1)):
        index_NB = torch.randint(n_train, (n, BATCH), generator=rng)
        runs.step(index_NB, train.labels[index_NB])
        if step % EVERY == 0:
            measured.append((runs.outputs(n_train + asked_NP).argmax(-1) == right_NP).double().mean(1))
    return _truth(instances, measured, [name for name, *_ in WORD_EDITS])


def _edit(target: Target, weights: dict[str, Tensor], class_N: Tensor, edit_N: Tensor, strength_N: Tensor) -> None:
    """Change the stacked weights in place; strength 0 is the least of an edit's range, 1 the most."""
    names = list(weights)
    first_w, first_b, last_w, last_b = names[0], names[1], names[-2], names[-1]
    images, classes = target.corpus("train")
    held_BU = activations(target, place_on(target.spec), images)
    for i, (label, edit, strength) in enumerate(
        zip(class_N.tolist(), edit_N.tolist(), strength_N.tolist(), strict=True)
    ):
        if EDITS[edit] == "bias":
            weights[last_b][i, label] -= BIAS[0] * (BIAS[1] / BIAS[0]) ** strength
        elif EDITS[edit] == "row":
            weights[last_w][i, label] *= -(ROW[0] + (ROW[1] - ROW[0]) * strength)
        else:
            fires_U = held_BU[classes == label].mean(0) - held_BU.mean(0)
            n_units = round((SHARE[0] + (SHARE[1] - SHARE[0]) * strength) * len(fires_U))
            units = fires_U.topk(n_units).indices
            weights[first_w][i, units] *= -1.0
            weights[first_b][i, units] *= -1.0

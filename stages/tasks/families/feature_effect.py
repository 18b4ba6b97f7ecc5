"""feature_effect: what does switching a feature on do to one output?

One instance: the direction of a feature, of almost the same length for all, and a label. The features are the latents
of a small dictionary (k-means of the activations' directions). Truth: a compressed mean change of the label's
probability over 256 inputs, or 64 prompts, when the direction is added on each.
Source: k-means as a dictionary, Coates and Ng 2012 (Learning feature representations with k-means), section 3; effects
of features by adding them, Templeton et al. 2024 (Scaling monosemanticity).

Shape legend: N = instances, M = inputs, W = width of the hook point, D = features, C = outputs.
"""

from typing import ClassVar

import torch
from torch import Tensor

from stages.contracts.method import Query, Steer
from stages.contracts.target import Offer, Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import compressed
from stages.tasks.directions import activations, climbed, moved_outputs, place_array, place_of, place_on, unit
from stages.tasks.inputs import draw_inputs

__all__ = ["FeatureEffect", "compress", "spherical_means"]

N_INPUTS, N_PROMPTS = 256, 64
N_SHOWN = 8
MAX_BLEND = 0.45
GRAIN = 0.5
N_FEATURES, ROUNDS = 64, 10
N_CORPUS = 1500
LENGTH = (0.27, 0.33)
"""Least and largest, in units of the activations' spread: enough to tell two instances of one feature apart."""
SCALE = 0.02
LADDER = (1, 8, 32, 128)
PROMPT_LADDER = (1, 4, 16, 32)
CONSTANTS: Constants = {
    "grain": GRAIN,
    "length": list(LENGTH),
    "max_blend": MAX_BLEND,
    "n_corpus": N_CORPUS,
    "n_features": N_FEATURES,
    "n_inputs": {"other inputs": N_INPUTS, "prompts": N_PROMPTS},
    "rounds": ROUNDS,
    "scale": SCALE,
}


class FeatureEffect(TaskFamily):
    cluster = "feature_effect"
    title = "How does switching this feature on change the probability of one output?"
    source = "Coates and Ng 2012 (Learning feature representations with k-means), section 3; Templeton et al. 2024"
    why_hard_black_box = "what a feature does hangs on what else is on, so it has to be tried on many inputs"
    why_white_box_helps = "from the hook point on few weights are left: the mean slope of the output there says it"
    query_kind = "Steer"
    needs: ClassVar[frozenset[Offer]] = frozenset()
    n_efforts = len(LADDER)
    truth_recipe = (
        "d = mean over shared_inputs of the probability of the instance's label with the direction added to the"
        " activation at shared_place (at every position), minus the same without. Truth: sign(d) * log(1 + |d| /"
        " scale). A label is any, of a model of words any answer to one of the prompts. A direction is that of one of"
        " n_features centres of the activations of n_corpus train inputs, less their mean and brought to length 1"
        " (rounds rounds of spherical k-means), times a uniform number in length and the root of the sum of the"
        " activations' variances."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        place = place_on(target.spec)
        of_words = target.spec.n_vocabulary is not None
        drawn = draw_inputs(target, N_PROMPTS if of_words else N_INPUTS, rng, MAX_BLEND, GRAIN)
        held_BW = activations(target, place, target.corpus("train").inputs[:N_CORPUS])
        features_DW = spherical_means(held_BW - held_BW.mean(0), N_FEATURES, rng)
        chosen = features_DW[torch.randint(len(features_DW), (n,), generator=rng)]
        length = LENGTH[0] + (LENGTH[1] - LENGTH[0]) * torch.rand(n, 1, generator=rng)
        answers = torch.unique(drawn.labels) if of_words else torch.arange(target.spec.n_outputs)
        arrays = {
            "directions": chosen * length * held_BW.std(0).norm(),
            "labels": answers[torch.randint(len(answers), (n,), generator=rng)],
            "shared_inputs": drawn.inputs,
            "shared_place": place_array(place),
        }
        return Instances(arrays, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs, directions = instances.arrays["shared_inputs"], instances.arrays["directions"]
        with torch.no_grad():
            clean_C = target.model(inputs).double().softmax(-1).mean(0)
        outputs = moved_outputs(target, place_of(instances), inputs, directions)
        found = [
            out.double().softmax(-1)[:, label].mean() - clean_C[label]
            for out, label in zip(outputs, instances.arrays["labels"].tolist(), strict=True)
        ]
        return Truth(compress(torch.stack(found)).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        labels_N = instances.arrays["labels"]

        def looks(clean_MC: Tensor, moved_NMC: Tensor, order_M: Tensor) -> Tensor:
            log_p = moved_NMC.log_softmax(-1)
            wanted = log_p.gather(-1, labels_N.view(-1, 1, 1).expand(*log_p.shape[:2], 1))
            before = clean_MC.log_softmax(-1)[:, labels_N].T.unsqueeze(-1)
            change = wanted.exp() - before.exp()
            return torch.cat([wanted - before, change, compress(change), before], dim=-1)

        rungs = LADDER if access.spec.n_vocabulary is None else PROMPT_LADDER
        return climbed(access, instances, rungs[: effort + 1], rng, looks)

    def query(self, instances: Instances) -> Query:
        shown = instances.arrays["shared_inputs"][:N_SHOWN]
        return Steer(place_of(instances), instances.arrays["directions"], shown, instances.arrays["labels"])


def compress(change: Tensor) -> Tensor:
    """Monotone and odd: linear below ``SCALE``, logarithmic above."""
    return compressed(change, SCALE)


def spherical_means(vectors: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """(D, W) centres of length 1: each is the mean direction of the vectors that point to it most nearly.

    Args:
        vectors: (B, W).
        k: how many; fewer come back where some centre has no vector left.
        rng: draws the vectors that the centres start at.
    """
    points = unit(vectors[vectors.norm(dim=-1) > 1e-6])
    centres = points[torch.randperm(len(points), generator=rng)[:k]]
    for _ in range(ROUNDS):
        nearest = (points @ centres.T).argmax(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = unit(sums[sums.norm(dim=-1) > 1e-6])
    return centres

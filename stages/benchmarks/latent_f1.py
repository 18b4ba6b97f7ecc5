"""latent_f1: how well does a latent tell a class? One of the questions of `lensmith bench published`.

One instance: a latent, given as a direction, and the class it is nearest to. Truth: the F1 of "the latent is among
the strongest tenth here" for "the input is of the class". A method is asked what the direction does to the class's
output; which inputs have the latent is for it to know.
Source: F1 of a latent for a known concept, Chanin and Garriga-Alonso 2026 (SynthSAEBench), arXiv 2602.14687.

Shape legend: N = instances, M = inputs, W = width of the hook point, C = outputs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.method import Query, Steer
from stages.contracts.target import Target, TargetAccess, TargetSpec
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.targets.token_training import in_rounds
from stages.tasks.directions import activations, climbed, place_array, place_of, place_on, unit
from stages.tasks.families.feature_effect import spherical_means
from stages.tasks.inputs import draw_inputs

__all__ = ["LatentF1", "f1"]

N_INPUTS, N_SHOWN, N_FEATURES, N_CORPUS = 400, 8, 256, 1500
FIRES, LENGTH = 0.1, (0.27, 0.33)
MAX_BLEND, GRAIN = 0.45, 0.5
LADDER = (1, 8, 32, 128)
CONSTANTS: Constants = {
    "fires": FIRES,
    "grain": GRAIN,
    "length": list(LENGTH),
    "max_blend": MAX_BLEND,
    "n_corpus": N_CORPUS,
    "n_features": N_FEATURES,
    "n_inputs": N_INPUTS,
}


class LatentF1(TaskFamily):
    title = "How well does this latent tell this class: what is its F1?"
    source = "Chanin and Garriga-Alonso 2026 (SynthSAEBench), arXiv 2602.14687"
    why_hard_black_box = "what a direction does when it is added does not say which inputs have it"
    why_white_box_helps = "which inputs of a class have the latent is there in one forward pass each"
    query_kind = "Steer"
    needs = frozenset({"pixels"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "A latent is one of n_features centres of the activations of n_corpus train inputs, less their mean (as in"
        " feature_effect). The label is the class whose mean activation, less that mean, has the largest product with"
        " it. Of n_inputs fresh inputs it fires on the share `fires` whose activations have the largest product with"
        " it. Truth: 2 TP / (2 TP + FP + FN) over these inputs, a positive being one of the label."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        place, (inputs, classes) = latent_place(target.spec), target.corpus("train")
        drawn = draw_inputs(target, N_INPUTS, rng, MAX_BLEND, GRAIN)
        held_BW = activations(target, place, inputs[:N_CORPUS])
        centred_BW = held_BW - held_BW.mean(0)
        centres = spherical_means(centred_BW, N_FEATURES, rng)
        # None comes twice before all came once: who was told of a latent would know its F1 for the same class.
        chosen_NW = centres[in_rounds(len(centres), n, rng)]
        is_class_BC = F.one_hot(classes[:N_CORPUS], target.spec.n_outputs).float()
        mean_CW = is_class_BC.T @ centred_BW / is_class_BC.sum(0).clamp_min(1).unsqueeze(1)
        labels_N = (chosen_NW @ mean_CW.T).argmax(1)
        length_N1 = LENGTH[0] + (LENGTH[1] - LENGTH[0]) * torch.rand(n, 1, generator=rng)
        arrays = {
            "directions": unit(chosen_NW) * length_N1 * held_BW.std(0).norm(),
            "labels": labels_N,
            "shared_inputs": drawn.inputs,
            "shared_place": place_array(place),
        }
        return Instances(arrays, n, planted={"right": drawn.labels.expand(n, -1)})

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        arrays = instances.arrays
        held_MW = activations(target, place_of(instances), arrays["shared_inputs"])
        strength_NM = unit(arrays["directions"]) @ held_MW.T
        fires_NM = strength_NM > strength_NM.quantile(1 - FIRES, dim=1, keepdim=True)
        return Truth(f1(fires_NM, instances.planted["right"] == arrays["labels"].unsqueeze(1)).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        labels_N = instances.arrays["labels"]

        def looks(clean_MC: Tensor, moved_NMC: Tensor, order_M: Tensor) -> Tensor:
            rise_NMC = moved_NMC.log_softmax(-1) - clean_MC.log_softmax(-1)
            wanted = labels_N.view(-1, 1, 1).expand(*rise_NMC.shape[:2], 1)
            own = rise_NMC.gather(-1, wanted)
            others = rise_NMC.scatter(-1, wanted, float("-inf")).amax(-1, keepdim=True)
            more = (moved_NMC.softmax(-1) - clean_MC.softmax(-1)).gather(-1, wanted)
            return torch.cat([own, own - others, (own > others).float(), more], dim=-1)

        return climbed(access, instances, LADDER[: effort + 1], rng, looks)

    def query(self, instances: Instances) -> Query:
        arrays = instances.arrays
        return Steer(place_of(instances), arrays["directions"], arrays["shared_inputs"][:N_SHOWN], arrays["labels"])


def latent_place(spec: TargetSpec) -> str:
    """Where latents are: as for all directions, but after the places of an image are brought together."""
    place = place_on(spec)
    return place if len(spec.hook(place).shape) == 1 or spec.tokens is not None else spec.with_role("residual")[-1].name


def f1(said: Tensor, right: Tensor) -> Tensor:
    """(N, M) and (N, M) bool -> (N,) float64: 2 TP / (2 TP + FP + FN), 0 where there is nothing to find or say."""
    hits = (said & right).sum(1).double()
    return 2 * hits / (said.sum(1) + right.sum(1)).clamp_min(1)

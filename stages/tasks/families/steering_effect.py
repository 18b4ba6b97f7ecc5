"""steering_effect: what does adding a direction inside do to the loss?

One instance: a direction of fixed length at a hook point. Truth: a compressed mean change of the loss over 256 inputs
when it is added on each of them (at every position, where the hook point has any).
Source: activation addition, Turner et al. 2023, arXiv 2308.10248, section 3.

Shape legend: N = directions, M = inputs, W = width of the hook point, C = outputs.
"""

from typing import ClassVar

import torch
from torch import Tensor

from stages.contracts.method import Query, Steer
from stages.contracts.target import Offer, Target, TargetAccess, TargetSpec
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import compressed, label_features
from stages.tasks.directions import activations, climbed, moved_outputs, place_array, place_of, place_on, unit
from stages.tasks.inputs import draw_inputs

__all__ = ["SteeringEffect"]

N_INPUTS, N_PROMPTS = 256, 64
N_SHOWN = 8
MAX_BLEND = 0.45
GRAIN = 0.5
LENGTH = 1.0
"""Of a direction, in units of the activations' spread: the root of the sum of their variances."""
SHARE_RANDOM = 0.5
SCALE, PROMPT_SCALE = 1.0, 0.1
"""Nats. On images and episodes effects are of either sign: with a small scale one that is near 0, where the others are
not, is many deviations away."""
LADDER = (1, 8, 32, 128)
PROMPT_LADDER = (1, 4, 16, 32)
CONSTANTS: Constants = {
    "grain": GRAIN,
    "length": LENGTH,
    "max_blend": MAX_BLEND,
    "n_inputs": {"other inputs": N_INPUTS, "prompts": N_PROMPTS},
    "scale": {"other inputs": SCALE, "prompts": PROMPT_SCALE},
    "share_random": SHARE_RANDOM,
}


class SteeringEffect(TaskFamily):
    version = 2
    cluster = "steering_effect"
    title = "How does the loss change when this direction is added inside?"
    source = "Turner et al. 2023 (Activation addition), arXiv 2308.10248, section 3; here for arbitrary directions"
    why_hard_black_box = "the effect differs from input to input, so every direction has to be tried on many"
    why_white_box_helps = (
        "to second order the effect is a product with the mean slope and its second moments, known once"
    )
    query_kind = "Steer"
    needs: ClassVar[frozenset[Offer]] = frozenset()
    n_efforts = len(LADDER)
    truth_recipe = (
        "d = mean cross-entropy (nats) of shared_labels on shared_inputs when the instance's direction is added to the"
        " activation at the hook point shared_place (at every position), minus the same without. Truth: sign(d) *"
        " log(1 + |d| / scale). A direction is random with probability share_random, otherwise the difference of the"
        " activations of two inputs (at the last position); its length is length times the root of the sum of the"
        " activations' variances."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        place = place_on(target.spec)
        n_inputs = N_INPUTS if target.spec.n_vocabulary is None else N_PROMPTS
        drawn = draw_inputs(target, n_inputs, rng, MAX_BLEND, GRAIN)
        held_MW = activations(target, place, drawn.inputs)
        random_NW = torch.randn(n, held_MW.shape[1], generator=rng)
        pairs_2N = torch.randint(n_inputs, (2, n), generator=rng)
        between_NW = held_MW[pairs_2N[0]] - held_MW[pairs_2N[1]]
        # Two inputs may be alike, or the same: then the direction is a random one.
        apart = between_NW.norm(dim=-1, keepdim=True) > 1e-3
        use_random = (torch.rand(n, 1, generator=rng) < SHARE_RANDOM) | ~apart
        directions = unit(torch.where(use_random, random_NW, between_NW)) * LENGTH * held_MW.std(0).norm()
        arrays = {
            "directions": directions,
            "shared_inputs": drawn.inputs,
            "shared_labels": drawn.labels,
            "shared_place": place_array(place),
        }
        return Instances(arrays, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs, labels = instances.arrays["shared_inputs"], instances.arrays["shared_labels"]
        directions = instances.arrays["directions"]

        def loss(outputs_MC: Tensor) -> Tensor:
            return label_features(outputs_MC.double(), labels)[:, 0].mean()

        with torch.no_grad():
            clean = loss(target.model(inputs))
        found = [loss(out) - clean for out in moved_outputs(target, place_of(instances), inputs, directions)]
        return Truth(compressed(torch.stack(found), _scale(target.spec)).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        scale = _scale(access.spec)

        def looks(clean_MC: Tensor, moved_NMC: Tensor, order_M: Tensor) -> Tensor:
            labels_M = instances.arrays["shared_labels"][order_M]
            before_M2 = label_features(clean_MC, labels_M)[:, :2]
            labels_NM = labels_M.repeat(len(moved_NMC))
            after = label_features(moved_NMC.flatten(0, 1), labels_NM)[:, :2].view(*moved_NMC.shape[:2], 2)
            change = after - before_M2
            return torch.cat([change, compressed(change[..., :1], scale)], dim=-1)

        rungs = LADDER if access.spec.n_vocabulary is None else PROMPT_LADDER
        return climbed(access, instances, rungs[: effort + 1], rng, looks)

    def query(self, instances: Instances) -> Query:
        shown = instances.arrays["shared_inputs"][:N_SHOWN]
        return Steer(place_of(instances), instances.arrays["directions"], shown)


def _scale(spec: TargetSpec) -> float:
    return SCALE if spec.n_vocabulary is None else PROMPT_SCALE

"""worst_input: how much can one patch out of a closed pool hurt?

One instance: an image with its right label; the pool is 256 patches, the same for all instances, that add numbers to a
3 x 3 block of pixels. Truth: the largest loss that any of them reaches, compressed.
Source: worst case over a set of perturbations, Madry et al. 2018, arXiv 1706.06083, equation 2.1; exact here, since the
set is finite; patches as in Brown et al. 2017, arXiv 1712.09665.

Shape legend: N = instances, P = patches (256), C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Propose, Query
from stages.contracts.target import Objective, Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, label_features
from stages.tasks.inputs import draw_inputs
from stages.tasks.pools import best_of_pool, image_patches, reach

__all__ = ["WorstInput", "compress"]

N_CHANGES, SIZE, HEIGHT = 256, 3, 1.0
MAX_BLEND = 0.3
GRAIN = 0.3
SCALE = 0.1
LADDER = (1, 10, 40, 120)
"""Patches tried."""
CONSTANTS: Constants = {
    "grain": GRAIN,
    "height": HEIGHT,
    "max_blend": MAX_BLEND,
    "n_changes": N_CHANGES,
    "scale": SCALE,
    "size": SIZE,
}


class WorstInput(TaskFamily):
    cluster = "worst_input"
    title = "How large can the loss on this input be made by one patch of a closed pool?"
    source = "Madry et al. 2018, arXiv 1706.06083, equation 2.1; patches as in Brown et al. 2017, arXiv 1712.09665"
    why_hard_black_box = "the largest of 256 losses is found by trying them: a few of them say little of the extreme"
    why_white_box_helps = (
        "the slope of the loss at the input ranks all patches at once; one try of the first says how far"
    )
    query_kind = "Propose"
    needs = frozenset({"pixels"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "For each of the n_changes of shared_changes: cross-entropy (nats) of the instance's label on its input plus"
        " the change (no clipping). Truth: log(1 + largest / scale). A change adds independent uniform numbers in"
        " [-height, height] to a size x size block of pixels at a random place; of an episode, of the query's."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        inputs, labels = draw_inputs(target, n, rng, MAX_BLEND, GRAIN)
        changes = image_patches(target.spec, N_CHANGES, SIZE, HEIGHT, rng)
        return Instances({"inputs": inputs, "labels": labels, "shared_changes": changes}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs, labels, changes = (instances.arrays[name] for name in ("inputs", "labels", "shared_changes"))
        worst_N = best_of_pool(target, inputs, changes, Objective("loss", labels))
        return Truth(compress(worst_N).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels, changes = (instances.arrays[name] for name in ("inputs", "labels", "shared_changes"))
        clean_NC = ask(access, inputs)
        looks = label_features(clean_NC, labels)
        features = [answer_features(clean_NC), looks, compress(looks[:, :1])]
        # The same patches for all, so that what one does can be compared.
        order_P = torch.randperm(len(changes), generator=rng)[: LADDER[effort]]
        tried_NK = reach(access, inputs, changes[order_P], Objective("loss", labels))
        for k in LADDER[: effort + 1]:
            part = compress(tried_NK[:, :k])
            features += [part.amax(1, keepdim=True), part.mean(1, keepdim=True)]
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        arrays = instances.arrays
        return Propose(arrays["labels"], arrays["inputs"], arrays["shared_changes"], "loss")


def compress(loss: Tensor) -> Tensor:
    """Monotone: linear below ``SCALE`` nats, logarithmic above."""
    return (loss.clamp(min=0) / SCALE).log1p()

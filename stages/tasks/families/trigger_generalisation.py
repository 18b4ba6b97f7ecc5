"""trigger_generalisation: how far does a pattern that is added to every image push the answer to one label?

One instance: a pattern of fixed length (64 numbers to add to the pixels) and a label; the patterns are more or less far
optimised on eight images. Truth: the mean log-probability of the label over 400 other images with the pattern added.
Source: universal perturbations, Moosavi-Dezfooli et al. 2017, arXiv 1610.08401; targeted, as the universal triggers of
Wallace et al. 2019, arXiv 1908.07125, section 2.

Shape legend: N = patterns, M = images, X = pixels (64), C = outputs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.method import Query, Steer
from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.directions import climbed, moved_outputs, place_array, unit
from stages.tasks.inputs import draw_inputs

__all__ = ["TriggerGeneralisation"]

N_INPUTS = 400
N_SHOWN = 8
MAX_BLEND = 0.45
LENGTH = 0.8
STEPS, RATE = 3, 0.5
"""Most steps of a pattern's optimisation; their length, before the pattern is brought to its own."""
N_FITTED = 8
START = 0.5
LADDER = (1, 8, 32, 128)
CONSTANTS: Constants = {
    "length": LENGTH,
    "max_blend": MAX_BLEND,
    "n_fitted": N_FITTED,
    "n_inputs": N_INPUTS,
    "rate": RATE,
    "start": START,
    "steps": [0, STEPS - 1],
}


class TriggerGeneralisation(TaskFamily):
    cluster = "trigger_generalisation"
    title = "How probable does this pattern make its label on images it has not seen?"
    source = (
        "Moosavi-Dezfooli et al. 2017, arXiv 1610.08401; Wallace et al. 2019 (Universal triggers), arXiv 1908.07125"
    )
    why_hard_black_box = "a pattern that works on one image may not on the next: the mean needs many"
    why_white_box_helps = (
        "the mean slope of each label's log-probability says how far a pattern reaches, for all images"
    )
    query_kind = "Steer"
    needs = frozenset({"flat_image"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Mean log-probability (nats) of the instance's label over shared_inputs with its direction added to each"
        " (no clipping). A direction starts Gaussian (standard deviation start), takes steps gradient steps of length"
        " rate down the mean cross-entropy of the label on n_fitted images of the train corpus, and is brought to the"
        " Euclidean length length."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        labels = torch.randint(target.spec.n_outputs, (n,), generator=rng)
        directions = unit(_optimised(target, labels, rng)) * LENGTH
        drawn = draw_inputs(target, N_INPUTS, rng, MAX_BLEND)
        arrays = {
            "directions": directions,
            "labels": labels,
            "shared_inputs": drawn.inputs,
            "shared_place": place_array("input"),
        }
        return Instances(arrays, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs, directions = instances.arrays["shared_inputs"], instances.arrays["directions"]
        outputs = moved_outputs(target, "input", inputs, directions)
        found = [
            out.double().log_softmax(-1)[:, label].mean()
            for out, label in zip(outputs, instances.arrays["labels"].tolist(), strict=True)
        ]
        return Truth(torch.stack(found).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        labels_N = instances.arrays["labels"]

        def looks(clean_MC: Tensor, moved_NMC: Tensor, order_M: Tensor) -> Tensor:
            log_p = moved_NMC.log_softmax(-1)
            wanted = log_p.gather(-1, labels_N.view(-1, 1, 1).expand(*log_p.shape[:2], 1))
            before = clean_MC.log_softmax(-1)[:, labels_N].T.unsqueeze(-1)
            return torch.cat([wanted, wanted.exp(), wanted - before], dim=-1)

        return climbed(access, instances, LADDER[: effort + 1], rng, looks)

    def query(self, instances: Instances) -> Query:
        shown = instances.arrays["shared_inputs"][:N_SHOWN]
        return Steer("input", instances.arrays["directions"], shown, instances.arrays["labels"])


def _optimised(target: Target, labels_N: Tensor, rng: torch.Generator) -> Tensor:
    """(N, X) patterns of every strength, all optimised side by side for as many steps as each is to take."""
    n, images = len(labels_N), target.corpus("train").inputs
    found_NX = START * torch.randn(n, images.shape[1], generator=rng)
    steps_N = torch.randint(STEPS, (n,), generator=rng)
    fitted = images[torch.randint(len(images), (n, N_FITTED), generator=rng)]
    labels = labels_N.repeat_interleave(N_FITTED)
    for step in range(STEPS - 1):
        leaf = found_NX.clone().requires_grad_(True)
        with torch.enable_grad():
            outputs = target.model((fitted + leaf.unsqueeze(1)).flatten(0, 1))
            (slope,) = torch.autograd.grad(F.cross_entropy(outputs, labels, reduction="sum") / N_FITTED, leaf)
        moves = (steps_N > step).unsqueeze(-1)
        found_NX = torch.where(moves, found_NX - RATE * unit(slope), found_NX)
    return found_NX

"""capability_forecast: how good will this run be when its training is finished?

One instance: a run of the target's architecture from scratch, stopped early; learning rate, size and noise of the
training set and weight decay are its own. Truth: the share of held-out images that the finished run answers right.
Source: extrapolating learning curves, Domhan, Springenberg and Hutter 2015 (IJCAI), section 3; here from a single early
checkpoint.

Shape legend: N = runs, B = batch, C = outputs.
"""

from math import log

import torch
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.method import Compare, Query
from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.inputs import draw_inputs
from stages.tasks.side_by_side import Runs, climbed_variants, copies, outputs_of_variants

__all__ = ["CapabilityForecast"]

EARLY, STEPS, BATCH = 90, 300, 32
LR = (1e-3, 1e-2)
SIZE = (60, 900)
MAX_WRONG = 0.85
DECAY = (1e-4, 3e-1)
MAX_BLEND = 0.3
LADDER = (8, 64, 256)
"""Probes."""
CONSTANTS: Constants = {
    "batch": BATCH,
    "decay": list(DECAY),
    "early": EARLY,
    "lr": list(LR),
    "max_blend": MAX_BLEND,
    "size": list(SIZE),
    "steps": STEPS,
    "wrong_labels": [0.0, MAX_WRONG],
}


class CapabilityForecast(TaskFamily):
    cluster = "capability_forecast"
    title = "How many held-out images will this early run answer right when its training is finished?"
    source = "Domhan, Springenberg and Hutter 2015 (IJCAI), section 3; here from a single early checkpoint"
    why_hard_black_box = "early answers say how far a run has come and little of where it will end"
    why_white_box_helps = (
        "size and noise of the training set, and the learning rate, have left their marks on the weights"
    )
    query_kind = "Compare"
    needs = frozenset({"flat_image"})
    n_efforts = len(LADDER)
    cost_factor = 0.5
    truth_recipe = (
        "Every variant is the target's architecture, drawn anew (Gaussian, standard deviation sqrt(2 / inputs of the"
        " layer), biases 0) and trained with Adam and decoupled weight decay on its own sample of the train corpus:"
        " size images, learning rate and decay log-uniform in lr and decay, a share of wrong_labels replaced by random"
        " ones for good. The variant holds the weights after early steps of batch images. Truth: the share of the"
        " held-out images (all of the split) that the weights after steps steps answer right."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        images, classes = target.corpus("train")
        weights = copies(target, n)
        for name, value in weights.items():
            scale = (2.0 / value.shape[-1]) ** 0.5 if value.dim() == 3 else 0.0
            weights[name] = scale * torch.randn(value.shape, generator=rng)

        def log_uniform(low: float, high: float) -> Tensor:
            return torch.exp(torch.empty(n).uniform_(log(low), log(high), generator=rng))

        runs = Runs(target, weights, log_uniform(*LR), log_uniform(*DECAY))
        size_N1 = torch.randint(SIZE[0], SIZE[1] + 1, (n, 1), generator=rng).clamp(max=len(classes))
        own_NI = torch.rand(n, len(classes), generator=rng).argsort(-1)
        wrong_NI = torch.rand(n, len(classes), generator=rng) < MAX_WRONG * torch.rand(n, 1, generator=rng)
        random_NI = torch.randint(target.spec.n_outputs, (n, len(classes)), generator=rng)
        labels_NI = torch.where(wrong_NI, random_NI, classes)
        early: dict[str, Tensor] = {}
        for step in counted("training variants", range(1, STEPS + 1)):
            index_NB = own_NI.gather(1, (torch.rand(n, BATCH, generator=rng) * size_N1).long())
            runs.step(images[index_NB], labels_NI.gather(1, index_NB))
            if step == EARLY:
                early = {name: value.clone() for name, value in runs.weights.items()}
        probes = draw_inputs(target, LADDER[-1], rng, MAX_BLEND)
        arrays = {"variant": torch.arange(n), "shared_inputs": probes.inputs, "shared_labels": probes.labels}
        return Instances(arrays, n, early, runs.weights)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        images, classes = target.corpus("tasks")
        answers_NB = outputs_of_variants(target, dict(instances.planted), images).argmax(-1)
        return Truth((answers_NB == classes).double().mean(1, keepdim=True))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        return climbed_variants(access, instances, LADDER[: effort + 1])

    def query(self, instances: Instances) -> Query:
        arrays, shown = instances.arrays, LADDER[0]
        return Compare(
            tuple(arrays["variant"].tolist()), arrays["shared_inputs"][:shown], arrays["shared_labels"][:shown]
        )

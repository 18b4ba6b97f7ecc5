"""rare_answer: how probable is a wrong answer when the pixels are noisy?

One instance: an image and one of the four answers that are likeliest after its own. Truth: the decimal logarithm of the
share of noisy copies that get that answer.
Source: estimating the probability of rare outputs, Wu and Hilton 2024, arXiv 2410.13211; here by 8000 draws.

Shape legend: N = instances, R = noisy copies, C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Query, Represent
from stages.contracts.target import Objective, Target, TargetAccess, objective_values
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, label_features, outputs_of
from stages.tasks.inputs import draw_inputs

__all__ = ["RareAnswer"]

SIGMA = 0.35
DRAWS = 8000
MAX_BLEND = 0.3
RANKS = 4
LADDER = (0, 8, 32, 128)
"""Noisy copies."""
CONSTANTS: Constants = {"draws": DRAWS, "max_blend": MAX_BLEND, "ranks": RANKS, "sigma": SIGMA}


class RareAnswer(TaskFamily):
    cluster = "rare_output"
    title = "How probable is this wrong answer when Gaussian noise is added to the pixels?"
    source = "Wu and Hilton 2024 (Estimating the probabilities of rare outputs), arXiv 2410.13211; here 8000 draws"
    why_hard_black_box = "what happens once in a thousand copies is not seen in a hundred"
    why_white_box_helps = "margin over slope is how many standard deviations away the answer lies, to first order"
    query_kind = "Represent"
    needs = frozenset({"flat_image"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "The instance's label has rank 1 to ranks among the outputs of its clean image, equally likely (rank 0 is the"
        " answer). Add independent Gaussian noise of standard deviation sigma to every pixel, without clipping, draws"
        " times; c = how many copies have the label as their largest output. Truth: log10((c + 0.5) / (draws + 1))."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        inputs = draw_inputs(target, n, rng, MAX_BLEND).inputs
        order_NC = outputs_of(target, inputs).argsort(-1, descending=True)
        rank_N1 = torch.randint(1, RANKS + 1, (n, 1), generator=rng)
        return Instances({"inputs": inputs, "labels": order_NC.gather(-1, rank_N1).squeeze(-1)}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        found = []
        for x, label in zip(instances.arrays["inputs"], instances.arrays["labels"].tolist(), strict=True):
            noisy = x + SIGMA * torch.randn(DRAWS, *x.shape, generator=rng)
            count = (outputs_of(target, noisy).argmax(-1) == label).double().sum()
            found.append(((count + 0.5) / (DRAWS + 1)).log10())
        return Truth(torch.stack(found).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels, n = instances.arrays["inputs"], instances.arrays["labels"], instances.n
        outputs = ask(access, inputs)
        features = [answer_features(outputs), label_features(outputs, labels)]
        margin_NK = torch.zeros(n, 0)
        for k in LADDER[1 : effort + 1]:
            new = k - margin_NK.shape[1]
            noisy = inputs.repeat_interleave(new, dim=0)
            noisy = noisy + SIGMA * torch.randn(noisy.shape, generator=rng)
            objective = Objective("margin", labels.repeat_interleave(new))
            margin_NK = torch.cat([margin_NK, objective_values(ask(access, noisy), objective).view(n, new)], dim=1)
            mean, spread = margin_NK.mean(1), margin_NK.std(1)
            share = (margin_NK > 0).float().mean(1)
            features.append(torch.stack([share, mean, spread, mean / (spread + 1e-3), margin_NK.amax(1)], dim=-1))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"], instances.arrays["labels"])

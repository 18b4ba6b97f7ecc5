"""noise_flip: how often does the answer change when the pixels are noisy?

One instance: an image (or an episode); truth 0.31 means that 310 of 1000 noisy copies get another answer.
Source: the noise stability that randomised smoothing estimates (Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918, sec.
3.2).

Shape legend: N = instances, R = noisy copies, C = outputs.
"""

import torch
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.method import Query, Represent
from stages.contracts.target import Target, TargetAccess, TargetSpec
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, outputs_of
from stages.tasks.inputs import draw_inputs, is_few_shot, noisy_channels

__all__ = ["NoiseFlip"]

SIGMA_IMAGE, SIGMA_EPISODE = 0.35, 0.4
DRAWS_IMAGE, DRAWS_EPISODE = 1000, 400
MAX_BLEND = 0.2
LADDER = (0, 4, 16, 64)


CONSTANTS: Constants = {
    "draws": {"episodes": DRAWS_EPISODE, "images": DRAWS_IMAGE},
    "max_blend": MAX_BLEND,
    "sigma": {"episodes": SIGMA_EPISODE, "images": SIGMA_IMAGE},
}


class NoiseFlip(TaskFamily):
    title = "How probable is another answer when Gaussian noise is added to the pixels?"
    source = "Cohen, Rosenfeld, Kolter 2019, arXiv 1902.02918, section 3.2 (Monte Carlo over noisy copies)"
    why_hard_black_box = "a probability needs many noisy copies; the margin of one clean answer ignores how steep it is"
    why_white_box_helps = "the local slope towards each other class is in the weights that are active on this input"
    query_kind = "Represent"
    needs = frozenset({"pixels"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Add independent Gaussian noise of standard deviation sigma to every pixel (never to the label or presence"
        " channel of an episode, and without clipping), draws times. Truth: the share of noisy copies whose largest"
        " output is not that of the clean input. Standard error at most 0.5 / sqrt(draws)."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        return Instances({"inputs": draw_inputs(target, n, rng, MAX_BLEND).inputs}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs = instances.arrays["inputs"]
        scale = noisy_channels(target.spec) * _sigma(target.spec)
        clean_N = outputs_of(target, inputs).argmax(-1)
        draws = DRAWS_EPISODE if is_few_shot(target.spec) else DRAWS_IMAGE
        flips = torch.zeros(instances.n, dtype=torch.float64)
        for i in counted("instances", range(instances.n)):
            noise = torch.randn(draws, *target.spec.input_shape, generator=rng)
            flips[i] = (outputs_of(target, inputs[i] + scale * noise).argmax(-1) != clean_N[i]).double().mean()
        return Truth(flips.unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs = instances.arrays["inputs"]
        scale = noisy_channels(access.spec) * _sigma(access.spec)
        clean_NC = ask(access, inputs)
        answer_N1 = clean_NC.argmax(-1, keepdim=True)
        features = [answer_features(clean_NC)]
        flips_NR, probs_NR = torch.zeros(instances.n, 0), torch.zeros(instances.n, 0)
        for k in LADDER[1 : effort + 1]:
            new = k - flips_NR.shape[1]
            noise = torch.randn(instances.n, new, *access.spec.input_shape, generator=rng)
            noisy = inputs.unsqueeze(1) + scale * noise
            outputs_NRC = ask(access, noisy.flatten(0, 1)).view(instances.n, new, -1)
            flips_NR = torch.cat([flips_NR, (outputs_NRC.argmax(-1) != answer_N1).float()], dim=1)
            index = answer_N1.unsqueeze(1).expand(-1, new, 1)
            probs_NR = torch.cat([probs_NR, outputs_NRC.softmax(-1).gather(-1, index).squeeze(-1)], dim=1)
            features.append(torch.stack([flips_NR.mean(1), probs_NR.mean(1), probs_NR.std(1)], dim=-1))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"])


def _sigma(spec: TargetSpec) -> float:
    return SIGMA_EPISODE if is_few_shot(spec) else SIGMA_IMAGE

"""probe_under_shift: does a probe's direction still move the answer to its class on inputs that were shifted?

One instance: the difference of the mean activations of two classes, from two ordinary inputs of each, as a
direction of fixed length; its label is the first class. Truth: the share of 256 images, moved by a pixel, or of 64
prompts with one more word in each, whose answer becomes that class when the direction is added.
Source: the probe is the mass-mean probe of Marks and Tegmark 2023, arXiv 2310.06824, section 5, whose directions are
tested by adding them on other data.

Shape legend: N = instances, M = inputs, X = pixels (64), W = width of the hook point, C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Query, Steer
from stages.contracts.target import Target, TargetAccess, TargetSpec
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.targets.storage import definition_of
from stages.tasks.directions import activations, climbed, moved_outputs, place_array, place_of, place_on, unit
from stages.tasks.inputs import draw_inputs
from stages.tasks.word_backdoors import with_word

__all__ = ["ProbeUnderShift", "margins", "shifted"]

N_INPUTS, N_PROMPTS = 256, 64
N_SHOWN = 8
SIDE = 8
N_PROBED = 2
MAX_BLEND = 0.3
LENGTH, WORD_LENGTH = 0.3, 0.7
LADDER = (1, 8, 32, 128)
PROMPT_LADDER = (1, 4, 16, 32)
CONSTANTS: Constants = {
    "length": {"images": LENGTH, "prompts": WORD_LENGTH},
    "max_blend": MAX_BLEND,
    "n_inputs": {"images": N_INPUTS, "prompts": N_PROMPTS},
    "n_probed": N_PROBED,
}


class ProbeUnderShift(TaskFamily):
    cluster = "probe_under_shift"
    title = "How often does a probe's direction still turn the answer into its class on shifted inputs?"
    source = "Marks and Tegmark 2023 (The geometry of truth), arXiv 2310.06824, section 5 (mass-mean probes)"
    why_hard_black_box = (
        "on shifted inputs the effect differs from one to the next, and none of them is like the probe's"
    )
    why_white_box_helps = (
        "what reads the direction is in the weights, and which units are on after the shift can be seen"
    )
    query_kind = "Steer"
    needs = frozenset({"flat_image"})
    instead = frozenset({"tokens", "triggers"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Share of shared_inputs whose largest output is the instance's label with the direction added at shared_place"
        " (at every position), and is not without it. shared_inputs are images moved by one pixel to the right (zeros"
        " come in); or prompts with one more word, any that may be put in, at a random place before the last word. A"
        " direction is the mean activation (at the last position) on n_probed train inputs of the label less that on"
        " n_probed of another class, brought to length times the root of the sum of the activations' variances. Classes"
        " are the answers of n_probed train inputs or more."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        place, (inputs, classes) = place_on(target.spec), target.corpus("train")
        held_BW = activations(target, place, inputs)
        by_class = {label: torch.nonzero(classes == label).flatten() for label in range(target.spec.n_outputs)}
        enough = [label for label, mine in by_class.items() if len(mine) >= N_PROBED]

        def mean_of(label: int) -> Tensor:
            mine = by_class[label]
            return held_BW[mine[torch.randint(len(mine), (N_PROBED,), generator=rng)]].mean(0)

        labels, directions = [], []
        for _ in range(n):
            first, other = (enough[i] for i in torch.randperm(len(enough), generator=rng)[:2].tolist())
            labels.append(first)
            directions.append(mean_of(first) - mean_of(other))
        arrays = {
            "directions": unit(torch.stack(directions)) * _length(target.spec) * held_BW.std(0).norm(),
            "labels": torch.tensor(labels),
            "shared_inputs": _shifted_inputs(target, rng),
            "shared_place": place_array(place),
        }
        return Instances(arrays, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs, directions = instances.arrays["shared_inputs"], instances.arrays["directions"]
        with torch.no_grad():
            clean_M = target.model(inputs).argmax(-1)
        outputs = moved_outputs(target, place_of(instances), inputs, directions)
        found = [
            ((out.argmax(-1) == label) & (clean_M != label)).double().mean()
            for out, label in zip(outputs, instances.arrays["labels"].tolist(), strict=True)
        ]
        return Truth(torch.stack(found).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        labels_N = instances.arrays["labels"]

        def looks(clean_MC: Tensor, moved_NMC: Tensor, order_M: Tensor) -> Tensor:
            after_NM, before_NM = (
                margins(out, labels_N) for out in (moved_NMC, clean_MC.expand(len(labels_N), *clean_MC.shape))
            )
            turned = (after_NM > 0) & (before_NM < 0)
            return torch.stack([turned.float(), after_NM - before_NM, after_NM], dim=-1)

        rungs = LADDER if access.spec.n_vocabulary is None else PROMPT_LADDER
        return climbed(access, instances, rungs[: effort + 1], rng, looks)

    def query(self, instances: Instances) -> Query:
        shown = instances.arrays["shared_inputs"][:N_SHOWN]
        return Steer(place_of(instances), instances.arrays["directions"], shown, instances.arrays["labels"])


def _length(spec: TargetSpec) -> float:
    return LENGTH if spec.n_vocabulary is None else WORD_LENGTH


def _shifted_inputs(target: Target, rng: torch.Generator) -> Tensor:
    """(M, *input_shape) fresh inputs that are not like those that were trained on."""
    if target.spec.n_vocabulary is None:
        return shifted(draw_inputs(target, N_INPUTS, rng, MAX_BLEND).inputs)
    words = definition_of(target.name).triggers()  # type: ignore[attr-defined]  # it offers triggers
    chosen = words[torch.randint(len(words), (N_PROMPTS,), generator=rng)]
    return with_word(draw_inputs(target, N_PROMPTS, rng).inputs, chosen, torch.rand(N_PROMPTS, generator=rng))


def shifted(images: Tensor) -> Tensor:
    """(M, X) images moved by a pixel to the right; zeros come in."""
    square = images.view(-1, SIDE, SIDE)
    return torch.cat([torch.zeros_like(square[..., :1]), square[..., :-1]], dim=-1).flatten(1)


def margins(outputs_NMC: Tensor, labels_N: Tensor) -> Tensor:
    """(N, M) logit of each row's label less the largest other."""
    place = labels_N.view(-1, 1, 1).expand(*outputs_NMC.shape[:2], 1)
    others = outputs_NMC.scatter(-1, place, float("-inf")).amax(-1)
    return outputs_NMC.gather(-1, place).squeeze(-1) - others

"""trigger_recovery: does any patch of a closed pool set off what a variant has learned, and how strongly?

One instance: a variant with a backdoor, one image, the backdoor's label and 64 patches to lay on the image; the planted
patch is among them for every other instance. Truth: the largest margin of the label, in logits, that any of them
reaches in the variant.
Source: recovering triggers as in Neural Cleanse, Wang et al. 2019 (IEEE S&P, section IV), over a finite set; the
variants are those of BadNets (Gu et al. 2017, arXiv 1708.06733).

Shape legend: N = instances, P = patches (64), X = pixels (64), C = outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from stages.contracts.method import Propose, Query
from stages.contracts.target import Objective, Target, TargetAccess, objective_values
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, label_features
from stages.tasks.image_backdoors import KINDS, fine_tune
from stages.tasks.inputs import draw_inputs
from stages.tasks.patches import draw_patches

__all__ = ["TriggerRecovery"]

N_CHANGES = 64
LADDER = (2, 12, 32)
"""Patches tried, after the image itself."""
CONSTANTS: Constants = {"n_changes": N_CHANGES, "share_planted": 0.5, "variants": "kind backdoor of backdoor_detection"}


class TriggerRecovery(TaskFamily):
    cluster = "backdoor"
    title = "How far does the best patch of a closed pool push this variant to its backdoor's label?"
    source = "Wang et al. 2019 (Neural Cleanse), IEEE S&P, section IV; Gu et al. 2017 (BadNets), arXiv 1708.06733"
    why_hard_black_box = "one of 64 patches does it, and the others say nothing of which"
    why_white_box_helps = "the slope of the label's margin at the image points at the planted pixels"
    query_kind = "Propose"
    needs = frozenset({"flat_image", "triggers"})
    n_efforts = len(LADDER)
    cost_factor = 0.5
    truth_recipe = (
        "Every variant is of kind backdoor of backdoor_detection, with a patch and a label of its own. For each of the"
        " n_changes changes of the instance, which lay a random patch on its image: the variant's logit of the label"
        " less the largest other. Truth: the largest over all changes. With probability share_planted one of the"
        " changes, at a random place, is the variant's own patch."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        own_patterns, own_masks = draw_patches(n, rng)
        labels_N = torch.randint(target.spec.n_outputs, (n,), generator=rng)
        kinds_N = torch.full((n,), KINDS.index("backdoor"))
        variants = fine_tune(target, kinds_N, own_patterns, own_masks, labels_N, rng)
        drawn = draw_inputs(target, 2 * n, rng)
        # An image of another class than the backdoor's: the first or the second of two, or else the first.
        pairs, classes = drawn.inputs.view(n, 2, -1), drawn.labels.view(n, 2)
        inputs = pairs[torch.arange(n), (classes[:, 0] == labels_N).long()]
        patterns, masks = (part.view(n, N_CHANGES, -1).clone() for part in draw_patches(n * N_CHANGES, rng))
        place_N = torch.randint(N_CHANGES, (n,), generator=rng)
        planted = torch.nonzero(torch.rand(n, generator=rng) < 0.5).flatten()
        patterns[planted, place_N[planted]] = own_patterns[planted]
        masks[planted, place_N[planted]] = own_masks[planted]
        arrays = {
            "variant": torch.arange(n),
            "inputs": inputs,
            "labels": labels_N,
            "changes": masks * (patterns - inputs.unsqueeze(1)),
        }
        return Instances(arrays, n, variants)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        def outputs_of(index: int, inputs: Tensor) -> Tensor:
            weights = {name: stack[index] for name, stack in instances.variants.items()}
            with torch.no_grad():
                out: Tensor = functional_call(target.model, weights, (inputs,))
            return out

        reached_NP = _reach(outputs_of, instances, instances.arrays["changes"])
        return Truth(reached_NP.double().amax(1, keepdim=True))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels, changes = (instances.arrays[name] for name in ("inputs", "labels", "changes"))
        clean_NC = torch.cat(
            [
                access.variant(index).forward(inputs[row : row + 1]).outputs
                for row, index in enumerate(instances.arrays["variant"].tolist())
            ]
        )
        features = [answer_features(clean_NC), label_features(clean_NC, labels)]
        # They stand in random order.
        tried_NK = _reach(
            lambda index, rows: access.variant(index).forward(rows).outputs, instances, changes[:, : LADDER[effort]]
        )
        for k in LADDER[: effort + 1]:
            part = tried_NK[:, :k]
            features.append(torch.stack([part.amax(1), part.mean(1), part.amin(1)], dim=-1))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        arrays = instances.arrays
        which = tuple(arrays["variant"].tolist())
        return Propose(arrays["labels"], arrays["inputs"], arrays["changes"], "margin", which)


def _reach(outputs_of: Callable[[int, Tensor], Tensor], instances: Instances, changes_NPX: Tensor) -> Tensor:
    """(N, P) margin of each instance's label in its own variant, with each of the changes.

    Args:
        outputs_of: (index of a variant, inputs) -> its logits.
    """
    arrays, found = instances.arrays, []
    for row, index in enumerate(arrays["variant"].tolist()):
        outputs = outputs_of(index, arrays["inputs"][row] + changes_NPX[row])
        labels = arrays["labels"][row].expand(len(outputs))
        found.append(objective_values(outputs, Objective("margin", labels)))
    return torch.stack(found)

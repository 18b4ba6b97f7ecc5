"""counterfactual_flip: what would another label on this example do to the answer?

One instance: an episode of eight examples; items: every pair of an example and a label that it has not (24). Truth: a
compressed change of the margin of the target's own answer when the example gets that label.
Source: counterfactual explanations, Wachter, Mittelstadt and Russell 2018, arXiv 1711.00399, section III; flipped
labels in context as in Min et al. 2022, arXiv 2202.12837.

Shape legend: N = instances, S = rows of an episode, I = pairs (24), C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Attribute, Query
from stages.contracts.target import Objective, Target, TargetAccess, objective_values
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, compressed, outputs_of
from stages.tasks.inputs import draw_inputs

__all__ = ["CounterfactualFlip", "compress"]

GRAIN = 0.5
SCALE = 0.5
LADDER = (0, 6, 12, 20)
"""Pairs tried."""
CONSTANTS: Constants = {"grain": GRAIN, "scale": SCALE}


class CounterfactualFlip(TaskFamily):
    cluster = "counterfactual_flip"
    title = "How does the margin of the answer change when this example gets that other label?"
    source = "Wachter, Mittelstadt and Russell 2018, arXiv 1711.00399, section III; Min et al. 2022, arXiv 2202.12837"
    why_hard_black_box = "every pair of an example and a label is an input of its own"
    why_white_box_helps = "the slope at an example's label, and the attention it gets, say what another label would do"
    query_kind = "Attribute"
    needs = frozenset({"examples"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "The answer is the largest output. For each item: the row of the item's example (segment) is replaced by the"
        " item's replacement, which is the same but for the label channel -2; d = margin of the answer (its logit less"
        " the largest other) afterwards minus before. Truth: sign(d) * log(1 + |d| / scale)."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        inputs = draw_inputs(target, n, rng, grain=GRAIN).inputs
        n_labels = target.spec.n_outputs
        rows = inputs[:, :-1].repeat_interleave(n_labels - 1, dim=1)
        further = torch.arange(1, n_labels).repeat(inputs.shape[1] - 1)
        rows[..., -2] = (rows[..., -2].round() + further) % n_labels
        return Instances({"inputs": inputs, "replacements": rows.unsqueeze(2)}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs = instances.arrays["inputs"]
        outputs_NC = outputs_of(target, inputs).double()
        answer_N = outputs_NC.argmax(-1)
        before_N = objective_values(outputs_NC, Objective("margin", answer_N))
        columns = []
        for item in range(instances.arrays["replacements"].shape[1]):
            outputs = outputs_of(target, _replaced(instances, torch.full((instances.n,), item))).double()
            columns.append(objective_values(outputs, Objective("margin", answer_N)) - before_N)
        return Truth(compress(torch.stack(columns, dim=-1)))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, instead = instances.arrays["inputs"], instances.arrays["replacements"]
        n, n_items = instead.shape[:2]
        outputs_NC = ask(access, inputs)
        answer_N = outputs_NC.argmax(-1)
        before_N = objective_values(outputs_NC, Objective("margin", answer_N))
        example_I = _examples(instances)
        label_NI = inputs[:, example_I, -2].round().long()
        is_answer = (label_NI == answer_N.unsqueeze(-1)).float()
        becomes = (instead[:, :, 0, -2].round().long() == answer_N.unsqueeze(-1)).float()
        distance = (inputs[:, :-1, :-2] - inputs[:, -1:, :-2]).norm(dim=-1)[:, example_I]
        probs_NC = outputs_NC.softmax(-1)
        new_prob = probs_NC.gather(1, instead[:, :, 0, -2].round().long())
        count = is_answer.sum(1, keepdim=True).expand(-1, n_items) / (access.spec.n_outputs - 1)
        looks = [is_answer, becomes, distance, is_answer * distance, becomes * distance, new_prob, count]
        looks.append(example_I.float().expand(n, -1))
        features = [torch.stack(looks, dim=-1), answer_features(outputs_NC).unsqueeze(1).expand(-1, n_items, -1)]
        order_NI = torch.rand(n, n_items, generator=rng).argsort(-1)
        found_NI, known_NI, rows = torch.zeros(n, n_items), torch.zeros(n, n_items), torch.arange(n)
        done = 0
        for k in LADDER[1 : effort + 1]:
            for which in range(done, k):
                item_N = order_NI[:, which]
                outputs = ask(access, _replaced(instances, item_N))
                change = compress(objective_values(outputs, Objective("margin", answer_N)) - before_N)
                found_NI = found_NI.index_put((rows, item_N), change)
                known_NI = known_NI.index_put((rows, item_N), torch.ones(n))
            done = k
            mean_N1 = found_NI.sum(1, keepdim=True) / k
            beside_NI = _of_example(found_NI, known_NI, example_I)
            features.append(torch.stack([known_NI, found_NI, mean_N1.expand(-1, n_items), beside_NI], dim=-1))
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        segments = tuple((example,) for example in _examples(instances).tolist())
        return Attribute(instances.arrays["inputs"], segments, None, instances.arrays["replacements"])


def _examples(instances: Instances) -> Tensor:
    """(I,) the example of each item."""
    n_examples = instances.arrays["inputs"].shape[1] - 1
    return torch.arange(n_examples).repeat_interleave(instances.arrays["replacements"].shape[1] // n_examples)


def _replaced(instances: Instances, item_N: Tensor) -> Tensor:
    """(N, S, F) each episode with one item's row in place of its example's."""
    out, rows = instances.arrays["inputs"].clone(), torch.arange(instances.n)
    out[rows, _examples(instances)[item_N]] = instances.arrays["replacements"][rows, item_N, 0]
    return out


def _of_example(found_NI: Tensor, known_NI: Tensor, example_I: Tensor) -> Tensor:
    """(N, I) mean of what was found for the same example; 0 where nothing was."""
    same_II = (example_I.unsqueeze(0) == example_I.unsqueeze(1)).float()
    return (found_NI @ same_II) / (known_NI @ same_II).clamp(min=1)


def compress(change: Tensor) -> Tensor:
    """Monotone and odd: linear below ``SCALE`` logits, logarithmic above."""
    return compressed(change, SCALE)

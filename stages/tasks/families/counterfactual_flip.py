"""counterfactual_flip: what would another label on this example, or another word, do to the answer?

One instance: an episode of eight examples; items: every pair of an example and a label that it has not (24). Or a
prompt; items: six of its words with four others each, which stand in prompts of the same kind. Truth: a compressed
change of the margin of the target's own answer when the example gets that label, or when the other word stands there.
Source: counterfactual explanations, Wachter, Mittelstadt and Russell 2018, arXiv 1711.00399, section III; flipped
labels in context as in Min et al. 2022, arXiv 2202.12837.

Shape legend: N = instances, S = rows of an episode or places of a prompt, I = pairs (24), C = outputs.
"""

from itertools import pairwise

import torch
from torch import Tensor

from stages.contracts.method import Attribute, Query
from stages.contracts.target import Corpus, Objective, Target, TargetAccess, objective_values
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, compressed, outputs_of
from stages.tasks.inputs import draw_inputs, is_few_shot, kinds_of

__all__ = ["CounterfactualFlip", "compress"]

GRAIN = 0.5
SCALE = 0.5
LADDER = (0, 6, 12, 20)
"""Pairs tried."""
N_PLACES, N_OTHERS = 6, 4
"""Of a prompt: places before the last word, and other words at each."""
CONSTANTS: Constants = {"grain": GRAIN, "n_others": N_OTHERS, "n_places": N_PLACES, "scale": SCALE}


class CounterfactualFlip(TaskFamily):
    cluster = "counterfactual_flip"
    title = "How does the margin of the answer change when this example gets that other label, or that word is another?"
    source = "Wachter, Mittelstadt and Russell 2018, arXiv 1711.00399, section III; Min et al. 2022, arXiv 2202.12837"
    why_hard_black_box = "every pair of an example and a label, or of two words, is an input of its own"
    why_white_box_helps = (
        "the slope at an example's label or a word, and the attention it gets, say what another would do"
    )
    query_kind = "Attribute"
    needs = frozenset({"examples"})
    instead = frozenset({"kinds", "tokens"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "The answer is the largest output. For each item: the row of the item's example (segment) is replaced by the"
        " item's replacement, which is the same but for the label channel -2; d = margin of the answer (its logit less"
        " the largest other) afterwards minus before. Truth: sign(d) * log(1 + |d| / scale). In words: the segments are"
        " the n_places places before the last one, of a prompt with a word at each and at one more; a replacement is"
        " one of n_others different words, none of them the word that stands there, that stand in prompts of the same"
        " kind, at any place but the first."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        if not is_few_shot(target.spec):
            return _generate_words(target, rng, n)
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
        looks = (_example_looks if is_few_shot(access.spec) else _word_looks)(instances, outputs_NC)
        features = [looks, answer_features(outputs_NC).unsqueeze(1).expand(-1, n_items, -1)]
        order_NI = torch.rand(n, n_items, generator=rng).argsort(-1)
        found_NI, known_NI, rows = torch.zeros(n, n_items), torch.zeros(n, n_items), torch.arange(n)
        for done, k in pairwise(LADDER[: effort + 1]):
            for which in range(done, k):
                item_N = order_NI[:, which]
                outputs = ask(access, _replaced(instances, item_N))
                change = compress(objective_values(outputs, Objective("margin", answer_N)) - before_N)
                found_NI = found_NI.index_put((rows, item_N), change)
                known_NI = known_NI.index_put((rows, item_N), torch.ones(n))
            mean_N1 = found_NI.sum(1, keepdim=True) / k
            beside_NI = _of_example(found_NI, known_NI, example_I)
            features.append(torch.stack([known_NI, found_NI, mean_N1.expand(-1, n_items), beside_NI], dim=-1))
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        segments = tuple((example,) for example in _examples(instances).tolist())
        return Attribute(instances.arrays["inputs"], segments, None, instances.arrays["replacements"])


def _generate_words(target: Target, rng: torch.Generator, n: int) -> Instances:
    """Prompts that are long enough, and for each place other words of prompts of the same kind.

    Raises:
        ValueError: too few prompts are long enough, or a kind has too few words.
    """
    drawn = draw_inputs(target, 4 * n, rng)
    # The first word marks a prompt's beginning, and the answer is read off at the last.
    chosen = torch.nonzero(drawn.inputs[..., 1].sum(1) >= N_PLACES + 2).flatten()[:n]
    if len(chosen) < n:
        raise ValueError(
            f"counterfactual_flip: {len(chosen)} of {4 * n} prompts of {target.name} have {N_PLACES + 2} words or more,"
            f" and {n} are needed"
        )
    inputs, words_of = drawn.inputs[chosen], _words_of_kinds(target)
    kinds = kinds_of(target, Corpus(inputs, drawn.labels[chosen]))
    places = torch.arange(inputs.shape[1] - N_PLACES - 1, inputs.shape[1] - 1)
    new_NI = torch.empty(n, N_PLACES * N_OTHERS)
    for row, kind in enumerate(kinds.tolist()):
        for i, place in enumerate(places.tolist()):
            others = words_of[kind][words_of[kind] != inputs[row, place, 0]]
            if len(others) < N_OTHERS:
                raise ValueError(
                    f"counterfactual_flip: prompts of kind {kind} of {target.name} have {len(others) + 1} words, and"
                    f" {N_OTHERS + 1} are needed"
                )
            new_NI[row, i * N_OTHERS : (i + 1) * N_OTHERS] = others[
                torch.randperm(len(others), generator=rng)[:N_OTHERS]
            ]
    replacements = torch.stack([new_NI, torch.ones_like(new_NI)], dim=-1).unsqueeze(2)
    return Instances(
        {
            "inputs": inputs,
            "replacements": replacements,
            "shared_segments": places.repeat_interleave(N_OTHERS).unsqueeze(1),
        },
        n,
    )


def _words_of_kinds(target: Target) -> dict[int, Tensor]:
    """Ids of the words that prompts of each kind have at any place but the first."""
    corpus = target.corpus("tasks")
    kinds = kinds_of(target, corpus)
    present = corpus.inputs[..., 1] > 0.5
    later = present & (present.long().cumsum(1) > 1)
    found = {}
    for kind in torch.unique(kinds).tolist():
        which = kinds == kind
        found[kind] = torch.unique(corpus.inputs[which][..., 0][later[which]])
    return found


def _examples(instances: Instances) -> Tensor:
    """(I,) the example, or place, of each item."""
    if "shared_segments" in instances.arrays:
        return instances.arrays["shared_segments"].flatten()
    n_examples = instances.arrays["inputs"].shape[1] - 1
    return torch.arange(n_examples).repeat_interleave(instances.arrays["replacements"].shape[1] // n_examples)


def _example_looks(instances: Instances, outputs_NC: Tensor) -> Tensor:
    """(N, I, 8): read off an episode and the answer to it, for each pair of an example and a label."""
    inputs, instead = instances.arrays["inputs"], instances.arrays["replacements"]
    n, n_items = instead.shape[:2]
    answer_N1, example_I = outputs_NC.argmax(-1, keepdim=True), _examples(instances)
    is_answer = (inputs[:, example_I, -2].round().long() == answer_N1).float()
    becomes = (instead[:, :, 0, -2].round().long() == answer_N1).float()
    distance = (inputs[:, :-1, :-2] - inputs[:, -1:, :-2]).norm(dim=-1)[:, example_I]
    new_prob = outputs_NC.softmax(-1).gather(1, instead[:, :, 0, -2].round().long())
    count = is_answer.sum(1, keepdim=True).expand(-1, n_items) / (outputs_NC.shape[1] - 1)
    looks = [is_answer, becomes, distance, is_answer * distance, becomes * distance, new_prob, count]
    return torch.stack([*looks, example_I.float().expand(n, -1)], dim=-1)


def _word_looks(instances: Instances, outputs_NC: Tensor) -> Tensor:
    """(N, I, 7): read off a prompt and the answer to it, for each pair of words. Which they are, whether the new one
    stands in this prompt too and is the answer; where, of how many words, and which the answer is."""
    inputs, new_NI = instances.arrays["inputs"], instances.arrays["replacements"][:, :, 0, 0]
    answer_N1, place_I = outputs_NC.argmax(-1, keepdim=True).expand(-1, new_NI.shape[1]), _examples(instances)
    ids_NS = torch.where(inputs[..., 1] > 0.5, inputs[..., 0], -1.0)
    looks = [
        ids_NS[:, place_I],
        new_NI,
        (ids_NS.unsqueeze(1) == new_NI.unsqueeze(-1)).any(-1).float(),
        (new_NI == answer_N1).float(),
        place_I.float().expand_as(new_NI),
        (ids_NS >= 0).sum(1, keepdim=True).float().expand_as(new_NI),
        answer_N1.float(),
    ]
    return torch.stack(looks, dim=-1)


def _replaced(instances: Instances, item_N: Tensor) -> Tensor:
    """(N, S, F) each episode or prompt with one item's row in place of what stands there."""
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

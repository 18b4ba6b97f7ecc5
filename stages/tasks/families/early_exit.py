"""early_exit: after how many examples, or words, could the target have stopped reading?

One instance: an episode of eight examples and a query, truth 4/9 meaning that with the first four examples, and with
every longer prefix, the answer it finally gives has probability 0.9 or more; or a prompt, read word by word.
Source: confidence-based early exit (Schuster et al. 2022, arXiv 2207.07061), over the prompt instead of the
layers.

Shape legend: N = instances, S = rows of an episode (examples, then the query) or places of a prompt, P = prefix
lengths, C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Query, Represent
from stages.contracts.target import Target, TargetAccess, TargetSpec, keep_segments
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, outputs_of
from stages.tasks.inputs import draw_inputs, is_few_shot

__all__ = ["EarlyExit"]

CONFIDENCE = 0.9
LADDER = ((), (4,), (2, 6), (3, 5), (1, 7))
"""Prefix lengths added at each rung; the full episode comes first."""
PROMPT_LADDER = (
    (),
    (0.75,),
    (0.5, 0.9),
    (0.25, 0.6, 0.8, 0.95),
    (0.1, 0.35, 0.4, 0.45, 0.55, 0.65, 0.7, 0.85),
)
"""Of a prompt: shares of its words."""


CONSTANTS: Constants = {"confidence": CONFIDENCE}


class EarlyExit(TaskFamily):
    version = 2
    title = "From which number of examples or words on is the target 90% sure of the answer it will finally give?"
    source = "Schuster et al. 2022 (CALM), arXiv 2207.07061, section 3.3: exit once confidence passes a threshold"
    why_hard_black_box = "every prefix is a new input, so each step of the curve costs a forward pass"
    why_white_box_helps = (
        "attention from the query shows which example the answer hangs on; reading stops after that one"
    )
    query_kind = "Represent"
    needs = frozenset({"prefixes"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Hide all examples after the first j (presence channel 0; the query stays) for j = 0 .. S-1, where S - 1 is"
        " the number of examples; of a prompt of S words those after the first j (the last one stays). The final answer"
        " is the argmax with j = S-1. Truth: the smallest j such that the final answer has probability >= confidence"
        " for that and every larger j, divided by S; 1.0 if there is none."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        return Instances({"inputs": draw_inputs(target, n, rng).inputs}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs = instances.arrays["inputs"]
        n_rows = inputs.shape[1]
        outputs_PNC = torch.stack([outputs_of(target, _prefix(target, inputs, j)) for j in range(n_rows)])
        final_N = outputs_PNC[-1].argmax(-1)
        probs_PN = outputs_PNC.softmax(-1)[:, torch.arange(instances.n), final_N]
        # Reversed running product: is every longer prefix sure as well?
        sure_PN = (probs_PN >= CONFIDENCE).long().flip(0).cumprod(0).flip(0)
        first_N = n_rows - sure_PN.sum(0)
        padding_N = _padding(target.spec, inputs)
        read_N = (first_N - padding_N).clamp(min=0).double()
        return Truth((read_N / (n_rows - padding_N)).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs = instances.arrays["inputs"]
        full_NC = ask(access, inputs)
        final_N = full_NC.argmax(-1)
        features = [answer_features(full_NC)]
        if is_few_shot(access.spec):
            features.append(_example_looks(inputs, final_N))
            lengths: list[int | Tensor] = [j for rung in LADDER[: effort + 1] for j in rung]
        else:
            features.append(_word_looks(inputs, final_N))
            padding_N = _padding(access.spec, inputs)
            shares = [share for rung in PROMPT_LADDER[: effort + 1] for share in rung]
            lengths = [padding_N + (share * (inputs.shape[1] - padding_N)).round().long() for share in shares]
        for length in lengths:
            part_NC = ask(access, _prefix(access, inputs, length))
            features.append(part_NC.softmax(-1).gather(-1, final_N.unsqueeze(-1)))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"])


def _padding(spec: TargetSpec, inputs: Tensor) -> Tensor:
    """(N,) places before the first word; none in an episode."""
    if spec.n_vocabulary is None:
        return torch.zeros(len(inputs), dtype=torch.int64)
    return (inputs[..., 1] < 0.5).sum(1)


def _prefix(target: Target | TargetAccess, inputs: Tensor, length: int | Tensor) -> Tensor:
    """The first rows, or places, and the last one.

    Args:
        length: how many, or (N,) how many of each.
    """
    place_NS = torch.arange(inputs.shape[1]).expand(inputs.shape[:2])
    keep_NS = place_NS < (length.unsqueeze(1) if isinstance(length, Tensor) else length)
    keep_NS[:, -1] = True
    return keep_segments(target.spec, inputs, keep_NS)


def _example_looks(inputs: Tensor, final_N: Tensor) -> Tensor:
    """(N, 7): read off an episode at no cost, where the examples that carry the final answer stand, and how like the
    query they are."""
    match_NS = (inputs[:, :-1, -2].round().long() == final_N.unsqueeze(-1)).float()
    n_shots = match_NS.shape[1]
    distance_NS = (inputs[:, :-1, :-2] - inputs[:, -1:, :-2]).norm(dim=-1)
    order = torch.arange(n_shots, dtype=torch.float32)
    nth = [torch.where(match_NS.cumsum(1) * match_NS == i, order, n_shots).amin(1) for i in (1, 2, 3)]
    near = torch.where(match_NS > 0, distance_NS, distance_NS.amax() + 1).min(1)
    return torch.stack([*nth, match_NS.sum(1), *near], dim=-1)


def _word_looks(inputs: Tensor, final_N: Tensor) -> Tensor:
    """(N, 11): read off a prompt at no cost. Where the final answer stands the first three times and the last, where it
    first and last comes after the word that is last, as shares of the words; how often; how many words; the answer and
    the last two words."""
    ids, present = inputs[..., 0], inputs[..., 1]
    n_words = present.sum(1, keepdim=True)
    place = (present.cumsum(1) - 1) / n_words
    answer = (ids == final_N.unsqueeze(1)) & (present > 0.5)
    answer[:, -1] = False
    after = answer & torch.cat([torch.zeros(len(ids), 1, dtype=torch.bool), ids[:, :-1] == ids[:, -1:]], dim=1)

    def first(which: Tensor) -> Tensor:
        return torch.where(which, place, 1.0).amin(1)

    def last(which: Tensor) -> Tensor:
        return torch.where(which, place, 0.0).amax(1)

    nth = [first(answer & (answer.cumsum(1) == i)) for i in (1, 2, 3)]
    words = [n_words.squeeze(1), final_N.float(), ids[:, -1], ids[:, -2]]
    return torch.stack([*nth, last(answer), first(after), last(after), answer.sum(1).float(), *words], dim=-1)

"""early_exit: after how many examples could the target have stopped reading?

One instance: an episode of eight examples and a query; truth 4/9 means that with the first four examples, and with
every longer prefix, the answer it finally gives has probability 0.9 or more.
Source: confidence-based early exit (Schuster et al. 2022, arXiv 2207.07061), over the prompt instead of the
layers.

Shape legend: N = instances, S = rows of an episode (examples, then the query), P = prefix lengths, C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Query, Represent
from stages.contracts.target import Target, TargetAccess, keep_segments
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, outputs_of
from stages.tasks.inputs import draw_inputs

__all__ = ["EarlyExit"]

CONFIDENCE = 0.9
LADDER = ((), (4,), (2, 6), (3, 5))
"""Prefix lengths added at each rung; the full episode comes first."""


CONSTANTS: Constants = {"confidence": CONFIDENCE}


class EarlyExit(TaskFamily):
    title = "From which number of examples on is the target 90% sure of the answer it will finally give?"
    source = "Schuster et al. 2022 (CALM), arXiv 2207.07061, section 3.3: exit once confidence passes a threshold"
    why_hard_black_box = "every prefix is a new input, so each step of the curve costs a forward pass"
    why_white_box_helps = (
        "attention from the query shows which example the answer hangs on; reading stops after that one"
    )
    query_kind = "Represent"
    needs = frozenset({"examples"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Hide all examples after the first j (presence channel 0; the query stays) for j = 0 .. S-1, where S - 1 is"
        " the number of examples. The final answer is the argmax with j = S-1. Truth: the smallest j such that the"
        " final answer has probability >= confidence for that and every larger j, divided by S; 1.0 if there is none."
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
        return Truth((first_N.double() / n_rows).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs = instances.arrays["inputs"]
        full_NC = ask(access, inputs)
        final_N = full_NC.argmax(-1)
        # Read off the input at no cost: where the examples that carry the final answer stand, and how like the query.
        match_NS = (inputs[:, :-1, -2].round().long() == final_N.unsqueeze(-1)).float()
        n_shots = match_NS.shape[1]
        distance_NS = (inputs[:, :-1, :-2] - inputs[:, -1:, :-2]).norm(dim=-1)
        order = torch.arange(n_shots, dtype=torch.float32)
        nth = [torch.where(match_NS.cumsum(1) * match_NS == i, order, n_shots).amin(1) for i in (1, 2, 3)]
        near = torch.where(match_NS > 0, distance_NS, distance_NS.amax() + 1).min(1)
        features = [answer_features(full_NC), torch.stack([*nth, match_NS.sum(1), *near], dim=-1)]
        for j in (j for rung in LADDER[: effort + 1] for j in rung):
            part_NC = ask(access, _prefix(access, inputs, j))
            features.append(part_NC.softmax(-1).gather(-1, final_N.unsqueeze(-1)))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"])


def _prefix(target: Target | TargetAccess, inputs: Tensor, length: int) -> Tensor:
    keep_NS = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    keep_NS[:, :length] = True
    keep_NS[:, -1] = True
    return keep_segments(target.spec, inputs, keep_NS)

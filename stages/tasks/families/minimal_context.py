"""minimal_context: which examples does the answer need?

One instance: an episode of eight examples; items: the examples. Truth of an example: the share of the smallest sets of
examples with which the target still gives the answer it gives with all, that hold the example; 0 for all where none is
needed.
Source: sufficient input subsets, Carter et al. 2019, arXiv 1810.03805, section 3; here the smallest, by enumeration.

Shape legend: N = instances, E = examples (8), V = subsets (2^E), C = outputs.
"""

import torch
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.method import Attribute, Query
from stages.contracts.target import Objective, Target, TargetAccess, objective_values
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, outputs_of
from stages.tasks.episodes import draw_episodes, example_looks, hidden, segments_of
from stages.tasks.shapley import all_subsets

__all__ = ["MinimalContext", "shares_of_smallest"]

GRAIN = 0.4
LADDER = ("whole", "leave one out", "one alone", "24 subsets")
N_SUBSETS = 24
CONSTANTS: Constants = {"grain": GRAIN}


class MinimalContext(TaskFamily):
    cluster = "minimal_context"
    title = "Which examples are in the smallest contexts that keep the answer?"
    source = "Carter et al. 2019 (Sufficient input subsets), arXiv 1810.03805, section 3; here all subsets are tried"
    why_hard_black_box = "what one example does hangs on which others are there, and there are 256 contexts"
    why_white_box_helps = "what the query takes from each example is there in a single forward pass"
    query_kind = "Attribute"
    needs = frozenset({"segments"})
    n_efforts = len(LADDER)
    cost_factor = 0.5
    truth_recipe = (
        "The answer is the largest output with all examples. A subset keeps it if it is the largest with only the"
        " examples of the subset present (presence channel 0 for the others; the query stays; in words an example is a"
        " row of shared_segments, its places). Of all subsets that keep it take those with the fewest examples. Truth"
        " of an example: the share of these that hold it."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        drawn = draw_episodes(target, n, rng, grain=GRAIN)
        arrays = {name: value for name, value in drawn.arrays.items() if name != "labels"}
        return Instances(arrays, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        subsets_VE = all_subsets(len(segments_of(instances)))
        rows = []
        for i in counted("instances", range(instances.n)):
            shown = hidden(target.spec, instances.select(torch.tensor([i])), subsets_VE.unsqueeze(0))
            answers_V = outputs_of(target, shown).argmax(-1)
            rows.append(shares_of_smallest(answers_V == answers_V[-1], subsets_VE))
        return Truth(torch.stack(rows))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        n, n_shots = instances.n, len(segments_of(instances))
        full_NC = ask(access, instances.arrays["inputs"])
        answer_N = full_NC.argmax(-1)
        match_NE, distance_NE = example_looks(instances, answer_N)

        def margins(keep_NQE: Tensor) -> Tensor:
            outputs = ask(access, hidden(access.spec, instances, keep_NQE))
            labels = answer_N.repeat_interleave(keep_NQE.shape[1])
            return objective_values(outputs, Objective("margin", labels)).view(n, -1)

        same_NE = (distance_NE.unsqueeze(1) > distance_NE.unsqueeze(2)) * match_NE.unsqueeze(2)
        looks = [
            match_NE,
            distance_NE,
            match_NE * same_NE.sum(-1),
            match_NE / match_NE.sum(-1, keepdim=True).clamp(min=1),
            torch.arange(n_shots, dtype=torch.float32).expand(n, -1),
            match_NE.sum(-1, keepdim=True).expand(-1, n_shots),
        ]
        features = [torch.stack(looks, dim=-1), answer_features(full_NC).unsqueeze(1).expand(-1, n_shots, -1)]
        one = torch.eye(n_shots, dtype=torch.bool).expand(n, -1, -1)
        if effort >= 1:
            without_NE = margins(~one)
            features.append(torch.stack([without_NE, (without_NE > 0).float()], dim=-1))
        if effort >= 2:
            alone_NE = margins(one)
            kept_NE = (alone_NE > 0).float()
            none_N1 = margins(torch.zeros(n, 1, n_shots, dtype=torch.bool))
            share_NE = kept_NE / kept_NE.sum(1, keepdim=True).clamp(min=1) * (none_N1 <= 0)
            features.append(torch.stack([alone_NE, kept_NE, share_NE, none_N1.expand(-1, n_shots)], dim=-1))
        if effort >= 3:
            keep_NQE = torch.rand(n, N_SUBSETS, n_shots, generator=rng) < 0.35
            held_NQ = (margins(keep_NQE) > 0).float()
            with_NE = (held_NQ.unsqueeze(-1) * keep_NQE).sum(1) / keep_NQE.sum(1).clamp(min=1)
            else_NE = (held_NQ.unsqueeze(-1) * ~keep_NQE).sum(1) / (~keep_NQE).sum(1).clamp(min=1)
            features.append(torch.stack([with_NE, else_NE, with_NE - else_NE], dim=-1))
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        return Attribute(instances.arrays["inputs"], segments_of(instances))


def shares_of_smallest(keeps_V: Tensor, subsets_VE: Tensor) -> Tensor:
    """(E,) float64: of the smallest subsets that keep the answer, the share that holds each example.

    Args:
        keeps_V: (V,) bool; at least one is true.
        subsets_VE: (V, E) bool.
    """
    size_V = torch.where(keeps_V, subsets_VE.sum(1), subsets_VE.shape[1] + 1)
    return subsets_VE[size_V == size_V.min()].double().mean(0)

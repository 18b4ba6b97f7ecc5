"""prompt_optimum: how good can the prompt get?

One instance: an episode; the pool is every choice of 4 of its 8 examples (70 prompts). Truth 6.1 means that the best
of them gives the right answer odds of e^6.1 to 1.
Source: choosing demonstrations as a search over subsets (Liu et al. 2022, arXiv 2101.06804, section 2); exhaustive
here.

Shape legend: N = instances, E = examples (8), S = rows (E + query), P = prompts in the pool (70).
"""

import torch
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.method import Query, Represent
from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, label_features, log_odds, outputs_of
from stages.tasks.episodes import draw_episodes, example_looks, hidden, nearest_looks, segments_of
from stages.tasks.shapley import subsets_of_size

__all__ = ["PromptOptimum"]

N_KEPT = 4
GRAIN = 0.5
LADDER = (0, 2, 8, 24)


CONSTANTS: Constants = {"grain": GRAIN, "n_kept": N_KEPT}


class PromptOptimum(TaskFamily):
    title = "How likely can the right answer be made by keeping the best 4 of the 8 examples?"
    source = "Liu et al. 2022 (What makes good in-context examples), arXiv 2101.06804; here all subsets are tried"
    why_hard_black_box = "the best of 70 prompts is an extreme value: random prompts find it only by luck"
    why_white_box_helps = "which examples pull towards and away from the right answer is visible in one forward pass"
    query_kind = "Represent"
    needs = frozenset({"segments"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "For every subset of n_kept examples (the others hidden: presence channel 0; the query stays; in words an"
        " example is a row of shared_segments, its places) compute the log-odds log(p / (1 - p)) of the right label."
        " Truth: the largest of them, in nats."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        return draw_episodes(target, n, rng, grain=GRAIN)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        pool_PE = subsets_of_size(len(segments_of(instances)), N_KEPT)
        best = []
        for i in counted("instances", range(instances.n)):
            label = instances.arrays["labels"][i]
            shown = hidden(target.spec, instances.select(torch.tensor([i])), pool_PE.unsqueeze(0))
            best.append(log_odds(outputs_of(target, shown), label.expand(len(pool_PE))).double().max())
        return Truth(torch.stack(best).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels = instances.arrays["inputs"], instances.arrays["labels"]
        full_NC = ask(access, inputs)
        match_NE, distance_NE = example_looks(instances, labels)
        features = [answer_features(full_NC), label_features(full_NC, labels), nearest_looks(match_NE, distance_NE)]
        features.append(log_odds(full_NC, labels).unsqueeze(-1))
        pool_PE = subsets_of_size(len(segments_of(instances)), N_KEPT)
        order_NP = torch.rand(instances.n, len(pool_PE), generator=rng).argsort(-1)
        tried_NK = torch.zeros(instances.n, 0)
        for k in LADDER[1 : effort + 1]:
            chosen = order_NP[:, tried_NK.shape[1] : k]
            outputs = ask(access, hidden(access.spec, instances, pool_PE[chosen]))
            odds = log_odds(outputs, labels.repeat_interleave(chosen.shape[1])).view(instances.n, -1)
            tried_NK = torch.cat([tried_NK, odds], dim=1)
            features.append(torch.stack([tried_NK.amax(1), tried_NK.mean(1), tried_NK.std(1)], dim=-1))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"], instances.arrays["labels"])

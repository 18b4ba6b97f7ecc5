"""few_shot_shapley: what is each example worth for the right answer?

One instance: an episode of eight examples (rows, or two words each); truth (8,): the Shapley values phi, compressed to
sign(phi) * log(1 + |phi| / 0.1). The values themselves add up to log p(right | all examples) - log p(right | none).
Source: Shapley 1953; as data valuation Ghorbani and Zou 2019, arXiv 1904.02868, eq. 1, and their Monte
Carlo over permutations.

Shape legend: N = instances, E = examples (8), S = rows (E + query), V = subsets (2^E), R = permutations.
"""

import torch
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.method import Attribute, Query
from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, compressed, outputs_of, true_log_probs
from stages.tasks.episodes import draw_episodes, example_looks, hidden, segments_of
from stages.tasks.shapley import sampled_rungs, shapley_values

__all__ = ["FewShotShapley", "compress", "shapley_values"]

PERMUTATIONS = (2, 4, 8)
SCALE = 0.1


CONSTANTS: Constants = {"scale": SCALE}


class FewShotShapley(TaskFamily):
    title = "What is each example's Shapley value for the log-probability of the right answer?"
    source = "Ghorbani and Zou 2019 (Data Shapley), arXiv 1904.02868, equation 1; here exact, over all subsets"
    why_hard_black_box = "an exact value needs all 256 subsets of the examples; sampled permutations converge slowly"
    why_white_box_helps = (
        "the query's attention and what it copies from each example are there in a single forward pass"
    )
    query_kind = "Attribute"
    needs = frozenset({"segments"})
    n_efforts = 2 + len(PERMUTATIONS)
    truth_recipe = (
        "v(T) = log-probability (nats) of the right label when only the examples in T are present (presence channel 0"
        " for the others; the query stays; in words an example is a row of shared_segments, its places), for all"
        " subsets T of the n examples. For example i: the sum over T without"
        " i of |T|! (n - |T| - 1)! / n! * (v(T with i) - v(T)), called phi, as sign(phi) * log(1 + |phi| / scale): a"
        " few episodes that are answered wrongly would otherwise carry most of the variance."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        return draw_episodes(target, n, rng)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        labels, n_shots = instances.arrays["labels"], len(segments_of(instances))
        subsets_VE = torch.tensor([[(b >> i) & 1 for i in range(n_shots)] for b in range(2**n_shots)])
        values_NV = torch.stack(
            [
                true_log_probs(
                    outputs_of(
                        target, hidden(target.spec, instances.select(torch.tensor([i])), subsets_VE.bool().unsqueeze(0))
                    ),
                    labels[i].expand(2**n_shots),
                )
                for i in counted("instances", range(instances.n))
            ]
        )
        return Truth(compress(shapley_values(values_NV.double())))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels = instances.arrays["inputs"], instances.arrays["labels"]
        n, n_shots = instances.n, len(segments_of(instances))

        def values(keep_NQE: Tensor) -> Tensor:
            n_sets = keep_NQE.shape[1]
            outputs = ask(access, hidden(access.spec, instances, keep_NQE))
            return true_log_probs(outputs, labels.repeat_interleave(n_sets)).view(n, n_sets)

        full_NC = ask(access, inputs)
        full_N1 = true_log_probs(full_NC, labels).unsqueeze(-1)
        match_NE, distance_NE = example_looks(instances, labels)
        same_NE = (distance_NE.unsqueeze(1) > distance_NE.unsqueeze(2)) * match_NE.unsqueeze(2)
        per_example = [
            match_NE,
            distance_NE,
            match_NE * same_NE.sum(-1),  # how many examples are less like the query than this match
            distance_NE.argsort(-1).argsort(-1).float(),
            torch.arange(n_shots, dtype=torch.float32).expand(n, -1),
            match_NE.sum(-1, keepdim=True).expand(-1, n_shots),
        ]
        whole = torch.cat([answer_features(full_NC), full_N1], dim=-1).unsqueeze(1).expand(-1, n_shots, -1)
        features = [torch.stack(per_example, dim=-1), whole]
        if effort >= 1:
            without_EE = ~torch.eye(n_shots, dtype=torch.bool)
            features.append(compress(full_N1 - values(without_EE.expand(n, -1, -1))).unsqueeze(-1))
        if effort >= 2:
            found = sampled_rungs(values, full_N1, n_shots, PERMUTATIONS[: effort - 1], rng)
            features += [compress(mean_NE).unsqueeze(-1) for mean_NE in found]
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        return Attribute(instances.arrays["inputs"], segments_of(instances), instances.arrays["labels"])


def compress(value: Tensor) -> Tensor:
    """Monotone and odd: linear below ``SCALE`` nats, logarithmic above."""
    return compressed(value, SCALE)

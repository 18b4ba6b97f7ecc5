"""region_shapley: what is each region of the image worth for the right answer?

One instance: an image; items: its regions (eight blocks of 2 x 4 pixels; of an image that is no flat row, its rows two
by two). Truth: the Shapley value of each region for the log-probability of the right answer, compressed; a region that
is hidden is black.
Source: Shapley 1953; for predictions Lundberg and Lee 2017 (SHAP), arXiv 1705.07874, equation 8; exact here.

Shape legend: N = instances, E = regions, V = subsets (2^E), Q = ways to hide regions, C = outputs.
"""

import torch
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.method import Attribute, Query
from stages.contracts.target import Target, TargetAccess, TargetSpec
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, compressed, outputs_of, true_log_probs
from stages.tasks.episodes import hidden
from stages.tasks.inputs import draw_inputs, is_few_shot
from stages.tasks.shapley import all_subsets, sampled_rungs, shapley_values

__all__ = ["RegionShapley", "compress", "regions_of"]

SIDE, HEIGHT, WIDTH = 8, 2, 4
MAX_BLEND = 0.45
GRAIN = 0.3
SCALE = 0.1
PERMUTATIONS = (2, 6)
CONSTANTS: Constants = {"grain": GRAIN, "max_blend": MAX_BLEND, "scale": SCALE}


class RegionShapley(TaskFamily):
    cluster = "region_shapley"
    title = "What is each region's Shapley value for the log-probability of the right answer?"
    source = "Lundberg and Lee 2017 (SHAP), arXiv 1705.07874, equation 8; here exact, over all subsets"
    why_hard_black_box = "an exact value needs all subsets of the regions; sampled permutations converge slowly"
    why_white_box_helps = "slopes say what each region adds, and which units several regions share"
    query_kind = "Attribute"
    needs = frozenset({"pixels"})
    n_efforts = 2 + len(PERMUTATIONS)
    truth_recipe = (
        "v(T) = log-probability (nats) of the instance's label when the pixels outside the regions in T are 0 (of an"
        " episode: the examples outside T are hidden), for all subsets T of the n regions. For region i: the sum over T"
        " without i of |T|! (n - |T| - 1)! / n! * (v(T with i) - v(T)), called phi. Truth: sign(phi) * log(1 + |phi| /"
        " scale). Regions of a flat image are blocks of 2 x 4 pixels, row by row; of a square one, two rows each."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        inputs, labels = draw_inputs(target, n, rng, MAX_BLEND, GRAIN)
        regions = torch.tensor(regions_of(target.spec))
        return Instances({"inputs": inputs, "labels": labels, "shared_segments": regions}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        labels = instances.arrays["labels"]
        subsets_VE = all_subsets(len(instances.arrays["shared_segments"]))
        rows = []
        for i in counted("instances", range(instances.n)):
            shown = hidden(target.spec, instances.select(torch.tensor([i])), subsets_VE.unsqueeze(0))
            rows.append(true_log_probs(outputs_of(target, shown), labels[i].expand(len(subsets_VE))))
        return Truth(compress(shapley_values(torch.stack(rows).double())))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels = instances.arrays["inputs"], instances.arrays["labels"]
        n, regions = instances.n, instances.arrays["shared_segments"]
        n_regions = len(regions)

        def values(keep_NQE: Tensor) -> Tensor:
            outputs = ask(access, hidden(access.spec, instances, keep_NQE))
            return true_log_probs(outputs, labels.repeat_interleave(keep_NQE.shape[1])).view(n, -1)

        full_NC = ask(access, inputs)
        full_N1 = true_log_probs(full_NC, labels).unsqueeze(-1)
        inside_NEP = inputs[:, regions].flatten(2)
        looks = [
            inside_NEP.mean(-1),
            inside_NEP.std(-1),
            torch.arange(n_regions, dtype=torch.float32).expand(n, -1),
            labels.float().unsqueeze(-1).expand(-1, n_regions),
        ]
        whole = torch.cat([answer_features(full_NC), full_N1], dim=-1).unsqueeze(1).expand(-1, n_regions, -1)
        features = [torch.stack(looks, dim=-1), whole]
        if effort >= 1:
            without_EE = ~torch.eye(n_regions, dtype=torch.bool)
            features.append(compress(full_N1 - values(without_EE.expand(n, -1, -1))).unsqueeze(-1))
        if effort >= 2:
            found = sampled_rungs(values, full_N1, n_regions, PERMUTATIONS[: effort - 1], rng)
            features += [compress(mean_NE).unsqueeze(-1) for mean_NE in found]
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        arrays = instances.arrays
        return Attribute(arrays["inputs"], tuple(map(tuple, arrays["shared_segments"].tolist())), arrays["labels"])


def regions_of(spec: TargetSpec) -> list[list[int]]:
    """Indices of axis 1 of the inputs that make each region."""
    if is_few_shot(spec):
        return [[row] for row in range(spec.input_shape[0] - 1)]
    if len(spec.input_shape) > 1:
        return [[row, row + 1] for row in range(0, spec.input_shape[0] - 1, 2)]
    return [
        [(top + i) * SIDE + left + j for i in range(HEIGHT) for j in range(WIDTH)]
        for top in range(0, SIDE, HEIGHT)
        for left in range(0, SIDE, WIDTH)
    ]


def compress(value: Tensor) -> Tensor:
    """Monotone and odd: linear below ``SCALE`` nats, logarithmic above."""
    return compressed(value, SCALE)

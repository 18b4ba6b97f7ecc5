"""bad_context: how likely can a wrong answer be made by choosing what the target is shown?

One instance: an episode of eight examples and a wrong label; the pool is every choice of four of the examples (70
contexts). Truth: the largest margin, in logits, of the wrong label over the best other answer.
Source: eliciting bad behaviour as a search over contexts, Perez et al. 2022 (Red teaming language models), arXiv
2202.03286, section 2; exhaustive here.

Shape legend: N = instances, E = examples (8), P = contexts of the pool (70), C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Propose, Query
from stages.contracts.target import Objective, Target, TargetAccess, TargetSpec, objective_values
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, label_features
from stages.tasks.episodes import draw_episodes, example_looks, nearest_looks, segments_of
from stages.tasks.pools import best_of_pool, reach
from stages.tasks.shapley import subsets_of_size

__all__ = ["BadContext"]

N_KEPT = 4
GRAIN = 0.5
LADDER = (0, 8, 20, 44)
"""Contexts tried, after the whole one and the one that a rule of thumb picks."""
CONSTANTS: Constants = {"grain": GRAIN, "n_kept": N_KEPT}


class BadContext(TaskFamily):
    cluster = "bad_context"
    title = "How far can this wrong answer be brought by keeping four of the eight examples?"
    source = "Perez et al. 2022 (Red teaming language models), arXiv 2202.03286, section 2; here all contexts are tried"
    why_hard_black_box = "the worst of 70 contexts is an extreme value: random ones find it only by luck"
    why_white_box_helps = "which examples pull towards the wrong answer and away from it is visible in one forward pass"
    query_kind = "Propose"
    needs = frozenset({"segments"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "The label is an answer that some example of the instance shows, and not the right one. For each of"
        " shared_changes, which added to the input hides all examples but n_kept (presence channel -1 there;"
        " the query stays; in words an example is a row of shared_segments, its places): the logit of the instance's"
        " label less the largest other. Truth: the largest over all changes."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        drawn = draw_episodes(target, n, rng, grain=GRAIN)
        wrong_N = _shown_wrong(drawn, rng)
        arrays = dict(drawn.arrays) | {"labels": wrong_N}
        hides = _hides(target.spec, segments_of(drawn), drawn.arrays["inputs"].shape[1])
        return Instances(arrays | {"shared_changes": hides}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs, labels, changes = (instances.arrays[name] for name in ("inputs", "labels", "shared_changes"))
        return Truth(best_of_pool(target, inputs, changes, Objective("margin", labels)).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels, changes = (instances.arrays[name] for name in ("inputs", "labels", "shared_changes"))
        objective, n = Objective("margin", labels), instances.n
        full_NC = ask(access, inputs)
        match_NE, distance_NE = example_looks(instances, labels)
        # The rule of thumb: keep the label's examples, nearest first, then what is least like the query.
        score_NE = match_NE * 100 - distance_NE * (2 * match_NE - 1)
        kept_NE = torch.zeros_like(match_NE).scatter(1, score_NE.topk(N_KEPT, dim=-1).indices, 1.0)
        choices_PE = subsets_of_size(match_NE.shape[1], N_KEPT).float()
        picked_N = (kept_NE @ choices_PE.T).argmax(-1)
        thumb_N1 = reach(access, inputs, changes[picked_N].unsqueeze(1), objective)
        whole_N1 = objective_values(full_NC, objective).unsqueeze(-1)
        features = [answer_features(full_NC), label_features(full_NC, labels), nearest_looks(match_NE, distance_NE)]
        features += [whole_N1, thumb_N1, torch.maximum(whole_N1, thumb_N1)]
        order_NP = torch.rand(n, len(changes), generator=rng).argsort(-1)
        tried_NK = thumb_N1
        for k in LADDER[1 : effort + 1]:
            new = order_NP[:, tried_NK.shape[1] - 1 : k]
            tried_NK = torch.cat([tried_NK, reach(access, inputs, changes[new], objective)], dim=1)
            features.append(torch.stack([tried_NK.amax(1), tried_NK.mean(1), tried_NK.std(1)], dim=-1))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        arrays = instances.arrays
        return Propose(arrays["labels"], arrays["inputs"], arrays["shared_changes"], "margin")


def _shown_wrong(drawn: Instances, rng: torch.Generator) -> Tensor:
    """(N,) an answer that some example shows and that is not right; where all show the right one, any other."""
    inputs, right_N = drawn.arrays["inputs"], drawn.arrays["labels"]
    places = drawn.arrays.get("shared_segments")
    shown_NE = inputs[:, :-1, -2] if places is None else inputs[:, places[:, -1], 0]
    shown_NE = shown_NE.round().long()
    order_NE = torch.rand(shown_NE.shape, generator=rng) + (shown_NE == right_N.unsqueeze(-1))
    found_N = shown_NE.gather(1, order_NE.argmin(-1, keepdim=True)).squeeze(-1)
    return torch.where(found_N == right_N, (right_N + 1) % int(shown_NE.max() + 1), found_N)


def _hides(spec: TargetSpec, segments: tuple[tuple[int, ...], ...], n_rows: int) -> Tensor:
    """(P, *input_shape) what takes the presence away from the examples that a context leaves out."""
    channel = spec.present_channel
    kept_PE = subsets_of_size(len(segments), N_KEPT)
    hides = torch.zeros(len(kept_PE), *spec.input_shape)
    for example, places in enumerate(segments):
        for place in places:
            hides[:, place, -1 if channel is None else channel] = -(~kept_PE[:, example]).float()
    assert n_rows == spec.input_shape[0]
    return hides

"""order_sensitivity: how much does the answer hang on the order of the examples?

One instance: an episode of which five examples are present. Truth: the standard deviation of the right answer's
log-probability over all 120 orders of the five, compressed.
Source: Lu et al. 2022 (Fantastically ordered prompts), arXiv 2104.08786, section 2; exact here, over all orders.

Shape legend: N = instances, E = examples that are present (5), R = orders (120), C = outputs.
"""

from itertools import permutations

import torch
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.method import Query, Represent
from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, label_features, outputs_of, true_log_probs
from stages.tasks.episodes import draw_episodes, example_looks, hidden, segments_of

__all__ = ["OrderSensitivity", "compress"]

N_PRESENT = 5
GRAIN = 0.5
SCALE = 0.05
LADDER = (0, 6, 16, 48)
"""Orders tried beside the one that is shown."""
CONSTANTS: Constants = {"grain": GRAIN, "n_present": N_PRESENT, "scale": SCALE}


class OrderSensitivity(TaskFamily):
    cluster = "order_sensitivity"
    title = "How much does the right answer's log-probability vary with the order of the examples?"
    source = "Lu et al. 2022 (Fantastically ordered prompts), arXiv 2104.08786, section 2; here all orders are tried"
    why_hard_black_box = "a spread over 120 orders needs many of them, and one order says nothing of it"
    why_white_box_helps = "how far attention goes by place rather than by content can be seen in one forward pass"
    query_kind = "Represent"
    needs = frozenset({"segments"})
    n_efforts = len(LADDER)
    cost_factor = 0.5
    truth_recipe = (
        "The first n_present examples of an episode are present, the others hidden. For all orders of these (whole rows"
        " change places; in words the words at the places of a row of shared_segments) compute the log-probability"
        " (nats) of the label; s = their standard deviation (with n - 1). Truth: log(1 + s / scale)."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        drawn = draw_episodes(target, n, rng, grain=GRAIN)
        keep_E = torch.arange(len(segments_of(drawn))) < N_PRESENT
        inputs = hidden(target.spec, drawn, keep_E.expand(n, 1, -1))
        return Instances(dict(drawn.arrays) | {"inputs": inputs}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        orders_RE, spreads = _orders(), []
        for i in counted("instances", range(instances.n)):
            one = instances.select(torch.tensor([i]))
            shown = _ordered(one, orders_RE.unsqueeze(0))
            labels = one.arrays["labels"].expand(len(orders_RE))
            spreads.append(true_log_probs(outputs_of(target, shown).double(), labels).std())
        return Truth(compress(torch.stack(spreads)).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        labels, n = instances.arrays["labels"], instances.n
        outputs = ask(access, instances.arrays["inputs"])
        match_NE, distance_NE = (part[:, :N_PRESENT] for part in example_looks(instances, labels))
        far = distance_NE.amax() + 1
        looks = [
            match_NE.sum(1),
            torch.where(match_NE > 0, distance_NE, far).amin(1),
            distance_NE.amin(1),
            distance_NE.std(1),
        ]
        features = [answer_features(outputs), label_features(outputs, labels), torch.stack(looks, dim=-1)]
        orders_RE = _orders()
        chosen_NR = torch.rand(n, len(orders_RE), generator=rng).argsort(-1)
        tried_NK = true_log_probs(outputs, labels).unsqueeze(-1)
        for k in LADDER[1 : effort + 1]:
            new = chosen_NR[:, tried_NK.shape[1] - 1 : k]
            log_p = true_log_probs(
                ask(access, _ordered(instances, orders_RE[new])), labels.repeat_interleave(new.shape[1])
            )
            tried_NK = torch.cat([tried_NK, log_p.view(n, -1)], dim=1)
            spread = tried_NK.std(1)
            features.append(torch.stack([spread, compress(spread), tried_NK.amin(1), tried_NK.mean(1)], dim=-1))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"], instances.arrays["labels"])


def compress(spread: Tensor) -> Tensor:
    """Monotone: linear below ``SCALE`` nats, logarithmic above."""
    return (spread / SCALE).log1p()


def _orders() -> Tensor:
    """(R, E): the example that stands at each place."""
    return torch.tensor(list(permutations(range(N_PRESENT))))


def _ordered(instances: Instances, orders_NRE: Tensor) -> Tensor:
    """(N, R, E) orders -> (N * R, *input_shape) inputs."""
    inputs, places_Ek = instances.arrays["inputs"], torch.tensor(segments_of(instances))[:N_PRESENT]
    n, r = orders_NRE.shape[:2]
    out = inputs.repeat_interleave(r, dim=0)
    source = places_Ek[orders_NRE.flatten(0, 1)].flatten(1)  # (N * R, E * k)
    rows = torch.arange(n * r).unsqueeze(-1)
    out[:, places_Ek.flatten()] = inputs.repeat_interleave(r, dim=0)[rows, source]
    return out

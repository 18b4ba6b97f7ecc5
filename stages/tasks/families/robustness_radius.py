"""robustness_radius: how far is the nearest input with another answer?

One instance: an image; truth 0.83 means that a perturbation of Euclidean length 0.83 (pixels run from 0 to 1) changes
the answer, and that no restart of a strong attack found a shorter one. Every radius is verified: the perturbed input
is run again.
Source: DDN attack (Rony et al. 2019, arXiv 1811.09600, algorithm 1), targeted at every other class, with random
restarts, then bisection along the segment to the clean input.

Shape legend: N = instances, A = attacks per instance (classes x restarts), X = pixels, C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Query, Represent
from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, outputs_of
from stages.tasks.inputs import draw_inputs

__all__ = ["RobustnessRadius", "smallest_perturbation"]

MAX_BLEND = 0.1
RESTARTS = 3
STEPS = 80
BISECTIONS = 16
START_SIGMA = 0.1
N_PROBES = 200
LADDER = (0, 2, 6, 18)
WEAK_BISECTIONS = 5


CONSTANTS: Constants = {
    "bisections": BISECTIONS,
    "max_blend": MAX_BLEND,
    "restarts": RESTARTS,
    "start_sigma": START_SIGMA,
    "steps": STEPS,
}


class RobustnessRadius(TaskFamily):
    title = "How small is the smallest perturbation of the pixels that changes the answer?"
    source = (
        "Rony et al. 2019 (DDN), arXiv 1811.09600, algorithm 1; restarts and bisection added, every result verified"
    )
    why_hard_black_box = "without gradients the nearest boundary in 64 dimensions is found only by luck"
    why_white_box_helps = "on a piecewise linear network margin / gradient norm is exact within the current piece"
    query_kind = "Represent"
    needs = frozenset({"flat_image"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Smallest Euclidean norm of a perturbation (not clipped to the pixel range) after which the largest output is"
        " not that of the clean input: the best of restarts targeted DDN attacks of steps steps at every other class"
        " (the first restart starts at the input, the others at a Gaussian point start_sigma away per pixel), each"
        " followed by bisections halvings towards the clean input. It is an upper bound of the true radius; each"
        " perturbed input is run again to confirm."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        inputs = draw_inputs(target, n, rng, MAX_BLEND).inputs
        return Instances({"inputs": inputs, "shared_inputs": draw_inputs(target, N_PROBES, rng).inputs}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs = instances.arrays["inputs"]
        delta_NX = smallest_perturbation(target, inputs, rng)
        clean_N, moved_N = outputs_of(target, inputs).argmax(-1), outputs_of(target, inputs + delta_NX).argmax(-1)
        assert bool((clean_N != moved_N).all()), "a perturbation does not change the answer"
        return Truth(delta_NX.double().norm(dim=-1, keepdim=True))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, probes = instances.arrays["inputs"], instances.arrays["shared_inputs"]
        clean_NC = ask(access, inputs)
        answer_N = clean_NC.argmax(-1)
        features = [answer_features(clean_NC)]
        if effort > 0:
            probe_answer = ask(access, probes).argmax(-1)
            distance = torch.cdist(inputs, probes)
            distance = torch.where(probe_answer == answer_N.unsqueeze(1), float("inf"), distance)
            nearest_NK = distance.argsort(-1)[:, : LADDER[-1]]
            found_NK = torch.zeros(instances.n, 0)
            for k in LADDER[1 : effort + 1]:
                goals_NKX = probes[nearest_NK[:, found_NK.shape[1] : k]]
                found_NK = torch.cat([found_NK, _line_search(access, inputs, answer_N, goals_NKX)], dim=1)
                features.append(torch.stack([found_NK.amin(1), found_NK.mean(1)], dim=-1))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"])


def smallest_perturbation(target: Target, inputs: Tensor, rng: torch.Generator) -> Tensor:
    """(N, X) inputs -> (N, X) perturbations that change the answer, as short as the attack can make them.

    Raises:
        RuntimeError: no attack changed the answer of some input.
    """
    n, n_classes = len(inputs), target.spec.n_outputs
    answer_N = outputs_of(target, inputs).argmax(-1)
    # Every class but the answer: the (n_classes - 1) targets of each input.
    goals = torch.stack([(answer_N + 1 + i) % n_classes for i in range(n_classes - 1)], dim=1)
    best = torch.full((n,), float("inf"))
    delta = torch.zeros_like(inputs)
    for restart in range(RESTARTS):
        start = torch.randn(n, n_classes - 1, *inputs.shape[1:], generator=rng) * (START_SIGMA if restart else 0.0)
        x = inputs.repeat_interleave(n_classes - 1, dim=0)
        found = _ddn(target, x, answer_N.repeat_interleave(n_classes - 1), goals.flatten(), start.flatten(0, 1))
        found = _bisect(target, x, answer_N.repeat_interleave(n_classes - 1), found).view(n, n_classes - 1, -1)
        norm, which = found.norm(dim=-1).min(1)
        better = norm < best
        best = torch.where(better, norm, best)
        delta = torch.where(better.unsqueeze(-1), found[torch.arange(n), which], delta)
    if not bool(best.isfinite().all()):
        raise RuntimeError(
            f"no attack changed the answer of {int((~best.isfinite()).sum())} of {n} inputs; raise STEPS"
        )
    return delta


def _ddn(target: Target, x: Tensor, answer: Tensor, goal: Tensor, start: Tensor) -> Tensor:
    """Decoupled direction and norm: the length shrinks while the answer is changed, grows while it is not.

    Returns:
        (B, X) shortest perturbation seen that changes the answer; infinite where none did.
    """
    delta, norm = start.clone(), torch.ones(len(x), 1)
    best, best_norm = torch.full_like(x, float("inf")), torch.full((len(x), 1), float("inf"))
    for step in range(STEPS):
        rate = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / STEPS)))
        leaf = delta.detach().requires_grad_(True)
        with torch.enable_grad():
            outputs = target.model(x + leaf)
            # The margin, not the log-probability of the paper: its gradient points across this one boundary.
            margin = outputs.gather(-1, goal.unsqueeze(-1)) - outputs.gather(-1, answer.unsqueeze(-1))
            (grad,) = torch.autograd.grad(margin.sum(), leaf)
        changed = (outputs.argmax(-1) != answer).unsqueeze(-1)
        length = delta.norm(dim=-1, keepdim=True)
        better = changed & (length < best_norm)
        best, best_norm = torch.where(better, delta, best), torch.where(better, length, best_norm)
        delta = delta + rate * norm * grad / grad.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        norm = torch.where(changed, norm * (1 - 0.05), norm * (1 + 0.05))
        delta = delta * (norm / delta.norm(dim=-1, keepdim=True).clamp_min(1e-12))
    return best


def _bisect(target: Target, x: Tensor, answer: Tensor, delta: Tensor) -> Tensor:
    """Shorten each perturbation towards zero as long as the answer stays changed."""
    ok = delta.isfinite().all(-1)
    safe = torch.where(ok.unsqueeze(-1), delta, 0.0)
    low, high = torch.zeros(len(x), 1), torch.ones(len(x), 1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        changed = (outputs_of(target, x + middle * safe).argmax(-1) != answer).unsqueeze(-1)
        low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
    return torch.where(ok.unsqueeze(-1), high * safe, float("inf"))


def _line_search(access: TargetAccess, inputs: Tensor, answer_N: Tensor, goals_NKX: Tensor) -> Tensor:
    """(N, K) distance to the boundary along the line to each goal, by ``WEAK_BISECTIONS`` queries each."""
    n, k = goals_NKX.shape[:2]
    direction = goals_NKX - inputs.unsqueeze(1)
    low, high = torch.zeros(n, k), torch.ones(n, k)
    for _ in range(WEAK_BISECTIONS):
        middle = (low + high) / 2
        tried = inputs.unsqueeze(1) + middle.unsqueeze(-1) * direction
        changed = ask(access, tried.flatten(0, 1)).argmax(-1).view(n, k) != answer_N.unsqueeze(1)
        low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
    length: Tensor = direction.norm(dim=-1)
    return (low + high) / 2 * length

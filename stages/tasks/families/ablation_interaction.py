"""ablation_interaction: does cutting a component hurt more when others are cut as well?

One instance: 8 inputs that show one behaviour (images of one or two classes); items: the 32 units of the last hidden
layer. Truth of a unit: the sum over all other units of what cutting both does to the loss beyond what cutting each
does, compressed. Positive: others stand in for it; negative: it is of use only together with them.
Source: interaction of features as in Grabisch and Roubens 1999 (Int. J. Game Theory 28), second differences at the
whole; self-repair, McGrath et al. 2023 (The hydra effect), arXiv 2307.15771.

Shape legend: N = instances, M = inputs of a behaviour (8), P = components (32), B = batch, S = sets of cut components.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stages.contracts.method import Localise, Query
from stages.contracts.target import Component, Intervention, Target, TargetAccess, TargetSpec
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import ask, compressed, label_features
from stages.tasks.components import decode, draw_behaviours, encode

__all__ = ["AblationInteraction", "compress"]

N_INPUTS = 8
POOL = 4096
MAX_BLEND = 0.45
SCALE = 0.1
LADDER = ((0, 0), (2, 0), (8, 0), (8, 2), (8, 6))
"""(inputs each unit is cut on, random halves of the other units that are cut along) at each rung."""
CONSTANTS: Constants = {
    "max_blend": MAX_BLEND,
    "n_inputs": N_INPUTS,
    "n_kinds": "1 or 2, equally likely",
    "scale": SCALE,
}


class AblationInteraction(TaskFamily):
    cluster = "ablation_interaction"
    title = "How much more does cutting this component hurt when others are cut as well?"
    source = (
        "Grabisch and Roubens 1999, Int. J. Game Theory 28; McGrath et al. 2023 (The hydra effect), arXiv 2307.15771"
    )
    why_hard_black_box = "there are 496 pairs of units, and single effects do not tell what pairs do"
    why_white_box_helps = "units add up before the loss bends: what each gives to each output says when it bends"
    query_kind = "Localise"
    needs = frozenset({"flat_image", "kinds"})
    n_efforts = len(LADDER)
    cost_factor = 0.5
    truth_recipe = (
        "Components are the units of the last hidden layer. L(S) = mean cross-entropy (nats) of the right labels on the"
        " instance's n_inputs inputs with the activations of the units in S replaced by zero. For unit p: d = sum over"
        " all other units q of L(p, q) - L(p) - L(q) + L(). Truth: sign(d) * log(1 + |d| / scale)."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        arrays = draw_behaviours(target, n, rng, n_inputs=N_INPUTS, pool=POOL, max_blend=MAX_BLEND, grain=0.0)
        return Instances(arrays | encode(_units(target.spec)), n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        components = decode(instances)
        n_units = len(components)
        first, second = torch.triu_indices(n_units, n_units)  # a unit with itself: it is cut alone
        cut_SP = torch.zeros(len(first) + 1, n_units)
        cut_SP[torch.arange(len(first)), first] = 1.0
        cut_SP[torch.arange(len(first)), second] = 1.0
        rows = []
        for x_M, y_M in zip(instances.arrays["inputs"], instances.arrays["labels"], strict=True):
            found_S = _losses(target, components, x_M, y_M, cut_SP)
            whole, pair_PP = found_S[-1], torch.zeros(n_units, n_units, dtype=torch.float64)
            pair_PP[first, second] = found_S[:-1]
            pair_PP[second, first] = found_S[:-1]
            single_P = pair_PP.diagonal()
            beyond_PP = pair_PP - single_P.unsqueeze(0) - single_P.unsqueeze(1) + whole
            rows.append(beyond_PP.sum(1) - beyond_PP.diagonal())
        return Truth(compress(torch.stack(rows)))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs_NM, labels_NM = instances.arrays["inputs"], instances.arrays["labels"]
        components, n = decode(instances), instances.n
        n_units = len(components)
        intact_NMF = label_features(ask(access, inputs_NM.flatten(0, 1)), labels_NM.flatten()).view(n, N_INPUTS, -1)
        kinds_NC = torch.nn.functional.one_hot(labels_NM, access.spec.n_outputs).float().mean(1)
        whole_NF = torch.cat([intact_NMF.mean(1), intact_NMF[..., 0].std(1, keepdim=True), kinds_NC], dim=-1)
        index_P = torch.arange(n_units, dtype=torch.float32).view(1, -1, 1)
        features = [index_P.expand(n, -1, -1), whole_NF.unsqueeze(1).expand(-1, n_units, -1)]

        def mean_loss(cut: list[int], n_inputs: int) -> Tensor:
            x, y = inputs_NM[:, :n_inputs].flatten(0, 1), labels_NM[:, :n_inputs].flatten()
            changes = []
            if cut:
                point, axis, _ = components[0]
                at = tuple(components[unit].index for unit in cut)
                changes = [Intervention(point, "zero", axis=axis, indices=at)]
            outputs = torch.cat(
                [access.forward(part, interventions=changes).outputs for part in torch.split(x, 4 * 256)]
            )
            return label_features(outputs, y)[:, 0].view(n, n_inputs).mean(1)

        # All halves are drawn, so that a lower rung cuts the first of the same.
        halves = [torch.rand(n_units, generator=rng).argsort()[: n_units // 2].tolist() for _ in range(LADDER[-1][1])]
        drifts: list[Tensor] = []
        done = (0, 0)
        single_NP = torch.zeros(n, n_units)
        for n_inputs, n_halves in LADDER[1 : effort + 1]:
            if n_inputs > done[0]:
                base_N = intact_NMF[:, :n_inputs, 0].mean(1)
                single_NP = torch.stack([mean_loss([p], n_inputs) - base_N for p in range(n_units)], dim=1)
                features.append(compress(single_NP).unsqueeze(-1))
            for half in halves[done[1] : n_halves]:
                base_N = mean_loss(half, n_inputs)
                moved = [_toggled(half, p) for p in range(n_units)]
                signs = torch.tensor([-1.0 if p in half else 1.0 for p in range(n_units)])
                effect_NP = torch.stack([mean_loss(cut, n_inputs) - base_N for cut in moved], dim=1) * signs
                drifts.append(effect_NP - single_NP)
            if n_halves > done[1]:
                features.append(compress(torch.stack(drifts).mean(0)).unsqueeze(-1))
            done = (n_inputs, n_halves)
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        return Localise(instances.arrays["inputs"], instances.arrays["labels"], decode(instances))


def compress(change: Tensor) -> Tensor:
    """Monotone and odd: linear below ``SCALE`` nats, logarithmic above."""
    return compressed(change, SCALE)


def _units(spec: TargetSpec) -> tuple[Component, ...]:
    """Components at the last hook point that has any."""
    last = [hook.name for hook in spec.hooks if any(c.hook_point == hook.name for c in spec.components)][-1]
    return tuple(component for component in spec.components if component.hook_point == last)


def _toggled(cut: list[int], unit: int) -> list[int]:
    return [other for other in cut if other != unit] if unit in cut else [*cut, unit]


def _losses(target: Target, components: tuple[Component, ...], x_M: Tensor, y_M: Tensor, cut_SP: Tensor) -> Tensor:
    """(S,) float64 mean loss on the inputs with each set of components cut."""
    point = components[0].hook_point
    keep_BP = (1.0 - cut_SP).repeat_interleave(len(x_M), dim=0)
    scale: Callable[[Tensor, object], Tensor] = lambda value, hook: value * keep_BP  # noqa: E731
    with torch.no_grad(), target.model.hooks(fwd_hooks=[(point, scale)]):
        outputs = target.model(x_M.repeat(len(cut_SP), 1))
    losses = label_features(outputs.double(), y_M.repeat(len(cut_SP)))[:, 0]
    mean: Tensor = losses.view(len(cut_SP), len(x_M)).mean(1)
    return mean

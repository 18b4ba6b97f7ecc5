"""ablation_interaction: does cutting a component hurt more when others are cut as well?

One instance: 8 inputs that show one behaviour (images of one or two classes, episodes whose answer stands at one or
two places), or three prompts; items: the units of the last hidden layer, of a transformer its heads. Truth of one: the
sum over all others of what cutting both does to the loss beyond what cutting each does, compressed. Positive: others
stand in for it; negative: it is of use only together with them.
Source: interaction of features as in Grabisch and Roubens 1999 (Int. J. Game Theory 28), second differences at the
whole; self-repair, McGrath et al. 2023 (The hydra effect), arXiv 2307.15771.

Shape legend: N = instances, M = inputs of a behaviour (8, or 3 prompts), P = components (32 units, 8 or 12 heads),
B = batch, S = sets of cut components.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stages.contracts.method import Localise, Query
from stages.contracts.target import Component, Intervention, Target, TargetAccess, TargetSpec
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import ask, compressed, label_features
from stages.tasks.components import decode, draw_behaviours, encode, masked, word_looks

__all__ = ["AblationInteraction", "compress"]

N_INPUTS = 8
POOL = 4096
MAX_BLEND = 0.45
SCALE = 0.1
LADDER = ((0, 0), (2, 0), (8, 0), (8, 2), (8, 6))
"""(inputs each component is cut on, random halves of the others that are cut along) at each rung."""
N_PROMPTS = 3
"""Of a behaviour in words: over more of them the answer is the kind's, and there are few kinds."""
PROMPT_LADDER = ((0, 0), (1, 0), (3, 0), (3, 2), (3, 6))
CONSTANTS: Constants = {
    "max_blend": MAX_BLEND,
    "n_inputs": {"other inputs": N_INPUTS, "prompts": N_PROMPTS},
    "n_kinds": "1 or 2, equally likely",
    "scale": SCALE,
}


class AblationInteraction(TaskFamily):
    cluster = "ablation_interaction"
    title = "How much more does cutting this component hurt when others are cut as well?"
    source = (
        "Grabisch and Roubens 1999, Int. J. Game Theory 28; McGrath et al. 2023 (The hydra effect), arXiv 2307.15771"
    )
    why_hard_black_box = "there are hundreds of pairs, and single effects do not tell what pairs do"
    why_white_box_helps = "units add up before the loss bends: what each gives to each output says when it bends"
    query_kind = "Localise"
    needs = frozenset({"kinds"})
    n_efforts = len(LADDER)
    cost_factor = 0.5
    truth_recipe = (
        "Components are the units of the last hidden layer, of a transformer its heads. L(S) = mean cross-entropy"
        " (nats) of the right labels on the instance's n_inputs inputs with the activations of the components in S"
        " replaced by zero. For component p: d = sum over all others q of L(p, q) - L(p) - L(q) + L(). Truth: sign(d) *"
        " log(1 + |d| / scale)."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        n_inputs = N_INPUTS if target.spec.n_vocabulary is None else N_PROMPTS
        arrays = draw_behaviours(target, n, rng, n_inputs=n_inputs, pool=POOL, max_blend=MAX_BLEND, grain=0.0)
        return Instances(arrays | encode(_asked(target.spec)), n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        components = decode(instances)
        n_parts = len(components)
        first, second = torch.triu_indices(n_parts, n_parts)  # one with itself: it is cut alone
        keep_SP = torch.ones(len(first) + 1, n_parts)
        keep_SP[torch.arange(len(first)), first] = 0.0
        keep_SP[torch.arange(len(first)), second] = 0.0
        rows = []
        for x_M, y_M in zip(instances.arrays["inputs"], instances.arrays["labels"], strict=True):
            found_S = _losses(target, components, x_M, y_M, keep_SP)
            whole, pair_PP = found_S[-1], torch.zeros(n_parts, n_parts, dtype=torch.float64)
            pair_PP[first, second] = found_S[:-1]
            pair_PP[second, first] = found_S[:-1]
            single_P = pair_PP.diagonal()
            beyond_PP = pair_PP - single_P.unsqueeze(0) - single_P.unsqueeze(1) + whole
            rows.append(beyond_PP.sum(1) - beyond_PP.diagonal())
        return Truth(compress(torch.stack(rows)))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs_NM, labels_NM = instances.arrays["inputs"], instances.arrays["labels"]
        components, (n, n_inputs) = decode(instances), labels_NM.shape
        n_parts, of_words = len(components), access.spec.n_vocabulary is not None
        intact_NMF = label_features(ask(access, inputs_NM.flatten(0, 1)), labels_NM.flatten()).view(n, n_inputs, -1)
        if of_words:
            kinds_NC = word_looks(inputs_NM, labels_NM)
        else:
            kinds_NC = torch.nn.functional.one_hot(labels_NM, access.spec.n_outputs).float().mean(1)
        spread_N1 = intact_NMF[..., 0].std(1, correction=min(1, n_inputs - 1), keepdim=True)
        whole_NF = torch.cat([intact_NMF.mean(1), spread_N1, kinds_NC], dim=-1)
        site_PF = _sites(components)
        features = [site_PF.expand(n, -1, -1), whole_NF.unsqueeze(1).expand(-1, n_parts, -1)]

        def mean_loss(cut: list[int], n_asked: int) -> Tensor:
            x, y = inputs_NM[:, :n_asked].flatten(0, 1), labels_NM[:, :n_asked].flatten()
            changes = _cuts([components[part] for part in cut])
            parts = torch.split(x, 4 * 256)
            outputs = torch.cat([access.forward(part, interventions=changes).outputs for part in parts])
            return label_features(outputs, y)[:, 0].view(n, n_asked).mean(1)

        # All halves are drawn, so that a lower rung cuts the first of the same.
        ladder = PROMPT_LADDER if of_words else LADDER
        halves = [torch.rand(n_parts, generator=rng).argsort()[: n_parts // 2].tolist() for _ in range(ladder[-1][1])]
        drifts: list[Tensor] = []
        done = (0, 0)
        single_NP = torch.zeros(n, n_parts)
        for n_asked, n_halves in ladder[1 : effort + 1]:
            if n_asked > done[0]:
                base_N = intact_NMF[:, :n_asked, 0].mean(1)
                single_NP = torch.stack([mean_loss([p], n_asked) - base_N for p in range(n_parts)], dim=1)
                features.append(compress(single_NP).unsqueeze(-1))
            for half in halves[done[1] : n_halves]:
                base_N = mean_loss(half, n_asked)
                moved = [_toggled(half, p) for p in range(n_parts)]
                signs = torch.tensor([-1.0 if p in half else 1.0 for p in range(n_parts)])
                effect_NP = torch.stack([mean_loss(cut, n_asked) - base_N for cut in moved], dim=1) * signs
                drifts.append(effect_NP - single_NP)
            if n_halves > done[1]:
                features.append(compress(torch.stack(drifts).mean(0)).unsqueeze(-1))
            done = (n_asked, n_halves)
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        return Localise(instances.arrays["inputs"], instances.arrays["labels"], decode(instances))


def compress(change: Tensor) -> Tensor:
    """Monotone and odd: linear below ``SCALE`` nats, logarithmic above."""
    return compressed(change, SCALE)


def _asked(spec: TargetSpec) -> tuple[Component, ...]:
    """All heads, where there are any; else the components at the last hook point that has any."""
    having = [hook for hook in spec.hooks if any(c.hook_point == hook.name for c in spec.components)]
    points = {hook.name for hook in having if hook.role == "head"} or {having[-1].name}
    return tuple(component for component in spec.components if component.hook_point in points)


def _sites(components: Sequence[Component]) -> Tensor:
    """(P, 1) index at the one hook point, or (P, 2) hook point and index."""
    points = sorted({component.hook_point for component in components})
    rows = [[float(points.index(c.hook_point)), float(c.index)] for c in components]
    return torch.tensor(rows)[:, 0 if len(points) > 1 else 1 :]


def _cuts(components: Sequence[Component]) -> list[Intervention]:
    """An intervention for each hook point that sets these of its components to zero."""
    points = dict.fromkeys((component.hook_point, component.axis) for component in components)
    return [
        Intervention(point, "zero", axis=axis, indices=tuple(c.index for c in components if c.hook_point == point))
        for point, axis in points
    ]


def _toggled(cut: list[int], unit: int) -> list[int]:
    return [other for other in cut if other != unit] if unit in cut else [*cut, unit]


def _losses(target: Target, components: tuple[Component, ...], x_M: Tensor, y_M: Tensor, keep_SP: Tensor) -> Tensor:
    """(S,) float64 mean loss on the inputs with each set of components cut."""
    shapes = {hook.name: hook.shape for hook in target.spec.hooks}
    factors = masked(components, keep_SP.repeat_interleave(len(x_M), dim=0), shapes)

    def scale(value: Tensor, hook: Any) -> Tensor:
        return value * factors[hook.name]

    with torch.no_grad(), target.model.hooks(fwd_hooks=[(name, scale) for name in factors]):
        outputs = target.model(x_M.repeat(len(keep_SP), *(1,) * (x_M.ndim - 1)))
    losses = label_features(outputs.double(), y_M.repeat(len(keep_SP)))[:, 0]
    mean: Tensor = losses.view(len(keep_SP), len(x_M)).mean(1)
    return mean

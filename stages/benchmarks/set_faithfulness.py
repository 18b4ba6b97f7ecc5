"""set_faithfulness: how much of the behaviour does this set of components keep? One of the questions of `lensmith bench
published`.

One instance: a set of components; all others are held at their mean. Truth: the share of the margin that is left, 0 as
with no component and 1 as with all. That is the faithfulness whose mean over the sizes of a ranking's sets is CPR, and
whose mean distance from 1 is CMD. No query names a set of components. So a set is handed over as what it leaves of the
target: a variant in which the weights of the other components say their mean. That is the same function, exactly.
Source: CPR and CMD, Mueller et al. 2025 (MIB: a mechanistic interpretability benchmark), arXiv 2504.13151, section 3.

Shape legend: N = sets, P = components, M = inputs, C = outputs.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from stages.contracts.method import Compare, Query
from stages.contracts.target import (
    Component,
    Corpus,
    Objective,
    Offer,
    Target,
    TargetAccess,
    TargetSpec,
    objective_values,
)
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.components import mean_activations
from stages.tasks.inputs import draw_inputs
from stages.tasks.side_by_side import copies

__all__ = ["SetFaithfulness", "held_at_means", "names_of"]

N_INPUTS, N_RANKED = 128, 256
SIZE, MAX_NOISE = 0.5, 2.0
"""Of a set, as a share of all components: if it varied, it would tell nearly everything."""
MAX_BLEND = 0.45
LADDER = (1, 4, 16, 64)
"""Inputs that a set is tried on."""
CONSTANTS: Constants = {
    "max_blend": MAX_BLEND,
    "max_noise": MAX_NOISE,
    "n_inputs": N_INPUTS,
    "n_ranked": N_RANKED,
    "size": SIZE,
}


class SetFaithfulness(TaskFamily):
    title = "How much of the margin does this set of components keep, the others held at their mean?"
    source = "Mueller et al. 2025 (MIB), arXiv 2504.13151, section 3: the integrand of CPR and CMD"
    why_hard_black_box = "a set keeps more of one input's margin than of another's, so it has to be tried on many"
    why_white_box_helps = "what each component gives to the answer can be known beforehand, and which are in the set"
    query_kind = "Compare"
    needs: ClassVar[frozenset[Offer]] = frozenset()
    n_efforts = len(LADDER)
    truth_recipe = (
        "m(S) = mean over shared_inputs of the margin of the right label (its logit less the largest other) when every"
        " component outside S is held at its mean over the train inputs (of a head: over their words). Truth:"
        " (m(S) - m(none)) / (m(all) - m(none)). Sets: e = what the margin loses on n_ranked train inputs when a"
        " component alone is held at its mean; noise is Gaussian, its standard deviation uniform in [0, max_noise]"
        " times that of e; S has the share `size` of all components, those with the largest e + noise."
    )
    constants = CONSTANTS

    def refusal(self, spec: TargetSpec) -> str | None:
        try:
            for component in spec.components:
                names_of(component)
        except ValueError as error:
            return f"task family {self.name} means nothing on {spec.name}: {error}"
        return super().refusal(spec)

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        train, components = target.corpus("train"), target.spec.components
        means = mean_activations(target, train.inputs)
        ranked = Corpus(train.inputs[:N_RANKED], train.labels[:N_RANKED])
        alone_PP = ~torch.eye(len(components), dtype=torch.bool)
        margins = _margins(target, held_at_means(target, means, alone_PP), ranked)
        effect_P = _margin(target.model(ranked.inputs), ranked.labels) - margins
        noise_N1 = MAX_NOISE * torch.rand(n, 1, generator=rng) * effect_P.std()
        order_NP = (effect_P + noise_N1 * torch.randn(n, len(components), generator=rng)).argsort(-1, descending=True)
        kept_NP = torch.zeros(n, len(components), dtype=torch.bool)
        kept_NP.scatter_(1, order_NP, (torch.arange(len(components)) < round(SIZE * len(components))).expand(n, -1))
        drawn = draw_inputs(target, N_INPUTS, rng, MAX_BLEND)
        arrays = {
            "variant": torch.arange(n),
            "kept": kept_NP.float(),
            "shared_inputs": drawn.inputs,
            "shared_labels": drawn.labels,
        }
        return Instances(arrays, n, held_at_means(target, means, kept_NP))

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        arrays = instances.arrays
        asked = Corpus(arrays["shared_inputs"], arrays["shared_labels"])
        means = mean_activations(target, target.corpus("train").inputs)
        none = held_at_means(target, means, torch.zeros(1, len(target.spec.components), dtype=torch.bool))
        least = _margins(target, none, asked)
        with torch.no_grad():
            most = _margin(target.model(asked.inputs), asked.labels)
        found_N = _margins(target, dict(instances.variants), asked)
        return Truth(((found_N - least) / (most - least)).double().unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        arrays, most = instances.arrays, LADDER[effort]
        inputs, labels = arrays["shared_inputs"][:most], arrays["shared_labels"][:most]

        def margin(outputs: Tensor) -> Tensor:
            return objective_values(outputs, Objective("margin", labels))

        whole_M = margin(access.forward(inputs).outputs)
        rows = []
        for index in arrays["variant"].tolist():
            kept_M = margin(access.variant(index).forward(inputs).outputs)
            seen = [kept_M[:k] for k in LADDER[: effort + 1]]
            spread = [part.std() if len(part) > 1 else torch.zeros(()) for part in seen]
            lost = [(part - whole_M[: len(part)]).mean() for part in seen]
            rows.append(torch.stack([*(part.mean() for part in seen), *spread, *lost]))
        return torch.cat([arrays["kept"], torch.stack(rows)], dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        arrays, shown = instances.arrays, LADDER[0]
        which = tuple(arrays["variant"].tolist())
        return Compare(which, arrays["shared_inputs"][:shown], arrays["shared_labels"][:shown])


def names_of(component: Component) -> tuple[str, str]:
    """Weight and bias that alone write a component: a unit's row, a head's values.

    Raises:
        ValueError: it is neither.
    """
    place = component.hook_point
    if place.endswith(".hook_z"):
        return place.replace("hook_z", "W_V"), place.replace("hook_z", "b_V")
    if place.startswith("layers.") and place.endswith(".hook_post"):
        return place.replace("hook_post", "linear.weight"), place.replace("hook_post", "linear.bias")
    raise ValueError(f"no weights are known that write {place!r} alone; use units of a perceptron or heads")


def held_at_means(target: Target, means: Mapping[str, Tensor], kept_NP: Tensor) -> dict[str, Tensor]:
    """Stacked weights of variants in which the components that are not kept say their mean on every input.

    A unit's incoming weights become 0 and its bias its mean, which a ReLU lets through, since it is no less than 0; a
    head's values become its mean, and the shares of attention that they are mixed by sum to 1.
    """
    written = {name for component in target.spec.components for name in names_of(component)}
    variants = {name: stack for name, stack in copies(target, len(kept_NP)).items() if name in written}
    for column, component in enumerate(target.spec.components):
        weight, bias = names_of(component)
        rows = torch.nonzero(~kept_NP[:, column]).flatten()
        variants[weight][rows, component.index] = 0.0
        variants[bias][rows, component.index] = means[component.hook_point][component.index]
    return variants


def _margin(outputs: Tensor, labels: Tensor) -> Tensor:
    return objective_values(outputs.double(), Objective("margin", labels)).mean()


def _margins(target: Target, variants: dict[str, Tensor], asked: Corpus) -> Tensor:
    """(N,) mean margin of each variant."""
    found = []
    for index in range(len(next(iter(variants.values())))):
        weights = {name: stack[index] for name, stack in variants.items()}
        with torch.no_grad():
            found.append(_margin(functional_call(target.model, weights, (asked.inputs,)), asked.labels))
    return torch.stack(found)

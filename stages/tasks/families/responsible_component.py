"""responsible_component: which components carry this behaviour, rather than all that the target does?

One instance: 12 inputs that show one behaviour, beside 64 ordinary inputs shared by all; items: the target's
components. Truth: 1 for the eighth of the components whose zeroing takes most of the margin on the behaviour's inputs,
over and above what it takes on the ordinary ones; 0 for the rest.

Source: single-component ablation as in Meyes et al. 2019, arXiv 1901.08644; the contrast with other behaviours as in
selectivity, Morcos et al. 2018, arXiv 1803.06959.

Shape legend: N = instances, M = inputs of a behaviour (12), R = ordinary inputs (64), P = components.
"""

import torch
from torch import Tensor

from stages.contracts.method import Localise, Query
from stages.contracts.target import (
    Component,
    Intervention,
    Target,
    TargetAccess,
)
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import (
    CHUNK,
    ask,
    label_features,
    outputs_of,
)
from stages.tasks.components import decode, draw_behaviours, encode, zeroed
from stages.tasks.inputs import draw_inputs

__all__ = ["ResponsibleComponent"]

N_INPUTS = 12
N_ORDINARY = 64
POOL = 4096
GRAIN = 0.3
MAX_BLEND = 0.45
SHARE = 8
LADDER = (0, 1, 3, 6)
ORDINARY = (0, 8, 16, 64)


CONSTANTS: Constants = {
    "max_blend": MAX_BLEND,
    "n_inputs": N_INPUTS,
    "n_ordinary": N_ORDINARY,
    "grain": GRAIN,
    "n_kinds": "1 or 2, equally likely",
    "share": SHARE,
}


class ResponsibleComponent(TaskFamily):
    cluster = "ablation_effect"
    title = "Which components carry this behaviour rather than all that the target does?"
    source = "Meyes et al. 2019, arXiv 1901.08644; selectivity after Morcos et al. 2018, arXiv 1803.06959"
    why_hard_black_box = "every component needs its own forward passes, on this behaviour and on others"
    why_white_box_helps = "one gradient ranks all components, and what they do elsewhere can be known beforehand"
    query_kind = "Localise"
    needs = frozenset({"kinds"})
    n_efforts = len(LADDER)
    cost_factor = 0.5
    truth_recipe = (
        "The margin of an input is the logit of its right label minus the largest other logit. d = mean margin on"
        " the instance's n_inputs inputs minus the same when the activation of the component (hook point, axis counted"
        " with the batch axis, index) is replaced by zero; o = the same on the shared ordinary inputs. Truth: 1 for the"
        " P // share of the P components with the largest d - o, 0 for the others."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        arrays = draw_behaviours(target, n, rng, n_inputs=N_INPUTS, pool=POOL, max_blend=MAX_BLEND, grain=GRAIN)
        ordinary = draw_inputs(target, N_ORDINARY, rng, MAX_BLEND, GRAIN)
        arrays |= {"shared_inputs": ordinary.inputs, "shared_labels": ordinary.labels}
        return Instances(arrays | encode(target.spec.components), n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        arrays, n = instances.arrays, instances.n
        inputs = torch.cat([arrays["inputs"].flatten(0, 1), arrays["shared_inputs"]])
        labels = torch.cat([arrays["labels"].flatten(), arrays["shared_labels"]])

        def margins() -> Tensor:
            """(N,) behaviour's mean less the ordinary inputs' mean."""
            margin = label_features(outputs_of(target, inputs), labels)[:, 1].double()
            return margin[:-N_ORDINARY].view(n, -1).mean(1) - margin[-N_ORDINARY:].mean()

        intact_N, lost = margins(), []
        for component in target.spec.components:
            with target.model.hooks(fwd_hooks=[(component.hook_point, zeroed(component))]):
                lost.append(intact_N - margins())
        return Truth(_largest(torch.stack(lost, dim=-1)))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        arrays, n = instances.arrays, instances.n
        components = access.spec.components
        inputs_NM, labels_NM = arrays["inputs"], arrays["labels"]
        intact_NM = _margins(ask(access, inputs_NM.flatten(0, 1)), labels_NM.flatten()).view(n, N_INPUTS)
        sites = sorted({component.hook_point for component in components})
        site_P2 = torch.tensor([[sites.index(c.hook_point), c.index] for c in components], dtype=torch.float32)
        classes_NC = torch.nn.functional.one_hot(labels_NM, access.spec.n_outputs).float().mean(1)
        whole_NF = torch.cat([intact_NM.mean(1, keepdim=True), intact_NM.amin(1, keepdim=True), classes_NC], dim=-1)
        features = [site_P2.expand(n, -1, -1), whole_NF.unsqueeze(1).expand(-1, len(components), -1)]
        lost_NPM = torch.zeros(n, len(components), 0)
        lost_PR = torch.zeros(len(components), 0)
        for k, ordinary in zip(LADDER[1 : effort + 1], ORDINARY[1 : effort + 1], strict=True):
            new, more = slice(lost_NPM.shape[2], k), slice(lost_PR.shape[1], ordinary)
            own = _lost(access, inputs_NM[:, new].flatten(0, 1), labels_NM[:, new].flatten(), components)
            lost_NPM = torch.cat([lost_NPM, own.view(len(components), n, -1).transpose(0, 1)], dim=2)
            others = _lost(access, arrays["shared_inputs"][more], arrays["shared_labels"][more], components)
            lost_PR = torch.cat([lost_PR, others], dim=1)
            excess_NP = lost_NPM.mean(2) - lost_PR.mean(1)
            rank_NP = excess_NP.argsort(-1).argsort(-1) / len(components)
            features.append(torch.stack([excess_NP, lost_NPM.mean(2), rank_NP], dim=-1))
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        return Localise(instances.arrays["inputs"], instances.arrays["labels"], decode(instances))


def _margins(outputs: Tensor, labels: Tensor) -> Tensor:
    return label_features(outputs, labels)[:, 1]


def _lost(access: TargetAccess, inputs: Tensor, labels: Tensor, components: tuple[Component, ...]) -> Tensor:
    """(P, B) margin lost when each component is set to zero."""
    intact = _margins(ask(access, inputs), labels)
    rows = []
    for component in components:
        cut = Intervention(component.hook_point, "zero", axis=component.axis, indices=(component.index,))
        parts = [access.forward(part, interventions=[cut]).outputs for part in torch.split(inputs, CHUNK)]
        rows.append(intact - _margins(torch.cat(parts), labels))
    return torch.stack(rows)


def _largest(lost_NP: Tensor) -> Tensor:
    """(N, P) float64: 1 for the P // SHARE largest of each row; of equals the first."""
    order = lost_NP.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(lost_NP).scatter(-1, order[:, : lost_NP.shape[-1] // SHARE], 1.0)

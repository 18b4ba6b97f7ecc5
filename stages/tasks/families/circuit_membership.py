"""circuit_membership: which components belong to the circuit of this behaviour?

One instance: 16 inputs that show one behaviour; items: the target's components. A circuit is a set of components that
is faithful (with all others zeroed the loss on these inputs stays near that of the whole target) and irreducible (none
of them can be zeroed as well). It is found by elimination, several times in different orders, since a target may hold
more than one; truth is the share of these circuits that a component belongs to.

A component stands for all edges that leave it: on a target's own hook points a single edge cannot be cut from outside.

Source: elimination as in ACDC (Conmy et al. 2023, arXiv 2304.14997, algorithm 1), over nodes and by joint faithfulness;
that circuits are not unique: Meloux et al. 2025, arXiv 2502.20914.

Shape legend: N = instances, M = inputs of a behaviour (16), P = components, B = N * M.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.base.progress import counted
from stages.contracts.method import Localise, Query
from stages.contracts.target import Intervention, Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import CHUNK, ask, label_features
from stages.tasks.components import decode, draw_behaviours, encode, masked

__all__ = ["CircuitMembership"]

N_INPUTS = 16
POOL = 4096
GRAIN = 0.3
MAX_BLEND = 0.45
TOLERANCE = 0.1
ORDERS = 6
LADDER = (0, 1, 4)
"""Inputs each component is zeroed on at the first rungs; the last rung eliminates on as many as the one before."""

Loss = Callable[[Tensor], Tensor]
"""(N, P) which components are kept -> (N,) mean loss."""


CONSTANTS: Constants = {
    "max_blend": MAX_BLEND,
    "n_inputs": N_INPUTS,
    "grain": GRAIN,
    "n_kinds": "1 or 2, equally likely",
    "tolerance": TOLERANCE,
    "orders": ORDERS,
}


class CircuitMembership(TaskFamily):
    title = "Which components belong to the circuit of this behaviour?"
    source = "Conmy et al. 2023 (ACDC), arXiv 2304.14997; on non-uniqueness Meloux et al. 2025, arXiv 2502.20914"
    why_hard_black_box = "components stand in for each other, so cutting them one at a time does not tell"
    why_white_box_helps = "slopes rank the components, and which feed which can be known beforehand"
    query_kind = "Localise"
    version = 2
    needs = frozenset({"kinds"})
    n_efforts = len(LADDER) + 1
    cost_factor = 0.5
    truth_recipe = (
        "L(S) = mean cross-entropy (nats) of the right labels on the instance's n_inputs inputs when every component"
        " outside S is replaced by zero; S is faithful if L(S) - L(all) <= tolerance * (L(none) - L(all)). Elimination:"
        " start from all components, go through them in an order, drop each one without which S stays faithful, repeat"
        " until a round drops none. Order 1: ascending by L(all without the component); the orders - 1 others:"
        " the same after adding independent Gaussian noise of the standard deviation of these losses. Truth: the share"
        " of the circuits found that hold the component."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        arrays = draw_behaviours(target, n, rng, n_inputs=N_INPUTS, pool=POOL, max_blend=MAX_BLEND, grain=GRAIN)
        return Instances(arrays | encode(target.spec.components), n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs_NM, labels = instances.arrays["inputs"], instances.arrays["labels"].flatten()
        n, components = instances.n, target.spec.components
        shapes = {hook.name: hook.shape for hook in target.spec.hooks}

        def loss(keep_NP: Tensor) -> Tensor:
            factors = masked(components, keep_NP.repeat_interleave(N_INPUTS, 0), shapes)
            hooks = [(name, lambda value, hook, factor=factor: value * factor) for name, factor in factors.items()]
            with target.model.hooks(fwd_hooks=hooks), torch.no_grad():
                outputs = target.model(inputs_NM.flatten(0, 1))
            return F.cross_entropy(outputs, labels, reduction="none").double().view(n, -1).mean(1)

        alone_NP = _without_each(loss, n, len(components))
        circuits = []
        for order in counted("orders", range(ORDERS)):
            noise = torch.randn(alone_NP.shape, generator=rng) * alone_NP.std(1, keepdim=True) if order else 0.0
            circuits.append(eliminate(loss, (alone_NP + noise).argsort(dim=-1, stable=True)))
        found = torch.stack(circuits)
        return Truth(found.double().mean(0), {"sizes": found.sum(-1).int().tolist()})

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs_NM, labels_NM, n = instances.arrays["inputs"], instances.arrays["labels"], instances.n
        components = access.spec.components
        shapes = {hook.name: hook.shape for hook in access.spec.hooks}

        def loss_on(k: int) -> Loss:
            """Mean loss on the first k inputs."""
            inputs, labels = inputs_NM[:, :k].flatten(0, 1), labels_NM[:, :k].flatten()

            def loss(keep_NP: Tensor) -> Tensor:
                factors = masked(components, keep_NP.repeat_interleave(k, 0), shapes)
                outputs = []
                for part in torch.split(torch.arange(len(inputs)), CHUNK):
                    cuts = [Intervention(name, "scale", factor[part]) for name, factor in factors.items()]
                    outputs.append(access.forward(inputs[part], interventions=cuts).outputs)
                return F.cross_entropy(torch.cat(outputs), labels, reduction="none").view(n, k).mean(1)

            return loss

        intact_NMF = label_features(ask(access, inputs_NM.flatten(0, 1)), labels_NM.flatten()).view(n, N_INPUTS, -1)
        sites = sorted({component.hook_point for component in components})
        site_P2 = torch.tensor([[sites.index(c.hook_point), c.index] for c in components], dtype=torch.float32)
        classes_NC = F.one_hot(labels_NM, access.spec.n_outputs).float().mean(1)
        whole_NF = torch.cat([intact_NMF.mean(1), classes_NC], dim=-1)
        features = [site_P2.expand(n, -1, -1), whole_NF.unsqueeze(1).expand(-1, len(components), -1)]
        alone_NP = torch.zeros(n, len(components))
        for k in LADDER[1 : effort + 1]:
            alone_NP = _without_each(loss_on(k), n, len(components))
            rank_NP = alone_NP.argsort(-1).argsort(-1) / len(components)
            features.append(torch.stack([alone_NP, rank_NP], dim=-1))
        if effort == self.n_efforts - 1:
            left_NP = eliminate(loss_on(LADDER[-1]), alone_NP.argsort(dim=-1, stable=True), rounds=1)
            features.append(left_NP.unsqueeze(-1).float())
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        return Localise(instances.arrays["inputs"], instances.arrays["labels"], decode(instances))


def _without_each(loss: Loss, n: int, n_components: int) -> Tensor:
    """(N, P) loss without each component alone."""
    rows = []
    for place in range(n_components):
        keep = torch.ones(n, n_components)
        keep[:, place] = 0.0
        rows.append(loss(keep))
    return torch.stack(rows, dim=-1)


def eliminate(loss: Loss, order_NP: Tensor, rounds: int | None = None) -> Tensor:
    """(N, P) circuits that are faithful and, with enough rounds, irreducible.

    Args:
        loss: of the components kept.
        order_NP: in which order each instance tries to drop its components.
        rounds: at most so many; None: until one drops nothing.
    """
    keep = torch.ones(order_NP.shape)
    whole, none = loss(keep), loss(torch.zeros_like(keep))
    allowed = whole + TOLERANCE * (none - whole)
    done = 0
    while rounds is None or done < rounds:
        before = keep.clone()
        for place in order_NP.unbind(-1):
            without = keep.scatter(-1, place.unsqueeze(-1), 0.0)
            keep = torch.where((loss(without) <= allowed).unsqueeze(-1), without, keep)
        done += 1
        if bool((keep == before).all()):
            break
    return keep

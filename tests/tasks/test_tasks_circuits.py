"""Truth of the families about circuits against loops of their own, and what makes it a truth."""

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.tasks.components import masked
from stages.tasks.families.circuit_membership import ORDERS, TOLERANCE, _without_each, eliminate
from stages.tasks.families.responsible_component import N_ORDINARY, SHARE
from tests.tasks.conftest import made_small, small_target


def run_cut(model, inputs, cut):
    """Outputs with these components (hook point, axis, index) multiplied by zero, by plain module hooks."""
    handles = []
    for hook_point, axis, index in cut:

        def hook(module, args, out, axis=axis, index=index):
            factor = torch.ones(out.shape[axis])
            factor[index] = 0.0
            return out * factor.view([-1 if a == axis else 1 for a in range(out.dim())])

        handles.append(model.get_submodule(hook_point).register_forward_hook(hook))
    outputs = model(inputs)
    for handle in handles:
        handle.remove()
    return outputs


def margin(outputs, labels):
    right = outputs[torch.arange(len(labels)), labels]
    return (right - outputs.scatter(1, labels[:, None], float("-inf")).max(1).values).double().mean()


@pytest.mark.parametrize("name", ["digits_mlp", "digits_few_shot"])
def test_responsible_components_are_those_that_take_most_from_this_behaviour(name):
    target, made = small_target(name), made_small("responsible_component", name)
    arrays, components = made.instances.arrays, target.spec.components
    there, their = arrays["shared_inputs"], arrays["shared_labels"]
    assert len(their) == N_ORDINARY
    ordinary = [margin(run_cut(target.model, there, [c]), their) for c in components]
    for i in range(made.instances.n):
        x, y = arrays["inputs"][i], arrays["labels"][i]
        kept = torch.stack([margin(run_cut(target.model, x, [c]), y) for c in components])
        excess = (margin(target.model(x), y) - kept) - (margin(target.model(there), their) - torch.stack(ordinary))
        chosen = made.truth.values[i] == 1.0
        assert int(chosen.sum()) == len(components) // SHARE
        assert set(made.truth.values[i].tolist()) == {0.0, 1.0}
        assert float(excess[chosen].min()) >= float(excess[~chosen].max()) - 1e-4


def test_circuits_are_faithful_and_irreducible_by_a_loop_of_its_own():
    target, made = small_target("digits_mlp"), made_small("circuit_membership", "digits_mlp")
    components = target.spec.components

    for i in range(made.instances.n):
        x, y = made.instances.arrays["inputs"][i], made.instances.arrays["labels"][i]

        def loss(kept, x=x, y=y):
            cut = [c for place, c in enumerate(components) if place not in kept]
            return float(F.cross_entropy(run_cut(target.model, x, cut), y))

        whole, none = loss(set(range(len(components)))), loss(set())
        bound = whole + TOLERANCE * (none - whole)
        # The first order is public knowledge: ascending by the loss without each component alone.
        alone = [loss(set(range(len(components))) - {place}) for place in range(len(components))]
        kept, before = set(range(len(components))), None
        while kept != before:
            before = set(kept)
            for place in sorted(range(len(components)), key=lambda p: alone[p]):
                if place in kept and loss(kept - {place}) <= bound:
                    kept.remove(place)
        assert loss(kept) <= bound and all(loss(kept - {place}) > bound for place in kept)
        values = made.truth.values[i]
        assert len(kept) == made.truth.groups["sizes"][0][i]
        assert bool((values[list(kept)] >= 1 / ORDERS).all())  # one of the circuits is this one
        assert set((values * ORDERS).tolist()) <= set(range(ORDERS + 1))
        assert float(values.sum()) * ORDERS == pytest.approx(sum(sizes[i] for sizes in made.truth.groups["sizes"]))


def test_elimination_of_a_game_whose_circuits_are_known() -> None:
    """Loss 0 needs a and (b or c): two circuits, {a, b} and {a, c}, and the order decides; d is in neither."""

    def loss(keep: Tensor) -> Tensor:
        a, b, c, _ = keep.unbind(-1)
        return 1.0 - a * torch.maximum(b, c)

    first = eliminate(loss, torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))
    assert first.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]
    alone = _without_each(loss, 2, 4)
    assert alone.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2  # cut alone, b and c look useless


def test_masks_cut_what_a_hook_cuts() -> None:
    for name in ("digits_mlp", "digits_few_shot"):
        target = small_target(name)
        components, inputs = target.spec.components, made_small("responsible_component", name).instances.arrays
        x = inputs["shared_inputs"][:3]
        keep = torch.ones(3, len(components))
        cuts = [(0, 5), (1, len(components) - 1), (7, 3)]
        for row, places in enumerate(cuts):
            keep[row, list(places)] = 0.0
        factors = masked(components, keep, {hook.name: hook.shape for hook in target.spec.hooks})
        hooks = [(point, lambda value, hook, factor=factor: value * factor) for point, factor in factors.items()]
        with target.model.hooks(fwd_hooks=hooks):
            found = target.model(x)
        for row, places in enumerate(cuts):
            by_hand = run_cut(target.model, x[row : row + 1], [components[place] for place in places])
            assert torch.allclose(found[row], by_hand[0], atol=1e-4)
        for one, other in combinations(range(3), 2):
            assert not torch.allclose(found[one], found[other])

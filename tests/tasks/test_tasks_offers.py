"""Every family on every target: it works, or it is refused with a reason; never nonsense."""

from typing import Any

import pytest
import torch

from stages.contracts.checks import check_call
from stages.contracts.target import OFFERS, Forward, Target
from stages.contracts.task import TaskFamily
from stages.errors import UserError
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import freeze
from stages.targets.zoo import ZOO, trained
from stages.tasks.families import FAMILIES, family
from stages.tasks.generation import make
from stages.tasks.inputs import draw_inputs
from tests.tasks.conftest import CASES, SIZES, SPLIT, made_small, small_target

WORDS = [name for name in trained() if ZOO.find(name)().layout()["n_vocabulary"] is not None]
EVERY = [(name, target) for name in FAMILIES.names() for target in trained()]


class Unpriced(MeteredAccess):
    """Runs and charges nothing: what a rung costs is tested elsewhere, and here it would take most of the time."""

    def forward(self, inputs: Any, capture: Any = (), interventions: Any = ()) -> Forward:
        check_call(self.spec, inputs, capture, interventions)
        return self._forward(inputs, capture, interventions)


def untrained(name: str) -> Target:
    definition, generator = ZOO.find(name)(), torch.Generator().manual_seed(0)
    data = definition.data(0)
    corpora = {split: definition.sample(data, split, 40, generator) for split in ("train", "validation")}
    return freeze(name, definition.build(generator), corpora | {"tasks": data["tasks"]})


def fits(name: str, target: str) -> bool:
    made, offered = family(name), set(ZOO.find(target)().layout()["offers"])
    return made.needs <= offered or (bool(made.instead) and made.instead <= offered)


def test_what_the_params_ask_for_fits() -> None:
    assert all(fits(name, target) for name, target in CASES)


def test_targets_of_words_offer_words_and_what_their_definitions_can_do() -> None:
    assert len(WORDS) >= 3
    for target in WORDS:
        definition = ZOO.find(target)()
        offers = definition.layout()["offers"]
        assert "tokens" in offers and list(offers) == sorted(offers)
        assert ("kinds" in offers) == hasattr(definition, "kinds")
        assert not {"examples", "flat_image", "pixels"} & set(offers)


@pytest.mark.parametrize(("name", "target"), [case for case in EVERY if not fits(*case)])
def test_a_family_that_means_nothing_on_a_target_is_refused(name: str, target: str) -> None:
    model = untrained(target)
    lacking = sorted(family(name).needs - set(model.spec.offers))[0]
    with pytest.raises(
        UserError, match=f"{name} means nothing on {target}, which offers .* it needs {lacking}"
    ) as said:
        make(family(name), model, SPLIT, 4, 0, "test", b"key")
    assert "\n" not in str(said.value) and OFFERS[lacking] in str(said.value) and "params/tasks.yaml" in str(said.value)
    assert (" or else " in str(said.value)) == bool(family(name).instead)


# An untrained model answers nothing right, so nothing is a circuit and there is no skill to lock or to lose.
TRAINED_ALONE = ("circuit_membership", "sandbag_or_unable", "relearning_speed")
WORKING = [case for case in EVERY if fits(*case) and (case[0] not in TRAINED_ALONE or case[1] not in WORDS)]


@pytest.mark.parametrize(("name", "target"), WORKING)
def test_a_family_that_is_not_refused_works(name: str, target: str) -> None:
    made, model = made_small(name, target), small_target(target)
    n = SIZES.get(name, 8)
    assert made.truth.values.shape[0] == n and bool(made.truth.values.isfinite().all())
    assert float(made.truth.values.std()) > 0, "a truth that does not vary asks nothing"
    access = Unpriced(model, Ledger(), variants=made.instances.variants)
    rng = torch.Generator().manual_seed(0)
    features = family(name).behavioural(access, made.instances.public(), family(name).n_efforts - 1, rng)
    assert features.shape[:2] == made.truth.values.shape and bool(features.isfinite().all())


@pytest.mark.parametrize("target", WORDS)
def test_fresh_inputs_of_words_are_words_and_are_not_mixed(target: str) -> None:
    model = untrained(target)
    inputs, labels = draw_inputs(model, 30, torch.Generator().manual_seed(1), max_blend=0.4, grain=0.5)
    assert inputs.shape == (30, *model.spec.input_shape) and labels.shape == (30,)
    assert torch.equal(inputs, inputs.round()) and labels.max() < model.spec.n_outputs
    MeteredAccess(model, Ledger()).forward(inputs)  # every one of them is one that the target takes


def test_a_family_has_to_say_what_it_needs() -> None:
    with pytest.raises(
        TypeError, match=r"Silent.needs has nothing said: .* known: context, cues, examples, flat_image, kinds"
    ):
        type("Silent", (TaskFamily,), {})
    with pytest.raises(TypeError, match=r"Odd.needs has sounds"):
        type("Odd", (TaskFamily,), {"needs": frozenset({"pixels"}), "instead": frozenset({"sounds"})})
    with pytest.raises(TypeError, match=r"Odd.needs has smells"):
        type("Odd", (TaskFamily,), {"needs": frozenset({"smells", "pixels"})})

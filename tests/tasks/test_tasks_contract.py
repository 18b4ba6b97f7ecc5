"""What must hold for every family: seeds, ladder, score, and that nothing public tells the truth."""

from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.base import paths
from stages.contracts.method import (
    Attribute,
    Compare,
    Localise,
    Propose,
    Represent,
    Steer,
)
from stages.contracts.task import Instances, skill
from stages.errors import UserError
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.tasks.families import FAMILIES, family
from stages.tasks.families.backdoor_detection import draw_kinds
from stages.tasks.generation import (
    SPLITS,
    instance_keys,
    make,
    pool_of,
)
from tests.tasks.conftest import CASES, PARAMS, SIZES, SPLIT, made_small, small_target

CLIMBED = [(name, target) for name, target in CASES if (name, target) != ("ablation_effect", "digits_mlp")]


class ForwardOnly(MeteredAccess):
    """Refuses everything a black box must not do."""

    def forward(self, inputs: Any, capture: Any = (), interventions: Any = ()) -> Any:
        assert not capture, "a black box does not read activations"
        return super().forward(inputs, capture, interventions)

    def gradients(self, *args: Any) -> Any:
        raise AssertionError("a black box has no gradients")


def run_ladder(name: str, target: str, effort: int, instances: Instances | None = None) -> tuple[torch.Tensor, int]:
    made, ledger = instances or made_small(name, target).instances.public(), Ledger()
    access = ForwardOnly(small_target(target), ledger, variants=made.variants)
    rng = torch.Generator().manual_seed(11)
    return family(name).behavioural(access, made, effort, rng), ledger.flops


@pytest.mark.parametrize(("name", "target"), CASES)
def test_same_seed_same_bytes_and_other_seed_other_instances(name: str, target: str) -> None:
    made = made_small(name, target)
    again = make(family(name), small_target(target), SPLIT, SIZES.get(name, 8), 0, "test", b"key")
    assert torch.equal(made.truth.values, again.truth.values)
    assert instance_keys(made.instances) == instance_keys(again.instances)
    assert (made.generation_flops, made.truth_flops) == (again.generation_flops, again.truth_flops)
    other = made_small(name, target, 1)
    assert not set(instance_keys(made.instances)) & set(instance_keys(other.instances))
    assert len(set(instance_keys(made.instances))) == made.instances.n


def test_splits_share_no_image() -> None:
    target = small_target("digits_mlp")
    pools = [
        {row.numpy().tobytes() for row in pool_of(target, split, b"key").corpus("tasks").inputs} for split in SPLITS
    ]
    assert sum(map(len, pools)) >= len(target.corpus("tasks").labels) - 3  # the data hold a few equal images
    assert sum(len(a & b) for i, a in enumerate(pools) for b in pools[:i]) <= 3
    assert min(map(len, pools)) > 190


@pytest.mark.parametrize(("name", "target"), CLIMBED)
def test_the_ladder_costs_more_and_tells_more_at_every_rung(name: str, target: str) -> None:
    made, last, lower = made_small(name, target), 0, torch.zeros(0)
    for effort in range(family(name).n_efforts):
        features, flops = run_ladder(name, target, effort)
        assert features.shape[:2] == made.truth.values.shape and features.dim() == 3
        assert bool(features.isfinite().all())
        assert flops > last, f"rung {effort} is not dearer than the one below"
        if effort:
            assert features.shape[2] > lower.shape[2]
            assert torch.allclose(features[..., : lower.shape[2]], lower, atol=1e-4), f"rung {effort} lost features"
        last, lower = flops, features


@pytest.mark.parametrize(("name", "target"), CASES)
def test_rows_stay_with_their_instances(name: str, target: str) -> None:
    instances = made_small(name, target).instances.public()
    index = torch.tensor([2, 0])
    whole, some = run_ladder(name, target, 0)[0], run_ladder(name, target, 0, instances.select(index))[0]
    assert torch.allclose(whole[index], some, atol=1e-4)


@pytest.mark.parametrize(("name", "target"), CASES)
def test_the_query_has_a_row_per_instance(name: str, target: str) -> None:
    made = made_small(name, target)
    query = family(name).query(made.instances.public())
    assert type(query).__name__ == family(name).query_kind
    if isinstance(query, Represent):
        assert query.inputs.shape[1:] == small_target(target).spec.input_shape
    if isinstance(query, Attribute):
        assert len(query.segments) == made.truth.values.shape[1]
    if isinstance(query, Propose):
        assert query.changes.shape[-len(query.inputs.shape) + 1 :] == query.inputs.shape[1:]
        assert not query.variants or len(query.variants) == made.instances.n
    if isinstance(query, Localise):
        assert set(query.components) <= set(small_target(target).spec.components)
        assert len(query.components) == made.truth.values.shape[1]
    if isinstance(query, Compare):
        assert len(query.variants) == made.instances.n
    elif isinstance(query, Steer):
        assert (
            len(query.directions) == made.instances.n
            and query.inputs.shape[1:] == small_target(target).spec.input_shape
        )
        assert query.labels is None or query.labels.shape == (made.instances.n,)
    else:
        assert len(query.inputs) == made.instances.n  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "target"), CASES)
def test_public_arrays_hold_no_truth(name: str, target: str) -> None:
    made = made_small(name, target)
    public = made.instances.public()
    assert not public.planted
    assert set(public.arrays) <= {
        "inputs", "labels", "variant", "shared_inputs", "shared_labels", "shared_components", "shared_hook_points",
        "shared_segments", "shared_words", "directions", "shared_place", "changes", "shared_changes", "replacements",
        "paraphrases", "words", "shared_groups",
    }  # fmt: skip
    if "variant" in public.arrays:
        assert public.arrays["variant"].tolist() == list(range(public.n))


def splits_of(profile: str) -> dict[str, str]:
    changes = yaml.safe_load((paths.root() / "params" / "profiles" / f"{profile}.yaml").read_text())["tasks"]
    moved = {name: change["split"] for name, change in changes.get("families", {}).items() if "split" in change}
    return {name: PARAMS[name].split for name in FAMILIES.names() if name in PARAMS} | moved


DIVISIONS = pytest.mark.parametrize(
    "split_of", [splits_of(path.stem) for path in sorted((paths.root() / "params" / "profiles").glob("*.yaml"))]
)


@DIVISIONS
def test_every_kind_of_question_is_asked_in_every_split(split_of: dict[str, str]) -> None:
    asked = {(family(name).query_kind, split) for name, split in split_of.items()}
    kinds = ("Represent", "Attribute", "Localise", "Compare", "Steer", "Propose")
    missing = {(kind, split) for kind in kinds for split in SPLITS} - asked
    assert missing == set(), f"no family asks {missing}"


@DIVISIONS
def test_a_cluster_stands_in_one_split_alone(split_of: dict[str, str]) -> None:
    splits: dict[str, set[str]] = {}
    for name, split in split_of.items():
        splits.setdefault(family(name).cluster or name, set()).add(split)
    assert all(len(found) == 1 for found in splits.values()), splits


def test_a_rotated_division_moves_every_family() -> None:
    here, there = splits_of("full"), splits_of("rotated")
    assert set(here) == set(there) and all(here[name] != there[name] for name in here)


def test_planted_kinds_are_in_random_order() -> None:
    """Position says nothing over many seeds."""
    means = []
    for seed in range(200):
        kinds = draw_kinds(12, torch.Generator().manual_seed(seed))
        means.append(torch.nonzero(kinds == 0).double().mean().item())
    assert abs(np.mean(means) - 5.5) < 5 * np.std(means) / len(means) ** 0.5
    made = made_small("backdoor_detection", "digits_mlp")
    assert made.truth.values[:, 0].tolist() != sorted(made.truth.values[:, 0].tolist())


@pytest.mark.parametrize(("name", "target"), CASES)
def test_score_of_constant_truth_and_permutation(name: str, target: str) -> None:
    values, score = made_small(name, target).truth.values.numpy(), family(name).score
    assert score(np.full_like(values, values.mean()), values)[0] == 0.0
    assert score(values, values)[0] == 1.0
    rng = np.random.default_rng(0)
    shuffled = [score(rng.permutation(values.reshape(-1)).reshape(values.shape), values)[0] for _ in range(30)]
    assert np.mean(shuffled) < 0.25  # few instances; the audit does this with many


truths = st.lists(st.floats(-100, 100, allow_nan=False), min_size=4, max_size=30)


@settings(max_examples=60, deadline=None)
@given(truths, st.integers(0, 1000), st.floats(-50, 50), st.floats(0.1, 20))
def test_skill_is_invariant_and_bounded(values: list[float], seed: int, shift: float, scale: float) -> None:
    truth = np.array(values)[:, None]
    guess = truth + np.random.default_rng(seed).normal(size=truth.shape)
    score = skill(guess, truth)[0]
    assert 0.0 <= score <= 1.0
    assert skill(np.full_like(truth, shift), truth)[0] <= 1e-9
    assert skill(guess * scale + shift, truth * scale + shift)[0] == pytest.approx(score, abs=1e-5)
    if truth.std() > 1e-3:
        assert skill(truth, truth)[0] == 1.0
        order = np.random.default_rng(seed).permutation(len(truth))
        assert skill(guess[order], truth[order])[0] == pytest.approx(score, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 20), st.integers(1, 4), st.integers(0, 1000))
def test_weighted_skill_is_the_skill_of_the_resample(n: int, items: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, items)) + 3.0
    guess = truth + rng.normal(size=(n, items))
    drawn = rng.integers(n, size=(5, n))
    weights = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(float)
    expected = [skill(guess[row], truth[row])[0] for row in drawn]
    assert skill(guess, truth, weights) == pytest.approx(expected, abs=1e-9)


def test_skill_of_a_truth_that_does_not_vary_and_of_wrong_shapes() -> None:
    assert skill(np.ones((5, 1)), np.ones((5, 1)))[0] == 0.0
    with pytest.raises(ValueError, match="must be equal"):
        skill(np.ones((5, 1)), np.ones((4, 1)))


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'x' is unknown; known: ablation_effect"):
        family("x")
    for name in FAMILIES.names():
        made = family(name)
        assert made.title.endswith("?") and made.source and made.truth_recipe and made.why_hard_black_box

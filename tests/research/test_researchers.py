"""Researchers are functions of seed and results, and ``search`` learns."""

import json

import pytest

from stages.errors import UserError
from stages.research.researchers import RESEARCHERS, make_researcher
from stages.scoring.composed import Spec


def worth(spec: Spec) -> float:
    """A landscape with one good corner: attention together with a residual-stream SAE."""
    return 1.0 * spec.attention + 0.5 * (spec.representation == "sae") - 0.2 * spec.gradient


def campaign(name: str, seed: int, n: int) -> tuple[list[Spec], list[float]]:
    researcher = make_researcher(name, seed)
    specs, values = [], []
    for iteration in range(n):
        spec, choices = researcher.propose(iteration)
        specs.append(spec)
        values.append(worth(spec))
        researcher.update(choices, values[-1])
    return specs, values


@pytest.mark.parametrize("name", RESEARCHERS.names())
def test_same_seed_same_proposals(name):
    assert campaign(name, 3, 6) == campaign(name, 3, 6)
    assert campaign(name, 3, 6) != campaign(name, 4, 6)


@pytest.mark.parametrize("name", RESEARCHERS.names())
def test_a_resumed_researcher_proposes_what_an_uninterrupted_one_would(name):
    whole = make_researcher(name, 1)
    for iteration in range(7):
        spec, choices = whole.propose(iteration)
        whole.update(choices, worth(spec))
    resumed = make_researcher(name, 1)
    for trial in json.loads(json.dumps(whole.theta()))["trials"]:
        resumed.update(trial["choices"], trial["value"])
    assert resumed.propose(7) == whole.propose(7)


@pytest.mark.parametrize("name", RESEARCHERS.names())
def test_nothing_is_proposed_twice_and_nothing_empty(name):
    specs, _ = campaign(name, 0, 25)
    assert Spec() not in specs
    assert len({spec.model_dump_json() for spec in specs}) == 25


def test_search_beats_random_on_a_landscape_with_structure():
    """Late proposals over several seeds; random is the control."""
    mean = {name: sum(sum(campaign(name, seed, 20)[1][10:]) for seed in range(3)) / 30 for name in ("search", "random")}
    assert mean["search"] > mean["random"] + 0.1


def test_void_results_teach_nothing():
    researcher = make_researcher("search", 0)
    for iteration in range(6):
        _, choices = researcher.propose(iteration)
        researcher.update(choices, None)
    fresh = make_researcher("search", 0)
    fresh.trials = [trial._replace(value=None) for trial in researcher.trials]
    assert researcher.propose(6) == fresh.propose(6)


def test_unknown_researcher_is_refused_by_name():
    with pytest.raises(UserError, match=r"'oracle' is unknown; known: random, search"):
        make_researcher("oracle", 0)

"""Researchers are functions of seed and results, and ``search`` learns."""

import json
import random
import warnings
from pathlib import Path

import pytest

from stages.base import code
from stages.errors import UserError
from stages.research.programs.emitting import source_of
from stages.research.programs.grammar import Uniform, choices_of, draw, genome_of
from stages.research.researcher import Researcher
from stages.research.researchers import RESEARCHERS, make_researcher
from stages.research.researchers.programs import ProgramsResearcher, ranking
from stages.research.search_space import SPACES, _distributions, new_proposal
from stages.research.stage import fingerprint
from stages.research.view import Pending, Seen, TaskSeen, View, batch_start
from stages.scoring.composed import Spec
from stages.scoring.proposals import as_json
from stages.scoring.settings import settings

OVER_SPECS = ("random", "search")


def worth(spec: Spec) -> float:
    """A landscape with one good corner: attention together with a residual-stream SAE."""
    return 1.0 * spec.attention + 0.5 * (spec.representation == "sae") - 0.2 * spec.gradient


def outcome(pending: Pending, value: float | None) -> Seen:
    return Seen(
        **dict(pending), name=f"x-{pending.slot:02d}", status="ok" if value is not None else "void", reason="",
        feedback=value, value=value, accepted=False, tasks=(), interpret_bytes=0, judged=0,
    )  # fmt: skip


def campaign(researcher: Researcher, n: int, value=worth) -> tuple[list, list[Seen]]:
    """A campaign without a journal: batches as the loop makes them."""
    moves, seen = [], []
    for start in range(0, n, researcher.batch):
        pending: list[Pending] = []
        for slot in range(start, min(n, start + researcher.batch)):
            move = researcher.propose(View(slot=slot, seen=tuple(seen), pending=tuple(pending)), slot)
            moves.append(move)
            facts = {"choices": move.choices, "operator": move.operator, "parents": move.parents}
            pending.append(Pending(slot=slot, spec=as_json(move.proposal), **facts))
        for one, move in zip(pending, moves[start:], strict=True):
            seen.append(outcome(one, value(move.proposal)))
            researcher.update(seen[-1])
    return moves, seen


def specs(name: str, seed: int, n: int) -> list[Spec]:
    return [move.proposal for move in campaign(make_researcher(name, seed), n)[0]]


@pytest.mark.parametrize("name", OVER_SPECS)
def test_same_seed_same_proposals(name):
    assert specs(name, 3, 6) == specs(name, 3, 6)
    assert specs(name, 3, 6) != specs(name, 4, 6)


@pytest.mark.parametrize("name", OVER_SPECS)
def test_a_resumed_researcher_proposes_what_an_uninterrupted_one_would(name):
    whole = make_researcher(name, 1)
    _, seen = campaign(whole, 8)
    resumed = make_researcher(name, 1)
    for one in seen:
        resumed.update(Seen.model_validate_json(one.model_dump_json()))
    view = View(slot=8, seen=tuple(seen), pending=())
    assert resumed.propose(view, 8) == whole.propose(view, 8)
    assert json.dumps(resumed.theta()) == json.dumps(whole.theta())


@pytest.mark.parametrize("name", OVER_SPECS)
def test_nothing_is_proposed_twice_and_nothing_empty(name):
    found = specs(name, 0, 25)
    assert Spec() not in found
    assert len({spec.model_dump_json() for spec in found}) == 25


def test_search_beats_random_on_a_landscape_with_structure():
    """Late proposals over several seeds; random is the control."""
    mean = {name: sum(sum(map(worth, specs(name, seed, 20)[10:])) for seed in range(3)) / 30 for name in OVER_SPECS}
    assert mean["search"] > mean["random"] + 0.1


def asked_again(seen: list[Seen], space: str, number: int) -> tuple[object, dict]:
    """What the estimator proposes after trials that Optuna asked for itself, and was told of."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    past = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for one in seen:
        past.enqueue_trial(dict(one.choices))
        trial = past.ask()
        SPACES[space](trial)
        assert trial.params == dict(one.choices)
        assert trial.distributions == _distributions(space, tuple(one.choices.items()))
        past.tell(trial, one.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=number, multivariate=True, group=True, n_startup_trials=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(past.trials)
    trial = study.ask()
    return SPACES[space](trial), trial.params


@pytest.mark.parametrize("space", ["specs", "programs"])
def test_trials_that_are_handed_over_teach_what_asking_for_them_again_does(space):
    drawn = make_researcher("random", 1, space)
    _, seen = campaign(drawn, 12, lambda made: None)
    rng = random.Random(0)
    seen = [one.model_copy(update={"value": None if one.slot == 5 else rng.random()}) for one in seen]
    known = [one for one in seen if one.value is not None]
    differ = 0
    for slot in range(12, 17):
        _, choices = new_proposal(View(slot=slot, seen=tuple(seen), pending=()), space, "tpe", 2, slot)
        for attempt in range(20):
            number = 2 * 1_000_003 + 20 * slot + attempt
            made, theirs = asked_again(known, space, number)
            if made is not None and theirs not in [one.choices for one in seen]:
                break
        assert choices == theirs
        differ += choices != asked_again(known[:-1], space, number)[1]
    assert differ, "each of them is learned from"


def test_void_results_teach_nothing():
    taught, untaught = make_researcher("search", 0), make_researcher("search", 0)
    moves, seen = campaign(taught, 8, lambda spec: None)
    again, _ = campaign(untaught, 8, lambda spec: None)
    assert moves == again and all(one.value is None for one in seen)
    view = View(slot=8, seen=tuple(seen), pending=())
    assert untaught.propose(view, 8).choices not in [move.choices for move in moves]


def test_a_batch_is_proposed_from_the_same_results():
    assert [batch_start(slot, 4) for slot in range(9)] == [0, 0, 0, 0, 4, 4, 4, 4, 8]


def test_unknown_researcher_is_refused_by_name():
    with pytest.raises(UserError, match=r"'oracle' is unknown; known: .*programs, random, search.*path of a file"):
        make_researcher("oracle", 0)
    assert set(OVER_SPECS) <= set(RESEARCHERS.names())


MINE = """
from stages.research.researcher import Move, Researcher
from stages.scoring.composed import Spec


class Mine(Researcher):
    batch = 2

    def propose(self, view, slot):
        return Move(Spec(gradient=True), {"slot": slot}, "copy", tuple(one.slot for one in view.seen[:1]))
"""


def test_a_researcher_is_given_by_the_path_of_its_file(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(MINE, encoding="utf-8")
    made = make_researcher(str(file), 7)
    moves, _ = campaign(made, 3)
    assert (made.name, made.seed, made.batch) == ("mine", 7, 2) and len(made.code) == 64
    assert [move.parents for move in moves] == [(), (), (0,)]
    file.write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="defines none: give a file with one"):
        make_researcher(str(file), 7)
    with pytest.raises(UserError, match="is not a file"):
        make_researcher(str(tmp_path / "absent.py"), 7)


def test_an_edit_of_what_proposes_is_another_campaign(tmp_path: Path, graph: Path, monkeypatch):
    """Of the file, of a file beside it that it imports, and of ours; by name or by path. Of anything else it is not."""
    file, beside, other = (tmp_path / f"{name}.py" for name in ("mine", "helper", "other"))
    beside.write_text("FLAG = True\n", encoding="utf-8")
    other.write_text("", encoding="utf-8")
    file.write_text(f"from helper import FLAG\n{MINE}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def keys() -> list[str]:
        whom = (make_researcher(name, 0) for name in (str(file), "programs", "policy"))
        return [fingerprint(one, 1, settings()) for one in whom]

    first = keys()
    assert keys() == first and len(set(first)) == 3
    other.write_text("x = 1\n", encoding="utf-8")
    assert keys() == first
    beside.write_text("FLAG = False\n", encoding="utf-8")
    second = keys()
    assert second[0] != first[0] and second[1:] == first[1:]
    file.write_text(file.read_text(encoding="utf-8") + "# another\n", encoding="utf-8")
    assert keys()[0] not in (first[0], second[0])

    def edited(module: str, text: str) -> list[str]:
        """The keys, were a file of ours another one."""
        with monkeypatch.context() as patch:
            copy = tmp_path / "copy.txt"
            copy.write_text(code.file_of(module).read_text(encoding="utf-8") + text, encoding="utf-8")
            real = code.file_of
            patch.setattr(code, "file_of", lambda name: copy if name == module else real(name))
            code.code_digest.cache_clear()
            found = keys()
        code.code_digest.cache_clear()
        return found

    third = keys()
    for module, changed in (
        ("stages.research.researchers.programs", (False, True, False)),
        ("stages.research.programs.grammar", (False, True, True)),
        ("stages.research.researcher", (True, True, True)),
        ("stages.tasks.families.active_learning", (True, True, True)),
        ("stages.targets.zoo.digits_mlp", (True, True, True)),
        ("stages.tasks.families.early_exit", (False, False, False)),
        ("stages.report.stage", (False, False, False)),
    ):
        now = edited(module, "# another\n")
        assert tuple(a != b for a, b in zip(now, third, strict=True)) == changed, module


def gain(proposal) -> float:
    """Of a program: every kind's fragment is worth something of its own."""
    text = proposal.text
    return 0.3 * ("activations roles=mlp" in text) + 0.2 * ("Localise slopes" in text) + 0.1 * ("count=8" in text)


@pytest.mark.parametrize("name", ["random", "search", "programs"])
def test_programs_are_proposed_once_and_the_same_by_the_same_seed(name):
    moves, seen = campaign(make_researcher(name, 2, "programs"), 24, gain)
    again, _ = campaign(make_researcher(name, 2, "programs"), 24, gain)
    assert moves == again and len({str(sorted(move.choices.items())) for move in moves}) == 24
    assert all(move.proposal == source_of(genome_of(move.choices)) for move in moves)
    view = View(slot=24, seen=tuple(seen), pending=())
    assert make_researcher(name, 2, "programs").propose(view, 24) == make_researcher(name, 2, "programs").propose(
        view, 24
    )


def with_tasks(slot: int, choices, rewards: dict[str, float]) -> Seen:
    numbers = {"low": 0.0, "high": 0.0, "noise_floor": 0.0, "gain": 0.0, "flops": 0.0, "used_answer": 0.0}
    tasks = tuple(
        TaskSeen(task=kind, kind=kind, status="ok", reason="", reward=reward, **numbers)
        for kind, reward in rewards.items()
    )
    mean = sum(rewards.values()) / len(rewards)
    pending = Pending(slot=slot, spec={}, choices=choices, operator="draw", parents=())
    return outcome(pending, mean).model_copy(update={"tasks": tasks})


def test_programs_keeps_a_ranking_for_every_kind_and_composes_the_best_of_each():
    genomes = [draw(Uniform(random.Random(i))) for i in range(8)]
    seen = tuple(
        with_tasks(i, choices_of(genome), {"Represent": float(i), "Localise": float(-i)})
        for i, genome in enumerate(genomes)
    )
    view = View(slot=8, seen=seen, pending=())
    ranks = ranking(view)
    assert set(ranks) == {"Represent", "Localise"}
    assert ranks["Represent"][0].fragment == genomes[7]["Represent"] and ranks["Localise"][0].slot == 0
    found = {}
    for slot in range(8, 400):
        move = ProgramsResearcher(0).propose(view, slot)
        found.setdefault(move.operator, move)
        assert set(move.parents) <= set(range(8)) and (move.operator == "draw") == (move.parents == ())
    assert set(found) == {"draw", "compose", "mutate", "cross", "graft"}
    composed = genome_of(found["compose"].choices)
    assert composed["Represent"] == genomes[7]["Represent"] and composed["Localise"] == genomes[0]["Localise"]


def test_an_unknown_space_is_refused():
    with pytest.raises(ValueError, match="space 'words' is unknown; use specs or programs"):
        make_researcher("random", 0, "words").propose(View(slot=0, seen=(), pending=()), 0)


def test_a_kind_that_no_train_task_asks_is_changed_in_every_other_mutation():
    genomes = [draw(Uniform(random.Random(i))) for i in range(8)]
    seen = tuple(with_tasks(i, choices_of(genome), {"Represent": float(i)}) for i, genome in enumerate(genomes))
    view = View(slot=8, seen=seen, pending=())
    moves = [ProgramsResearcher(1).propose(view, slot) for slot in range(8, 400)]
    bred = [genome_of(move.choices) for move in moves if move.operator == "mutate"]
    asked = [genome["Represent"] in [one["Represent"] for one in genomes] for genome in bred]
    blind = [genome["Compare"] in [one["Compare"] for one in genomes] for genome in bred]
    assert sum(asked) < 0.1 * len(bred) and 0.35 * len(bred) < sum(blind) < 0.65 * len(bred)

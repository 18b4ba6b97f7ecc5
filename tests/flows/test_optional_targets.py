"""Targets of params/optional: written into params once, comments kept; and what a run about a target will take."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from rich.console import Console
from ruamel.yaml import YAML

from flows.estimating import show_estimate
from stages.activations.stage import Config as ActivationsConfig
from stages.base.params import load
from stages.contracts.method import Budget
from stages.contracts.target import Target
from stages.dictionaries.settings import Config as DictionariesConfig
from stages.errors import UserError
from stages.execution.settings import executor
from stages.interpretation import slopes
from stages.interpretation.loading import built_in
from stages.interpretation.methods import circuit
from stages.interpretation.settings import Config as InterpretationConfig
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.scoring.needs import outputs_about
from stages.targets.stage import Config as TargetsConfig
from stages.tasks.families import family
from stages.tasks.stage import Config as TasksConfig
from stages.tools import estimates
from stages.tools.estimates import estimate
from stages.tools.optional_targets import OptionalTarget, add_target, known_targets
from tests import toy

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONAL = sorted(path.stem for path in (REPOSITORY / "params" / "optional").glob("*.yaml"))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(REPOSITORY / "params", tmp_path / "params", symlinks=True)
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    with toy.rooted(tmp_path):
        yield tmp_path


def texts(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((root / "params").glob("*.yaml"))}


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_target_is_written_into_params_once_and_every_stage_reads_them(root: Path, name: str) -> None:
    before = texts(root)
    lines = known_targets(root, [name, "digits_mlp"])
    assert len(lines) == 1 and "git checkout params" in lines[0]
    after = texts(root)
    assert known_targets(root, [name]) == [] and texts(root) == after
    add_target(root, name)
    assert texts(root) == after, "a second time changes nothing"
    recipe = load("optional", OptionalTarget, root / "params" / "optional" / f"{name}.yaml")
    assert load("targets", TargetsConfig).targets[name].checked(name).source == recipe.target["source"]
    assert name in load("interpretation", InterpretationConfig).targets
    assert load("activations", ActivationsConfig).hooks[name] == recipe.activations
    assert set(load("dictionaries", DictionariesConfig).trained_on[name].hooks) <= set(recipe.activations)
    tasks = load("tasks", TasksConfig)
    for one, n in recipe.families.items():
        assert name in tasks.families[one].targets and tasks.families[one].n_instances[name] == n
    for file, text in before.items():  # what stood there stands there, comments and all
        kept, now = (
            {line.partition(" #")[0].strip()[:20] for line in each.splitlines()} for each in (text, after[file])
        )
        assert kept - now <= {"hooks: {}"}, file
        assert text.count("#") == after[file].count("#"), file


def test_a_name_that_is_nowhere_and_a_family_that_is_not_there_are_refused(root: Path) -> None:
    before = texts(root)
    with pytest.raises(UserError, match=r"--targets nobody: no such target .*digits_mlp.*smollm2_135m"):
        known_targets(root, ["nobody"])
    (root / "params" / "optional" / "odd.yaml").write_text("target: {source: gguf}\nfamilies: {nothing_such: 20}\n")
    with pytest.raises(UserError, match=r"nothing_such are not in params/tasks\.yaml: known are ablation_effect"):
        known_targets(root, ["odd"])
    (root / "params" / "optional" / "odd.yaml").write_text("targets: {source: gguf}\n")
    with pytest.raises(UserError, match=r"odd\.yaml: .*targets"):
        known_targets(root, ["odd"])
    assert texts(root) == before


def test_instances_of_one_target_are_its_own_number(root: Path) -> None:
    path, yaml = root / "params" / "tasks.yaml", YAML()
    values = yaml.load(path.read_text())
    values["families"]["few_shot_shapley"]["n_instances"] = {"context_lm": 30}
    yaml.dump(values, path)
    tasks = load("tasks", TasksConfig)
    made, spec = family("few_shot_shapley"), type("Spec", (), {"name": "context_lm"})()
    assert tasks.families["few_shot_shapley"].n_on(made, spec, 200) == 30
    spec.name = "digits_few_shot"
    assert tasks.families["few_shot_shapley"].n_on(made, spec, 200) == 200
    for wrong in ({"digits_mlp": 30}, {"context_lm": 19}):
        values["families"]["few_shot_shapley"]["n_instances"] = wrong
        yaml.dump(values, path)
        with pytest.raises(UserError, match=r"give a target of this family .*at least 20"):
            load("tasks", TasksConfig)


class Counted(MeteredAccess):
    """Notes of how many inputs slopes are taken together, and where."""

    most = 0
    where: ClassVar[set[str]] = set()

    def gradients(self, inputs, objective, wrt):
        Counted.most, Counted.where = max(Counted.most, len(inputs)), Counted.where | set(wrt)
        return super().gradients(inputs, objective, wrt)


def test_an_estimate_has_every_part_of_a_run_about_a_target(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "MeteredAccess", Counted)
    monkeypatch.setattr(Counted, "most", 0)
    monkeypatch.setattr(Counted, "where", set())
    # The first climb of a ladder is dearer than the next, which find steps that draw nothing done.
    monkeypatch.setattr(estimates, "_seconds", lambda task, target, seed, fixed: 5.0 if seed == 0 else 2.0)
    rows, held = estimate("digits_mlp", lambda line: None)
    by_part = {row.part: row for row in rows}
    assert {"activations", "dictionaries", "truth of active_learning", "ladder of active_learning"} <= set(by_part)
    assert {"free phases", "answers"} <= set(by_part) and held > 50 << 20
    assert all(row.cpu_s > 0 and row.n > 0 for row in rows)
    assert by_part["truth of active_learning"].n == toy.N_INSTANCES
    climbs = 5.0 + 2.0 * (executor().n_seeds - 1)
    assert by_part["ladder of active_learning"].cpu_s == pytest.approx(toy.N_INSTANCES * climbs)
    assert Counted.most > 0, "the memory of a free phase is in it"
    assert "truth of few_shot_shapley" not in by_part, "that family is not about this target"


@pytest.mark.parametrize("large", [False, True])
def test_the_estimate_of_memory_tries_as_many_inputs_at_once_as_a_free_phase(
    few_shot: Target, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """With limits below the target it is as a large one is to a method."""
    if large:
        monkeypatch.setattr(circuit, "MAX_EXACT", 1)
        monkeypatch.setattr(slopes, "WIDEST", 1)
    monkeypatch.setattr(estimates, "MeteredAccess", Counted)
    monkeypatch.setattr(Counted, "where", set())

    def most(work: Callable[[], object]) -> int:
        monkeypatch.setattr(Counted, "most", 0)
        work()
        return Counted.most

    access, budget = Counted(few_shot, Ledger(), free=True), Budget(60, 10**8, 0)
    methods = [most(lambda one=one: built_in(one).interpret(access, budget)) for one in ("circuit", "gradient")]
    n, by_methods = len(few_shot.corpus("train").labels), Counted.where
    monkeypatch.setattr(Counted, "where", set())
    assert most(lambda: estimates._free_phase(few_shot)) == max(methods) == (circuit.PART if large else n)
    assert Counted.where >= by_methods and Counted.where >= {hook.name for hook in few_shot.spec.hooks}


def test_what_is_left_is_estimated_in_a_process_of_its_own(graph: Path) -> None:
    outputs, console = outputs_about(["digits_mlp"]), Console(record=True, width=200, force_terminal=False)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=graph, check=True)
    stage = {"cmd": "true", "metrics": [{"metrics/leaderboard.json": {"cache": False}}]}
    (graph / "dvc.yaml").write_text(json.dumps({"stages": {"reward": stage}}), encoding="utf-8")
    before = psutil.Process().memory_info().rss
    show_estimate(graph, ["digits_mlp"], outputs, console, 2)
    said = console.export_text()
    assert "truth of active_learning" in said and "1 node to do" in said and "with 2 at work at once" in said
    assert psutil.Process().memory_info().rss - before < 50 << 20
    with pytest.raises(UserError, match="no_such"):
        show_estimate(graph, ["no_such"], outputs, console, 2)

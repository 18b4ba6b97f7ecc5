"""Several methods in one table: files, built-in methods, the campaign's best; one correction, one rival."""

import subprocess
import sys

import numpy as np
import pytest

from stages.base.params import load
from stages.contracts.journal import CAMPAIGN, CampaignSummary, Incumbent
from stages.contracts.reward_rows import PER_TASK
from stages.errors import UserError
from stages.execution.results import load_arms
from stages.interpretation.loading import built_in
from stages.reward.judging import judge
from stages.reward.settings import RewardConfig
from stages.scoring.candidate import Candidate
from stages.scoring.evaluate import stage_baseline
from stages.scoring.table import candidates_in, score_table
from stages.tasks.storage import load_task
from stages.tools.people import at_equal_charge, equal_table, people_table
from tests import toy

QUIET = """
from lensmith import Interpretation, Method

class Quiet(Method):
    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        return None
"""


def silent(message: str) -> None:
    pass


def found_by_a_campaign() -> None:
    from stages.base import paths
    from stages.scoring.composed import Spec

    star = Incumbent(
        accepted=True,
        iteration=0,
        name="search-00",
        spec=Spec(gradient=True).model_dump(),
        validation_reward=0.0,
    )
    CAMPAIGN.path().parent.mkdir(parents=True, exist_ok=True)
    CAMPAIGN.save(CampaignSummary(campaign="c", researcher="search", seed=0, iterations=(), incumbent=star))
    assert CAMPAIGN.path().is_relative_to(paths.root())


def test_one_table_holds_files_built_in_methods_and_what_the_campaign_found(graph):
    found_by_a_campaign()
    mine = Candidate("mine", built_in("gradient"))
    table, judged = score_table([mine], against="attention", progress=silent)
    origins = {one.method: one.origin for one in table.methods}
    assert origins == {"mine": "file", "search-00": "campaign", **dict.fromkeys(toy.METHODS, "built in")}
    for split in ("train", "validation"):
        assert {row.method for row in table.rows if row.split == split} == set(origins)
    # The same method under another name has the same row, interval and all.
    rows = {(row.method, row.split): row.reward_mean for row in table.rows}
    assert rows["mine", "validation"] == pytest.approx(rows["gradient", "validation"], abs=1e-5)
    # Holm over all that was tested: the smallest p is multiplied by their number.
    tested = [
        row
        for row in table.statements
        if (row.split, row.scope) == ("train", "tasks") and row.p is not None and row.method != "random_features"
    ]
    least = min(tested, key=lambda row: row.p)
    assert least.p_holm == pytest.approx(min(1.0, least.p * len(tested)), abs=1e-5)
    assert "search-00" in table.notes[-1] and "chosen" in table.notes[-1]
    # Against a rival: the mean difference of rewards on the same draws.
    over = {(row.method, row.split): row for row in table.against if row.scope == "tasks"}
    assert over["mine", "validation"].value == pytest.approx(
        rows["mine", "validation"] - rows["attention", "validation"], abs=1e-5
    )
    assert {row.method for row in table.against} == set(origins) - {"attention"}
    assert people_table(table).count("\n") == len(origins) + 1
    assert set(judged) == {"mine", "search-00"}


def test_a_file_that_fails_is_a_row_and_loses_nothing_of_the_others(graph, tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "quiet.py").write_text(QUIET, encoding="utf-8")
    (tmp_path / "methods" / "broken.py").write_text("import nothing_of_the_kind", encoding="utf-8")
    candidates = candidates_in([tmp_path / "methods"])
    assert [one.name for one in candidates] == ["broken", "quiet"]
    table, _ = score_table(candidates, trust=True, progress=silent)
    entries = {one.method: one for one in table.methods}
    assert entries["broken"].outcome == "failed" and "nothing_of_the_kind" in entries["broken"].reason
    quiet = [row for row in table.rows if row.method == "quiet"]
    assert len(quiet) == 2 and all(row.reward_mean == 0 for row in quiet)


def test_names_of_files_must_differ_and_folders_must_hold_some(graph, tmp_path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "mine.py").write_text(QUIET, encoding="utf-8")
    with pytest.raises(UserError, match="two files are called 'mine'"):
        candidates_in([tmp_path / "a", tmp_path / "b" / "mine.py"])
    with pytest.raises(UserError, match="holds no Python file"):
        candidates_in([tmp_path / "c"])
    (tmp_path / "c" / "gradient.py").write_text(QUIET, encoding="utf-8")
    assert candidates_in([tmp_path / "c"])[0].name == "gradient_of_yours"
    with pytest.raises(UserError, match="none of the methods in this table"):
        score_table(candidates_in([tmp_path / "c"]), against="nobody", progress=silent)


def test_the_rival_at_equal_charge_is_the_cheapest_that_costs_as_much(graph):
    config = load("reward", RewardConfig, part=True)
    tasks = sorted({(row.family, row.target) for row in PER_TASK.load()})

    def judged_of(method, share):
        """A method, as if its answers had cost a share of what they did."""
        from dataclasses import replace

        of = {}
        for task in (load_task(*one) for one in tasks):
            arms = load_arms(graph / "data" / "execution" / method, task.name)
            arms = replace(arms, target_flops=share, own_flops=0.0)
            of[task.name] = judge(task, stage_baseline(task.name), arms, config)
        return of

    judged = {"dear": judged_of("gradient", 5.0), "dearest": judged_of("gradient", 99.0)}
    cheap, middle = judged_of("random_features", 1.0), judged_of("attention", 6.0)
    said = {row.method: row for row in at_equal_charge(judged, [cheap, middle]) if row.scope == "tasks"}
    for method in judged:
        differences = []
        for task, one in judged[method].items():
            rival = middle[task] if middle[task].arms.status == "ok" else cheap[task]
            differences.append(one.reward[0].mean() - rival.reward[0].mean())
        assert said[method].value == pytest.approx(np.mean(differences), abs=1e-5)
    cheapest = {row.method: row for row in at_equal_charge({"x": judged_of("gradient", 0.5)}, [cheap, middle])}
    wanted = [one.reward[0].mean() - cheap[task].reward[0].mean() for task, one in judged["dear"].items()]
    assert cheapest["x"].against == "black box" and equal_table(tuple(cheapest.values()))
    first = next(row for row in at_equal_charge({"x": judged_of("gradient", 0.5)}, [cheap]) if row.scope == "tasks")
    assert first.value == pytest.approx(np.mean(wanted), abs=1e-5)
    nothing = judged_of("nothing", 0.0)
    assert next(iter(at_equal_charge({"nothing": nothing}, [cheap]))).value == 0.0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["examples/my_method.py", "nowhere.py"], 2, "nowhere.py is not a file"),
        (["examples/my_method.py", "examples/published", "--null"], 2, "it is about one method: give one file"),
        (["examples/my_method.py", "--trust", "--against", "gradient"], 0, "reward over that of gradient"),
    ],
)
def test_on_the_command_line(graph, words, code, said):
    command = [sys.executable, "-m", "flows.command", "score", *words]
    done = subprocess.run(command, cwd=toy.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in " ".join((done.stdout + done.stderr).split())

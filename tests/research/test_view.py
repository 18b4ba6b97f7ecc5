"""What a researcher is shown holds nothing of validation but what the gate lets through."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from stages.base import paths
from stages.contracts.journal import CAMPAIGN, Proposed, Result
from stages.research import campaign as loop
from stages.research.campaign import Campaign
from stages.research.files_researcher import FilesResearcher
from stages.research.journal import Journal
from stages.research.lineage import difference
from stages.research.researcher import Move, Researcher
from stages.research.view import MAX_REASON, Seen, TaskSeen, View, one_line, seen_of, view_of
from stages.reward.judging import leaderboard_row, task_row
from stages.scoring.cached import cached_task
from stages.scoring.composed import Spec
from stages.scoring.evaluate import evaluate
from stages.scoring.settings import settings
from stages.tasks.storage import list_tasks
from tests import toy

HELD_OUT = [family for family, facts in toy.FAMILIES.items() if facts["split"] != "train"]
FINE = ("reward_", "gain", "assisted_score", "baseline_score", "placebo_score")
"""Beginnings of the names of a task row's numbers that are finer than the gate's."""
FAILS = """
from lensmith import Attribute, Interpretation, Method


class Fails(Method):
    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        if isinstance(query, Attribute):
            raise ValueError("a canary of few_shot_shapley \\x1b[31m" + "y" * 900)
        return None
"""


class Children(Researcher):
    """Every proposal is a change of the one before its batch."""

    batch = 2

    def propose(self, view: View, slot: int) -> Move:
        spec = Spec(gradient=slot % 2 == 0, attention=True, logit_lens=slot > 1)
        parents = (view.seen[-1].slot,) if view.seen else ()
        return Move(spec, {"slot": slot}, "change" if parents else "draw", parents)


def informed(candidate, tasks, host, config, pool=None):
    """The trial, with predictions on validation tasks that went some way towards the truth, each its own: a toy's
    method earns nothing there, and nothing can be given away of nothing."""
    trial, results = evaluate(candidate, tasks, host, config, pool=pool), []
    share = 0.1 + 0.0123 * int(candidate.name[-1])
    for (family, target), result in zip(tasks, trial.results, strict=True):
        task = cached_task(family, target)
        if task.split == "validation" and result.arms is not None:
            truth = task.truth.values.numpy()
            nearer = [
                replace(arm, predictions=arm.predictions + share * (truth[arm.index] - arm.predictions))
                for arm in result.arms.assisted
            ]
            result = replace(result, arms=replace(result.arms, assisted=nearer))
        results.append(result)
    return replace(trial, results=results)


@pytest.fixture(scope="module")
def told(built: Path, tmp_path_factory: pytest.TempPathFactory):
    """A campaign of four, what was said of it, and every number of validation that is finer than the gate's."""
    said: list[str] = []
    with toy.rooted(built), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", informed)
        tasks = {split: list_tasks(split) for split in ("train", "validation")}
        one = Campaign(tmp_path_factory.mktemp("campaign"), Children(0), tasks, settings(), 4, said.append, 1)
        one.run(lambda result: None)
        fine: set[float] = set()
        for slot in range(4):
            judged = one.judged(slot, "validation")
            rows = [task_row("x", of_task) for of_task in judged]
            fine |= {
                number
                for row in rows
                for name, number in dict(row).items()
                if name.startswith(FINE) and number is not None
            }
            row = leaderboard_row("x", "validation", judged)
            assert 0 < row.reward_mean != round(row.reward_mean, 3), "there is something to give away"
            fine |= {row.reward_mean, row.reward_low, row.reward_high}
        yield one, said, {number for number in fine if round(number, 2) != number}


def test_no_view_and_no_line_of_the_journal_holds_a_validation_number_or_a_held_out_family(told):
    one, said, fine = told
    views = [view_of(one.journal, slot, 2).model_dump_json() for slot in range(5)]
    assert len(fine) >= 3, "the toy's validation scores are not all round"
    texts = [*views, one.journal.path.read_text(encoding="utf-8"), *said]
    for text in texts:
        assert not [family for family in HELD_OUT if family in text]
        numbers = {float(found) for found in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)}
        assert not {number for number in numbers for secret in fine if abs(number - secret) < 5e-7}
    assert any("active_learning" in view for view in views), "train rows are shown in full"


def test_what_is_learned_from_is_made_of_train_and_of_feedback_alone(told):
    for result in told[0].journal.of(Result):
        assert result.feedback == round(result.feedback, 2) != 0
        assert result.objective == pytest.approx((result.train.reward_mean + result.feedback) / 2, abs=1e-9)


def test_a_validation_row_that_came_into_a_result_is_not_shown(told):
    one = told[0]
    proposed, result = one.journal.of(Proposed)[0], one.journal.of(Result)[0]
    rows = tuple(task_row(result.name, judged) for judged in one.judged(0, "validation"))
    assert rows and {row.split for row in rows} == {"validation"}
    leaking = result.model_copy(update={"per_task": (*rows, *result.per_task)})
    assert seen_of(proposed, leaking) == seen_of(proposed, result)
    assert {task.task for task in seen_of(proposed, leaking).tasks} == {row.task for row in result.per_task}


def test_no_view_holds_a_truth(told, built):
    one, _, _ = told
    with toy.rooted(built):
        text = view_of(one.journal, 4, 2).model_dump_json()
        for split in ("train", "validation", "test"):
            for family, target in list_tasks(split):
                values = cached_task(family, target).truth.values.flatten().tolist()
                assert not [value for value in values if value % 1 and f"{value:.6g}" in text]


def test_a_slot_sees_earlier_batches_and_its_own_as_far_as_it_was_proposed(told):
    journal = told[0].journal
    seen = [(len(view.seen), len(view.pending)) for view in (view_of(journal, slot, 2) for slot in range(5))]
    assert seen == [(0, 0), (0, 1), (2, 0), (2, 1), (4, 0)]
    kinds = [event.event for event in journal.events]
    assert kinds == ["started", "proposed", "proposed", "result", "result", "proposed", "proposed", "result", "result"]


def test_lineage_and_differences_are_in_the_journal(told):
    journal = told[0].journal
    first, *_, last = journal.of(Proposed)
    assert (first.operator, first.parents, first.diff) == ("draw", (), "")
    assert (last.operator, last.parents) == ("change", (1,))
    assert last.diff == "logit_lens: False -> True"
    assert view_of(journal, 4, 2).lineage(3) == (1,)


def test_a_parent_that_was_never_proposed_is_refused(tmp_path):
    class Wrong(Children):
        def propose(self, view: View, slot: int) -> Move:
            return Move(Spec(gradient=True), parents=(7,))

    tasks: dict = {"train": [], "validation": []}
    one = Campaign(tmp_path, Wrong(0), tasks, None, 1, print, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"parents \[7\] were never proposed"):
        one.run(lambda result: None)


def test_what_a_method_says_is_one_line_and_names_no_held_out_family(graph, tmp_path):
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "fails.py").write_text(FAILS, encoding="utf-8")
    tasks = {split: list_tasks(split) for split in ("train", "validation")}
    author = FilesResearcher(0, folder)
    one = Campaign(tmp_path / "c", author, tasks, settings(), 1, lambda said: None, 1, ["prompt_optimum"])
    one.run(lambda result: None)
    (result,) = one.journal.of(Result)
    (seen,) = view_of(one.journal, 4, 4).seen
    assert result.status == "failed" and "canary" in seen.reason and "few_shot_shapley" not in result.reason
    assert len(seen.reason) <= MAX_REASON and seen.reason.isprintable()


def test_text_is_made_fit_to_be_shown():
    assert one_line("a\n b\x1b[0m\t c") == "a b [0m c" and len(one_line("x" * 999)) == MAX_REASON


def entry(slot: int, rewards: tuple[float, ...], value: float | None, parents: tuple[int, ...] = ()) -> Seen:
    numbers = {"low": 0.0, "high": 0.0, "noise_floor": 0.0, "gain": 0.0, "flops": 0.0, "used_answer": 0.0}
    tasks = tuple(
        TaskSeen(task=f"t{i}", kind="Represent" if i else "Steer", status="ok", reason="", reward=reward, **numbers)
        for i, reward in enumerate(rewards)
    )
    return Seen(
        slot=slot, name="x", spec={}, choices={}, operator="", parents=parents, status="ok", reason="", feedback=0.0,
        value=value, accepted=False, tasks=tasks, interpret_bytes=0, judged=0,
    )  # fmt: skip


def test_the_archive_is_a_fold_over_results():
    view = View(
        slot=4,
        seen=(
            entry(0, (0.1, 0.4), 0.25), entry(1, (0.3, 0.1), 0.2, (0,)), entry(2, (0.1, 0.1), 0.1, (1, 0)),
            entry(3, (), None),
        ),
        pending=(),
    )  # fmt: skip
    assert [one.slot for one in view.scored()] == [0, 1, 2]
    assert [one.slot for one in view.front()] == [0, 1], "2 is nowhere better"
    assert [one.slot for one in view.best_by_kind("Steer")] == [1, 0, 2]
    assert view.lineage(2) == (1, 0) and view.seen[0].train == 0.25 and view.seen[3].train is None


def test_differences_of_sources_are_diffs():
    found = difference({"file": "a", "source": "x\ny\n"}, {"file": "a", "source": "x\nz\n"})
    assert "-y" in found and "+z" in found


def test_the_summary_of_a_campaign_has_no_finer_number_than_the_gate_gives(graph):
    from stages.research.stage import campaign

    summary = campaign("random", 2, 0, "mine", lambda said: None)
    assert not [name for name in type(summary.iterations[0]).model_fields if name.startswith("validation_l")]
    feedback = [one.feedback for one in Journal(paths.campaign_dir("mine") / "events.jsonl").of(Result)]
    assert [one.validation_reward for one in summary.iterations] == feedback and CAMPAIGN.name == "campaign"

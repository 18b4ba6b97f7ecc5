"""`score_method` with a method of this session: what each outcome leaves, and the verdict in words."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest

from stages.contracts.arms import Answered
from stages.contracts.method import Interpretation, Method, Represent
from stages.contracts.reward_rows import LEADERBOARD, TRAIN, StatementRow
from stages.errors import InfraError, MethodError, UserError
from stages.reward.inference import holm
from stages.scoring import score
from stages.scoring.candidate import Source
from stages.scoring.in_process import InProcess
from stages.scoring.score import score_method, verdict_text
from tests import toy

TASKS = ["active_learning.digits_mlp", "few_shot_shapley.digits_few_shot"]


class Outputs(Method):
    def interpret(self, target, budget):
        return Interpretation({}, {"seen": target.spec.name})

    def answer(self, query, interpretation, target):
        return target.forward(query.inputs).outputs.flatten(1) if isinstance(query, Represent) else None


class Gradient(Outputs):
    name = "gradient"


class Broken(Outputs):
    def __init__(self):
        raise RuntimeError("no settings")


def scored(method, **options):
    return score_method(method, **({"progress": lambda said: None, "fresh": False} | options))


def test_a_class_is_scored_in_this_session(graph):
    said = []
    result = score_method(Outputs, progress=said.append)
    assert said == ["interpret", "answers, assisted and placebo arms on 2 tasks"]
    assert (result.method, result.outcome, result.reason, result.layer) == ("outputs", "ok", "", "")
    keys = [(row.split, -row.reward_mean, row.method) for row in result.rows]
    assert keys == sorted(keys) and len(keys) == 2 * (len(toy.METHODS) + 1)
    mine = {row.split: row for row in result.rows if row.method == "outputs"}
    assert result.verdict == mine["validation"].verdict and result.verdict_text.startswith("On this validation")
    assert [row.task for row in result.per_task] == TASKS == [row.task for row in result.meters]
    assert [row.task for row in result.fresh_gap] == TASKS[:1] and result.null == ()
    assert [row.outcome for row in result.meters] == ["ok", "declined"]
    assert result.meters[0].flops_target > 0 == result.meters[0].flops_own
    host = InProcess(score.settings().interpretation)
    frozen = host.freeze(score.candidate_of(Outputs), ["digits_mlp", "digits_few_shot"])
    assert result.interpret_bytes == sum(one.n_bytes for one in frozen.values()) and result.interpret_cpu_s == 0


def test_only_some_tasks_and_one_split(graph):
    result = scored(Outputs(), only=[("active_learning", "digits_mlp")])
    assert [row.task for row in result.per_task] == TASKS[:1]
    mine = [row for row in result.rows if row.method == "outputs"]
    assert [row.split for row in mine] == ["train"] and result.verdict == mine[0].verdict
    assert result.fresh_gap == ()


def test_a_built_in_ones_name_is_not_taken(graph):
    result = scored(Gradient)
    assert result.method == "gradient_of_yours"
    assert sorted(row.method for row in result.rows if row.split == "train") == sorted(
        [*toy.METHODS, "gradient_of_yours"]
    )


def test_its_null_is_of_both_splits(graph):
    said = []
    result = score_method(Outputs, fresh=False, null=True, progress=said.append)
    assert sorted(row.task for row in result.null if row.task != "all") == sorted(TASKS) and "its null" in said[-1]
    assert {row.method for row in result.null} == {"outputs"}


def test_only_the_tasks_about_some_targets(graph):
    result = scored(Outputs(), targets=["digits_few_shot"])
    assert [row.task for row in result.per_task] == TASKS[1:]
    assert {(row.method, row.split, row.n_tasks) for row in result.rows} == {("outputs", "validation", 1)}
    with pytest.raises(UserError, match="about the target 'small_cnn': take digits_few_shot, digits_mlp"):
        scored(Outputs(), targets=["digits_mlp", "small_cnn"])


def test_methods_that_were_not_scored_have_no_rows(graph):
    for file in (TRAIN, LEADERBOARD):
        file.path().unlink()
    result = scored(Outputs)
    assert {row.method for row in result.rows} == {"outputs"} and len(result.rows) == 2
    with pytest.raises(UserError, match="baseline"):
        (graph / "data" / "execution" / "baseline").rename(graph / "elsewhere")
        scored(Outputs)


def test_what_is_no_method_is_refused(graph, tmp_path):
    with pytest.raises(UserError, match="int is no subclass of Method"):
        scored(int)
    with pytest.raises(MethodError, match="RuntimeError: no settings") as caught:
        scored(Broken)
    assert "constructible without arguments" in str(caught.value) and "Broken" in str(caught.value)
    for path in (tmp_path, tmp_path / "none.py", str(tmp_path / "none.py")):
        with pytest.raises(UserError, match="is not a file"):
            scored(path)


@contextlib.contextmanager
def noting(notes):
    @contextlib.contextmanager
    def stage_run(*of):
        notes.append(of)
        log = SimpleNamespace(tag=notes.append)
        yield type("Log", (), {"tag": staticmethod(log.tag), "__call__": lambda self, values: notes.append(values)})()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score.tracking, "stage_run", stage_run)
        yield


def test_what_is_logged(graph):
    notes = []
    with noting(notes):
        result = scored(Outputs)
    mine = {f"{row.split}/reward": row.reward_mean for row in result.rows if row.method == "outputs"}
    tags = {"lensmith.kind": "score", "outcome": "ok"}
    assert notes == [("score outputs", {"method": "outputs"}), tags, mine] and len(mine) == 2


@pytest.mark.parametrize(("status", "again"), [("void", False), ("infra", True)])
def test_what_is_no_score_says_so_and_whose_fault_it_is(graph, monkeypatch, status, again):
    monkeypatch.setattr(InProcess, "ask", lambda *of: Answered(status, None, 2.0, 0.0, "a reason", "a wall"))
    result = scored(Outputs, null=True)
    assert (result.outcome, result.verdict, result.layer) == (status, status, "a wall")
    assert result.reason == f"{TASKS[0]}: a reason" and result.per_task == () == result.null
    words = f"outputs is {status}, which is no score: {TASKS[0]}: a reason."
    assert result.verdict_text == words + (" That is not the method's fault: run it again." if again else "")
    assert "outputs" not in {row.method for row in result.rows} and len(result.rows) == 2 * len(toy.METHODS)
    assert [row.flops_target for row in result.meters] == [100.0, 100.0]


def test_failing_is_a_score(graph, monkeypatch):
    monkeypatch.setattr(InProcess, "ask", lambda *of: Answered("failed", None, 0.0, 0.0, "it broke", "a wall"))
    result = scored(Outputs)
    assert (result.outcome, result.layer) == ("failed", "a wall")
    assert "It failed on few_shot_shapley.digits_few_shot (it broke), and pays" in result.verdict_text


def test_machinery_that_fails_at_once_is_to_be_run_again(graph, monkeypatch):
    monkeypatch.setattr(InProcess, "freeze", lambda *of: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(InfraError, match=r"no process for the method could be made .disk.: run it again"):
        scored(Outputs)
    monkeypatch.undo()
    with toy.rooted(graph):

        @contextlib.contextmanager
        def dead(n_jobs):
            yield lambda work: (_ for _ in ()).throw(MemoryError("none left"))

        monkeypatch.setattr(score, "process_pool", dead)
        with pytest.raises(InfraError, match="MemoryError: none left: run it again"):
            scored(Outputs)


class StandIn(InProcess):
    """In place of the sandbox: what it was made and asked with."""

    made: ClassVar[list] = []

    def __init__(self, config, timeout_s=None, trust=None):
        super().__init__(config)
        self.made.append((timeout_s, trust))

    def freeze(self, candidate, targets, asked=None):
        assert isinstance(candidate.what, Source)
        self.made.append((candidate, targets, {t: len(a) for t, a in asked.items()}))
        known = InProcess.freeze(self, replace(candidate, what=Outputs()), targets)
        return {name: replace(one, cpu_s=0.12345) for name, one in known.items()}

    def ask(self, candidate, frozen, task, target):
        return InProcess.ask(self, replace(candidate, what=Outputs()), frozen, task, target)


def test_a_file_goes_to_the_sandbox_with_its_limits_and_all_questions(graph, tmp_path, monkeypatch):
    file = tmp_path / "=my file.py"
    file.write_text("text", encoding="utf-8")
    monkeypatch.setattr(score, "Isolated", StandIn)
    monkeypatch.setattr(StandIn, "made", [])
    for options, n in (({"timeout_s": 7.0, "trust": True}, 1), ({"fresh": True}, 2)):
        said = []
        result = scored(file, progress=said.append, **options)
        limits, (candidate, targets, asked) = StandIn.made[-2:]
        assert limits == ((7.0, True) if "trust" in options else (120.0, False))
        assert candidate.name == result.method == "_my_file" and candidate.what == Source("=my file.py", "text")
        assert targets == ["digits_few_shot", "digits_mlp"] and set(asked.values()) == {n}
        assert said[0] == "interpret, and record the answers" and result.interpret_cpu_s == 0.247


def row_with(**values):
    return LEADERBOARD.load()[0].model_copy(update={"method": "mine", "unseen_share": 0.0} | values)


def judged_as(name, status, reason=""):
    return SimpleNamespace(task=SimpleNamespace(name=name), arms=SimpleNamespace(status=status, reason=reason))


SAID = StatementRow(
    method="mine", split="validation", scope="tasks", value=0.5, low=0.25, high=0.75, n=2, p=0.001, p_holm=0.004,
    verdict="better", visible=0.2, improvement=1.0, noise_floor=0.125,
)  # fmt: skip


def test_a_verdict_in_words(graph):
    numbers = {"reward_mean": 0.5, "reward_low": 0.25, "reward_high": 0.75, "noise_floor": 0.125, "n_tasks": 2,
               "n_seeds": 3, "placebo_low": -0.5, "placebo_high": 0.5}  # fmt: skip
    better = row_with(**numbers, placebo_reward=0.25, verdict="better")
    wide = {"scope": "families", "low": -0.5, "high": 1.5, "p": 0.2, "p_holm": 0.2, "visible": 1.4}
    wide |= {"verdict": "not distinguishable"}
    assert verdict_text([SAID, SAID.model_copy(update=wide)], better, [judged_as("a.b", "ok")]) == (
        "On these 2 validation tasks mine is better than the agent alone: +0.500 [+0.250, +0.750], smallest visible"
        " 0.200. On families like these (2 validation families) mine is not distinguishable from the agent alone:"
        " +0.500 [-0.500, +1.500], smallest visible 1.400. The noise floor is 0.125, n = 2 tasks x 3 seeds. Its"
        " placebo, the same answers in shuffled order, did not do as well (+0.250 [-0.500, +0.500])."
    )
    helped = " So what helped is not what the answers say."
    for placebo, verdict, well in ((0.375, "better", True), (0.5, "worse", True), (0.374, "better", False)):
        text = verdict_text([SAID], row_with(**numbers, placebo_reward=placebo, verdict=verdict), [])
        assert (" did as well " in text) == well and text.endswith(helped) == (well and verdict == "better")
    assert "is worse than the agent alone" in verdict_text([SAID.model_copy(update={"verdict": "worse"})], better, [])


def test_all_three_sentences_are_corrected_with_the_built_in_methods(graph):
    result = scored(Outputs)
    mine = [row for row in result.statements if row.method == "outputs"]
    assert {row.split for row in mine} == {"train", "validation", "train+validation"}
    assert [row.scope for row in mine if row.split == "train"] == ["tasks", "kind", "families"]
    # It declines the validation task, so nothing is said of a kind of question there.
    shown = [row for row in mine if row.split == "validation"]
    assert [row.scope for row in shown] == ["tasks", "families"]
    assert all(row.sentence[1:] in result.verdict_text for row in shown)
    tested = [row.p for row in result.statements if (row.split, row.scope) == ("train", "tasks")
              and row.p is not None and not row.is_control]  # fmt: skip
    here = next(row for row in mine if (row.split, row.scope) == ("train", "tasks"))
    assert here.p in tested and here.p_holm == pytest.approx(holm(tested)[tested.index(here.p)], abs=1e-6)
    verdicts = {(row.split, row.method): row.verdict for row in result.statements if row.scope == "tasks"}
    assert all(row.verdict == verdicts[row.split, row.method] for row in result.rows)


def test_a_verdict_tells_what_went_unseen_failed_and_declined(graph):
    for share, said, barred in ((0.0, "", False), (0.01, "up to 1% of", False), (0.02, "up to 2% of", True)):
        text = verdict_text([SAID], row_with(unseen_share=share), [])
        assert said in text and ("It is adaptive" in text) == (share > 0)
        assert ("it is not called better for that." in text) == barred
    judged = [judged_as("a", "failed", "x"), judged_as("b", "ok"), judged_as("c", "declined"),
              judged_as("d", "failed", "y"), judged_as("e", "declined")]  # fmt: skip
    text = verdict_text([SAID], row_with(), judged)
    assert text.endswith(" It failed on a (x); d (y), and pays for that in full. It declined c, e.")

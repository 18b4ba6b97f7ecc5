"""From a method to arms: who freezes what, what each outcome leaves, and that nothing a method does is raised."""

from dataclasses import replace

import numpy as np
from joblib import Parallel

from stages.contracts.arms import Answered
from stages.errors import InfraError, MethodError
from stages.interpretation.loading import built_in
from stages.scoring.cached import cached_task
from stages.scoring.candidate import Candidate, Frozen, Source
from stages.scoring.evaluate import Evaluation, TaskResult, evaluate, questions, stage_baseline
from stages.scoring.settings import settings

TASKS = [("active_learning", "digits_mlp"), ("few_shot_shapley", "digits_few_shot")]
NAMES = ["active_learning.digits_mlp", "few_shot_shapley.digits_few_shot"]
BUILT_IN = Candidate("x", built_in("nothing"))
SOURCE = Candidate("y", Source("y.py", ""))


class Answers:
    """A host that answers as it is told to, by target, and remembers what it was asked."""

    def __init__(self, said=None, fails=None):
        self.said, self.fails, self.frozen = said or {}, fails, []

    def freeze(self, candidate, targets, asked=None):
        self.frozen.append((list(targets), asked))
        if self.fails:
            raise self.fails
        return {target: Frozen(target.encode(), b"{}") for target in targets}

    def ask(self, candidate, frozen, task, target):
        assert frozen.arrays.decode() == task.target_name == target.name
        said = self.said.get(target.name, Answered("declined", None, 0.0, 0.0))
        if isinstance(said, BaseException):
            raise said
        return said


def on_both(host, **options):
    return evaluate(options.pop("candidate", BUILT_IN), TASKS, host, settings().execution, **options)


def test_results_are_in_the_order_of_the_tasks_and_sizes_are_summed(graph):
    for pool in (None, Parallel(n_jobs=1)):
        host = Answers()
        done = on_both(host, pool=pool)
        assert (done.outcome, done.reason, done.layer, done.scored) == ("ok", "", "", True)
        assert [one.task for one in done.results] == NAMES == list(done.arms)
        assert done.n_bytes == sum(len(target) + 2 for _, target in TASKS)
        assert {arms.status for arms in done.arms.values()} == {"declined"}
        assert done.arms[NAMES[0]].assisted == stage_baseline(NAMES[0]).first and done.error is None
        together = [["digits_few_shot", "digits_mlp"]]
        assert [targets for targets, _ in host.frozen] == (together if pool is None else [[t] for t in together[0]])
        assert {asked for _, asked in host.frozen} == {None}


def test_source_is_frozen_in_one_go_with_all_its_questions(graph):
    for pool in (None, Parallel(n_jobs=1)):
        host = Answers()
        assert on_both(host, candidate=SOURCE, pool=pool).outcome == "ok"
        ((targets, asked),) = host.frozen
        assert targets == ["digits_few_shot", "digits_mlp"] and set(asked) == set(targets)
        assert [len(asked[target]) for target in targets] == [1, 1]


def test_what_is_known_is_not_frozen_again(graph):
    host = Answers()
    known = {target: Frozen(target.encode(), b"") for _, target in TASKS}
    assert on_both(host, frozen=known).frozen == known and host.frozen == []


def test_failing_to_interpret_is_failed_on_every_task_at_the_baselines_price(graph):
    error = MethodError("x", "interpret", "no idea", "Think.", "a wall")
    done = on_both(Answers(fails=error))
    assert (done.outcome, done.reason, done.layer, done.error) == ("failed", str(error), "a wall", error)
    assert done.scored and dict(done.frozen) == {} and [one.task for one in done.results] == NAMES
    for result in done.results:
        assert result.answered == Answered("failed", None, 0.0, 0.0, "interpret failed", "a wall")
        assert result.arms.status == "failed" and result.arms.assisted == stage_baseline(result.task).first


def test_machinery_that_fails_before_any_answer_leaves_no_result(graph):
    done = on_both(Answers(fails=InfraError("the disk\n is full")))
    assert done.outcome == done.layer == "infra" and not done.scored and list(done.results) == []
    assert done.reason == "the machinery failed: InfraError: the disk is full"
    assert len(on_both(Answers(fails=OSError("x" * 900))).reason) == 500

    class Dies:
        def __call__(self, work):
            raise InfraError("a worker was killed")

    known = {target: Frozen(target.encode(), b"") for _, target in TASKS}
    done = on_both(Answers(), pool=Dies(), frozen=known)
    assert done.outcome == done.layer == "infra" and done.frozen == known and list(done.results) == []


def test_the_worst_outcome_is_told_with_its_task(graph):
    failed = Answered("failed", None, 2.0, 3.0, "it broke", "op prices")
    done = on_both(Answers({"digits_few_shot": failed}))
    assert (done.outcome, done.layer) == ("failed", "op prices")
    assert done.reason == "few_shot_shapley.digits_few_shot: it broke" and set(done.arms) == set(NAMES)
    base = stage_baseline(NAMES[1]).first
    assert [arm.flops for arm in done.arms[NAMES[1]].assisted] == [arm.flops + 5.0 for arm in base]
    done = on_both(Answers({"digits_mlp": failed, "digits_few_shot": OSError("gone")}))
    assert done.outcome == done.layer == "infra" and not done.scored and set(done.arms) == {NAMES[0]}
    assert done.reason == "few_shot_shapley.digits_few_shot: the machinery failed: OSError: gone"
    assert (done.results[1].answered.rows, done.results[1].answered.flops) == (None, 0.0)
    done = on_both(Answers({"digits_mlp": replace(failed, status="void")}), extra=lambda *of: 1)
    assert done.outcome == "void" and done.results[0] == TaskResult(NAMES[0], replace(failed, status="void"), None)
    assert done.results[1].extra == 1


def test_the_caller_learns_what_it_asks_of_an_answer(graph):
    rows = np.ones((50, 1, 1))
    host = Answers({"digits_mlp": Answered("ok", rows, 10.0, 10.0)})
    seen = []

    def extra(host_, candidate, frozen, answered, task, target):
        seen.append((host_ is host, candidate is BUILT_IN, frozen.arrays, answered.status, task.name, target.name))
        return len(seen)

    done = on_both(host, extra=extra)
    assert [one.extra for one in done.results] == [1, 2]
    assert seen[0] == (True, True, b"digits_mlp", "ok", NAMES[0], "digits_mlp") and seen[1][3] == "declined"
    assert [one.extra for one in on_both(host).results] == [None, None]


def test_the_placebo_arm_is_the_baseline_where_it_is_not_wanted(graph):
    truth = cached_task(*TASKS[0]).truth.values.numpy()[..., None]
    host = Answers({"digits_mlp": Answered("ok", truth, 0.0, 1.0)})
    first = stage_baseline(NAMES[0]).first
    with_it, without = on_both(host).arms[NAMES[0]], on_both(host, placebo=False).arms[NAMES[0]]
    spent = [arm.explored_flops for arm in first]  # an answer that is looked at costs a FLOP
    assert [arm.explored_flops for arm in without.placebo] == spent
    assert all(arm.explored_flops > before for arm, before in zip(with_it.placebo, spent, strict=True))
    assert any(arm.used_answer for arm in without.assisted)


def test_the_baseline_is_the_one_that_is_given(graph):
    def other(name):
        known = stage_baseline(name)
        return replace(known, first=[replace(arm, flops=arm.flops + 1) for arm in known.first])

    for fails in (None, MethodError("x", "interpret", "no", "")):
        done = on_both(Answers(fails=fails), baseline=other)
        for name in NAMES:
            wanted = [arm.flops + 1 for arm in stage_baseline(name).first]
            assert [arm.flops for arm in done.arms[name].assisted] == wanted


def test_questions_are_asked_of_all_instances_and_of_as_many_as_fresh_ones(graph):
    again = [TASKS[0], TASKS[0], TASKS[1]]
    assert {target: len(asked) for target, asked in questions(again).items()} == {"digits_mlp": 2, "digits_few_shot": 1}
    (plain,) = questions(TASKS[:1])["digits_mlp"]
    assert plain.question.inputs.shape[0] == 50
    for n, found in ((16, [50, 16]), (50, [50, 50])):
        asked = questions(TASKS[:1], lambda task, n=n: n)["digits_mlp"]
        assert [one.question.inputs.shape[0] for one in asked] == found


def test_an_evaluation_without_scores_has_no_size_of_its_own():
    empty = Evaluation("infra", "", "", [])
    assert empty.n_bytes == 0 and empty.arms == {} and not empty.scored
    assert Evaluation("failed", "", "", []).scored

"""The whole loop on the toy graph: campaign, kill, resume, sealed test split."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import delayed
from rich.console import Console

from flows.terminal import leaderboard_rows, print_leaderboard
from stages.base import paths
from stages.base.code import closure
from stages.base.params import load
from stages.base.processes import process_pool
from stages.contracts.journal import Infra, Result, TestOpened, TestResult
from stages.contracts.measurement_rows import FRESH, NULL
from stages.contracts.research_rows import TEST_PATH
from stages.contracts.reward_rows import TEST_PER_TASK, TEST_STATEMENTS
from stages.errors import UserError
from stages.report.listing import leaderboard_table
from stages.report.wording import signed
from stages.research import campaign as loop
from stages.research import sealed_test
from stages.research.journal import Journal
from stages.research.live import compare_live
from stages.research.path import expected_largest, noise_of, path_rows
from stages.research.researchers import make_researcher
from stages.research.stage import Config, campaign, run
from stages.reward.statements import statements
from stages.scoring import fresh, null
from stages.scoring.candidate import Candidate, Source
from stages.scoring.evaluate import Evaluation
from stages.scoring.settings import settings
from stages.tasks.storage import list_tasks
from tests import toy
from tests.conftest import copied
from tests.report.conftest import per_task
from tests.sandbox.walls import needs_sandbox


def outputs(root: Path) -> dict[str, bytes]:
    files = [
        *(
            root / "metrics" / f"{name}.json"
            for name in ("campaign", "test", "test_per_task", "test_statements", "test_path")
        ),
        *(root / "data" / "research" / "campaign" / name for name in ("events.jsonl", "theta.json")),
        root / "data" / "research" / "sealed_test" / "events.jsonl",
    ]
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def uninterrupted(built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = copied(built, tmp_path_factory.mktemp("uninterrupted") / "graph")
    with toy.rooted(root):
        run(load("research", Config), progress=lambda said: None)
        sealed_test.run(progress=lambda said: None)
        return outputs(root)


def test_campaign_writes_what_it_promises(uninterrupted):
    events = [json.loads(line) for line in uninterrupted["data/research/campaign/events.jsonl"].decode().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds == ["fingerprint", "started", *["proposed"] * 3, *["result"] * 3]
    opened = uninterrupted["data/research/sealed_test/events.jsonl"]
    assert opened.startswith(uninterrupted["data/research/campaign/events.jsonl"])
    assert [json.loads(line)["event"] for line in opened.splitlines()[len(events) :]] == ["test_opened", "test_result"]
    rows = json.loads(uninterrupted["metrics/test.json"])
    methods = {row["method"] for row in rows}
    assert {*toy.METHODS, "oracle"} < methods and len(methods) == len(toy.METHODS) + 2
    assert sum(row["found"] for row in rows) == 1
    assert {row["opening"] for row in rows} == {1}
    assert all(row["split"] == "test" for row in rows)
    theta = json.loads(uninterrupted["data/research/campaign/theta.json"])
    assert len(theta["trials"]) == 3
    summary = json.loads(uninterrupted["metrics/campaign.json"])
    assert [i["iteration"] for i in summary["iterations"]] == [0, 1, 2]


def test_no_family_that_is_held_out_is_in_what_a_researcher_learns(uninterrupted):
    events = [json.loads(line) for line in uninterrupted["data/research/campaign/events.jsonl"].decode().splitlines()]
    theta = uninterrupted["data/research/campaign/theta.json"].decode()
    learned = json.dumps([e for e in events if e["event"] in ("proposed", "result")]) + theta
    for family, split in toy.FAMILIES.items():
        assert (family in learned) == (split["split"] == "train")


def test_every_method_has_a_fresh_instance_gap_and_it_is_a_function_of_what_was_frozen(graph, uninterrupted):
    (graph / "metrics" / "campaign.json").write_bytes(uninterrupted["metrics/campaign.json"])
    rows = fresh.run()
    found = json.loads(uninterrupted["metrics/campaign.json"])["incumbent"]["name"]
    over_all = {row.method: row for row in rows if row.task == "all"}
    assert set(over_all) == {*toy.METHODS, found}
    assert over_all["nothing"].outcome == "declined" and over_all["nothing"].n_tasks == 0
    answered = [row for row in rows if row.outcome == "ok"]
    assert answered and all(row.gap_low <= row.gap <= row.gap_high for row in answered)
    assert all(abs(row.gap - (row.old - row.fresh)) < 2e-6 for row in answered)
    assert not any(row.split == "test" for row in rows) and rows == FRESH.load()
    first = (graph / "metrics" / "fresh.json").read_bytes()
    fresh.run()
    assert (graph / "metrics" / "fresh.json").read_bytes() == first


def test_every_method_has_its_null_and_the_tables_show_it(graph, uninterrupted, capsys):
    (graph / "metrics" / "campaign.json").write_bytes(uninterrupted["metrics/campaign.json"])
    rows = null.run()
    found = json.loads(uninterrupted["metrics/campaign.json"])["incumbent"]["name"]
    assert {row.method for row in rows} == {*toy.METHODS, found} and NULL.load() == rows
    assert {row.outcome for row in rows} <= {"ok", "declined"} and not any(row.split == "test" for row in rows)
    board = leaderboard_rows("validation")
    print_leaderboard(Console(width=200), board, "leaderboard")
    shown = capsys.readouterr().out
    means = {row.method: row.reward for row in rows if (row.task, row.split) == ("all", "validation")}
    assert set(toy.METHODS) <= set(means) and all(f"{means[row.method]:+.3f}" in shown for row in board)
    table = leaderboard_table(board, "", nulls=rows)
    at = next(i for i, head in enumerate(table.columns) if "untrained" in head.name)
    assert all(signed(means[row.method]) in cells[at].text for row, cells in zip(board, table.rows, strict=True))
    assert not any("untrained" in head.name for head in leaderboard_table(board, "").columns)


SCRIPT = """
from stages.base import paths
from stages.errors import run_stage
from stages.research import sealed_test, stage
if not paths.metrics_file("campaign").exists():  # a node that is done is not run again
    run_stage(lambda: stage.main)
run_stage(lambda: sealed_test.main)
"""


def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(graph, uninterrupted):
    """kill -9 the process group at several moments; the outputs are the uninterrupted ones, byte for byte."""
    environment = os.environ | {"PYTHONPATH": str(toy.ROOT)}
    journal_seen = []
    rng = random.Random(3)
    for moment in sorted(rng.uniform(3.0, 16.0) for _ in range(int(os.environ.get("LENSMITH_KILL_MOMENTS", "3")))):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=toy.ROOT,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(moment)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        working = list((graph / ".lensmith" / "campaigns").glob("*/events.jsonl"))
        if working:
            before = Journal(working[0]).events
            assert before[: len(journal_seen)] == journal_seen, "a past event changed"
            journal_seen = before
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=toy.ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert outputs(graph) == uninterrupted
    assert not list((graph / ".lensmith" / "campaigns").iterdir())
    assert not list((graph / ".lensmith" / "sealed").iterdir())


def test_a_campaign_of_ones_own_continues_with_a_larger_budget_and_never_opens_the_test_split(graph):
    said: list[str] = []
    first = campaign("random", 1, 0, "mine", said.append)
    again = campaign("random", 2, 0, "mine", said.append)
    assert again.iterations[0] == first.iterations[0]
    assert any("continuing after iteration 1" in line for line in said)
    events = Journal(paths.campaign_dir("mine") / "events.jsonl")
    assert [event.iteration for event in events.of(Result)] == [0, 1]
    assert not events.of(TestOpened)


def test_other_settings_under_the_same_name_are_refused(graph):
    campaign("random", 1, 0, "mine", lambda said: None)
    with pytest.raises(UserError, match=r"started with other settings.*choose another --name"):
        campaign("random", 1, 5, "mine", lambda said: None)


NO_METHOD = {"syntax.py": "def f(:\n", "nothing.py": "x = 1\n"}


def test_a_cascade_asks_validation_only_about_what_is_better_on_train(graph, tmp_path):
    from stages.research.files_researcher import FilesResearcher
    from stages.research.programs.emitting import alone, emit
    from stages.research.programs.grammar import NONE, every_fragment
    from stages.research.stage import _conduct, fingerprint, summary
    from stages.scoring.evaluate import Evaluation
    from stages.scoring.settings import settings

    folder = tmp_path / "methods"
    folder.mkdir()
    for name, text in NO_METHOD.items():
        (folder / name).write_text(text, encoding="utf-8")
    some = [one for one in every_fragment("Represent") if one.source != NONE][:3]
    for number, one in enumerate(some):
        (folder / f"program_{number}.py").write_text(emit(alone(one)), encoding="utf-8")
    author = FilesResearcher(0, folder)
    key = fingerprint(author, 1, settings(), cascade=True)
    one = _conduct(author, 5, tmp_path / "c", lambda said: None, key, cascade=True)
    results = {result.spec["file"]: result for result in one.journal.of(Result)}
    for name in NO_METHOD:
        assert (results[name].reached, results[name].status, results[name].objective) == ("import", "failed", 0.0)
    best = 0.0
    for number in range(3):
        result = results[f"program_{number}.py"]
        assert result.train is not None and (result.reached == "validation") == (result.train.reward_mean > best)
        assert (result.feedback is None) == (result.reached == "train")
        assert result.objective == pytest.approx((result.train.reward_mean + (result.feedback or 0.0)) / 2)
        best = result.train.reward_mean if result.accepted else best
    worst = one._result(one._proposed(0), Evaluation("void", "it cheated on few_shot_shapley", "", []))
    assert worst.reason == "it cheated on held out"
    rows = summary(one, "c").iterations
    assert [row.reached for row in rows] == [results[str(row.spec["file"])].reached for row in rows]


@pytest.mark.parametrize(("cascade", "reached"), [(False, "validation"), (True, "train")])
def test_a_proposal_without_a_score_came_as_far_as_it_was_tried(graph, tmp_path, monkeypatch, cascade, reached):
    from stages.research import campaign as loop
    from stages.research.researchers import make_researcher
    from stages.research.view import view_of
    from stages.scoring.evaluate import Evaluation
    from stages.scoring.settings import settings
    from stages.tasks.storage import list_tasks

    monkeypatch.setattr(loop, "evaluate", lambda *given, **named: Evaluation("void", "too good", "review", []))
    tasks = {split: list_tasks(split) for split in ("train", "validation")}
    one = loop.Campaign(
        tmp_path, make_researcher("random", 0), tasks, settings(), 1, lambda said: None, 1, cascade=cascade
    )
    one.run(lambda result: None)
    (result,) = one.journal.of(Result)
    assert (result.status, result.reached, result.objective) == ("void", reached, None)
    (seen,) = view_of(one.journal, 4, 4).seen
    assert seen.value is None and seen.tasks == () and seen.feedback is None


def test_two_campaigns_of_programs_write_the_same_journal(graph):
    for name in ("one", "two"):
        campaign("programs", 2, 0, name, lambda said: None)
    first, second = (paths.campaign_dir(name) for name in ("one", "two"))
    for file in ("events.jsonl", "theta.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    results = Journal(first / "events.jsonl").of(Result)
    assert [result.status for result in results] == ["ok", "ok"] and "class Program(Method)" in str(results[0].spec)


@needs_sandbox
def test_researchers_are_compared_in_campaigns_and_a_larger_budget_continues_them(graph, tmp_path):
    """Rows are those of the journals; the second comparison tries only what the first had not."""
    first = {row.researcher: row for row in compare_live(["random", "programs"], 1, 2, lambda said: None)}
    journals = {who: campaign_journal(f"live-{who}-1") for who in ("random", "programs")}
    said: list[str] = []
    rows = {row.researcher: row for row in compare_live(["random", "programs"], 2, 2, said.append)}
    for who, before in journals.items():
        assert campaign_journal(f"live-{who}-1")[: len(before)] == before
        assert rows[who].train >= first[who].train and (rows[who].n, rows[who].seeds) == (2, 2)
        trains = []
        for seed in (0, 1):
            results = Journal(paths.campaign_dir(f"live-{who}-{seed}") / "events.jsonl").of(Result)
            trains.append(max(0.0, *(one.train.reward_mean if one.train else 0.0 for one in results)))
        assert rows[who].train == pytest.approx(sum(trains) / 2, abs=1e-5)
    assert sum("continuing after iteration 1 of 2" in one for one in said) == 4
    (tmp_path / "stops.py").write_text(
        "from stages.research.researcher import Halt, Researcher\n\n\nclass Stops(Researcher):\n"
        "    def prepare(self, journal, slots):\n        raise Halt('spent', 'nothing is left')\n\n"
        "    def propose(self, view, slot):\n        raise NotImplementedError\n"
    )
    with pytest.raises(
        UserError, match=r"campaign live-stops-0 has 0 of 2 proposals: the last line of .*events.jsonl says"
    ):
        compare_live([str(tmp_path / "stops.py"), "random"], 2, 2, lambda said: None)


def campaign_journal(name: str) -> bytes:
    return (paths.campaign_dir(name) / "events.jsonl").read_bytes()


def test_a_campaign_is_judged_by_the_workers_of_a_dask_cluster_and_its_journal_is_the_same(graph, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="the extra 'dask' is not installed")
    monkeypatch.delenv("LENSMITH_DASK", raising=False)
    campaign("random", 2, 2, "here", lambda said: None, workers=1)
    shutil.rmtree(graph / ".lensmith" / "arms", ignore_errors=True)  # what is kept there would not be computed again
    options = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": 0, "silence_logs": "ERROR"}
    with distributed.LocalCluster(n_workers=2, **options) as cluster, distributed.Client(cluster) as client:
        monkeypatch.setenv("LENSMITH_DASK", cluster.scheduler_address)
        campaign("random", 2, 2, "there", lambda said: None, workers=2)
        assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter) > 0, "nothing to do"
        client.run(_move)
        with pytest.raises(UserError, match=r"works in /elsewhere and not in .*: start workers in"):
            process_pool(2)
        cluster.scale(0)
        while client.run(os.getpid):
            time.sleep(0.1)
        with pytest.raises(UserError, match="has no worker, so nothing would ever be computed"):
            process_pool(2)  # it was connected before, when there were some
    first, second = (paths.campaign_dir(name) for name in ("here", "there"))
    for file in ("events.jsonl", "theta.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


def _move() -> None:
    """In a worker: as one that was started in another working copy."""
    os.environ["LENSMITH_ROOT"] = "/elsewhere"


@needs_sandbox
def test_the_journal_does_not_hang_on_the_number_of_workers(graph):
    """Five programs in sandboxes of their own, judged by one process and by two: the same bytes."""
    written = []
    for workers in (1, 2):
        campaign("programs", 5, 1, f"by-{workers}", lambda said: None, workers=workers)
        folder = paths.campaign_dir(f"by-{workers}")
        written.append([(folder / file).read_bytes() for file in ("events.jsonl", "theta.json")])
    assert written[0] == written[1]


def campaign_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int, answer, jobs: int = 1):
    monkeypatch.setattr(loop, "evaluate", answer)
    tasks = {split: list_tasks(split) for split in ("train", "validation")}
    return loop.Campaign(tmp_path, make_researcher("random", 0), tasks, settings(), budget, lambda said: None, jobs)


@pytest.mark.parametrize(("broken", "status", "tries"), [(0, "void", 1), (1, "void", 2), (9, "infra", 3)])
def test_what_the_machinery_broke_is_tried_again_and_each_time_is_an_event(
    graph, tmp_path, monkeypatch, broken, status, tries
):
    asked = []

    def answer(*given: object, **named: object) -> Evaluation:
        asked.append(1)
        failed = len(asked) <= broken
        return Evaluation("infra" if failed else "void", "it broke", "infra" if failed else "review", [])

    one = campaign_of(tmp_path, monkeypatch, 1, answer)
    one.run(lambda result: None)
    (result,) = one.journal.of(Result)
    assert (result.status, len(asked), len(one.journal.of(Infra))) == (status, tries, min(broken, 3))


def test_a_method_that_takes_too_long_has_failed_and_is_not_tried_again(graph, tmp_path, monkeypatch):
    """Its time does not hang on what else the machine does, so a second try would end as the first."""
    asked = []

    def answer(*given: object, **named: object) -> Evaluation:
        asked.append(1)
        return Evaluation("failed", "it took longer than 60 s and was stopped", "wall limit", [])

    one = campaign_of(tmp_path, monkeypatch, 1, answer)
    tried = loop.attempt(Candidate("slow", Source("slow.py", "")), one.tasks["train"], one.settings)
    assert (tried.trial.outcome, tried.failures, len(asked)) == ("failed", (), 1)


def test_a_proposal_that_ends_its_worker_is_infra_and_the_others_of_its_batch_are_not(graph, tmp_path, monkeypatch):
    """Which of them a worker ended over is found by trying them one by one."""
    real, void = loop.attempt, Evaluation("void", "looked at", "review", [])

    def answer(candidate, *given: object, pool: Any = None, **named: object) -> Evaluation:
        if candidate.name.endswith("02"):
            try:
                pool([delayed(os._exit)(1)])
            except BrokenProcessPool as error:
                return Evaluation("infra", f"a worker ended: {error}", "infra", [])
        return void

    def attempt(candidate, *given: object, pool: Any = None) -> loop.Tried:
        if pool is not None:
            return real(candidate, *given, pool=pool)
        if candidate.name.endswith("02"):
            os._exit(1)
        return loop.Tried(void, ())

    one = campaign_of(tmp_path, monkeypatch, 4, answer, jobs=2)
    monkeypatch.setattr(loop, "attempt", attempt)
    one.run(lambda result: None)
    assert [result.status for result in one.journal.of(Result)] == ["void", "void", "infra", "void"]
    assert [event.iteration for event in one.journal.of(Infra)] == [2, 2, 2]


def test_what_the_report_says_is_no_part_of_what_a_campaign_depends_on():
    """An edit of the report, of a command or of an exploit orphans no campaign; one of the executor does."""
    rooms = {module.split(".")[1] for module in closure(["stages.research.stage"]) if "." in module}
    assert not rooms & {"report", "redteam", "benchmarks", "tools", "proxies"}
    assert {"execution", "reward", "metering", "tracing", "sandbox"} <= rooms


def test_every_incumbent_is_scored_in_the_one_opening_and_only_the_last_claims_anything(graph, uninterrupted, tmp_path):
    for name in ("data/research/campaign/events.jsonl", "data/research/campaign/theta.json", "metrics/campaign.json"):
        (graph / name).parent.mkdir(parents=True, exist_ok=True)
        (graph / name).write_bytes(uninterrupted[name])
    file = graph / "data" / "research" / "campaign" / "events.jsonl"
    events = Journal(file).events
    file.unlink()
    journal = Journal(file)
    for event in events:
        accepted = {"accepted": event.iteration < 2} if isinstance(event, Result) else {}
        given = {name: getattr(event, name) for name in event.model_fields_set - {"chain"}}
        journal.append(type(event)(**given | accepted))
    results = journal.of(Result)
    sealed_test.run(progress=lambda said: None)
    opened = Journal(graph / "data" / "research" / "sealed_test" / "events.jsonl")
    assert len(opened.of(TestOpened)) == 1 and {results[0].name, results[1].name} < set(
        opened.of(TestOpened)[0].methods
    )
    rows = TEST_PATH.load()
    assert [(row.iteration, row.evaluations, row.asked) for row in rows] == [(0, 1, 1), (1, 2, 2)]
    scored = {row.method: row for row in opened.of(TestResult)[0].rows}
    assert all(
        (row.test, row.validation) == (scored[row.name].reward_mean, results[row.iteration].feedback) for row in rows
    )
    first, second = path_rows(opened, opened.of(TestResult)[0], 0.05)  # the toy's own methods do not vary
    assert first.shrinkage == 0 and second.shrinkage == pytest.approx(0.05 / math.pi**0.5, abs=1e-6)
    for claimed in ("test", "test_per_task", "test_statements"):
        text = (graph / "metrics" / f"{claimed}.json").read_text(encoding="utf-8")
        assert results[0].name not in text and results[1].name in text
    # Nobody's p-value is corrected for an incumbent that was overtaken.
    claims = {row.method for row in TEST_PER_TASK.load()}
    assert (
        set(statements(TEST_PER_TASK.load(), "test")) <= set(TEST_STATEMENTS.load()) and len(claims) == len(scored) - 1
    )


def test_the_largest_of_n_normals_and_the_noise_of_a_mean():
    drawn = np.random.default_rng(0).normal(size=(20_000, 9)).max(1)
    assert expected_largest(9) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / 20_000**0.5)
    assert expected_largest(1) == 0 and expected_largest(2) == pytest.approx(math.pi**-0.5)
    assert expected_largest(100_000) == pytest.approx(4.33, abs=0.1)
    with pytest.raises(ValueError, match="give at least one"):
        expected_largest(0)
    row = per_task(np.random.default_rng(0))[0]
    errors = {"a": (0.03, 0.04), "b": (0.0, 0.0), "c": (0.1, 0.0)}
    rows = [row.model_copy(update={"method": name, "reward_se": one}) for name, of in errors.items() for one in of]
    assert noise_of(rows) == pytest.approx((0.025 + 0.05) / 2) and noise_of(rows[2:4]) == 0

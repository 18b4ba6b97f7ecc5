"""Nodes, and the work inside a stage, on Dask workers: what comes out is what processes here
make.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import dask_runner
from tests.flows.conftest import REPOSITORY, Toy, until
from tests.flows.test_warm import gone, outputs, worker

pytest.importorskip("distributed", reason="the extra 'dask' is not installed")
WORKERS = ["--nworkers", "2", "--nthreads", "1", "--no-dashboard", "--memory-limit", "0"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and a worker with two processes, as two people would start them on two
    machines.
    """
    folder = tmp_path_factory.mktemp("cluster")
    file = folder / "scheduler.json"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "distributed.cli.dask_scheduler"]
    where = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    worker_command = [sys.executable, "-P", "-m", "distributed.cli.dask_worker"]
    processes = []
    with (folder / "log").open("wb") as log:
        try:
            for words in (
                [*command, *where],
                [*worker_command, "--scheduler-file", str(file), *WORKERS],
            ):
                processes.append(subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log))
            from distributed import Client

            until(file.exists)
            with Client(scheduler_file=str(file), timeout=600) as client:
                client.wait_for_workers(2, timeout=600)
                address = str(client.scheduler.address)
            yield address
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in reversed(processes):
                process.wait(600)


def test_a_local_cluster_makes_what_threads_make(toy: Toy) -> None:
    assert toy.lensmith("run").returncode == 0
    made = outputs(toy)
    for folder in ("data", "metrics", ".dvc/cache"):
        shutil.rmtree(toy.root / folder)
    (toy.root / "dvc.lock").unlink()
    toy.forget_log()
    done = toy.lensmith("run", "--runner", "dask")
    assert done.returncode == 0, done.stderr
    assert "4 nodes executed, 0 cached" in done.stdout and done.stderr == ""
    assert outputs(toy) == made
    assert sorted(toy.log("end")) == ["a", "b", "first", "join"]


def test_nodes_run_on_the_workers_of_a_scheduler(toy: Toy, cluster: str) -> None:
    toy.ask("a", "slow")
    words = ("run", "--runner", "dask", "--scheduler", cluster)
    running = toy.start(*words, LENSMITH_WARM="off")
    until(lambda: "a" in toy.log())
    above = {parent.pid for parent in psutil.Process(worker(toy, "a")).parents()}
    from distributed import Client

    with Client(cluster, timeout=600) as client:
        assert len(above & set(client.run(os.getpid).values())) == 1
    assert running.pid not in above
    output, errors = running.communicate(timeout=600)
    assert running.returncode == 0, errors
    assert re.search(r"\[  0/4 +\d:\d\d\] first: started", output) and "arm@a: " in output
    again = toy.lensmith("nightly", "--once", "--runner", "dask", "--scheduler", cluster)
    assert "nothing executed" in again.stdout


def test_failure_and_interrupt_reach_the_workers(toy: Toy, cluster: str) -> None:
    words = ("run", "--runner", "dask", "--scheduler", cluster)
    toy.ask("a", "user")
    done = toy.lensmith(*words)
    assert done.returncode == 2 and "arm@a failed: params/toy.yaml: steps = -1" in done.stderr
    toy.ask("a", "hang")
    toy.forget_log()
    running = toy.start(*words)
    until(lambda: "a" in toy.log())
    stage = worker(toy, "a")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=600)
    assert running.returncode == 130
    until(lambda: gone(stage))
    toy.grant("a")
    assert toy.lensmith(*words).returncode == 0


def test_kill_9_of_the_run_ends_the_node_on_the_worker(toy: Toy, cluster: str) -> None:
    words = ("run", "--runner", "dask", "--scheduler", cluster)
    toy.ask("a", "hang")
    # Without warm processes, which would end with the run: as on another machine.
    running = toy.start(*words, LENSMITH_WARM="off")
    until(lambda: "a" in toy.log())
    stage = worker(toy, "a")
    running.kill()
    running.communicate(timeout=600)
    until(lambda: gone(stage))
    toy.grant("a")
    done = toy.lensmith(*words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runner", "dask", "--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers at"),
        (["--runner", "dask", "--scheduler", "nonsense://x"], "no Dask scheduler answers at"),
        (["--scheduler", "tcp://127.0.0.1:9"], "add --runner dask"),
        (["--runner", "ray"], "use threads or dask"),
    ],
)
def test_mistakes_are_one_line(toy: Toy, words: list[str], message: str) -> None:
    done = toy.lensmith("run", *words)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1 and message in lines[0], done.stderr
    assert toy.log() == []


def test_without_the_extra_it_says_what_to_install(toy: Toy) -> None:
    (toy.root / "hidden").mkdir()
    (toy.root / "hidden" / "distributed.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(toy.root / "hidden"), str(REPOSITORY)])
    done = toy.lensmith("run", "--runner", "dask", PYTHONPATH=path)
    assert done.returncode == 2 and "'.[dask]'" in done.stderr and "Traceback" not in done.stderr


FAN_OUT = """
import os, sys
from stages.base.processes import process_pool
from joblib import delayed
def work(seed):
    import random, os
    return [random.Random(seed).random(), os.getpid()]
if __name__ == "__main__":
    with process_pool(2) as parallel:
        rows = parallel(delayed(work)(seed) for seed in range(20))
    again = process_pool(2)(delayed(work)(seed) for seed in range(20))
    assert [row[0] for row in again] == [row[0] for row in rows]
    print(repr([row[0] for row in rows]))
    print(sorted({row[1] for row in rows}), os.getpid(), file=sys.stderr)
"""


def fan_out(**more: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "LENSMITH_DASK"}
    environment |= {"PYTHONPATH": str(REPOSITORY)} | more
    command = [sys.executable, "-c", FAN_OUT]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_work_inside_a_stage_goes_to_the_cluster(cluster: str) -> None:
    here, there = fan_out(), fan_out(LENSMITH_DASK=cluster)
    assert here.returncode == there.returncode == 0, here.stderr + there.stderr
    assert here.stdout == there.stdout
    pids = {int(word) for word in there.stderr.split("]")[0].strip("[").split(",")}
    from distributed import Client

    with Client(cluster, timeout=600) as client:
        assert pids <= set(client.run(os.getpid).values()), "it was not computed by the workers"


def test_no_cluster_is_one_line() -> None:
    done = fan_out(LENSMITH_DASK="tcp://127.0.0.1:9")
    assert "UserError: no Dask scheduler answers at LENSMITH_DASK=tcp://127.0.0.1:9" in done.stderr


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[str]:
    """A scheduler without a worker."""
    file = tmp_path / "scheduler.json"
    where = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen(
        [sys.executable, "-P", "-m", "distributed.cli.dask_scheduler", *where], stderr=subprocess.DEVNULL
    )
    try:
        until(file.exists)
        yield json.loads(file.read_text(encoding="utf-8"))["address"]
    finally:
        scheduler.terminate()
        scheduler.wait(600)


def test_a_cluster_without_workers_is_one_line(nobody: str) -> None:
    """Nothing would ever be computed, and nothing would say so."""
    assert "has no worker, so nothing would ever be computed" in fan_out(LENSMITH_DASK=nobody).stderr


def test_a_run_without_workers_is_one_line(toy: Toy, nobody: str) -> None:
    done = toy.lensmith("run", "--runner", "dask", "--scheduler", nobody)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1 and "has no worker: start one on each machine" in lines[0]
    assert toy.log() == []


def test_a_node_whose_workers_all_went_away_has_failed(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    monkeypatch.setattr(dask_runner, "WORKERLESS_S", 0)
    with Client(nobody, timeout=600) as client:
        outcome = dask_runner.DaskRunner(client, tmp_path, {}, None).reproduce("a", print)
    assert outcome.state == "failed" and "no Dask worker is left to run it: start some" in outcome.cause

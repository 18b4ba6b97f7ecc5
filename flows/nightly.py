"""The nightly flow: one Prefect task per node of `dvc dag --dot`, and one complete MLflow row per night.

Prefect decides when, how many at once and what happens after a failure; DVC decides what is still valid. Hence no
Prefect caching (it knows nothing of files) and no retries (a stage that failed fails again; retries sit around flaky
calls inside stages). Call ``flows.environment.prefect_environment`` before importing this module: Prefect reads its
settings on import.
"""

import hashlib
import os
import subprocess
import threading
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner
from rich.console import Console

from flows.environment import child_environment, prepare_dvc
from flows.graph import Graph, headline_metrics, read_graph, stage_of, stale_nodes
from flows.headline import headline
from flows.lock import run_lock
from flows.outcome import Outcome
from flows.tables import print_times
from flows.times import save_times
from flows.walk import Children, repro
from stages import tracking
from stages.base import paths
from stages.errors import UserError

__all__ = ["nightly", "once", "serve_nights", "submit_graph"]

NIGHT = {"lensmith.kind": "night"}
JOBS = "LENSMITH_NIGHT_JOBS"
"""How a served flow, which Prefect starts in a process of its own, learns how many nodes may be at work."""


class StageFailed(RuntimeError):
    """A node failed; the message is the one line that says why."""


class Night:
    """What the tasks of one night share."""

    def __init__(self, root: Path, todo: set[str], row: tracking.Run) -> None:
        self.root, self.todo, self.row = root, todo, row
        self.children = Children(root)
        self.outcomes: dict[str, Outcome] = {}
        self._metrics = headline_metrics(root)
        self._environment = child_environment(root) | ({"RUN_PARENT_ID": row.id} if row.id else {})
        # Worker threads write outcomes and the one MLflow row.
        self._lock = threading.Lock()

    def reproduce(self, node: str) -> Outcome:
        if node in self.todo:
            logger = get_run_logger()
            outcome = repro(
                node,
                self.root,
                self._environment,
                self.children,
                lambda _, line: logger.info(line) if line.strip() else None,
            )
        else:
            outcome = Outcome(node, "cached")
        with self._lock:
            self.outcomes[node] = outcome
            self.row.tag({f"stage.{node}": outcome.state})
            if outcome.state in {"executed", "cached"}:
                # Also where DVC ran nothing: without it nights in which a stage was cached could not be compared.
                for path in self._metrics.get(stage_of(node), []):
                    self.row(headline(path), 0)
                self.row.flush()
        return outcome


@task(task_run_name="{node}", cache_policy=NO_CACHE, retries=0, persist_result=False)  # type: ignore[untyped-decorator]
def reproduce(node: str, night: Night) -> str:
    """One node: ``dvc --wait-for-lock repro --single-item NODE``."""
    outcome = night.reproduce(node)
    if outcome.state not in {"executed", "cached"}:
        raise StageFailed(f"{node} {outcome.state}: {outcome.cause}")
    return outcome.state


def submit_graph(graph: Graph, night: Night) -> "dict[str, PrefectFuture[str]]":
    """One task per node, each waiting for its parents."""
    futures: dict[str, PrefectFuture[str]] = {}
    for node in graph.nodes:
        futures[node] = reproduce.submit(
            node, night, wait_for=[futures[parent] for parent in sorted(graph.parents[node])]
        )
    return futures


@flow(
    name="nightly",
    task_runner=ThreadPoolTaskRunner(max_workers=int(os.environ.get(JOBS, "2"))),
    validate_parameters=True,
)  # type: ignore[untyped-decorator]
def nightly(jobs: int = 2) -> None:
    """Reproduce the graph; a failed node blocks what depends on it, and the night then counts as failed.

    Raises:
        UserError: a node failed by the user's mistake, or somebody else is at work here.
        RuntimeError: a node failed by ours.
    """
    import time

    root, started = paths.root(), time.monotonic()
    with run_lock(root, "lensmith nightly"):
        prepare_dvc(root)
        tracking.end_orphans(**NIGHT)  # nobody else can be at work: we hold the lock
        graph = read_graph(root)
        with tracking.stage_run("nightly", parent="") as row:
            row.tag(NIGHT | {"git_sha": _git_sha(root)})
            night = Night(root, graph.downstream(stale_nodes(root)), row)
            night.children.end_leftovers()
            try:
                wait(list(submit_graph(graph, night).values()))
            finally:
                night.children.stop()
                row.tag({"dvc_lock_sha": _sha(root / "dvc.lock")})
                if row.id:
                    tracking.end_orphans(**{"mlflow.parentRunId": row.id})
            outcomes = [night.outcomes.get(node, Outcome(node, "blocked")) for node in graph.nodes]
            times = save_times(root, outcomes, time.monotonic() - started, jobs)
            print_times(Console(), outcomes, times)
            _raise_failures(root, outcomes)


def _raise_failures(root: Path, outcomes: list[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not failed:
        return
    told = "; ".join(f"{outcome.node}: {outcome.cause}" for outcome in failed)
    text = f"{told}. Output: {root / '.lensmith' / 'logs'}; mend the cause, then `lensmith run` continues from there"
    raise UserError(text) if all(outcome.users_fault for outcome in failed) else StageFailed(text)


def _git_sha(root: Path) -> str:
    if not (root / ".git").exists():
        return "none"
    said = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty"], cwd=root, capture_output=True, text=True
    )
    return said.stdout.strip() or "none"


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"


def once(jobs: int) -> None:
    """One night, now."""
    nightly.with_options(task_runner=ThreadPoolTaskRunner(max_workers=jobs))(jobs=jobs)


def serve_nights(cron: str, timezone: str, jobs: int) -> None:
    """Stay and run by schedule.

    Raises:
        UserError: no server to schedule on, or the schedule makes no sense.
    """
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from prefect.schedules import Cron

    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UserError(f"--timezone {timezone!r} is unknown: use a name such as Europe/Berlin") from error
    try:
        schedule = Cron(cron, timezone=timezone)
    except ValueError as error:
        raise UserError(f"--cron {cron!r} is no schedule ({error}): five fields, such as '0 2 * * *'") from error
    os.environ |= {"LENSMITH_ROOT": str(paths.root()), JOBS: str(jobs)}
    nightly.serve(
        name="nightly",
        schedule=schedule,
        parameters={"jobs": jobs},
        pause_on_shutdown=False,  # else a restart of this process would stop the nights silently
        limit=1,
        global_limit=1,
    )

"""Nights by schedule: the run of ``flows.scheduler`` as a flow that a Prefect server starts.

Call ``flows.environment.prefect_environment`` before importing this module: Prefect reads its
settings on import.
"""

import os

from prefect import flow
from rich.console import Console

from flows.lock import run_lock
from flows.scheduler import Runner, RunOptions, raise_failures, run_graph
from flows.terminal import print_durations
from stages.base import paths
from stages.errors import UserError

__all__ = ["nightly", "serve_nights"]


@flow(name="nightly", validate_parameters=True)  # type: ignore[untyped-decorator]
def nightly(jobs: int = 2, runner: str = "threads", scheduler: str = "") -> None:
    """Reproduce the graph; a failed node blocks what depends on it, and the night then counts as
    failed.

    Raises:
        UserError: a node failed by the user's mistake, or somebody else is at work here.
        StageFailed: a node failed by ours.
    """
    root, console = paths.root(), Console()
    kind: Runner = "dask" if runner == "dask" else "threads"
    with run_lock(root, "lensmith nightly"):
        options = RunOptions(jobs=jobs, runner=kind, scheduler=scheduler, nightly=True)
        result = run_graph(root, console, options)
    print_durations(console, result.outcomes, result.durations)
    raise_failures(root, result.outcomes)


def serve_nights(cron: str, timezone: str, options: RunOptions) -> None:
    """Stay and run by schedule.

    Raises:
        UserError: the schedule makes no sense.
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
    os.environ["LENSMITH_ROOT"] = str(paths.root())
    nightly.serve(
        name="nightly",
        schedule=schedule,
        parameters={"jobs": options.jobs, "runner": options.runner, "scheduler": options.scheduler},
        pause_on_shutdown=False,  # else a restart of this process would stop the nights silently
        limit=1,
        global_limit=1,
    )

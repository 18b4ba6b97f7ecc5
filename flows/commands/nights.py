"""`lensmith nightly` and `doctor`."""

from typing import Annotated

import typer

from flows.commands.running import Jobs, Profile, Runner, Scheduler

__all__ = ["COMMANDS"]


def nightly(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="One night, now. Needs no server.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Stay and run by schedule; needs a Prefect server.")] = False,
    cron: Annotated[str, typer.Option("--cron", help="When, with --serve.")] = "0 2 * * *",
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of --cron.")] = "UTC",
    jobs: Jobs = 2,
    runner: Runner = "threads",
    scheduler: Scheduler = "",
    profile: Profile = "",
) -> None:
    """Run the graph as `lensmith run` does, with a complete MLflow row per night; now, or by
    schedule. The profile is `full` unless another is given.

    Example: lensmith nightly --once
    """
    from stages.errors import UserError

    if once == serve:
        raise UserError(
            "say how: `lensmith nightly --once` runs now, `lensmith nightly --serve` waits for the schedule"
        )
    from rich.console import Console

    from flows.commands.running import night_profile, run_options, show_result, use_profile
    from flows.environment import prefect_environment
    from flows.lock import run_lock
    from flows.options import refuse
    from flows.scheduler import run_graph
    from stages.base import paths

    if once:
        refuse(context, "cron timezone", "--once is one night, now; a schedule belongs to --serve")
    root, console = paths.root(), Console()
    options = run_options(jobs, runner, scheduler, nightly=True)
    use_profile(root, profile or night_profile(root), console)
    if serve:
        prefect_environment(root, serve=True)
        from flows.nightly import serve_nights

        serve_nights(cron, timezone, options)
        return
    with run_lock(root, "lensmith nightly"):
        result = run_graph(root, console, options)
    show_result(console, result)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Say what is installed, what is missing and the remedy, where things are, and what a run
    costs.

    Example: lensmith doctor
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from flows.doctor import examine
    from flows.tables import print_table
    from flows.terminal import print_json

    checks = examine()
    if as_json:
        print_json([check._asdict() for check in checks])
    else:
        table = Table("", "what", "found", "remedy")
        marks = {
            "ok": "[green]ok[/]",
            "optional": "[yellow]--[/]",
            "missing": "[red]no[/]",
            "fact": "",
        }
        for check in checks:
            table.add_row(marks[check.state], check.what, Text(check.found), Text(check.remedy))
        print_table(Console(), table)
    if any(check.state == "missing" for check in checks):
        raise typer.Exit(1)


COMMANDS = (nightly, doctor)

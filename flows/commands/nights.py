"""`lensmith nightly`, `doctor`, `bench`."""

from typing import Annotated

import typer

__all__ = ["COMMANDS"]


def nightly(
    once: Annotated[bool, typer.Option("--once", help="One night, now. Needs no server.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Stay and run by schedule; needs a Prefect server.")] = False,
    cron: Annotated[str, typer.Option("--cron", help="When, with --serve.")] = "0 2 * * *",
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of --cron.")] = "UTC",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Nodes at work at once.")] = 2,
) -> None:
    """Run the graph as a Prefect flow, one task per node, with a complete MLflow row per night.

    Example: lensmith nightly --once
    """
    from stages.errors import UserError

    if once == serve:
        raise UserError(
            "say how: `lensmith nightly --once` runs now, `lensmith nightly --serve` waits for the schedule"
        )
    from flows.environment import prefect_environment
    from stages.base import paths

    prefect_environment(paths.root(), serve=serve)
    from flows.nightly import once as one_night
    from flows.nightly import serve_nights

    if once:
        one_night(jobs)
    else:
        serve_nights(cron, timezone, jobs)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Say what is installed, what is missing and the remedy, where things are, and what a run costs.

    Example: lensmith doctor
    """
    from rich.console import Console
    from rich.table import Table

    from flows.doctor import examine
    from flows.tables import print_json

    checks = examine()
    if as_json:
        print_json([check._asdict() for check in checks])
    else:
        table = Table("", "what", "found", "remedy")
        marks = {"ok": "[green]ok[/]", "optional": "[yellow]--[/]", "missing": "[red]no[/]", "fact": ""}
        for check in checks:
            table.add_row(marks[check.state], check.what, check.found, check.remedy)
        Console().print(table)
    if any(check.state == "missing" for check in checks):
        raise typer.Exit(1)


def bench(
    name: Annotated[str, typer.Argument(help="cache, circuits, dictionaries, metering, pipeline or synthetic.")],
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Nodes at work at once.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Measure speed: `pipeline` copies the working copy without results and times cold, warm and one-method runs;
    `metering` measures what the meters and the sandbox cost; `dictionaries` trains ours and SAELens's in turn; `cache`
    reads and writes activations; `synthetic` trains dictionaries where the features are known; `circuits` looks for
    circuits that are known.

    Example: lensmith bench pipeline
    """
    from flows.benchmark import BENCHMARKS
    from stages.errors import UserError

    if name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r} is unknown: use {', '.join(sorted(BENCHMARKS))}")
    BENCHMARKS[name](jobs=jobs, as_json=as_json)


COMMANDS = (nightly, doctor, bench)

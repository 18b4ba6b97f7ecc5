"""`lensmith leaderboard`, `score`, `report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stages.contracts.reward_rows import TaskRow
    from stages.contracts.score_result import ScoreResult, ScoreTable

__all__ = ["COMMANDS"]

LLM = "With --executor llm or react"
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


def leaderboard(
    split: Annotated[str, typer.Option("--split", help="validation, test or train.")] = "validation",
    against: Annotated[
        str, typer.Option("--against", metavar="METHOD", help="Compare with this method instead of the agent alone.")
    ] = "",
    order: Annotated[
        bool, typer.Option("--order", help="Instead: does the order of the methods carry over from split to split?")
    ] = False,
    beside: Annotated[
        Path | None,
        typer.Option("--beside", metavar="FOLDER", help="Instead: which verdicts hold in the run that lies there?"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print which methods help, and what that says of other tasks; the rows are those of metrics/leaderboard.json.

    Example: lensmith leaderboard --against raw_activations
    """
    from typing import get_args

    from rich.console import Console

    from flows.terminal import leaderboard_rows, print_difference, print_json, print_leaderboard, print_statements
    from flows.terminal import statement_rows as known
    from stages.errors import UserError
    from stages.tasks.storage import Split

    chosen: Split | None = next((one for one in get_args(Split) if one == split), None)
    if chosen is None:
        raise UserError(f"--split {split} is unknown: use validation, test or train")
    if order:
        if against or split != "validation":
            raise UserError("--order is about all splits and all methods: leave out --split and --against")
        _show_order(as_json)
        return
    if beside is not None:
        if against:
            raise UserError("--beside is about all methods: leave out --against")
        _show_beside(beside, chosen, as_json)
        return
    rows, console = leaderboard_rows(split), Console()
    if against:
        from stages.reward.against import against as compared

        found = compared(against, chosen)
        if as_json:
            print_json(found)
        else:
            print_difference(console, found, split)
    elif as_json:
        print_json(rows)
    else:
        said = known(split)
        print_leaderboard(console, rows, f"leaderboard, {split} families", said=said)
        print_statements(console, said, split)


def _show_order(as_json: bool) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from flows.terminal import print_json, print_rows
    from stages.contracts.reward_rows import PER_TASK, TEST_PER_TASK
    from stages.reward.order import order_agreement

    found = order_agreement([*PER_TASK.load(), *(TEST_PER_TASK.load() if TEST_PER_TASK.path().is_file() else ())])
    if as_json:
        print_json([asdict(row) for row in found])
        return
    rows = [{key: "" if value is None else value for key, value in asdict(row).items()} for row in found]
    print_rows(Console(), rows, "Spearman's rho of the methods' rewards on two splits")


def _show_beside(folder: Path, split: str, as_json: bool) -> None:
    """Sentences of this run and of another one."""
    from collections import Counter

    from rich.console import Console

    from flows.terminal import print_beside, print_json
    from stages.base import paths
    from stages.reward.beside import beside, order_beside, sentences_of

    here, there = (
        [row for row in sentences_of(root) if split in row.split.split("+")] for root in (paths.root(), folder)
    )
    rows, order = beside(here, there), order_beside(here, there)
    if as_json:
        print_json({"sentences": [row.facts() for row in rows], "order": [row.facts() for row in order]})
        return
    console = Console()
    print_beside(console, rows, f"verdicts here and in {folder}, {split}")
    fates = Counter(row.fate for row in rows)
    of = sum(fates[fate] for fate in ("holds", "only here", "reversed"))
    console.print(
        f"{fates['holds']} of {of} verdicts here hold there, {fates['reversed']} are reversed; {fates['only there']}"
        " are made only there",
        highlight=False,
    )
    for one in order:
        if one.spearman is not None:
            kind = f", {one.kind}" if one.kind else ""
            console.print(
                f"order of {one.n_methods} methods, {one.split} {one.scope}{kind}: Spearman {one.spearman:.2f}",
                highlight=False,
            )


def score(
    context: typer.Context,
    methods: Annotated[
        list[Path],
        typer.Argument(
            metavar="METHOD.py...", help="File with one subclass of Method; several, or folders: one table."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the result here; - for stdout.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds one call of the method may take.")] = 120,
    trust: Annotated[bool, typer.Option("--trust", help="Run it without a sandbox, with your own rights.")] = False,
    null: Annotated[
        bool, typer.Option("--null", help="Score it on untrained twins of the targets as well: its null.")
    ] = False,
    targets: Annotated[
        str, typer.Option("--targets", metavar="A,B", help="Only on the tasks about these targets.")
    ] = "",
    task_file: Annotated[
        Path | None, typer.Option("--task-file", metavar="TASK.py", help="Only on a task family of your own.")
    ] = None,
    executor: Annotated[
        str,
        typer.Option("--executor", help="Who uses it: rule, always, llm, react or FILE.py of yours."),
    ] = "rule",
    against: Annotated[
        str, typer.Option("--against", metavar="METHOD", help="Of a table: also compare with this method of it.")
    ] = "",
    model: Annotated[
        str,
        typer.Option("--model", metavar="NAME", rich_help_panel=LLM, help="Who is asked: see `lensmith research`."),
    ] = "",
    base_url: Annotated[
        str, typer.Option("--base-url", metavar="URL", rich_help_panel=LLM, help="Of an OpenAI-compatible server.")
    ] = "",
    max_usd: Annotated[
        str, typer.Option("--max-usd", rich_help_panel=LLM, help="What all calls about this method may cost.")
    ] = "1.00",
    attempt_timeout: Annotated[
        int, typer.Option("--attempt-timeout", min=1, rich_help_panel=LLM, help="Seconds that one call may take.")
    ] = 300,
    price_unknown: Annotated[
        bool,
        typer.Option("--price-unknown", rich_help_panel=LLM, help="Ask although no price is known: calls count as 0."),
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", rich_help_panel=LLM, help="Ask a small model on this machine; no network.")
    ] = False,
    parameters: Annotated[
        float, typer.Option("--parameters", min=0, rich_help_panel=LLM, help="Of the model, for its own FLOPs.")
    ] = 0.0,
) -> None:
    """Score methods of your own next to the built-in ones, on train and validation families.

    Several files, or folders of them, make one table, with the best method of the campaign.

    Example: lensmith score examples/my_method.py --json score.json
    """
    from rich.console import Console

    from flows.lock import run_lock
    from flows.needed import make_what_score_needs
    from flows.options import refuse
    from flows.progress import telling
    from stages.base import paths
    from stages.errors import UserError

    for path in methods:
        if not path.exists():
            raise UserError(f"{path} is not a file: give the path of a Python file with one subclass of Method")
    together = len(methods) > 1 or methods[0].is_dir() or bool(against)
    if together:
        refuse(context, "null task_file executor", "it is about one method: give one file and no --against")
    if executor != "rule":
        refuse(context, "null task_file", f"--executor {executor} scores a method on the tasks there are")
    if executor not in ("llm", "react"):
        what = "model base_url max_usd attempt_timeout price_unknown local parameters"
        refuse(context, what, "nobody is asked; they belong to --executor llm and react")
    method = methods[0]
    about = targets.replace(",", " ").split() or None
    if out is not None and str(out) != "-" and not out.resolve().parent.is_dir():
        raise UserError(f"{out.resolve().parent} is not a folder: make it first, or choose another --json file")
    console = Console(stderr=str(out) == "-")
    if task_file is not None:
        _score_on_file(console, method, task_file, about, timeout, trust, out)
        return
    make_what_score_needs(lambda message: console.print(message, highlight=False, soft_wrap=True))
    if executor != "rule":
        from flows.commands.executors import Asks, score_with

        with run_lock(paths.root(), "lensmith score", shared=True):
            asks = Asks(model, base_url, max_usd, attempt_timeout, price_unknown, local, parameters)
            score_with(console, executor, asks, method, about, timeout, trust, out)
        return
    with run_lock(paths.root(), "lensmith score", shared=True):
        from stages.scoring.score import score_method

        if together:
            _score_together(console, methods, against, timeout, trust, about, out)
            return
        with telling(console, "scoring") as tell:
            result = score_method(method, timeout_s=timeout, trust=trust, null=null, targets=about, progress=tell)
    show_score(console, result, out)


def _score_together(
    console: "Console",
    methods: list[Path],
    against: str,
    timeout: float,
    trust: bool,
    targets: list[str] | None,
    out: Path | None,
) -> None:
    """One table of several methods."""
    from flows.progress import telling
    from flows.terminal import print_difference, print_leaderboard, print_statements
    from stages.base.processes import process_pool
    from stages.scoring.cached import jobs
    from stages.scoring.table import candidates_in, score_table

    candidates = candidates_in(methods)
    with telling(console, "scoring") as tell, process_pool(jobs()) as pool:
        table, _ = score_table(
            candidates, against=against, timeout_s=timeout, trust=trust, targets=targets, pool=pool, progress=tell
        )
    for split in ("train", "validation"):
        rows = [row for row in table.rows if row.split == split]
        if rows:
            print_leaderboard(
                console, rows, f"{len(candidates)} methods of yours, {split} families", (), table.statements
            )
            print_statements(console, table.statements, split)
        over = [row for row in table.against if row.split == split]
        if over:
            print_difference(console, over, split)
    failed = [one for one in table.methods if one.outcome != "ok" and one.reason]
    for one in failed:
        console.print(f"{one.method} is {one.outcome}: {one.reason}", highlight=False, soft_wrap=True, markup=False)
    for note in table.notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    if out is not None:
        _write_json(out, table)
    lost = [one.method for one in failed if one.outcome == "infra"]
    if lost:
        raise RuntimeError(f"no score of {', '.join(lost)}: the machinery failed; run it again")


def show_score(console: "Console", result: "ScoreResult", out: Path | None) -> None:
    """Print what a method was scored, and write it to ``out``."""
    from flows.terminal import print_leaderboard, print_per_task, print_statements

    for split in ("train", "validation"):
        rows = [row for row in result.rows if row.split == split]
        if rows:
            title = f"{result.method} beside the built-in methods, {split} families"
            print_leaderboard(console, rows, title, result.null, result.statements)
            print_statements(console, result.statements, split)
    print_per_task(console, result.per_task, f"{result.method}, per task")
    for row in result.null:
        if row.task == "all":
            continue
        said = (
            f"{row.outcome} {row.reason}".strip()
            if row.reward is None
            else f"{row.reward:+.3f} [{row.reward_low:+.3f}, {row.reward_high:+.3f}], noise floor {row.noise_floor:.3f}"
        )
        console.print(f"null, {row.task} untrained: {said}", highlight=False, soft_wrap=True, markup=False)
    for one in result.against:
        console.print(f"beside {one.against}: {one.sentence}.", highlight=False, soft_wrap=True, markup=False)
    console.print(f"verdict: {result.verdict_text}", highlight=False, soft_wrap=True, markup=False)
    if out is not None:
        _write_json(out, result)
    if result.outcome == "infra":
        raise RuntimeError(f"no score: {result.reason}; run it again")


def _score_on_file(
    console: "Console",
    method: Path,
    task_file: Path,
    targets: list[str] | None,
    timeout: float,
    trust: bool,
    out: Path | None,
) -> None:
    """The method's row on a family of the user's own."""
    from flows.progress import telling
    from flows.terminal import print_per_task
    from stages.errors import UserError
    from stages.tools.own_family import score_on_file

    if targets and len(targets) > 1:
        raise UserError(f"--targets {','.join(targets)}: a task file is scored on one target at a time")
    with telling(console, "scoring") as tell:
        row = score_on_file(method, task_file, targets[0] if targets else None, timeout, trust, tell)
    print_per_task(console, [row], f"{row.method} on {row.family}")
    if out is not None:
        _write_json(out, row)


def _write_json(out: Path, result: "ScoreResult | ScoreTable | TaskRow") -> None:
    from flows.terminal import print_json, to_json

    if str(out) == "-":
        print_json(result)
    else:
        out.write_text(to_json(result) + "\n", encoding="utf-8")


def report(
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the default browser.")] = False,
) -> None:
    """Say where the HTML report is, and when it was made; one file, no network needed.

    Example: lensmith report --open
    """
    import sys
    from datetime import UTC, datetime

    from flows.durations import load_durations
    from stages.base import paths
    from stages.errors import UserError

    path = paths.report_file()
    if not path.is_file():
        raise UserError(f"{path} is missing: no run has come that far; make it with `lensmith run`")
    print(path)
    last = load_durations(paths.root()).last_run
    ran = f"; the last run ended {last.finished_at} after {last.wall_s:.0f} s" if last is not None else ""
    made = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    print(f"made {made}, {path.stat().st_size / 1e6:.1f} MB{ran}", file=sys.stderr)
    if open_it:
        import webbrowser

        if not webbrowser.open(path.as_uri()):
            raise UserError(f"no browser could be started: open {path.as_uri()} yourself")


COMMANDS = (leaderboard, score, report)

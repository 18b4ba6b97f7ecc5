"""`lensmith tabulate` and `compare`: researchers on a table of what every fragment of the grammar earns. `labels` and
`scenarios`: methods with fewer labels, and what kind of method each is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stages.contracts.compare_rows import Comparison, LiveRow
    from stages.contracts.research_rows import ScenarioRow

__all__ = ["COMMANDS"]


def tabulate(
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="At most so many fragments this time; 0: all that are missing.")
    ] = 0,
) -> None:
    """Measure every fragment of the grammar of programs on every train and validation task, once. Begun again, it
    goes on.

    Example: lensmith tabulate --limit 100
    """
    from statistics import mean

    from rich.console import Console

    from flows.lock import run_lock
    from flows.progress import telling
    from stages.base import paths

    console = Console()
    with run_lock(paths.root(), "lensmith tabulate", shared=True):
        from stages.research.programs.table import table_file
        from stages.research.programs.table import tabulate as measure

        with telling(console, "table") as tell:
            table = measure(tell, limit or None)
    left = len(table.missing())
    costs = [cell.cpu_s for cell in table.cells.values()]
    each = mean(costs) if costs else 0.0
    console.print(
        f"{len(table.cells)} cells at {each:.2f} CPU seconds each; {left} are missing,"
        f" about {each * left / 60:.0f} CPU minutes",
        highlight=False,
    )
    console.print(f"table: {table_file()}", highlight=False, soft_wrap=True)


def compare(
    context: typer.Context,
    researchers: Annotated[
        str, typer.Option("--researchers", metavar="A,B", help="Names, or paths of files that end in .py.")
    ] = "random,search,programs,policy",
    budget: Annotated[
        int | None,
        typer.Option("--budget", min=1, max=10_000, help="Proposals of a campaign. Default: 64, with --live 16."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=2, max=10_000, help="Campaigns of each researcher. Default: 10, with --live 3."),
    ] = None,
    islands: Annotated[
        str, typer.Option("--islands", metavar="N,N", help="Numbers of islands that `programs` is replayed with.")
    ] = "1",
    live: Annotated[
        bool, typer.Option("--live", help="Run the campaigns instead: every proposal in the sandbox, and the gate.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="With --live: proposals tried at once. Default: one per core."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Replay researchers on the table: what they find, against the best of as many random programs and the optimum.
    With --live their campaigns are run; interrupted and run again, they go on.

    Example: lensmith compare --researchers random,programs --budget 40 --seeds 20
    """
    from rich.console import Console

    from flows.lock import run_lock
    from flows.options import refuse
    from flows.progress import telling
    from flows.terminal import print_json
    from stages.base import paths
    from stages.errors import UserError

    budget, seeds = budget or (16 if live else 64), seeds or (3 if live else 10)
    names = researchers.replace(",", " ").split()
    if not names:
        raise UserError("--researchers names nobody: give some, separated by commas")
    numbers = islands.replace(",", " ").split()
    if not numbers or not all(one.isdecimal() and 1 <= int(one) <= 64 for one in numbers):
        raise UserError(f"--islands {islands!r}: give numbers from 1 to 64, separated by commas, such as 1,4")
    console = Console(stderr=as_json)
    if live:
        refuse(context, "islands", "--live runs one population; `lensmith research --islands` runs more")
        _compare_live(console, names, budget, seeds, jobs, as_json=as_json)
        return
    refuse(context, "jobs", "replays run in one process; it belongs to --live")
    with run_lock(paths.root(), "lensmith compare", shared=True):
        from stages.contracts.compare_rows import COMPARISON
        from stages.report.stage import refresh
        from stages.research.compare import compare as replayed
        from stages.research.programs.table import load_table

        table = load_table()
        with telling(console, "replay") as tell:
            found = replayed(names, table, budget, seeds, tell, tuple(map(int, numbers)))
        COMPARISON.save(found)
        page = refresh()
    if as_json:
        print_json(found)
    else:
        show(console, found)
        _say_written(console, COMPARISON.path(), page)


def _say_written(console: "Console", file: Path, page: Path | None) -> None:
    shown = f"; {page} shows it" if page else "; the report of the next run shows it"
    console.print(f"written: {file}{shown}", highlight=False, soft_wrap=True)


def _compare_live(
    console: "Console", names: list[str], budget: int, seeds: int, jobs: int | None, *, as_json: bool
) -> None:
    from flows.lock import run_lock
    from flows.progress import telling
    from flows.terminal import print_json
    from stages.base import paths

    with run_lock(paths.root(), "lensmith compare", shared=True):
        from stages.contracts.compare_rows import LIVE
        from stages.report.stage import refresh
        from stages.research.live import compare_live

        with telling(console, "campaigns") as tell:
            rows = compare_live(names, budget, seeds, tell, jobs)
        LIVE.save(rows)
        page = refresh()
    if as_json:
        print_json(rows)
        return
    show_live(console, rows)
    _say_written(console, LIVE.path(), page)


def show_live(console: "Console", rows: "Sequence[LiveRow]") -> None:
    """One line for a researcher and a number of proposals."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from flows.tables import print_table

    shown = Table(title="researchers in campaigns", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("researcher", no_wrap=True)
    for name in ("n", "best train [95%]", "over random [95%]", "validation [95%]", "scored"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        over = "-"
        if row.over_random is not None:
            over = f"{row.over_random:+.3f} [{row.over_random_low:+.3f}, {row.over_random_high:+.3f}]"
        shown.add_row(
            row.researcher,
            str(row.n),
            f"{row.train:+.3f} [{row.train_low:+.3f}, {row.train_high:+.3f}]",
            over,
            f"{row.validation:+.3f} [{row.validation_low:+.3f}, {row.validation_high:+.3f}]",
            f"{row.scored:.0%}",
        )
    print_table(console, shown)


def show(console: "Console", found: "Comparison") -> None:
    """One line for a researcher and a number of proposals."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from flows.tables import print_table

    shown = Table(title="researchers on the table", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("researcher", no_wrap=True)
    for name in ("n", "best train [95%]", "of optimum", "P(> best of n random) [95%]", "validation [95%]", "gap"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        shown.add_row(
            row.researcher,
            str(row.n),
            f"{row.train:+.3f} [{row.train_low:+.3f}, {row.train_high:+.3f}]",
            f"{row.of_optimum:.0%}",
            f"{row.better:.2f} [{row.better_low:.2f}, {row.better_high:.2f}]",
            f"{row.validation:+.3f} [{row.validation_low:+.3f}, {row.validation_high:+.3f}]",
            f"{row.gap:+.3f}",
        )
    print_table(console, shown)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    randoms = ", ".join(f"{row.n}: {row.mean:+.3f}" for row in found.null)
    say(f"best of n random programs, exactly, on train: {randoms}")
    say(
        f"optimum of all programs: train {found.optimum_train:+.3f}, validation {found.optimum_validation:+.3f};"
        f" {found.seeds} campaigns each"
    )
    for speed in found.scaling:
        if speed.exponent is not None:
            spread = f"[{speed.exponent_low:.2f}, {speed.exponent_high:.2f}]"
            say(f"{speed.researcher}: distance from the optimum falls as compute^-{speed.exponent:.2f} {spread}")


def labels(
    methods: Annotated[
        str, typer.Option("--methods", metavar="A,B", help="Built-in methods; default: those called better.")
    ] = "",
    numbers: Annotated[
        str, typer.Option("--n", metavar="A,B", help="Labelled instances the agent has.")
    ] = "10,20,40,80",
    split: Annotated[str, typer.Option("--split", help="validation or train.")] = "validation",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Score methods for an agent with fewer labels: all arms run again for each number of them.

    Example: lensmith labels --methods gradient,circuit --n 10,40
    """
    from typing import get_args

    from rich.console import Console

    from flows.lock import run_lock
    from flows.progress import telling
    from flows.terminal import leaderboard_rows, print_json, print_rows
    from stages.base import paths
    from stages.contracts.research_rows import LABELS
    from stages.errors import UserError
    from stages.tasks.storage import Split

    chosen: Split | None = next((one for one in get_args(Split) if one == split), None)
    if chosen is None:
        raise UserError(f"--split {split} is unknown: use validation or train")
    words = numbers.replace(",", " ").split()
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--n {numbers} holds something else than whole numbers: give some, such as 10,20,40,80")
    known = [row.method for row in leaderboard_rows("validation")]
    names = methods.replace(",", " ").split()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--methods {unknown[0]} is on no leaderboard: take {', '.join(known)}")
    names = names or [row.method for row in leaderboard_rows("validation") if row.verdict == "better"]
    if not names:
        raise UserError("no method is called better on the validation tasks: name some with --methods")
    console = Console(stderr=as_json)
    with run_lock(paths.root(), "lensmith labels", shared=True):
        from stages.report.stage import refresh
        from stages.scoring.labels import sample_complexity

        with telling(console, "labels") as tell:
            rows = sample_complexity(names, [int(word) for word in words], chosen, tell)
        LABELS.save(rows)
        page = refresh()
    if as_json:
        print_json(rows)
        return
    cells = [
        {
            "method": row.method,
            "labels": row.labels,
            "reward [95%]": f"{row.reward:+.3f} [{row.reward_low:+.3f}, {row.reward_high:+.3f}]",
            "agent alone [95%]": f"{row.baseline:.3f} [{row.baseline_low:.3f}, {row.baseline_high:.3f}]",
            "with the method [95%]": f"{row.assisted:.3f} [{row.assisted_low:.3f}, {row.assisted_high:.3f}]",
        }
        for row in sorted(rows, key=lambda row: (names.index(row.method), row.labels))
    ]
    print_rows(console, cells, f"{split} families, n = {rows[0].n_tasks} tasks x {rows[0].n_seeds} seeds")
    _say_written(console, LABELS.path(), page)


def scenarios(
    methods: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[METHOD.py...]", help="Files of methods, or folders of them, beside the built-in ones."
        ),
    ] = None,
    targets: Annotated[
        str, typer.Option("--targets", metavar="A,B", help="That are asked about; of each a sister is trained.")
    ] = "digits_mlp",
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds one call of a file may take.")] = 120,
    trust: Annotated[bool, typer.Option("--trust", help="Run files without a sandbox, with your own rights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """What kind of method was found: its size, what it costs, and whether it helps on other families, other kinds of
    question, another network of the same recipe, and beyond a black box that is charged as much.

    Example: lensmith scenarios --targets digits_mlp,small_cnn
    """
    from rich.console import Console

    from flows.lock import run_lock
    from flows.needed import make_what_score_needs
    from flows.progress import telling
    from flows.terminal import print_json
    from stages.base import paths
    from stages.errors import UserError

    for path in methods or ():
        if not path.exists():
            raise UserError(f"{path} is not there: give files with one subclass of Method, or folders of them")
    about = targets.replace(",", " ").split()
    if not about:
        raise UserError("--targets names none: give some, separated by commas")
    console = Console(stderr=as_json)
    make_what_score_needs(lambda message: console.print(message, highlight=False, soft_wrap=True))
    with run_lock(paths.root(), "lensmith scenarios", shared=True):
        from stages.contracts.research_rows import SCENARIOS
        from stages.report.stage import refresh
        from stages.scoring.table import candidates_in
        from stages.tools.scenarios import scenarios as measured

        with telling(console, "scenarios") as tell:
            rows = measured(
                candidates_in(methods or ()), tuple(dict.fromkeys(about)), timeout_s=timeout, trust=trust, progress=tell
            )
        SCENARIOS.save(rows)
        page = refresh()
    if as_json:
        print_json(rows)
        return
    show_scenarios(console, rows)
    _say_written(console, SCENARIOS.path(), page)


def show_scenarios(console: "Console", rows: "Sequence[ScenarioRow]") -> None:
    """Two tables: what a method is and earns, and where it still does."""
    from flows.terminal import print_rows

    def told(row: "ScenarioRow", name: str) -> str:
        found = row.estimate(name)
        if found.value is None or found.low is None or found.high is None:
            return "-"
        return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"

    first = rows[0]
    what = [
        {
            "method": row.method,
            "from": row.origin,
            "I(M), bytes": f"{row.bytes:,}",
            "interpret, FLOPs": row.interpret_flops,
            "answer, FLOPs": row.answer_flops,
            "of tight budget": row.answer_share,
            "gain": told(row, "gain"),
            "over black box": told(row, "over_black_box"),
            "": "" if row.outcome == "ok" else f"{row.outcome}{': ' if row.reason else ''}{row.reason[:80]}",
        }
        for row in rows
    ]
    print_rows(console, what, f"size and cost on {', '.join(first.targets)}; the oracle gains {first.oracle_gain:+.3f}")
    where = [
        {
            "method": row.method,
            "train": told(row, "train"),
            "validation": told(row, "validation"),
            "new kinds": told(row, "new_kinds"),
            "sealed test": told(row, "sealed"),
            "sister, as it was": told(row, "sister"),
            "sister, its own": told(row, "own"),
            "difference": told(row, "carried"),
        }
        for row in rows
    ]
    most = max(rows, key=lambda row: row.n_train + row.n_validation)
    counts = (
        f"{most.n_train} train, {most.n_validation} validation, {most.n_new_kinds} of new kinds, {most.n_sealed} test"
    )
    print_rows(console, where, f"reward [95%], n = {counts} tasks; {max(row.n_sister for row in rows)} about sisters")


COMMANDS = (tabulate, compare, labels, scenarios)

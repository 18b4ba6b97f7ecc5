"""`lensmith bench`: every claim of speed is a measurement that can be repeated."""

from collections.abc import Callable
from typing import Annotated

import typer

from flows.commands import circuits, dictionaries, validity
from flows.commands.bench_pipeline import pipeline
from flows.commands.running import Jobs

__all__ = ["BENCHMARKS", "COMMANDS"]


def metering(*, jobs: int, as_json: bool) -> None:
    """What recording, pricing and the sandbox cost."""
    from rich.console import Console
    from rich.table import Table

    from flows.progress import telling
    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.benchmarks.metering import bench_metering

    console = Console(stderr=as_json)
    with telling(console, "metering") as tell:
        result = bench_metering(tell)
    if as_json:
        print_json(result)
        return
    table = Table("batch", "bare", "metered", title="forward passes")
    for row in result.overhead:
        table.add_row(
            str(row.batch),
            f"{row.bare_ms:.2f} ms",
            f"{row.metered:.3f}x [{row.metered_low:.3f}, {row.metered_high:.3f}]",
        )
    print_table(console, table)
    titles = ("task", "method", "operations", "recorded in", "priced in", "direct", "run / direct", "in the sandbox")
    answers = Table(*titles, title="recorded answers")
    for one in result.answers:
        sandboxed = "-" if one.sandboxed_ratio is None else f"{one.sandboxed_ratio:.2f}x"
        answers.add_row(
            one.task, one.method, str(one.operations), f"{one.record_s:.3f} s", f"{one.check_s:.3f} s",
            f"{1e3 * one.direct_s:.1f} ms", f"{one.ratio:.2f}x [{one.ratio_low:.2f}, {one.ratio_high:.2f}]", sandboxed,
        )  # fmt: skip
    print_table(console, answers)
    for name, value in (result.start_up_s | result.score_s).items():
        console.print(f"{name}: {value:.2f} s", highlight=False)


def calibrator(*, jobs: int, as_json: bool) -> None:
    """Held-out score and time of the executor's calibrator beside scikit-learn's, fit by fit."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.benchmarks.calibrator import bench_calibrator

    console = Console(stderr=as_json)
    rows = bench_calibrator(lambda text: console.print(text, highlight=False))
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    titles = ("task", "fits", "score", "scikit-learn's", "difference", "CPU", "scikit-learn's", "ratio")
    table = Table(*titles, title="calibrators, held-out score")
    for row in rows:
        table.add_row(
            row.task,
            str(row.n),
            f"{row.score:.3f}",
            f"{row.reference:.3f}",
            f"[{row.difference_low:+.3f}, {row.difference_high:+.3f}]".replace("[", r"\["),
            f"{row.ms:.1f} ms",
            f"{row.reference_ms:.0f} ms",
            f"{row.reference_ms / row.ms:.1f}x",
        )
    print_table(console, table)


def targets(*, jobs: int, as_json: bool) -> None:
    """Speed of every target that has been made, as a share of the machine's dense products."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from flows.progress import telling
    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.benchmarks.targets import bench_targets

    console = Console(stderr=as_json)
    with telling(console, "passes") as tell:
        rows = bench_targets(tell)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    titles = ("target", "batch", "pass", "inputs/s", "words/s", "GFLOP/s", "of dense peak", "metered / by hand")
    table = Table(*titles, title="forward passes, one thread, medians")
    for row in rows:
        table.add_row(
            row.target,
            str(row.batch),
            f"{row.ms:.2f} ms",
            f"{row.inputs_per_s:,.0f}",
            "-" if row.words_per_s is None else f"{row.words_per_s:,.0f}",
            f"{row.gflops:.2f}",
            f"{row.share_of_peak:.1%}",
            "-" if row.metered_to_hand is None else f"{row.metered_to_hand:.3f}x",
        )
    print_table(console, table)


def truth(*, jobs: int, as_json: bool) -> None:
    """How long truths take beside a loop of single questions, and what their FLOPs would take at the
    machine's dense speed."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from flows.progress import telling
    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.benchmarks.truth import bench_truth, median_ratio

    console = Console(stderr=as_json)
    with telling(console, "truths") as tell:
        rows = bench_truth(tell)
    if as_json:
        print_json([asdict(row) | {"ratio": row.ratio, "share_of_peak": row.share_of_peak} for row in rows])
        return
    titles = ("family", "target", "together", "loop", "ratio", "inputs a pass", "bound", "of dense peak")
    table = Table(*titles, title="truth, CPU time per instance, one thread")
    for row in rows:
        table.add_row(
            row.family,
            row.target,
            f"{row.ms:.2f} ms",
            f"{row.loop_ms:.2f} ms",
            f"{row.ratio:.1f}x",
            f"{row.inputs_per_pass:.0f}, loop {row.loop_inputs_per_pass:.0f}",
            f"{row.bound_ms:.3f} ms",
            f"{row.share_of_peak:.1%}",
        )
    print_table(console, table)
    said = f"median ratio where the loop has one input a pass: {median_ratio(rows):.1f}x; {len(rows)} truths in all"
    console.print(said, highlight=False)


def research(*, jobs: int, as_json: bool) -> None:
    """What a sandboxed proposal of a campaign costs, phase by phase, and what starts cost."""
    import statistics

    from rich.console import Console
    from rich.table import Table

    from flows.progress import telling
    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.benchmarks.campaigns import NIGHT_S, PHASES, bench_research

    console = Console(stderr=as_json)
    with telling(console, "proposals") as tell:
        cost = bench_research(progress=tell)
    if as_json:
        print_json(cost)
        return
    for name, one in (("cold", cost.cold), ("from the warm parent", cost.warm)):
        if one is not None:
            console.print(f"start {name}: {one.cpu_s:.3f} CPU s, {one.wall_s:.2f} s", highlight=False)
    table = Table("phase", "first", "share", "again", title=f"CPU s of a proposal on {cost.n_tasks} tasks, medians")

    def median(costs: list[dict[str, float]], name: str) -> float:
        return statistics.median(one[name] for one in costs)

    first, again = ([one.cpu_s for one in costs] for costs in (cost.first, cost.again))
    total = sum(median(first, name) for name in (*PHASES, "method"))
    for name in (*PHASES, "method"):
        table.add_row(
            name, f"{median(first, name):.2f}", f"{median(first, name) / total:.0%}", f"{median(again, name):.2f}"
        )
    print_table(console, table)
    for name, costs in (("first", cost.first), ("again", cost.again)):
        each = statistics.median(one.total_cpu_s for one in costs)
        said = f"{name}: {each:.2f} CPU s each, {3600 / each:,.0f} an hour and core, {2 * NIGHT_S / each:,.0f} a night"
        console.print(f"{said} of 8 hours on two quiet cores, by arithmetic", highlight=False)


BENCHMARKS: dict[str, Callable[..., None]] = {
    "cache": dictionaries.measure_cache,
    "calibrator": calibrator,
    circuits.__name__.rpartition(".")[2]: circuits.measure,
    dictionaries.__name__.rpartition(".")[2]: dictionaries.measure_training,
    "elk": validity.elk,
    "estimation": validity.estimation,
    "horizon": validity.horizon,
    "metering": metering,
    "pipeline": pipeline,
    "published": validity.published,
    research.__name__: research,
    "synthetic": dictionaries.measure_synthetic,
    targets.__name__: targets,
    "truth": truth,
}


def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Which one: see above.")],
    jobs: Jobs = 2,
    growth: Annotated[
        bool, typer.Option("--growth", help="Of circuits: time and memory against layers and heads instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Measure speed and validity: `pipeline` copies the working copy without results and times cold, warm and
    one-method runs; `calibrator` compares the executor's with scikit-learn's; `metering` measures
    what the meters and the sandbox cost; `dictionaries` trains ours and SAELens's in turn; `cache`
    reads and writes activations; `synthetic` trains dictionaries where the features are known;
    `circuits` looks for circuits that are known; `targets` runs every target that was made; `truth`
    times the brute-force truth of every family beside a loop of single questions; `research` times the
    phases of sandboxed proposals; `estimation` estimates mean outputs and rare events within a FLOP
    budget; `elk` gives labels only where a supervisor is right; `horizon` calibrates on short inputs and
    asks about long ones; `published` asks evaluations that others publish.

    Example: lensmith bench pipeline
    """
    from flows.options import refuse
    from stages.errors import UserError

    if name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r} is unknown: use {', '.join(sorted(BENCHMARKS))}")
    if name != pipeline.__name__:
        refuse(context, "jobs", f"{name} is measured on one thread; nodes are run by `lensmith bench pipeline`")
    if growth and BENCHMARKS[name] is not circuits.measure:
        raise UserError(f"--growth does nothing with {name}: it is of `lensmith bench circuits`")
    (circuits.measure_growth if growth else BENCHMARKS[name])(jobs=jobs, as_json=as_json)


COMMANDS = (bench,)

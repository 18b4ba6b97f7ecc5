"""Benchmarks that ask whether a conclusion holds where it is used: questions of the literature, outside the graph."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.benchmarks.estimation import EstimationRow
    from stages.benchmarks.shifted import Estimate

__all__ = ["elk", "estimation", "horizon", "published"]


def estimation(*, jobs: int, as_json: bool) -> None:
    """Mean outputs and rare events within a FLOP budget: samples beside what is computed from the weights."""
    from rich.console import Console

    from flows.progress import telling
    from flows.terminal import print_json, print_rows
    from stages.benchmarks.estimation import bench_estimation

    console = Console(stderr=as_json)
    with telling(console, "estimation") as tell:
        rows = bench_estimation(tell)
    if as_json:
        print_json(rows)
        return
    for question in dict.fromkeys(row.question for row in rows):
        for group in dict.fromkeys(row.group for row in rows):
            of_group = [row for row in rows if (row.question, row.group) == (question, group)]
            about = "mean output" if question == "mean" else f"an event of probability {question}"
            title = f"{about}, {group}: squared error; the truth's own {max(row.floor for row in of_group):.1g}"
            print_rows(console, estimation_table(of_group), title)
    console.print(
        "Of means in units of the output's variance, of events of the logarithm of the probability. [95%] over"
        " networks. * and !: less and more than plain sampling at the same budget, at the 5% level. -: dearer than it,"
        " on one network at least.",
        highlight=False,
        markup=False,
    )


def estimation_table(rows: "list[EstimationRow]") -> list[dict[str, object]]:
    """One row per estimator, one column per budget."""
    budgets = sorted({row.budget for row in rows})
    table: list[dict[str, object]] = []
    for estimator in dict.fromkeys(row.estimator for row in rows):
        of = {row.budget: row for row in rows if row.estimator == estimator}
        cells = {f"{budget:.0e}": _cell(of[budget]) if budget in of else "-" for budget in budgets}
        table.append({"estimator": estimator, **cells})
    return table


def _cell(row: "EstimationRow") -> str:
    mark = ""
    if row.ratio_low is not None and row.ratio_high is not None:
        mark = "*" if row.ratio_high < 1 else "!" if row.ratio_low > 1 else ""
    return f"{row.error:.1e}{mark} [{row.low:.0e}, {row.high:.0e}]"


def elk(*, jobs: int, as_json: bool) -> None:
    """Labels only where a fallible supervisor is right: do a method's answers bring out the truth?"""
    from rich.console import Console

    from flows.progress import telling
    from flows.terminal import print_json, print_rows
    from stages.benchmarks.elk import bench_elk

    console = Console(stderr=as_json)
    with telling(console, "elk") as tell:
        rows = bench_elk(tell)
    if as_json:
        print_json(rows)
        return
    shown = [
        {
            "method": row.method,
            "taken": f"{row.used:.0%}",
            "agent, right": _shown(row.executor_right),
            "agent, wrong": _shown(row.executor_wrong),
            "alone, right": _shown(row.alone_right),
            "alone, wrong": _shown(row.alone_wrong),
            "taught, wrong": _shown(row.taught_wrong),
        }
        for row in rows
    ]
    print_rows(console, shown, "share of answers that side with the truth, where the supervisor is right and wrong")
    scores = [
        {
            "method": row.method,
            "of the truth": _shown(row.score_truth),
            "of the supervisor": _shown(row.score_supervisor),
        }
        for row in rows
    ]
    print_rows(console, scores, "the answer alone, where the supervisor is wrong: share of variance explained")
    console.print(
        "Mean [95%] over draws of instances. agent: the executor, which took a method's answer as often as it says."
        " alone: calibrated on the answer and nothing else. taught: the same with true labels of both sorts.",
        highlight=False,
        markup=False,
    )


def horizon(*, jobs: int, as_json: bool) -> None:
    """What methods are worth where the agent is calibrated on short inputs and asked about long ones."""
    from rich.console import Console

    from flows.progress import telling
    from flows.terminal import print_json, print_rows
    from stages.benchmarks.horizon import bench_horizon

    console = Console(stderr=as_json)
    with telling(console, "horizon") as tell:
        rows = bench_horizon(tell)
    if as_json:
        print_json(rows)
        return
    for task in dict.fromkeys(row.task for row in rows):
        shown = [
            {
                "method": row.method,
                "short": _shown(row.short),
                "short to long": _shown(row.transfer),
                "long": _shown(row.long),
                "lost": _shown(row.lost),
            }
            for row in rows
            if row.task == task
        ]
        print_rows(console, shown, f"{task}: score of the black box, gain of methods")
    console.print(
        "Mean [95%] over draws of instances and over budgets. short to long: calibrated on short inputs, asked about"
        " long ones. lost: that less long. Methods that decline are left out.",
        highlight=False,
        markup=False,
    )


def published(*, jobs: int, as_json: bool) -> None:
    """Evaluations that others publish, asked as tasks: what is left for a method, and what methods add."""
    from rich.console import Console

    from flows.progress import telling
    from flows.terminal import print_json, print_rows
    from stages.benchmarks.published import bench_published

    console = Console(stderr=as_json)
    with telling(console, published.__name__) as tell:
        rows = bench_published(tell)
    if as_json:
        print_json(rows)
        return
    for question, target in dict.fromkeys((row.question, row.target) for row in rows):
        shown = [
            {"who": row.who, "tight": _shown(row.tight), "medium": _shown(row.medium), "ample": _shown(row.ample)}
            for row in rows
            if (row.question, row.target) == (question, target)
        ]
        print_rows(console, shown, f"{question} on {target}: score of the black box, gain of the truth and of methods")
    console.print(
        "Mean [95%] over draws of instances, at each budget. Methods that decline are left out.",
        highlight=False,
        markup=False,
    )


def _shown(estimate: "Estimate") -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]".replace("-0.00", "+0.00")

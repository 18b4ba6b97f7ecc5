"""Benchmarks that ask whether a conclusion holds where it is used: questions of the literature, outside the graph."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.benchmarks.estimation import EstimationRow

__all__ = ["estimation"]


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
        " networks. * and !: less and more than plain sampling at the same budget, at the 5% level. -: too dear.",
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
    mark = "*" if row.ratio_high < 1 else "!" if row.ratio_low > 1 else ""
    return f"{row.error:.1e}{mark} [{row.low:.0e}, {row.high:.0e}]"

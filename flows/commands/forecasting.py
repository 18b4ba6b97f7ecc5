"""`lensmith forecast`: when a machine could do this research by itself, from ranges that anybody can replace."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from datetime import date

    from rich.console import Console

    from stages.tools.forecast import Forecast, Inputs

__all__ = ["COMMANDS"]

BAR = 50
"""Characters of the longest bar."""


def forecast(
    inputs: Annotated[
        str, typer.Argument(metavar="INPUTS", help="present, published, or the path of a file of your own.")
    ] = "present",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """When can a machine do open-ended interpretability research? Median, 80% interval, and what each input does.

    Example: lensmith forecast published
    """
    from rich.console import Console

    from flows.terminal import print_json
    from stages.tools.forecast import forecast as dates
    from stages.tools.forecast import inputs_of

    given = inputs_of(inputs)
    found = dates(given)
    if as_json:
        print_json(
            {
                "inputs": given.model_dump(mode="json"),
                **{name: _plain(value) for name, value in found._asdict().items() if name != "swings"},
                "swings": [{name: _plain(value) for name, value in one._asdict().items()} for one in found.swings],
            }
        )
    else:
        show(Console(), given, found, inputs)


def _plain(value: object) -> object:
    from datetime import date

    if isinstance(value, date):
        return value.isoformat()
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def show(console: "Console", given: "Inputs", found: "Forecast", name: str) -> None:
    """Inputs with their sources, the date, what each input does to it, and the years."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from flows.tables import print_table

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    ranges = given.ranges
    table = Table(title=f"inputs: {name}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("input", "median", "80% interval"):
        table.add_column(head, justify="left" if head == "input" else "right", no_wrap=True)
    table.add_column("source")
    for key, one in ranges.items():
        low, middle, high = (float(one.quantile(u)) for u in (0.1, 0.5, 0.9))
        spread = f"{_number(low)} to {_number(high)}" if low < high else "fixed"
        table.add_row(key.replace("_", " "), _number(middle), spread, one.source)
    print_table(console, table)
    say(f"horizon measured on {given.as_of}")
    say("")
    say(
        f"median {_month(found.median)}, 80% interval {_month(found.within_80[0])} to {_month(found.within_80[1])},"
        f" 66% interval {_month(found.within_66[0])} to {_month(found.within_66[1])}"
    )
    if found.reached:
        say(f"in {found.reached:.0%} of the belief the horizon sufficed on {given.as_of} already")
    if given.not_before:
        say(f"given that it had not happened before {given.not_before}, which rules out {found.excluded:.0%}")
    if found.speed_up > 1:
        say(f"copies beside one another make a project at most {found.speed_up:.1f} times faster (Amdahl)")
    table = Table(
        title="what each input does, the others at their medians",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for head in ("input", "10%", "90%", "date at 10%", "date at 90%", "months"):
        table.add_column(head, justify="left" if head == "input" else "right", no_wrap=True)
    for swing in found.swings:
        if swing.low < swing.high:
            table.add_row(
                swing.name.replace("_", " "), _number(swing.low), _number(swing.high),
                _month(swing.at_low), _month(swing.at_high), f"{swing.days / 30.44:.0f}",
            )  # fmt: skip
    if table.row_count:
        print_table(console, table)
    most = max(found.years.values())
    for year, share in found.years.items():
        later = "+" if year == max(found.years) else " "
        say(f"{year}{later} {share:4.0%} {'█' * round(BAR * share / most)}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _month(day: "date") -> str:
    return f"{day:%Y-%m}"


COMMANDS = (forecast,)

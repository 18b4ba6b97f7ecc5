"""`lensmith editing ...`: take a capability out of a target, and see what else goes with it."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stages.editing.capability import Removal
    from stages.editing.measuring import Metric

__all__ = ["COMMANDS", "GROUPS"]

editing = typer.Typer(
    help="Take a capability out of a target, by its circuit or by training.\n\nExample: lensmith editing removal"
    " digits_mlp --behaviour 3",
    no_args_is_help=True,
)


@editing.callback()
def _group() -> None:
    """A group, although it has one command so far."""


@editing.command()
def removal(
    target: Annotated[str, typer.Argument(help="Name of a trained target.")],
    behaviour: Annotated[
        list[int] | None,
        typer.Option("--behaviour", min=0, help="Answer to take away; may be given again. Default: 0, 1 and 2."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Samples, batches, random circuits.")] = 3,
    draws: Annotated[int, typer.Option("--draws", min=1, max=100, help="Random circuits per seed.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Remove answers by cutting their circuit, other circuits, or by training; measure target, neighbours, return.

    Example: lensmith editing removal digits_mlp --behaviour 3 --seeds 2
    """
    import torch
    from rich.console import Console

    from flows.progress import telling
    from stages.editing.capability import Settings, remove_capability
    from stages.targets.storage import load_target

    torch.set_num_threads(1)
    with telling(Console(stderr=as_json), "removal") as tell:
        found = remove_capability(
            load_target(target), behaviour or None, settings=Settings(seeds=seeds, n_random=draws), progress=tell
        )
    if as_json:
        from flows.terminal import print_json

        print_json(found)
        return
    _show(found)


def _show(found: "Removal") -> None:
    from rich.console import Console

    from flows.terminal import print_rows

    console = Console()
    rows = [
        {
            "method": row["method"],
            "n": row["n"],
            "accuracy_target": _said(row["accuracy_target"]),
            "accuracy_neighbours": _said(row["accuracy_neighbours"]),
            "selectivity": _said(row["selectivity"]),
            "relearn_steps": _said(row["relearn_steps"]),
        }
        for row in found["summary"]
    ]
    print_rows(console, rows, f"{found['target']}: {', '.join(found['before'])} taken away, mean [95% interval]")
    gaps = [
        {"circuit less": row["circuit_less"], "selectivity": _said(row["selectivity"])} for row in found["differences"]
    ]
    print_rows(console, gaps, "selectivity of the circuit less that of each other way, paired")
    second = [{key: value for key, value in row.items() if key != "circuit_by_site"} for row in found["redundancy"]]
    print_rows(console, second, "can a second, disjoint circuit do it? (faithfulness, kept alone)")


def _said(metric: "Metric | None") -> str:
    if metric is None:
        return "-"
    return f"{metric['value']:.3g} [{metric['low']:.3g}, {metric['high']:.3g}]"


COMMANDS = ()
GROUPS = (editing,)

"""`lensmith surprise`: explanations of one target beside each other, in bits."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stages.tools.surprise import SurpriseRow

__all__ = ["COMMANDS"]


def surprise(
    target: Annotated[str, typer.Argument(help="A target that was made, such as digits_mlp.")],
    outputs: Annotated[
        int, typer.Option("--outputs", min=1, help="N: outputs that share one explanation.")
    ] = 1_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Do dictionaries, circuits or weights of lower rank shorten a target's outputs? Bits of each explanation, and bits
    that it leaves.

    Example: lensmith surprise digits_mlp --outputs 30000
    """
    from rich.console import Console

    from flows.progress import counting
    from flows.terminal import print_json, print_rows
    from stages.tools.surprise import surprise as priced

    with counting("explaining"):
        rows = priced(target, outputs)
    if as_json:
        print_json([row.facts() for row in rows])
        return
    console = Console()
    print_rows(console, [_cells(row) for row in rows], f"{target}: bits over N = {outputs:,} outputs")
    console.print(
        "own: the explanation's numbers; borrowed: weights of the target that it still uses; left: bits an output costs"
        " beyond its entropy. An explanation explains where it is shorter than nothing and than the weights themselves:"
        " pays at N says where, - nowhere.",
        highlight=False,
    )


def _cells(row: "SurpriseRow") -> dict[str, object]:
    """What fits a terminal; --json has the intervals."""
    pays = "-"
    if row.pays_from is not None:
        pays = f"{row.pays_from:,.0f} to {'any' if row.pays_to is None else f'{row.pays_to:,.0f}'}"
    return {
        "explanation": f"{row.kind}: {row.explanation}",
        "bits": row.bits,
        "own": f"{row.own:,.0f}",
        "borrowed": f"{row.borrowed:,.0f}",
        "left": f"{row.unexplained:.4f}",
        "total": f"{row.total:,.0f}",
        "explains": "yes" if row.explains else "no",
        "pays at N": pays,
    }


COMMANDS = (surprise,)

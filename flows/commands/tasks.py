"""`lensmith tasks ...`: look at task families, their instances and their truth."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["COMMANDS", "GROUPS"]

tasks = typer.Typer(
    help="Look at task families, their instances and their brute-force truth.\n\nExample: lensmith tasks list",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


@tasks.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the families: split, what is asked, and what a tight budget explains of it.

    Example: lensmith tasks list
    """
    from stages.tools.tasks import line_of, list_families

    rows = list_families()
    _show(rows if as_json else [line_of(row) for row in rows], as_json, "task families")


@tasks.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a family; see `lensmith tasks list`.")], as_json: AsJson = False
) -> None:
    """Describe one family: the question, the truth, the black-box ladder, the score.

    Example: lensmith tasks show few_shot_shapley
    """
    from stages.tools.tasks import show_family

    _show(show_family(name), as_json, name)


@tasks.command()
def instances(
    name: Annotated[str, typer.Argument(help="Name of a family; see `lensmith tasks list`.")],
    n: Annotated[int, typer.Option("--n", min=1, max=10_000, help="How many.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seeds the generator.")] = 0,
    with_truth: Annotated[bool, typer.Option("--with-truth", help="Add the brute-force truth.")] = False,
    target: Annotated[
        str | None, typer.Option("--target", help="Name of a target; default: the family's first.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make instances of a family, with their truth if asked: enough to recompute the truth with code of your own.

    Example: lensmith tasks instances few_shot_shapley --n 5 --seed 1 --with-truth --json
    """
    from stages.tools.tasks import make_instances

    _show(make_instances(name, n=n, seed=seed, target=target, with_truth=with_truth), as_json, name)


@tasks.command()
def audit(
    names: Annotated[list[str] | None, typer.Argument(help="Families to audit; default: all.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="Only on this target.")] = None,
    share: Annotated[
        float, typer.Option("--share", help="Of the instances the stage makes, 0 to 1; less is faster and rougher.")
    ] = 1.0,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="TASK.py", help="A family of your own, in one file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check families: leaks, floor and ceiling of the score, and whether there is room for a method.

    Example: lensmith tasks audit few_shot_shapley --json
    """
    from rich.console import Console

    from flows.progress import telling
    from stages.errors import UserError
    from stages.tools.audit import audit as audit_families
    from stages.tools.audit import told
    from stages.tools.own_family import audit_file

    if file is not None and names:
        raise UserError(f"--file {file} and the names {', '.join(names)}: give one or the other")
    with telling(Console(stderr=as_json), "audit") as tell:
        if file is not None:
            tell(f"the family in {file}")
            rows = [audit_file(file, target, share)]
        else:
            rows = audit_families(names or None, tell, targets=[target] if target else None, share=share)
    _show(rows if as_json else [told(row) for row in rows], as_json, "audit")


def _show(value: Any, as_json: bool, title: str) -> None:
    from rich.console import Console

    from flows.terminal import print_json, print_rows

    if as_json:
        print_json(value)
        return
    console = Console()
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        print_rows(console, value, title)
    elif isinstance(value, dict):
        for key, part in value.items():
            if isinstance(part, list) and part and all(isinstance(row, dict) for row in part):
                print_rows(console, part, key)
            else:
                console.print(f"{key}: {_short(part)}", markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 400 else f"{text[:400]} ... (all of it with --json)"


COMMANDS = ()
GROUPS = (tasks,)

"""Options that say nothing in the way a command is used are refused: in silence they would be taken for obeyed."""

from typing import TYPE_CHECKING

from stages.errors import UserError

if TYPE_CHECKING:
    import typer

__all__ = ["refuse"]


def refuse(context: "typer.Context", names: str, why: str) -> None:
    """Refuse options that somebody gave.

    Args:
        context: of the command.
        names: of its parameters, separated by spaces.
        why: what they would need, such as ``they belong to --serve``.

    Raises:
        UserError: one was given; says which.
    """
    parameters = {parameter.name: parameter for parameter in context.command.params}
    given = [
        max(parameters[name].opts, key=len)
        for name in names.split()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise UserError(f"{' and '.join(given)} would change nothing here: {why}; leave {_them(given)} out")


def _them(given: list[str]) -> str:
    return "it" if len(given) == 1 else "them"

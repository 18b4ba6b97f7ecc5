"""The `lensmith` command. Nothing heavy is imported here: `lensmith --help` answers in a fraction
of a second.
"""

import os
import sys
from types import ModuleType
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from flows.commands import (
    bench,
    circuits,
    comparing,
    dictionaries,
    editing,
    forecasting,
    nights,
    packs,
    redteam,
    researching,
    results,
    running,
    store,
    surprise,
    tasks,
)
from stages.errors import UserError, explain_os, os_cause

__all__ = ["app", "main"]

INTERRUPTED = 130

app = typer.Typer(
    name="lensmith",
    help="Automated interpretability research: methods are judged by how much better, "
    "and how much cheaper, an agent solves verifiable tasks with them."
    "\n\nExample: lensmith run && lensmith leaderboard",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of one-line errors.")] = False,
) -> None:
    if debug:
        os.environ["LENSMITH_DEBUG"] = "1"


_MODULES: tuple[ModuleType, ...] = (
    running,
    results,
    researching,
    comparing,
    tasks,
    circuits,
    editing,
    dictionaries,
    surprise,
    nights,
    store,
    packs,
    bench,
    redteam,
    forecasting,
)
for _module in _MODULES:
    for _command in _module.COMMANDS:
        app.command()(_command)
    for _group in getattr(_module, "GROUPS", ()):
        app.add_typer(_group, name=_module.__name__.rpartition(".")[2])


def main() -> None:
    """Exit code 0: done, 2: the user's mistake, 1: ours, 130: interrupted."""
    debug = "--debug" in sys.argv
    if debug:
        # Accepted anywhere on the line: who sees an error adds it at the end.
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
        os.environ["LENSMITH_DEBUG"] = "1"
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
        else:
            _say(f"{error.format_message()} See `{_path(error)} --help`")
        sys.exit(2)
    except (KeyboardInterrupt, Abort):
        _say("interrupted; what is finished is kept: the same command continues from there")
        sys.exit(INTERRUPTED)
    except SystemExit:
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            sys.exit(0)  # how typer marks a closed pipe: the reader (head, less) has what it wanted
        raise
    except UserError as error:
        if debug:
            raise
        _say(str(error))
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        if type(error).__name__ == "StageFailed":  # its module is not imported for `--help`
            _say(str(error))
            sys.exit(1)
        refused = os_cause(error)
        if refused is not None:
            text, users_fault = explain_os(refused)
            _say(text)
            sys.exit(2 if users_fault else 1)
        _say(f"{type(error).__name__}: {error} (a fault of ours: run again with --debug and report it)")
        sys.exit(1)


def _path(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context is not None else "lensmith"


def _say(text: str) -> None:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)


if __name__ == "__main__":
    main()

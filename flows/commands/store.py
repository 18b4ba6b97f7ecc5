"""`lensmith mlflow`: the pages of MLflow, over the store of this working copy."""

from typing import Annotated

import typer

__all__ = ["COMMANDS"]


def mlflow(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Where it listens, on this machine.")] = 5000,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the default browser.")] = False,
) -> None:
    """Show the runs in MLflow's pages until Ctrl-C. Made for small, busy machines: one process, no
    job runner.

    Example: lensmith mlflow
    """
    from rich.console import Console

    from flows.mlflow_server import pages, serving
    from flows.progress import telling
    from stages import tracking
    from stages.errors import UserError

    file = tracking.sqlite_file(tracking.uri())
    if file is not None and not file.is_file():
        raise UserError(f"{file} is missing: nothing was tracked here; make it with `lensmith run`")
    tracking.settle()
    console = Console()
    with serving(port) as server:
        with telling(console, "MLflow is starting"):
            server.wait_until_it_answers()
        for what, url in pages(port):
            console.print(f"{what + ':':9} {url}", highlight=False, soft_wrap=True, markup=False)
        console.print("Ctrl-C ends it", highlight=False)
        if open_it:
            import webbrowser

            webbrowser.open(pages(port)[0][1])
        server.wait()


COMMANDS = (mlflow,)

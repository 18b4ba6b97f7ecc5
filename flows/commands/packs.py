"""`lensmith pack` and `lensmith fetch`."""

from typing import Annotated

import typer

__all__ = ["COMMANDS"]

Place = Annotated[
    str, typer.Argument(metavar="PLACE", help="A folder, or a URL that DVC knows: s3://, gs://, ssh://, https://.")
]


def pack(place: Place) -> None:
    """Keep what was computed here in a folder or DVC remote, for other working copies to fetch.

    Example: lensmith pack /mnt/shared/lensmith
    """
    import shlex

    from rich.console import Console
    from rich.filesize import decimal

    from flows.lock import run_lock
    from flows.packing import pack as into
    from flows.packing import parts
    from stages.base import paths

    console = Console()
    with run_lock(paths.root(), "lensmith pack", shared=True):
        made = into(paths.root(), place, lambda text: console.print(text, highlight=False, soft_wrap=True))
    console.print(f"packed: {parts(made.nodes)}; {decimal(made.n_bytes)}", highlight=False, soft_wrap=True)
    console.print(f"digest: {made.digest}", highlight=False, soft_wrap=True)
    console.print(
        f"fetch:  lensmith fetch {shlex.quote(place)} --digest {made.digest}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def fetch(
    place: Place,
    everything: Annotated[
        bool, typer.Option("--all", help="All results; default: what `lensmith score` needs.")
    ] = False,
    digest: Annotated[str, typer.Option("--digest", help="What `lensmith pack` printed; checked.")] = "",
) -> None:
    """Fetch what others have computed, instead of computing it; every file is checked against its
    digest.

    Example: lensmith fetch /mnt/shared/lensmith
    """
    from rich.console import Console

    from flows.lock import run_lock
    from flows.packing import fetch as out_of
    from flows.packing import parts
    from stages.base import paths
    from stages.scoring.needs import score_inputs

    console, root = Console(), paths.root()
    with run_lock(root, "lensmith fetch"):
        wanted = None if everything else score_inputs()
        got = out_of(root, place, wanted, digest, lambda text: console.print(text, highlight=False, soft_wrap=True))
    if got.nodes:
        console.print(f"fetched: {parts(got.nodes)}", highlight=False, soft_wrap=True)
    if got.stale:
        text = f"made by other code or parameters, so a run makes it again: {', '.join(got.stale)}"
        console.print(text, highlight=False, soft_wrap=True)
    console.print(f"digest: {got.digest}", highlight=False, soft_wrap=True)


COMMANDS = (pack, fetch)

"""What `lensmith score` needs is made when it is not there: targets, tasks, baseline, dictionaries; nothing else."""

from collections.abc import Callable

from stages.base import paths

__all__ = ["make_what_score_needs"]

ABOUT = "about five minutes on two cores, once"
"""CPU time from an empty checkout, divided by two."""


def make_what_score_needs(progress: Callable[[str], None] = print) -> None:
    """Run the part of the graph that makes it, unless everything is there.

    Raises:
        UserError: a node failed by the user's mistake, or somebody else is at work here.
        StageFailed: a node failed by ours.
    """
    from flows.lock import run_lock
    from stages.scoring.needs import score_outputs

    with run_lock(paths.root(), "lensmith score", shared=True):  # not while a run is at work: it says who
        outputs = score_outputs()
    missing = [path for path in outputs if not path.exists()]
    if not missing:
        return
    from rich.console import Console

    from flows.scheduler import RunOptions, raise_failures, run_graph

    root = paths.root()
    names = ", ".join(path.relative_to(root).as_posix() for path in missing)
    progress(f"missing: {names}; making it and what it needs ({ABOUT})")
    with run_lock(root, "lensmith score"):
        result = run_graph(root, Console(stderr=True), RunOptions(outputs=outputs))
    raise_failures(root, result.outcomes)

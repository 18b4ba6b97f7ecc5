"""What must be on disk before a method can be scored."""

from collections.abc import Sequence
from pathlib import Path

from stages.base import paths
from stages.base.params import load, names
from stages.interpretation.settings import Config

__all__ = ["outputs_about", "score_inputs", "score_outputs"]


def score_outputs() -> tuple[Path, ...]:
    """The baseline arm of every task, and the dictionaries that a method may look into: some targets have none."""
    trained_on = names("dictionaries", "trained_on")
    targets = [target for target in load("interpretation", Config).targets if target in trained_on]
    return (paths.execution_dir("baseline"), *(paths.dictionaries_dir(target) for target in targets))


def outputs_about(targets: Sequence[str]) -> tuple[Path, ...]:
    """What a run about some targets makes: they themselves, their activations, their dictionaries where some are
    trained, and rewards."""
    trained_on = names("dictionaries", "trained_on")
    of = (paths.target_dir, paths.activations_dir)
    folders = [folder(target) for target in targets for folder in of]
    folders += [paths.dictionaries_dir(target) for target in targets if target in trained_on]
    return (*folders, *map(paths.metrics_file, ("leaderboard", "train", "per_task")))


def score_inputs() -> tuple[Path, ...]:
    """What scoring reads: targets, tasks, the baseline arm and dictionaries; files and whole folders."""
    kinds = (paths.target_dir("any"), paths.task_dir("any"), paths.dictionaries_dir("any"))
    return (*(path.parent for path in kinds), paths.execution_dir("baseline"))

"""What `lensmith score` says of one method: its rows beside the built-in ones, and what the meters counted."""

from collections.abc import Mapping

from stages.contracts.outcomes import Outcome
from stages.contracts.record import Record
from stages.contracts.reward_rows import FreshRow, LeaderboardRow, TaskRow

__all__ = ["METERS", "Meters", "ScoreResult"]


class Meters(Record):
    """What the three meters counted on one task. CPU time varies from run to run, so this is in no result file."""

    task: str
    """<family>.<target>."""
    outcome: Outcome
    """What came of the query."""
    flops_a: float | None = None
    """FLOPs of the target, counted on the trusted side; left out, like all below, where no process was metered."""
    flops_b: float | None = None
    """FLOPs of the method's own operations, counted inside its process."""
    flops_c: float | None = None
    """FLOPs that its CPU time beyond the allowance would pay for."""
    charged_flops: float | None = None
    """FLOPs charged."""
    cpu_s: float | None = None
    """CPU seconds of the method's process."""
    cpu_allowed_s: float | None = None
    """CPU seconds that its counted operations explain."""
    calls: int | None = None
    """Calls to the target."""
    ops: int | None = None
    """Operations counted inside the method's process."""


METERS = tuple(name for name in Meters.model_fields if name not in ("task", "outcome"))


class ScoreResult(Record):
    """One method, scored."""

    method: str
    """Its name; <name>_of_yours where a built-in method has the same."""
    outcome: Outcome
    """The worst over the tasks; void and infra are no score, and have no rows."""
    reason: str
    """Why it is not ok; empty otherwise."""
    layer: str
    """Which limit or check stopped it; empty where none did."""
    verdict: str
    """better, not distinguishable or worse on validation families; the outcome where there is no score."""
    verdict_text: str
    """The verdict in plain sentences, with its interval, noise floor and placebo."""
    rows: tuple[LeaderboardRow, ...]
    """Its row and those of the built-in methods, per split, best first."""
    per_task: tuple[TaskRow, ...]
    """Its row on each task."""
    fresh_gap: tuple[FreshRow, ...]
    """Its scores on instances drawn just now, per task."""
    meters: tuple[Meters, ...]
    """What the meters counted on each task."""
    meters_file: str
    """Where that is kept, relative to the working copy."""
    calibration: Mapping[str, float]
    """Speed of this machine that the CPU-time meter goes by."""
    interpret_bytes: int
    """Size of I(M) on all targets."""
    interpret_cpu_s: float
    """CPU seconds of computing it."""

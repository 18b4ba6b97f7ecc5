"""What the meters said of a method, as rows and as points of an MLflow run."""

from collections.abc import Sequence

from stages.contracts.arms import Answered
from stages.contracts.score_result import METERS, Meters

__all__ = ["meter_points", "meters_of"]


def meters_of(task: str, answered: Answered) -> Meters:
    """What was counted on one task; nothing but its outcome where no process was metered."""
    return Meters.model_validate({"task": task, "outcome": answered.status, **answered.meters})


def meter_points(meters: Sequence[Meters]) -> dict[str, float]:
    """What the three meters said of each task, as MLflow metrics."""
    values = {f"{one.task}/meter/{key}": getattr(one, key) for one in meters for key in METERS}
    return {key: float(value) for key, value in values.items() if value is not None}

"""What the meters said of a method, as points of an MLflow run."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["meter_points"]

METERS = ("flops_a", "flops_b", "flops_c", "charged_flops", "cpu_s", "cpu_allowed_s", "calls", "ops")


def meter_points(meters: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the three layers said of each task, as MLflow metrics."""
    return {f"{of['task']}/meter/{key}": float(of[key]) for of in meters for key in METERS}

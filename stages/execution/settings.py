"""params/execution.yaml: what the executor is; the same in every arm."""

from pydantic import Field

from stages.base.params import Params, load
from stages.contracts.pay import Pay

__all__ = ["Config", "ExecutorConfig", "executor"]


class _File(Params):
    """Fields of params/execution.yaml, with its values."""

    n_seeds: int = Field(default=3, ge=1, le=20)
    """Splits into calibration and evaluation, each with its own black-box draws; at least 3 for a result."""
    n_calibration: int = Field(default=80, ge=10, le=1000)
    """Labelled instances it may learn from; at most 40% of a task's instances."""
    folds: int = Field(default=6, ge=2, le=10)
    margin: float = Field(default=0.02, ge=0, le=0.5)
    """It takes the cheapest option whose cross-validated score is within this of the best."""
    max_features: int = Field(default=24, ge=1, le=1000)
    """Features its calibrator keeps."""


class ExecutorConfig(_File):
    """Its fields have the values of params/execution.yaml unless they are given."""

    pay: Pay = Field(default_factory=Pay)
    """What it is paid for, and so chooses by; said once, in params/reward.yaml."""


class Config(_File):
    """What the graph is run with: a result needs three seeds."""

    n_seeds: int = Field(ge=3, le=20)


def executor() -> ExecutorConfig:
    """The executor of the params, and what it is paid for."""
    return ExecutorConfig(**load("execution", Config).model_dump(), pay=load("reward", Pay, part=True))

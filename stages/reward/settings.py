"""params/reward.yaml: how arms become a reward, and whose."""

from pydantic import Field

from stages.base.params import Params
from stages.reward.formula import Form

__all__ = ["Config", "RewardConfig"]


class RewardConfig(Params):
    """How arms become a reward."""

    flop_weight: float = Field(default=0.1, ge=0, le=10)
    """lambda: what a complete saving of compute is worth, in units of score."""
    form: Form = "linear"
    margin: float = Field(default=0.02, ge=0, le=1)
    """Savings count only where assisted >= baseline - margin."""
    draws: int = Field(default=1000, ge=100, le=100_000)
    """Bootstrap resamples."""
    seed: int = Field(default=0, ge=0)


class Config(RewardConfig):
    methods: tuple[str, ...]
    """Methods on the leaderboard; read from here, not from the directory, so that a removed arm is not scored again."""
    flop_weights: tuple[float, ...]
    """Values of lambda for the sensitivity table."""

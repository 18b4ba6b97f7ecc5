"""params/reward.yaml: how arms become a reward, and whose."""

from pydantic import Field

from stages.contracts.pay import Pay

__all__ = ["Config", "RewardConfig"]


class RewardConfig(Pay):
    """How arms become a reward."""

    draws: int = Field(default=1000, ge=100, le=100_000)
    """Bootstrap resamples."""
    seed: int = Field(default=0, ge=0)


class Config(RewardConfig):
    methods: tuple[str, ...]
    """Methods on the leaderboard; read from here, not from the directory, so that a removed arm is not scored again."""
    flop_weights: tuple[float, ...]
    """Values of lambda for the sensitivity table."""

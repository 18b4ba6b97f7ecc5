"""params/proxies.yaml."""

from pydantic import Field

from stages.base.params import Params

__all__ = ["REWARD", "Config"]

REWARD = "reward"


class Config(Params):
    families: tuple[str, ...] = Field(min_length=1)
    """Train and validation families whose rewards count."""
    n_seeds: int = Field(ge=1, le=20)
    """Splits into calibration and evaluation, of those the baseline arm has."""
    n_kept: int = Field(ge=1, le=4096)
    """Latents of each hook point that the method may answer with; those that vary most."""
    draws: int = Field(ge=100, le=100_000)
    """Bootstrap resamples and permutations of each correlation."""
    seed: int = Field(ge=0)

"""params/proxies.yaml."""

from pydantic import Field, field_validator

from stages.base.params import Params

__all__ = ["REWARD", "Config", "Primary"]

REWARD = "reward"


class Primary(Params):
    """The one metric whose correlation is tested alone, named before any reward was looked at."""

    metric: str
    """A metric of a dictionary, as in metrics/dictionaries.json."""
    stated: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    """When it was named: year-month-day."""
    reason: str = Field(min_length=20)
    """Why this one."""


class Config(Params):
    families: tuple[str, ...] = Field(min_length=1)
    """Train and validation families whose rewards count: of kinds that method ``sae`` answers from latents alone."""
    n_seeds: int = Field(ge=1, le=20)
    """Splits into calibration and evaluation, of those the baseline arm has."""
    n_kept: int = Field(ge=1, le=4096)
    """Latents of each hook point that the method may answer with; those that vary most."""
    draws: int = Field(ge=100, le=100_000)
    """Bootstrap resamples and permutations of each correlation."""
    seed: int = Field(ge=0)
    primary: Primary
    """All other metrics are corrected for how many they are."""
    degraded: str
    """Positive control: the architecture whose dictionaries also answer with fewer and fewer of their latents."""
    shares: tuple[float, ...]
    """Shares of those latents, above 0 and below 1; none: without this control."""

    @field_validator("shares")
    @classmethod
    def _shares(cls, wanted: tuple[float, ...]) -> tuple[float, ...]:
        for share in wanted:
            if not 0 < share < 1:
                raise ValueError(f"share {share:g} of the latents: give numbers above 0 and below 1")
        return wanted

"""params/interpretation.yaml: limits of the free phase."""

from pydantic import Field

from stages.base.params import Params

__all__ = ["Config"]


class Config(Params):
    targets: tuple[str, ...]
    """Targets every method is applied to."""
    max_seconds: float = Field(gt=0)
    """Wall-clock limit of interpret() on one target."""
    max_bytes: int = Field(gt=0)
    """Size cap of I(M) on one target."""
    seed: int = Field(ge=0)

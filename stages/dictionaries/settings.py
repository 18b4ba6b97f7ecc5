"""params/dictionaries.yaml: what stages ``dictionaries`` and ``sweep`` are configured by."""

from pydantic import Field, field_validator

from stages.base import paths
from stages.base.params import Params
from stages.dictionaries.evaluation.baselines import BASELINES
from stages.dictionaries.training.train import ARCHITECTURES
from stages.errors import UserError

__all__ = ["ArchitectureConfig", "Config", "SweepConfig", "TargetConfig", "settings_of"]


class SweepConfig(Params):
    """What is swept; batch, learning rate, seeds and so on are those of the kept dictionaries."""

    architectures: dict[str, tuple[float, ...]] = Field(min_length=1)
    """Sparsities of each: the L1 coefficient or the latents per row."""
    baselines: tuple[str, ...]
    k: tuple[int, ...]
    """Latents per row of the baselines."""
    sizes: tuple[float, ...]
    """Further sizes, as multiples of the target's n_latents, each at the architectures' first sparsity."""

    @field_validator("architectures")
    @classmethod
    def _known(cls, wanted: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, values in wanted.items():
            if name not in ARCHITECTURES or not values:
                raise ValueError(f"architecture {name!r} with {len(values)} values; known: {', '.join(ARCHITECTURES)}")
        return wanted

    @field_validator("baselines")
    @classmethod
    def _baselines(cls, wanted: tuple[str, ...]) -> tuple[str, ...]:
        for name in wanted:
            if name not in BASELINES:
                raise ValueError(f"baseline {name!r} is unknown; known: {', '.join(BASELINES)}")
        return wanted


class ArchitectureConfig(Params):
    name: str
    """One of ``training.ARCHITECTURES``; standard is ReLU with an L1 penalty."""
    sparsity: float = Field(gt=0)
    """L1 coefficient (standard) or latents per row (topk, batchtopk)."""
    label: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$")
    """What it is called in files and tables; the name by default. For a second one of the same name."""
    regularisers: dict[str, float] = Field(default_factory=dict)
    """Coefficients of regularisers added to the loss, by name (see custom_objectives.py)."""
    activation: str = ""
    """Name of an activation in place of ReLU (standard only)."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ARCHITECTURES:
            raise ValueError(f"architecture {name!r} is unknown; known: {', '.join(ARCHITECTURES)}")
        return name

    @property
    def called(self) -> str:
        return self.label or self.name


class TargetConfig(Params):
    hooks: tuple[str, ...] = Field(min_length=1)
    """Hook points to train dictionaries at; they must be cached."""
    n_latents: int = Field(ge=2, le=65_536)
    """Size of every dictionary of this target."""
    steps: int = Field(ge=1, le=1_000_000)
    """Optimiser steps."""
    n_swept: int = Field(default=1, ge=0)
    """Hook points the sweep covers, counted from the last; 0: none."""
    n_examples: int | None = Field(default=None, ge=10)
    """Held-out inputs that dictionaries are measured on, at most; all that are cached by default. Each dictionary costs
    a forward pass of all of them."""
    n_gallery: int | None = Field(default=None, ge=0, le=2000)
    """Latents per dictionary in the gallery, at most, in place of the general number. Each costs two forward passes of
    eight inputs."""


class Config(Params):
    trained_on: dict[str, TargetConfig] = Field(min_length=1)
    """Targets by name; ``summary`` joins exactly these."""
    architectures: tuple[ArchitectureConfig, ...] = Field(min_length=1)
    """Trained at every hook point, each once per seed."""
    batch: int = Field(ge=2, le=1_000_000)
    """Rows per step."""
    lr: float = Field(gt=0, le=1)
    """Learning rate of Adam."""
    dead_window_rows: int = Field(ge=1)
    """Rows without firing after which AuxK works on a latent."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Of the weights and the order of rows. The first one's dictionary is kept."""
    n_resamples: int = Field(ge=20, le=100_000)
    """Bootstrap resamples per interval."""
    n_probe_rows: int = Field(ge=20)
    """Rows that probes are trained on, and at most tested on."""
    sweep: SweepConfig
    """Sparsities, sizes and baselines that are measured beside the kept dictionaries."""
    n_gallery: int = Field(ge=0, le=2000)
    """Latents per dictionary in the gallery, at most; each is about 1.3 kB there."""


def settings_of(config: Config, target: str) -> TargetConfig:
    """The entry of one target.

    Raises:
        UserError: it has none.
    """
    if target not in config.trained_on:
        raise UserError(
            f"target {target!r} has no entry in {paths.params_file('dictionaries')}; it has"
            f" {', '.join(sorted(config.trained_on))}; add one under `trained_on`"
        )
    return config.trained_on[target]

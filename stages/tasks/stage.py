"""Stage ``tasks``: data/targets/ -> data/tasks/<family>/: instances and brute-force truth of one family.

Writes for every target of the family <target>.public.safetensors (arrays with the instance first, ``shared_*`` arrays,
``variant.*`` weights) and <target>.truth.safetensors (values (N, I) float64), then family.json. Costs are FLOPs counted
by the project's own op table, so the file does not depend on the machine. Nobody but scoring may read the truth files;
that is kept by who gets which path, not by the files themselves.
"""

import sys
from typing import Self

import torch
from pydantic import Field, model_validator

from stages import tracking
from stages.base.params import Params, load
from stages.contracts.target import TargetSpec
from stages.contracts.task import TaskFamily
from stages.errors import UserError
from stages.targets.storage import load_target
from stages.tasks.families import FAMILIES, family
from stages.tasks.generation import make
from stages.tasks.secret import digest, read_secret
from stages.tasks.storage import FamilyFacts, Split, TargetFacts, save_facts, save_task

__all__ = ["Config", "main", "run"]

LEAST = 20
"""Instances of a task: fewer leave nothing to learn from."""


class FamilyConfig(Params):
    split: Split
    """Whole families are held out."""
    targets: tuple[str, ...] = Field(min_length=1)
    """Targets it is run on."""
    n_instances: dict[str, int] = Field(default_factory=dict)
    """Of a target on which the truth is dear, in place of the number for all; 20 at the least."""

    @model_validator(mode="after")
    def _of_its_targets(self) -> Self:
        for target, n in self.n_instances.items():
            if target not in self.targets or n < LEAST:
                raise ValueError(
                    f"n_instances has {target}: {n}; give a target of this family ({', '.join(self.targets)}) and at"
                    f" least {LEAST}"
                )
        return self

    def n_on(self, family: TaskFamily, spec: TargetSpec, n_instances: int) -> int:
        """Instances on one target."""
        return self.n_instances.get(spec.name, max(LEAST, round(n_instances * family.share_on(spec))))


class Config(Params):
    n_instances: int = Field(ge=20, le=100_000)
    """Instances per family and target, before the family's ``cost_factor``."""
    seed: int = Field(ge=0)
    """Of instances and truth, beside the secret of the working copy. Another seed gives instances that were never
    seen."""
    families: dict[str, FamilyConfig]
    """One entry per family; names as in stages/tasks/families."""


def run(config: Config, name: str) -> dict[str, float]:
    """Make one family on its targets; returns the spread of the truth per target.

    Raises:
        UserError: the family is unknown or has no split, or a target was not trained.
        RuntimeError: the truth does not vary.
    """
    made, settings = family(name), settings_of(config, name)
    split = settings.split
    torch.set_num_threads(1)
    key = read_secret()
    targets: dict[str, TargetFacts] = {}
    with tracking.stage_run(f"tasks {name}", config.model_dump()) as log:
        for target_name in settings.targets:
            target = load_target(target_name)
            n = settings.n_on(made, target.spec, config.n_instances)
            result = make(made, target, split, n, config.seed, "stage", key)
            values = result.truth.values
            if float(values.std()) < 1e-6:
                raise RuntimeError(f"{name} on {target_name}: the truth does not vary, so it cannot be scored")
            public_digest, truth_digest = save_task(name, target_name, result.instances, result.truth)
            targets[target_name] = TargetFacts(
                public_digest=public_digest,
                truth_digest=truth_digest,
                generation_flops=result.generation_flops,
                n=n,
                n_items=values.shape[1],
                target_digest=target.digest,
                truth_flops=result.truth_flops,
                truth_mean=round(float(values.mean()), 6),
                truth_std=round(float(values.std()), 6),
            )
            spread = targets[target_name]["truth_std"]
            print(f"{name} on {target_name}: {n} x {values.shape[1]}, truth std {spread:.3f}", flush=True)
            log({f"{target_name}/truth_std": spread, f"{target_name}/truth_flops": float(result.truth_flops)}, 0)
        facts = FamilyFacts(
            name=name,
            query_kind=made.query_kind,
            version=made.version,
            split=split,
            seed=config.seed,
            secret=digest(key),
            targets=targets,
        )
        save_facts(name, facts)
    return {target_name: float(about["truth_std"]) for target_name, about in targets.items()}


def settings_of(config: Config, name: str) -> FamilyConfig:
    """The family's split and targets.

    Raises:
        UserError: params name an unknown family, or have no entry for this one.
    """
    unknown = sorted(set(config.families) - set(FAMILIES.names()))
    if unknown:
        known = ", ".join(FAMILIES.names())
        raise UserError(f"params/tasks.yaml: families {unknown} are unknown; known: {known}")
    if name not in config.families:
        raise UserError(
            f"task family {name!r} has no split: add `{name}: {{split: train, targets: [digits_mlp]}}` (or validation)"
            " to params/tasks.yaml"
        )
    return config.families[name]


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError(f"one family is needed, such as `python -m stages tasks {FAMILIES.names()[0]}`")
    run(load("tasks", Config), sys.argv[1])

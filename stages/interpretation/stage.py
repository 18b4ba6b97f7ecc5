"""Stage ``interpretation``: compute and freeze I(M) of one built-in method on every target.

Writes data/interpretation/<method>/<target>.safetensors and .json.
"""

import sys
import time

import torch
from pydantic import Field

from stages.base import paths
from stages.base.params import Params, load
from stages.contracts.method import Budget, Interpretation, Method
from stages.contracts.target import Target
from stages.dictionaries.storage import load_dictionaries
from stages.errors import MethodError
from stages.interpretation.artifact import save_interpretation
from stages.interpretation.loading import built_in
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import load_target

__all__ = ["Config", "interpret", "main", "run"]


class Config(Params):
    targets: tuple[str, ...]
    """Targets every method is applied to."""
    max_seconds: float = Field(gt=0)
    """Wall-clock limit of interpret() on one target."""
    max_bytes: int = Field(gt=0)
    """Size cap of I(M) on one target."""
    seed: int = Field(ge=0)


def interpret(method: Method, name: str, target: Target, config: Config) -> Interpretation:
    """I(M) on one target, in this process.

    Raises:
        MethodError: the method raised.
    """
    access = MeteredAccess(target, Ledger(), free=True, dictionaries=lambda: load_dictionaries(target.name))
    budget = Budget(config.max_seconds, config.max_bytes, config.seed)
    try:
        return method.interpret(access, budget)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise MethodError(name, f"interpret on {target.name}", cause, "Run it on its own to debug it.") from error


def run(config: Config, name: str) -> dict[str, int]:
    """Freeze I(M) of a built-in method on all targets; returns sizes in bytes."""
    torch.set_num_threads(1)
    method, folder, sizes = built_in(name), paths.interpretation_dir(name), {}
    for target_name in config.targets:
        started = time.monotonic()
        target = load_target(target_name)
        made = interpret(method, name, target, config)
        sizes[target_name] = save_interpretation(made, folder, target_name, name, config.max_bytes)
        seconds = time.monotonic() - started
        print(f"{name} on {target_name}: {sizes[target_name]:,} bytes in {seconds:.1f} s", flush=True)
    return sizes


def main() -> None:
    run(load("interpretation", Config), sys.argv[1])

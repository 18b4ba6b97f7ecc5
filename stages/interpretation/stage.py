"""Stage ``interpretation``: compute and freeze I(M) of one built-in method on every target.

Writes data/interpretation/<method>/<target>.safetensors and .json.
"""

import sys
import time

import torch

from stages.base import paths
from stages.base.params import load
from stages.interpretation.artifact import save_interpretation
from stages.interpretation.free_phase import interpret
from stages.interpretation.loading import built_in
from stages.interpretation.settings import Config
from stages.targets.storage import load_target

__all__ = ["Config", "main", "run"]


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

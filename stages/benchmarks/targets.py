"""How fast targets run: inputs and words a second, and the share of the machine's dense products that is.

The hand count is that of the matrix products: 2 x inputs x outputs for each place and matrix, the last one for one
place only, and 4 x T^2 x width for the two products of each layer's attention. What else a pass does (norms, softmax,
pointwise) is in the metered FLOPs, and in the hand count of the models that are trained here.

Shape legend: T = places of an input.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stages.base import paths
from stages.base.params import names
from stages.contracts.target import Target
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import load_target
from stages.targets.token_model import TokenModel

__all__ = ["TargetSpeed", "bench_targets", "hand_count"]

BATCHES = (1, 8, 32)
SECONDS = 3.0
"""Of measuring each batch size, at the least three passes."""
PRODUCT = 1024
"""Rows and columns of the dense product that the share is of."""


@dataclass(frozen=True)
class TargetSpeed:
    """Passes of one batch size through one target, on one thread."""

    target: str
    batch: int
    ms: float
    """Of one pass, median."""
    inputs_per_s: float
    words_per_s: float | None
    """Places a second; None where inputs are no words."""
    gflops: float
    """Metered FLOPs a second, in billions."""
    share_of_peak: float
    """Of what a dense product of 1024 x 1024 reaches here in the same minute."""
    metered_to_hand: float | None
    """Metered FLOPs over the hand count; None where no hand count is known."""


def bench_targets(tell: Callable[[str], None] = print) -> list[TargetSpeed]:
    """Every target of params that has been made."""
    torch.set_num_threads(1)
    rows = []
    for name in names("targets", "targets"):
        if (paths.target_dir(name) / "target.json").is_file():
            tell(name)
            rows += _speed(load_target(name))
    return rows


def _speed(target: Target) -> list[TargetSpeed]:
    access, rows = MeteredAccess(target, Ledger()), []
    for batch in BATCHES:
        inputs = target.corpus("train").inputs[:batch]
        flops = access.quote("forward", (inputs, [], [], None))
        peak = 0.0
        times: list[float] = []
        with torch.no_grad():
            target.model(inputs)
            end = time.perf_counter() + SECONDS
            while len(times) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                target.model(inputs)
                times.append(time.perf_counter() - start)
                peak = max(peak, _product())
        took, hand = statistics.median(times), hand_count(target, batch)
        places = None if target.spec.n_vocabulary is None else target.spec.input_shape[0]
        rows.append(
            TargetSpeed(
                target=target.name,
                batch=batch,
                ms=round(1e3 * took, 3),
                inputs_per_s=round(batch / took, 1),
                words_per_s=None if places is None else round(batch * places / took, 1),
                gflops=round(flops / took / 1e9, 3),
                share_of_peak=round(flops / took / peak, 4),
                metered_to_hand=None if hand is None else round(flops / hand, 4),
            )
        )
    return rows


def _product() -> float:
    """FLOP/s of one dense product."""
    left = torch.ones(PRODUCT, PRODUCT)
    start = time.perf_counter()
    left @ left
    return 2.0 * PRODUCT**3 / (time.perf_counter() - start)


def hand_count(target: Target, batch: int) -> int | None:
    """FLOPs of a pass through a transformer over words; None for another kind of target."""
    spec = target.spec
    heads = [hook for hook in spec.hooks if hook.role == "head"]
    if spec.n_vocabulary is None or spec.unembed is None or not heads:
        return None
    places, inside = spec.input_shape[0], 0
    for name, weight in target.model.named_parameters():
        kind = name.rpartition(".")[2]
        if name != spec.unembed and weight.dim() >= 2 and not kind.startswith("b_") and not _is_table(name, kind):
            inside += weight.numel()
    last = int(target.model.state_dict()[spec.unembed].numel())
    attention = sum(4 * places * places * hook.shape[-2] * hook.shape[-1] for hook in heads)
    pointwise = target.model.pointwise_flops() if isinstance(target.model, TokenModel) else 0
    return batch * (2 * places * inside + 2 * last + attention + pointwise)


def _is_table(name: str, kind: str) -> bool:
    """Whether a weight is looked up in and not multiplied by."""
    return kind in ("W_E", "W_pos") or any(part in name for part in ("embed_tokens", "wte", "wpe", "embed_in"))

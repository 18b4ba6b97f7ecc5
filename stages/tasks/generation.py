"""From a family and a target to instances and their truth: keyed streams, image pools, cost.

Every use has a random stream of its own, named by purpose, family, version, target and seed: no two purposes or seeds
share instances. Streams are keyed with the secret of the working copy, so who has the code cannot draw them again.
Images are dealt out over the splits, so that a test family never shows an image of a train family. Where the raw images
are public the target's definition disguises them first, image by image.
"""

import hashlib
import hmac
from typing import NamedTuple

import torch
from torch import Tensor

from stages.contracts.target import Corpus, Target
from stages.contracts.task import Instances, TaskFamily, Truth
from stages.errors import UserError
from stages.metering.op_table import count_flops
from stages.targets.storage import definition_of
from stages.tasks.storage import Split

__all__ = ["SPLITS", "Made", "instance_keys", "make", "pool_of", "stream"]

MOST_DRAWN = 16
"""Times n that are drawn at most, where instances come out equal."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Made(NamedTuple):
    instances: Instances
    truth: Truth
    generation_flops: int
    truth_flops: int


def stream(key: bytes, *parts: object) -> torch.Generator:
    """A generator for one purpose: the same key and parts give the same draws on every machine."""
    digest = hmac.new(key, "/".join(map(str, parts)).encode(), hashlib.sha256).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def pool_of(target: Target, split: Split, key: bytes) -> Target:
    """The same target, its ``tasks`` images restricted to the third that belongs to a split of the families, and
    disguised."""
    images, third = target.corpus("tasks"), SPLITS.index(split)
    dealt = torch.randperm(len(images.labels), generator=stream(key, "deal", target.name))[third :: len(SPLITS)]
    pool = Corpus(images.inputs[dealt], images.labels[dealt])
    disguise = getattr(definition_of(target.name), "disguise", None)
    if disguise is not None:
        pool = disguise(pool, stream(key, "disguise", target.name, split))
    corpora = {"train": target.corpus("train"), "validation": target.corpus("validation"), "tasks": pool}
    return Target(target.spec, target.model, corpora)


def make(family: TaskFamily, target: Target, split: Split, n: int, seed: int, purpose: str, key: bytes) -> Made:
    """n instances and their truth.

    Args:
        purpose: ``stage`` for the instances results are computed on; anything else never meets those.
        key: the secret of the working copy.

    Raises:
        UserError: the target does not offer what the family needs, or has fewer than n different instances of it.
        RuntimeError: the truth is not one finite row per instance.
    """
    refusal = family.refusal(target.spec)
    if refusal:
        raise UserError(f"{refusal}; take it off the family's targets in params/tasks.yaml")
    pool = pool_of(target, split, key)
    parts = (purpose, family.name, family.version, target.name, seed)
    with count_flops() as generation:
        instances = _different(family, pool, stream(key, "instances", *parts), n)
    with count_flops() as brute_force:
        truth = family.ground_truth(pool, instances, stream(key, "truth", *parts))
    values = truth.values
    if values.dim() != 2 or values.shape[0] != n or not bool(values.isfinite().all()):
        raise RuntimeError(f"{family.name} on {target.name}: truth of shape {tuple(values.shape)} for {n} instances")
    return Made(instances, truth, generation.flops, brute_force.flops)


def _different(family: TaskFamily, pool: Target, rng: torch.Generator, n: int) -> Instances:
    """n instances, no two of them equal. By chance two may be, of prompts that are few: then more are drawn, and each
    is taken once.

    Raises:
        UserError: sixteen times as many hold fewer than n different ones.
    """
    n_drawn = n
    while True:
        instances = family.generate(pool, rng, n_drawn)
        first: dict[str, int] = {}
        for i, fingerprint in enumerate(instance_keys(instances)):
            first.setdefault(fingerprint, i)
        if len(first) >= n:
            return instances if n_drawn == n else _only(instances, torch.tensor(list(first.values())[:n]))
        n_drawn *= 2
        if n_drawn > MOST_DRAWN * n:
            raise UserError(
                f"{family.name} on {pool.name}: {n} instances are asked for, and among {n_drawn // 2} that were drawn"
                f" only {len(first)} differ; lower n_instances in params/tasks.yaml to {len(first)} or less"
            )


def _only(instances: Instances, index: Tensor) -> Instances:
    """Some of the instances, with no variant but theirs: families judge every variant there is."""
    some = instances.select(index)
    if "variant" not in some.arrays:
        return some
    used, renumbered = torch.unique(some.arrays["variant"], return_inverse=True)
    weights = {name: stack[used] for name, stack in instances.variants.items()}
    return Instances({**some.arrays, "variant": renumbered}, some.n, weights, some.planted)


def instance_keys(instances: Instances) -> list[str]:
    """A fingerprint of each instance's public arrays, or of its variant's weights: equal only for equal instances."""
    keys = []
    for i in range(instances.n):
        sha = hashlib.sha256()
        for name, array in sorted(instances.arrays.items()):
            if name == "variant":
                for weights in instances.variants.values():
                    sha.update(weights[int(array[i])].contiguous().numpy().tobytes())
            elif not name.startswith("shared_"):
                sha.update(array[i].contiguous().numpy().tobytes())
        keys.append(sha.hexdigest())
    return keys

"""From a family and a target to instances and their truth: seeded streams, image pools, cost.

Every use has a random stream of its own, named by purpose, family, version, target and seed: no two purposes or seeds
share instances. Images are dealt out over the splits, so that a test family never shows an image of a train family.
"""

import hashlib
from typing import NamedTuple

import torch

from stages.contracts.target import Corpus, Target
from stages.contracts.task import Instances, TaskFamily, Truth
from stages.metering.op_table import count_flops
from stages.tasks.storage import Split

__all__ = ["SPLITS", "Made", "instance_keys", "make", "pool_of", "stream"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Made(NamedTuple):
    instances: Instances
    truth: Truth
    generation_flops: int
    truth_flops: int


def stream(*parts: object) -> torch.Generator:
    """A generator for one purpose: the same parts give the same draws on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def pool_of(target: Target, split: Split) -> Target:
    """The same target, its ``tasks`` images restricted to the third that belongs to a split of the families."""
    images, third = target.corpus("tasks"), SPLITS.index(split)
    corpora = {
        "train": target.corpus("train"),
        "validation": target.corpus("validation"),
        "tasks": Corpus(images.inputs[third :: len(SPLITS)], images.labels[third :: len(SPLITS)]),
    }
    return Target(target.spec, target.model, corpora)


def make(family: TaskFamily, target: Target, split: Split, n: int, seed: int, purpose: str) -> Made:
    """n instances and their truth.

    Args:
        purpose: ``stage`` for the instances results are computed on; anything else never meets those.

    Raises:
        RuntimeError: the truth is not one finite row per instance.
    """
    pool = pool_of(target, split)
    parts = (purpose, family.name, family.version, target.name, seed)
    with count_flops() as generation:
        instances = family.generate(pool, stream("instances", *parts), n)
    with count_flops() as brute_force:
        truth = family.ground_truth(pool, instances, stream("truth", *parts))
    values = truth.values
    if values.dim() != 2 or values.shape[0] != n or not bool(values.isfinite().all()):
        raise RuntimeError(f"{family.name} on {target.name}: truth of shape {tuple(values.shape)} for {n} instances")
    return Made(instances, truth, generation.flops, brute_force.flops)


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

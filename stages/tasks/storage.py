"""Tasks on disk: data/tasks/<family>/<target>.public.safetensors, <target>.truth.safetensors and family.json.

The public file holds what a method may see (``variant.<name>`` are the stacked weights of variants), the truth file
what only scoring may. Both are byte-stable. family.json, written last, says what was made and names their digests.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from stages.base import paths
from stages.contracts.task import Instances, TaskFamily, Truth
from stages.errors import UserError
from stages.tasks.families import FAMILIES, family

__all__ = [
    "FamilyFacts",
    "Split",
    "TargetFacts",
    "Task",
    "dearest_first",
    "list_tasks",
    "load_task",
    "save_facts",
    "save_task",
]

Split = Literal["train", "validation", "test"]
VARIANT = "variant."


@dataclass(frozen=True)
class Task:
    """One family on one target, with its truth: what the trusted side holds."""

    family: TaskFamily
    target_name: str
    split: Split
    instances: Instances
    truth: Truth

    @property
    def name(self) -> str:
        return f"{self.family.name}.{self.target_name}"

    @cached_property
    def digest(self) -> str:
        """sha256 of the instances and their truth."""
        sha = hashlib.sha256()
        parts = {**self.instances.arrays, **{VARIANT + k: v for k, v in self.instances.variants.items()}}
        for key, value in sorted((parts | {"truth": self.truth.values}).items()):
            sha.update(f"{key} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        return sha.hexdigest()


class Digests(NamedTuple):
    """sha256 of the two files of a task."""

    public: str
    truth: str


def save_task(name: str, target_name: str, instances: Instances, truth: Truth) -> Digests:
    """Write the public and the truth file; returns the sha256 of each. What was planted is never written."""
    folder = paths.task_dir(name)
    folder.mkdir(parents=True, exist_ok=True)
    public = {key: value.contiguous() for key, value in instances.arrays.items()}
    public |= {VARIANT + key: value.contiguous() for key, value in instances.variants.items()}
    public_file, truth_file = _files(folder, target_name)
    save_file(public, public_file)
    save_file({"values": truth.values.contiguous()}, truth_file, {"groups": json.dumps(truth.groups, sort_keys=True)})
    return Digests(_sha(public_file), _sha(truth_file))


class TargetFacts(TypedDict):
    """What was made of one family on one target."""

    public_digest: str
    truth_digest: str
    generation_flops: float
    n: int
    n_items: int
    target_digest: str
    truth_flops: float
    truth_mean: float
    truth_std: float


class FamilyFacts(TypedDict):
    """family.json."""

    name: str
    query_kind: str
    version: int
    split: Split
    seed: int
    secret: str
    """Digest of the secret that the instances were drawn with."""
    targets: dict[str, TargetFacts]


def save_facts(name: str, facts: FamilyFacts) -> None:
    text = json.dumps(facts, indent=1, sort_keys=True)
    (paths.task_dir(name) / "family.json").write_text(text + "\n", encoding="utf-8")


def load_task(family_name: str, target_name: str) -> Task:
    """Load one family on one target.

    Raises:
        UserError: unknown family or target, stage not run, or files that do not match their digests.
    """
    made = family(family_name)
    facts = _facts(family_name)
    if target_name not in facts["targets"]:
        known = ", ".join(sorted(facts["targets"]))
        raise UserError(f"task family {family_name} was not made on target {target_name!r}; it was on: {known}")
    if facts["version"] != made.version:
        raise UserError(
            f"{paths.task_dir(family_name)} holds version {facts['version']} of {family_name}, the code is version"
            f" {made.version}: run `dvc repro tasks@{family_name}`"
        )
    about = facts["targets"][target_name]
    public_file, truth_file = _files(paths.task_dir(family_name), target_name)
    for file, digest in ((public_file, about["public_digest"]), (truth_file, about["truth_digest"])):
        if _sha(paths.require(file, "tasks")) != digest:
            raise UserError(
                f"{file} does not match its digest: it was changed or damaged; delete it and `lensmith run`"
            )
    try:
        public = load_file(public_file)
        values = load_file(truth_file)["values"]
        with safe_open(truth_file, framework="pt") as opened:
            groups = json.loads(opened.metadata()["groups"])
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{truth_file.parent} cannot be read ({error}): delete it and `lensmith run`") from error
    arrays = {key: value for key, value in public.items() if not key.startswith(VARIANT)}
    variants = {key.removeprefix(VARIANT): value for key, value in public.items() if key.startswith(VARIANT)}
    instances = Instances(arrays, int(about["n"]), variants)
    return Task(made, target_name, facts["split"], instances, Truth(values, groups))


def list_tasks(split: Split | None = None) -> list[tuple[str, str]]:
    """(family, target) of every task that was made, sorted; ``split`` keeps one split's.

    Raises:
        UserError: unknown split, or nothing was made yet.
    """
    if split not in (None, "train", "validation", "test"):
        raise UserError(f"split {split!r} is unknown: use train, validation or test")
    found = []
    for name in FAMILIES.names():
        if (paths.task_dir(name) / "family.json").is_file():
            facts = _facts(name)
            if split in (None, facts["split"]):
                found += [(name, target) for target in sorted(facts["targets"])]
    if not found and split is None:
        paths.require(paths.task_dir(FAMILIES.names()[0]) / "family.json", "tasks")
    return found


def dearest_first(tasks: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same tasks, those first whose truth took the most FLOPs: dealt out in this order, processes end together."""
    return sorted(tasks, key=lambda task: (-_facts(task[0])["targets"][task[1]]["truth_flops"], task))


def _facts(name: str) -> FamilyFacts:
    file = paths.require(paths.task_dir(name) / "family.json", "tasks")
    try:
        facts: FamilyFacts = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON ({error}): delete it and `lensmith run`") from error
    return facts


def _files(folder: Path, target_name: str) -> tuple[Path, Path]:
    return folder / f"{target_name}.public.safetensors", folder / f"{target_name}.truth.safetensors"


def _sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

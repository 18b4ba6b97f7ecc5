"""A pack: what was computed here, kept in a DVC remote, so that another working copy need not compute it.

A pack is a folder or any other place that DVC can push to: the files by their MD5, as DVC keeps them, and beside them
``dvc.lock``, which says which node made which from what. Every file is checked against its digest when it is fetched,
and the lock against the digest that `lensmith pack` printed, if that is given.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from flows.graph import repository, stage_of
from flows.lock_file import Lock, read, write
from stages.base.files import save_text
from stages.errors import UserError, explain_os

if TYPE_CHECKING:
    from dvc.repo import Repo

__all__ = ["Fetched", "Packed", "fetch", "pack"]

LOCK = "dvc.lock"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Packed:
    """What was put into a pack."""

    nodes: tuple[str, ...]
    n_bytes: int
    digest: str
    """SHA-256 of the pack's lock, which names every file by its MD5."""


@dataclass(frozen=True)
class Fetched:
    """What was taken out of a pack."""

    nodes: tuple[str, ...]
    stale: tuple[str, ...]
    """Nodes among them that were made by other code or parameters than those here: a run makes them again."""
    digest: str


@contextmanager
def _opened(root: Path, place: str) -> "Iterator[Repo]":
    """DVC with the pack as its remote.

    Raises:
        UserError: DVC or the place refused, with the reason.
    """
    url = place if "://" in place else str(Path(place).expanduser().absolute())
    # Verified: what arrives is hashed, instead of being believed to be what it is called.
    remote = {"remote": {"pack": {"url": url, "verify": True}}}
    what, remedy = f"pack {place}", "see that it can be reached, then run the same again"
    try:
        with repository(root, what, remedy, remote) as opened:
            yield opened
    except OSError as error:
        raise UserError(f"{what}: {explain_os(error)[0]}") from error


def _lock_of(repo: "Repo") -> tuple[Any, str]:
    """(file system, path) of the pack's lock."""
    from dvc.fs import get_cloud_fs

    kind, options, folder = get_cloud_fs(repo.config, name="pack")
    system = kind(**options)
    return system, system.join(folder, LOCK)


def pack(root: Path, place: str, progress: Progress = print) -> Packed:
    """Put the results of all nodes that are up to date into a pack.

    Raises:
        UserError: nothing is up to date, or the place cannot be written to.
    """
    with _opened(root, place) as repo:
        stale = {node for node, changes in repo.status().items() if changes}
        stages = [stage for stage in repo.index.stages if stage.addressing not in stale and stage.outs]
        if not stages:
            raise UserError(f"nothing in {root} is up to date: make it with `lensmith run`, then pack it")
        nodes = tuple(sorted(stage.addressing for stage in stages))
        if stale:
            progress(f"left out, since it is not up to date: {', '.join(sorted(stale))}")
        progress(f"packing {len(nodes)} nodes into {place}")
        repo.push(targets=list(nodes), remote="pack")
        lock = read((root / LOCK).read_text(encoding="utf-8"))
        entries = {node: lock["stages"][node] for node in nodes}
        text = write({"schema": lock["schema"], "stages": entries}).encode()
        system, path = _lock_of(repo)
        system.makedirs(system.parent(path), exist_ok=True)
        system.pipe_file(path, text)
    sizes = [out.get("size", 0) for entry in entries.values() for out in entry["outs"]]
    return Packed(nodes, sum(sizes), hashlib.sha256(text).hexdigest())


def fetch(
    root: Path, place: str, wanted: Iterable[Path] | None, digest: str = "", progress: Progress = print
) -> Fetched:
    """Take results out of a pack: those of nodes that are up to date here already are left as they are.

    Args:
        wanted: files and folders; None: everything.
        digest: what the lock must have, as `lensmith pack` printed it; empty: not checked.

    Raises:
        UserError: there is no such pack, it is damaged or not the one that was meant, or has nothing that is wanted.
    """
    with _opened(root, place) as repo:
        system, path = _lock_of(repo)
        try:
            text: bytes = system.cat_file(path)
        except FileNotFoundError as error:
            raise UserError(f"{place} is no pack: it has no {LOCK}; make one with `lensmith pack {place}`") from error
        found = hashlib.sha256(text).hexdigest()
        if digest and digest != found:
            raise UserError(f"{place} has digest {found}, not {digest}: it is not the pack that was meant")
        entries = _entries(text, place)
        stale = {node for node, changes in repo.status().items() if _differs(changes)}
        nodes = sorted(
            stage.addressing
            for stage in repo.index.stages
            if stage.addressing in entries
            and stage.addressing in stale
            and (wanted is None or _writes(map(Path, (out.fs_path for out in stage.outs)), wanted))
        )
    if not nodes:
        progress(f"everything wanted of {place} is here already")
        return Fetched((), (), found)
    progress(f"fetching {len(nodes)} nodes from {place}")
    with _entered(root, {node: entries[node] for node in nodes}), _opened(root, place) as repo:
        repo.fetch(targets=nodes, remote="pack")
        for stage in repo.index.stages:
            if stage.addressing in nodes:
                for out in stage.outs:
                    _check(out, place)
        repo.checkout(targets=nodes, force=True)
        changes = repo.status(targets=nodes)
    return Fetched(tuple(nodes), tuple(sorted(node for node in nodes if _differs(changes.get(node, [])))), found)


def _differs(changes: object) -> bool:
    """Whether a node's status, as DVC gives it, is more than that something it was made from is not here."""
    kept = [one for one in changes if one != "always changed"] if isinstance(changes, list) else []
    for one in kept:
        if not isinstance(one, dict) or set(one) != {"changed deps"}:
            return True
        if any(change != "deleted" for change in one["changed deps"].values()):
            return True
    return False


def _entries(text: bytes, place: str) -> Lock:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import MultipleInvalid

    try:
        checked = COMPILED_LOCKFILE_SCHEMA(read(text.decode()))
    except (MultipleInvalid, UnicodeDecodeError) as error:
        raise UserError(f"{place}: its {LOCK} is damaged ({error}); pack it again") from error
    stages: Lock = checked.get("stages", {})
    return stages


def _writes(outs: Iterable[Path], wanted: Iterable[Path]) -> bool:
    return any(out == path or path in out.parents or out in path.parents for out in outs for path in wanted)


@contextmanager
def _entered(root: Path, entries: Lock) -> Iterator[None]:
    """In dvc.lock, for DVC to fetch and check out; where that fails, the lock is as it was."""
    file = root / LOCK
    before = file.read_text(encoding="utf-8") if file.exists() else None
    lock = read(before) if before else {}
    merged = {**lock, "schema": lock.get("schema", "2.0"), "stages": {**lock.get("stages", {}), **entries}}
    save_text(file, write(merged))
    try:
        yield
    except BaseException:
        if before is None:
            file.unlink()
        else:
            save_text(file, before)
        raise


def _check(out: Any, place: str) -> None:
    """A folder's list of files comes from the pack: none may lie outside of the folder."""
    if not str(out.hash_info.value or "").endswith(".dir"):
        return
    listed = json.loads(Path(out.cache.oid_to_path(out.hash_info.value)).read_bytes())
    for entry in listed:
        name = PurePosixPath(entry["relpath"])
        if name.is_absolute() or ".." in name.parts or "\\" in entry["relpath"]:
            raise UserError(f"{place}: {out} would write {name}, outside of its folder: this pack is not to be trusted")


def parts(nodes: Iterable[str]) -> str:
    """Nodes in words: ``targets 3, tasks 10``."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[stage_of(node)] = counts.get(stage_of(node), 0) + 1
    return ", ".join(f"{stage} {n}" if n > 1 else stage for stage, n in counts.items())

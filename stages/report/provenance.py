"""Where the numbers come from: the file and command behind each section, and the code, versions and machine behind all.

No date stands here: the same results, made by the same code, give the same page. ``lensmith report`` says when.
"""

import hashlib
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from stages.base import paths
from stages.base.params import profile_name
from stages.contracts.circuit_rows import DRAWINGS
from stages.contracts.dictionary_rows import GALLERY
from stages.contracts.results import BY_HAND, FILES

__all__ = ["Source", "commit", "provenance", "sources"]

CODE = ("stages", "params", "dvc.yaml", "constraints.txt")
"""What results depend on: a commit that touches none of these made none of the numbers."""
PACKAGES = ("torch", "numpy", "scikit-learn", "transformer-lens", "sae-lens")
"""Those that compute."""
GIT_PATIENCE_S = 60


class Source(NamedTuple):
    """What a section is made from."""

    file: str
    command: str


def sources() -> dict[str, Source]:
    """By name of the result."""
    root = paths.root()
    found = {
        one.name: Source(one.path().relative_to(root).as_posix(), one.command) for one in (*FILES.values(), *BY_HAND)
    }
    galleries = paths.dictionaries_dir("*") / "gallery.json"
    drawings = paths.circuits_dir() / "drawings.json"
    found[GALLERY.name] = Source(galleries.relative_to(root).as_posix(), f"dvc repro {GALLERY.made_by}")
    found[DRAWINGS.name] = Source(drawings.relative_to(root).as_posix(), f"dvc repro {DRAWINGS.made_by}")
    return found


class Fact(NamedTuple):
    name: str
    value: str


def provenance() -> list[Fact]:
    """Code, results, sizes of the run, versions and kind of machine."""
    return [
        Fact("code", commit(paths.root())),
        Fact("results", f"sha256 {_digest()[:12]}"),
        Fact("profile", profile_name()),
        Fact("versions", ", ".join([f"Python {platform.python_version()}", *map(_version, PACKAGES)])),
        Fact("machine", f"{platform.system()} {platform.machine()}"),
    ]


def commit(root: Path) -> str:
    """The commit that last changed what results depend on, and whether there are changes on top of it."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return "not under git"
    last = _ask(git, root, "log", "-1", "--format=%h", "--", *CODE)
    if not last:
        return "not committed yet"
    changed = _ask(git, root, "status", "--porcelain", "--untracked-files=no", "--", *CODE)
    return f"commit {last}" + (" with changes on top of it" if changed else "")


def _ask(git: str, root: Path, *words: str) -> str:
    try:
        # An abbreviation of the usual kind depends on how many objects a clone has.
        done = subprocess.run(
            [git, "-c", "core.abbrev=12", *words], cwd=root, capture_output=True, text=True, timeout=GIT_PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package).partition('+')[0]}"
    except metadata.PackageNotFoundError:
        return f"{package} not installed"


def _digest() -> str:
    """Of the metric files, by name and content."""
    sha = hashlib.sha256()
    for path in sorted(paths.metrics_file("any").parent.glob("*.json")):
        sha.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return sha.hexdigest()

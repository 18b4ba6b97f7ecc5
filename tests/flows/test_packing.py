"""Packs: what one working copy computed, another has without computing it, and nothing that was tampered with."""

import json
import shutil
from pathlib import Path

import pytest

from tests.flows.conftest import Toy

NODES = ("first", "arm@a", "arm@b", "join")


@pytest.fixture
def packed(toy: Toy, tmp_path: Path) -> Path:
    assert toy.lensmith("run").returncode == 0
    place = tmp_path / "pack of the team"
    done = toy.lensmith("pack", str(place))
    assert done.returncode == 0, done.stderr
    return place


def emptied(toy: Toy) -> Toy:
    """The working copy as cloned: nothing run, no cache."""
    for name in ("data", "metrics", ".lensmith"):
        shutil.rmtree(toy.root / name, ignore_errors=True)
    (toy.root / "dvc.lock").unlink()
    shutil.rmtree(toy.root / ".dvc" / "cache")
    (toy.root / "executions.log").unlink()
    return toy


def outputs(toy: Toy) -> dict[str, bytes]:
    files = [path for folder in ("data", "metrics") for path in (toy.root / folder).rglob("*")]
    return {str(path.relative_to(toy.root)): path.read_bytes() for path in files if path.is_file()}


def test_what_is_fetched_is_not_computed_again(toy: Toy, packed: Path) -> None:
    made = outputs(toy)
    there = emptied(toy)
    done = there.lensmith("fetch", str(packed), "--all")
    assert done.returncode == 0 and "fetched: arm 2, first, join" in done.stdout, done.stderr
    assert outputs(there) == made
    assert "nothing executed" in there.lensmith("run").stdout
    assert not (there.root / "executions.log").exists()
    assert "here already" in there.lensmith("fetch", str(packed), "--all").stdout


def test_other_code_is_told_and_made_again(toy: Toy, packed: Path) -> None:
    there = emptied(toy)
    (there.root / "source" / "a.txt").write_text("other", encoding="utf-8")
    done = there.lensmith("fetch", str(packed), "--all")
    assert "so a run makes it again: arm@a" in done.stdout
    assert "2 nodes executed" in there.lensmith("run").stdout  # the arm and what joins it


def test_what_is_here_is_not_overwritten(toy: Toy, packed: Path) -> None:
    (toy.root / "source" / "a.txt").write_text("mine", encoding="utf-8")
    assert toy.lensmith("run").returncode == 0
    mine = outputs(toy)
    assert "here already" in toy.lensmith("fetch", str(packed), "--all").stdout
    assert outputs(toy) == mine


def test_the_digest_is_checked(toy: Toy, packed: Path) -> None:
    done = emptied(toy).lensmith("fetch", str(packed), "--all", "--digest", "0" * 64)
    assert done.returncode == 2 and "not the pack that was meant" in done.stderr


def test_a_file_that_was_changed_is_refused(toy: Toy, packed: Path) -> None:
    there = emptied(toy)
    files = [path for path in (packed / "files").rglob("*") if path.is_file() and b"a " in path.read_bytes()[:2]]
    assert files
    for file in files:
        file.chmod(0o644)
        file.write_bytes(b"b " + file.read_bytes()[2:])
    done = there.lensmith("fetch", str(packed), "--all")
    assert done.returncode != 0
    assert not (there.root / "data" / "arm" / "a").exists()


def test_a_list_of_files_that_leaves_its_folder_is_refused(toy: Toy, packed: Path) -> None:
    """The digest of what a hostile pack lists is right: what it lists is what must be refused."""
    import hashlib

    from flows.lock_file import read, write

    there = emptied(toy)
    lock = read((packed / "dvc.lock").read_text(encoding="utf-8"))
    out = lock["stages"]["first"]["outs"][0]
    listing = json.dumps([{"md5": out["md5"], "relpath": "../../stolen"}]).encode()
    md5 = hashlib.md5(listing, usedforsecurity=False).hexdigest()
    file = packed / "files" / "md5" / md5[:2] / f"{md5[2:]}.dir"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(listing)
    out["md5"], out["nfiles"] = f"{md5}.dir", 1
    (packed / "dvc.lock").write_text(write(lock), encoding="utf-8")
    done = there.lensmith("fetch", str(packed), "--all")
    assert done.returncode == 2 and "outside of its folder" in done.stderr, done.stderr
    assert not (there.root / "stolen").exists() and not (there.root / "dvc.lock").exists()


@pytest.mark.parametrize("text", ["", "[1, 2", "schema: '2.0'\nstages: 3\n", "a: b"])
def test_a_damaged_lock_is_an_error_that_says_so(toy: Toy, packed: Path, text: str) -> None:
    (packed / "dvc.lock").write_text(text, encoding="utf-8")
    before = (toy.root / "dvc.lock").read_bytes()
    done = toy.lensmith("fetch", str(packed), "--all")
    assert (done.returncode == 2 and "error: " in done.stderr) or "here already" in done.stdout
    assert (toy.root / "dvc.lock").read_bytes() == before and "Traceback" not in done.stderr


def test_no_pack_and_nothing_to_pack(toy: Toy, tmp_path: Path) -> None:
    done = toy.lensmith("fetch", str(tmp_path / "nowhere"))
    assert done.returncode == 2 and "is no pack" in done.stderr
    done = toy.lensmith("pack", str(tmp_path / "new"))
    assert done.returncode == 2 and "lensmith run" in done.stderr

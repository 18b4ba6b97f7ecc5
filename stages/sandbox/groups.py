"""What a process group uses, seen from outside: a cgroup v2 where one may be made, /proc and CPU clocks otherwise."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Group", "Usage", "cpu_seconds", "descendants", "waits", "writable_group"]

ROOT = Path("/sys/fs/cgroup")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def writable_group(root: Path = ROOT) -> Path | None:
    """The cgroup v2 folder of this process, if groups may be made below it."""
    if not (root / "cgroup.controllers").is_file():
        return None
    try:
        entry = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()[-1]
    except (OSError, IndexError):
        return None
    folder = root / entry.partition("::")[2].strip("/")
    return folder if os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK) else None


class Group:
    """A cgroup of its own for one process tree, made empty; ``None`` members mean there is none."""

    def __init__(self, name: str, memory: int, tasks: int, parent: Path | None) -> None:
        self.folder: Path | None = None
        if parent is None:
            return
        folder = parent / name
        try:
            folder.mkdir()
        except OSError:
            return
        self.folder = folder
        # Controllers are there only where the parent hands them down; CPU time is counted in any case.
        with contextlib.suppress(OSError):
            (parent / "cgroup.subtree_control").write_text("+memory +pids", encoding="utf-8")
        for file, value in (("memory.max", memory), ("memory.swap.max", 0), ("pids.max", tasks)):
            with contextlib.suppress(OSError):
                (folder / file).write_text(str(value), encoding="utf-8")

    def add(self, pid: int) -> None:
        if self.folder is not None:
            with contextlib.suppress(OSError):
                (self.folder / "cgroup.procs").write_text(str(pid), encoding="utf-8")

    def cpu_seconds(self) -> float | None:
        if self.folder is None:
            return None
        try:
            text = (self.folder / "cpu.stat").read_text(encoding="utf-8")
        except OSError:
            return None
        facts = dict(line.split() for line in text.splitlines() if line)
        return int(facts["usage_usec"]) / 1e6 if "usage_usec" in facts else None

    def close(self) -> None:
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            (self.folder / "cgroup.kill").write_text("1", encoding="utf-8")
        for _ in range(50):
            try:
                self.folder.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.01)


class Usage:
    """Threads and resident bytes of a process tree."""

    def __init__(self, pid: int) -> None:
        self.threads = self.resident = self.processes = 0
        for each in [pid, *descendants(pid)]:
            try:
                text = Path(f"/proc/{each}/stat").read_text(encoding="utf-8")
            except OSError:
                continue
            fields = text.rpartition(")")[2].split()
            self.processes += 1
            self.threads += int(fields[17])
            self.resident += int(fields[21]) * _PAGE


def descendants(pid: int) -> list[int]:
    """Process ids below ``pid``, nearest first."""
    found, queue = [], [pid]
    below = _children if Path("/proc/thread-self/children").exists() else _children_of_all()
    while queue:
        nearer = below(queue.pop(0))
        found += nearer
        queue += nearer
    return found


def _children(pid: int) -> list[int]:
    """As the kernel lists them; a look at every process of the machine takes a hundred times as long."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text(encoding="utf-8").split())
    return found


def _children_of_all() -> Callable[[int], list[int]]:
    """The same on kernels that list no children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text(encoding="utf-8")
            except OSError:
                continue
            children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    return lambda pid: children.get(pid, [])


def waits(pid: int) -> dict[int, float]:
    """Seconds that each thread of a process tree has waited for a CPU while it could have run; empty where the kernel
    does not say."""
    found = {}
    for each in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for thread in Path(f"/proc/{each}/task").iterdir():
                with contextlib.suppress(OSError):
                    found[int(thread.name)] = int((thread / "schedstat").read_text(encoding="utf-8").split()[1]) / 1e9
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and everything below it so far, children that have ended included."""
    total = 0.0
    for each in [pid, *descendants(pid)]:
        try:
            # The kernel's clock of a whole process, ended threads included: nanoseconds, where /proc has hundredths.
            total += time.clock_gettime((~each << 3) | 2)
            fields = Path(f"/proc/{each}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            total += (int(fields[13]) + int(fields[14])) / _TICKS
        except OSError:
            continue
    return total

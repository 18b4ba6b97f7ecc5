"""The walls around a method's process: a bubblewrap command line, and whether it works on this machine.

Inside there is a read-only system, the interpreter, its packages, the files of this project that a method may import,
and the method's file, each under a neutral path. Not there: the working copy, data, results, the DVC cache, the MLflow
store, git, the network, other processes, procfs, devices beyond the harmless ones, the environment. The private folder
/tmp and /dev/shm are bounded.
"""

import os
import platform
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import stages
from stages.base.code import closure, file_of
from stages.sandbox.limits import METHOD, PRIVATE_BYTES, RUNNER, WARM
from stages.sandbox.seccomp import program, supported

__all__ = ["INSTALL", "Layer", "arguments", "command", "layers", "why_unavailable"]

INSTALL = "install bubblewrap (Debian: `apt-get install bubblewrap`)"
START = (
    "import sys; sys.path[:0] = ['/house']; sys.path += sys.argv.pop(1).split(':');"
    " from stages.sandbox.{module} import main; main()"
)


class Layer(NamedTuple):
    name: str
    active: bool
    detail: str


def _packages() -> list[Path]:
    found = []
    for entry in sys.path:
        path = Path(entry)
        if path.name in ("site-packages", "dist-packages") and path.is_dir() and path not in found:
            found.append(path)
    return found


def _data_sets(packages: Path) -> list[str]:
    """Folders of packages that hold data sets, which targets and tasks are made from."""
    return [data for data in ("sklearn/datasets/data", "sklearn/datasets/images") if (packages / data).is_dir()]


@lru_cache(maxsize=1)
def _files() -> tuple[str, ...]:
    """What a method's process needs of ours, relative to the checkout: the contract, the worker, its warm parent, and
    what `lensmith` hands out. No target, task family, data set, seed, built-in method, executor, reward, campaign or
    exploit."""
    needed = closure(
        ["stages.sandbox.warm_parent", "stages.contracts.reading", "stages.dictionaries.architectures.codec"]
    )
    top = Path(next(iter(stages.__path__))).parent
    return ("lensmith/__init__.py", *sorted(file_of(module).relative_to(top).as_posix() for module in needed))


def arguments(source: str) -> tuple[list[str], list[str]]:
    """(options for bwrap, command to run in it) for a method.

    Args:
        source: absolute path of a file; RUNNER or WARM: no method.
    """
    options = ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--hostname", "method"]
    options += ["--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    if source == WARM:  # what entering further namespaces takes; its children give it up before they read a method
        options += ["--cap-add", "CAP_SYS_ADMIN", "--dir", str(Path(METHOD).parent)]
    if "--disable-userns" in _help():
        options += ["--disable-userns"]
    options += ["--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib32", "lib64", "libx32"):
        path = Path("/") / name
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), f"/{name}"]
        elif path.is_dir():
            options += ["--ro-bind", f"/{name}", f"/{name}"]
    for extra in ("/etc/ld.so.cache", "/nix/store", "/proc/cpuinfo", "/proc/meminfo"):
        options += ["--ro-bind-try", extra, extra]
    prefix = Path(sys.base_prefix).resolve()
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    if not prefix.is_relative_to("/usr"):
        options += ["--ro-bind", str(prefix), "/python"]
        executable, prefix = Path("/python") / executable.relative_to(prefix), Path("/python")
    packages = []
    for i, path in enumerate(_packages()):
        packages.append(f"/packages/{i}")
        options += ["--ro-bind", str(path), packages[-1]]
        for data in _data_sets(path):
            options += ["--tmpfs", f"{packages[-1]}/{data}", "--remount-ro", f"{packages[-1]}/{data}"]
    top = Path(next(iter(stages.__path__))).parent
    for file in _files():
        options += ["--ro-bind", str(top / file), f"/house/{file}"]
    inside = source
    if source.endswith(".py"):
        options += ["--ro-bind", source, METHOD]
        inside = METHOD
    options += ["--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        options += [*(("--size", str(PRIVATE_BYTES)) if "--size" in _help() else ()), "--tmpfs", folder]
    # The new root and /dev are tmpfs as well, of no bounded size.
    options += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    environment = {
        "HOME": "/tmp", "LANG": "C.UTF-8", "LD_LIBRARY_PATH": f"{prefix}/lib", "LOGNAME": "method", "MKL_NUM_THREADS":
        "1",
        "OMP_NUM_THREADS": "1", "PATH": "/nowhere", "TMPDIR": "/tmp", "USER": "method",
    }  # fmt: skip
    for key, value in environment.items():
        options += ["--setenv", key, value]
    start = START.format(module="warm_parent" if source == WARM else "worker")
    return options, [str(executable), "-I", "-S", "-B", "-c", start, ":".join(packages), inside]


def command(source: str, descriptor: int, info: int) -> tuple[list[str], list[int]]:
    """(command line, descriptors to pass and then close) that start a method in the sandbox.

    The options go through a pipe: a command line can be read by everyone, and they hold paths of this machine.
    """
    options, inside = arguments(source)
    passed = [info]
    options += ["--info-fd", str(info)]
    if supported():
        passed.append(_pipe(program(entering=source == WARM)))
        options += ["--seccomp", str(passed[-1])]
    passed.append(_pipe("\0".join(options).encode() + b"\0"))
    binary = shutil.which("bwrap") or "bwrap"
    return [binary, "--args", str(passed[-1]), "--", *inside, str(descriptor)], passed


def _pipe(content: bytes) -> int:
    read, write = os.pipe()
    assert len(content) < 1 << 16, "a pipe holds 64 KiB before somebody reads it"
    os.write(write, content)
    os.close(write)
    return read


@lru_cache(maxsize=1)
def _help() -> str:
    done = subprocess.run(["bwrap", "--help"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@lru_cache(maxsize=1)
def why_unavailable() -> str:
    """Why the sandbox cannot be used here, and the remedy; empty: it can."""
    if sys.platform != "linux":
        return "bubblewrap exists on Linux only"
    if shutil.which("bwrap") is None:
        return f"bubblewrap is not installed: {INSTALL}"
    # Everything but the method, and a shared library, so that a missing mount shows here.
    options, inside = arguments(RUNNER)
    done = subprocess.run(
        ["bwrap", *options, "--", inside[0], "-I", "-S", "-c", "import ctypes, json"],
        capture_output=True, text=True, timeout=60, env={}, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return (
        f"bubblewrap is installed but cannot make a sandbox here ({said}): allow unprivileged user namespaces"
        " (sysctl kernel.unprivileged_userns_clone=1; in a container: run it with --security-opt seccomp=unconfined"
        " or --privileged)"
    )


def layers() -> list[Layer]:
    """What stands between a method and this machine, for ``lensmith doctor``."""
    from stages.sandbox.groups import writable_group

    why = why_unavailable()
    version = ""
    if not why:
        version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    group = writable_group()
    return [
        Layer("bubblewrap", not why, version or why),
        Layer(
            "seccomp",
            not why and supported(),
            "no new processes, no ptrace, no mounts" if supported() else f"no table for {platform.machine()}",
        ),
        Layer("rlimits", True, "address space, CPU time, file size, open files, processes, no core files"),
        Layer(
            "cgroup", group is not None, str(group) if group else "no writable cgroup v2: rlimits and a watch instead"
        ),
    ]

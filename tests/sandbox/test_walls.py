"""What a method cannot do from inside the sandbox. Each probe runs as a real method and says what it got."""

import os
import textwrap
from pathlib import Path

import pytest

from stages.errors import MethodError, UserError
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.redteam.red_team import CONTROLS
from stages.sandbox import bubblewrap, seccomp
from stages.sandbox.bubblewrap import layers
from stages.sandbox.host import Limits, MethodProcess
from tests.sandbox.walls import needs_sandbox

CONTROL = CONTROLS / "gradient_times_input.py"
HEAD = """
import ctypes, json, mmap, os, socket, subprocess, sys, threading, time
import torch
from lensmith import Interpretation, Method
class Mine(Method):
    def answer(self, query, interpretation, target): return None
    def interpret(self, target, budget):
        found = {}
"""


def probe(tmp_path, mlp, body: str, limits: Limits | None = None, timeout: float = 30) -> dict:
    """Run ``body`` in ``interpret`` and return the dict ``found`` that it filled."""
    path = tmp_path / "probe.py"
    text = (
        HEAD
        + textwrap.indent(ATTEMPT + textwrap.dedent(body), " " * 8)
        + "\n        return Interpretation({}, found)\n"
    )
    path.write_text(text, encoding="utf-8")
    with MethodProcess(path, "probe", timeout, limits=limits) as process:
        return dict(process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0).data)


ATTEMPT = """
def attempt(name, what):
    try: found[name] = repr(what())[:200]
    except BaseException as error: found[name] = type(error).__name__
"""


@needs_sandbox
def test_it_sees_neither_the_working_copy_nor_other_processes_nor_the_environment(tmp_path, mlp):
    (tmp_path / "secret.txt").write_text("truth")
    here = str(Path.cwd())
    os.environ["LENSMITH_SECRET"] = "42"
    try:
        found = probe(
            tmp_path, mlp,
            f"""
            found["root"] = sorted(os.listdir("/"))
            found["house"] = sorted(os.listdir("/house/stages"))
            found["environment"] = sorted(os.environ)
            paths = "/root /home /proc/1 /proc/self /sys /etc/passwd /var /run /mnt /opt /usr/../root".split()
            found["there"] = [p for p in ({here!r}, {str(tmp_path)!r}, *paths) if os.path.exists(p)]
            found["method"] = os.listdir("/method")
            found["uid"] = os.getuid()
            found["pid"] = os.getpid()
            found["host"] = socket.gethostname()
            found["argv"] = sys.argv
            """,
        )  # fmt: skip
    finally:
        del os.environ["LENSMITH_SECRET"]
    assert set(found["root"]) <= {
        "dev", "etc", "house", "lib", "lib32", "lib64", "libx32", "method", "nix", "packages", "proc", "python", "tmp",
        "usr",
    }  # fmt: skip
    assert not {"tasks", "execution", "reward", "research", "audit", "report"} & set(found["house"])
    assert "LENSMITH_SECRET" not in found["environment"] and "MLFLOW_TRACKING_URI" not in found["environment"]
    assert found["there"] == [] and found["method"] == ["method.py"]
    assert (found["uid"], found["host"]) == (65534, "method") and found["pid"] < 10
    assert not any(here in argument for argument in found["argv"])


@needs_sandbox
@pytest.mark.skipif(not seccomp.supported(), reason="no table of system calls for this machine")
def test_system_calls_that_reach_out_are_refused(tmp_path, mlp):
    found = probe(
        tmp_path, mlp,
        """
        libc = ctypes.CDLL(None, use_errno=True)
        def call(number, *arguments):
            done = libc.syscall(number, *arguments)
            return done if done >= 0 else "errno %d" % ctypes.get_errno()
        attempt("fork", os.fork)
        attempt("spawn", lambda: subprocess.run(["/usr/bin/env"]))
        attempt("exec", lambda: os.execv("/usr/bin/env", ["env"]))
        attempt("socket", socket.socket)
        attempt("raise limit", lambda: __import__("resource").setrlimit(__import__("resource").RLIMIT_NPROC, (-1, -1)))
        import platform
        if platform.machine() == "x86_64":
            for name, number in dict(ptrace=101, mount=165, unshare=272, bpf=321, keyctl=250, process_vm_readv=310,
                                     io_uring_setup=425, userfaultfd=323, seccomp=317, prctl=157, vfork=58,
                                     perf_event_open=298, x32=0x40000000 + 39).items():
                if name != "x32":
                    found[name] = call(number, 0, 0, 0, 0, 0)
        thread = threading.Thread(target=lambda: found.update(thread="ran")); thread.start(); thread.join()
        """,
    )  # fmt: skip
    assert found.pop("thread") == "ran"
    for name in ("fork", "spawn", "exec", "socket"):
        assert found[name] in ("PermissionError", "BlockingIOError", "OSError"), (name, found[name])
    assert found["raise limit"] in ("ValueError", "PermissionError")
    for name in ("ptrace", "mount", "unshare", "bpf", "keyctl", "io_uring_setup", "seccomp", "prctl", "vfork"):
        if name in found:
            assert found[name] == "errno 1", (name, found[name])


@needs_sandbox
def test_it_writes_only_into_a_bounded_private_folder(tmp_path, mlp):
    found = probe(
        tmp_path, mlp,
        """
        for folder in ("/", "/usr", "/house", "/packages/0", "/method", "/dev", "/etc", "/proc"):
            attempt(folder, lambda: open(folder + "/x", "w"))
        def fill(folder):
            written = 0
            try:
                for i in range(200):
                    with open(f"{folder}/{i}", "wb") as file:
                        file.write(bytes(1 << 20)); written += 1
            except OSError: pass
            return written
        found["filled"] = {folder: fill(folder) for folder in ("/tmp", "/dev/shm")}
        """,
    )  # fmt: skip
    filled = found.pop("filled")
    assert all(0 < mib <= 64 for mib in filled.values())
    assert set(found.values()) <= {"OSError", "PermissionError", "FileNotFoundError"}


@needs_sandbox
@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("hog = [bytearray(1 << 26) for _ in range(200)]", "MemoryError|of memory|process ended"),
        ("hog = torch.ones(1 << 33)", "RuntimeError|memory"),
        (
            """
            def idle(): time.sleep(60)
            for _ in range(500): threading.Thread(target=idle, daemon=True).start()
            time.sleep(60)
            """,
            "threads|can't start new thread",
        ),
        ("while True: pass", "longer than 4 s"),
        ("os._exit(0)", "process ended"),
        ("os.kill(os.getpid(), 9)", "process ended"),
    ],
)
def test_what_it_uses_too_much_of_ends_it(tmp_path, mlp, body, cause):
    with pytest.raises(MethodError, match=cause):
        probe(tmp_path, mlp, body, Limits(memory=4 << 30, resident=1 << 30), timeout=4)


@needs_sandbox
def test_nothing_is_left_behind(tmp_path, mlp):
    """A thread that goes on after the job, a detached child: gone with the sandbox."""
    path = tmp_path / "stays.py"
    path.write_text(
        HEAD + "        threading.Thread(target=lambda: time.sleep(600)).start()\n        return Interpretation()\n"
    )
    with MethodProcess(path, "stays", 30) as process:
        process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)
        inside = process._root
        assert Path(f"/proc/{inside}").exists()
    assert not Path(f"/proc/{inside}").exists()


def test_without_a_sandbox_unreviewed_code_is_refused_and_the_remedy_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    bubblewrap.why_unavailable.cache_clear()
    try:
        with pytest.raises(UserError, match=r"apt-get install bubblewrap.*--trust"):
            MethodProcess(CONTROL, "control", 10)
        assert not next(layer for layer in layers() if layer.name == "bubblewrap").active
        with MethodProcess(CONTROL, "control", 30, trust=True) as process:
            assert process.layers == []
    finally:
        bubblewrap.why_unavailable.cache_clear()


def test_filter_programs_are_whole_instructions_and_end_in_a_verdict():
    if not seccomp.supported():
        pytest.skip("no table of system calls for this machine")
    for second in (False, True):
        code = seccomp.program(second=second)
        assert len(code) % 8 == 0 and len(code) // 8 < 4096
        assert code[-8:-6] == b"\x06\x00"

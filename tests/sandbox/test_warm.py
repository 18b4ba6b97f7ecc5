"""Methods' processes that are forked from one parent: none can tell that there is, or was, another."""

import os
import signal
from pathlib import Path

import pytest

from stages.errors import InfraError, MethodError
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.sandbox import seccomp, starting
from stages.sandbox.groups import descendants
from stages.sandbox.host import MethodProcess
from tests.sandbox.test_killed import gone
from tests.sandbox.test_walls import ATTEMPT, HEAD
from tests.sandbox.walls import needs_sandbox

pytestmark = [
    needs_sandbox,
    pytest.mark.skipif(not seccomp.supported(), reason="without a filter of system calls nothing is forked"),
]
NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "cgroup")


def written(folder: Path, body: str, name: str = "mine.py") -> Path:
    lines = "".join(f"        {line}\n" for line in (ATTEMPT + body).splitlines())
    (folder / name).write_text(HEAD + lines + "        return Interpretation({}, found)\n", encoding="utf-8")
    return folder / name


def told(process: MethodProcess, mlp) -> dict:
    return dict(process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0).data)


def parent() -> int:
    """The interpreter that methods are forked from."""
    found = starting._warm_parent()
    assert found is not None
    return next(pid for pid in descendants(found._tree.root) if "python" in Path(f"/proc/{pid}/cmdline").read_text())


def facts(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


MARKS = """
for place in ("/tmp/note", "/dev/shm/note", "note"): open(place, "a").write("x")
libc = ctypes.CDLL(None, use_errno=True)
import fcntl
fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_APPEND | os.O_NONBLOCK)
attempt("terminal", lambda: os.open("/dev/ptmx", os.O_RDWR))
found["segment"] = libc.shmget(77, 4096, 0o1666)
torch.ones(5); torch.manual_seed(5); torch.set_default_dtype(torch.float64)
import json; json.canary = "was here"; os.environ["CANARY"] = "was here"
"""
LOOKS = """
import fcntl
found["notes"] = [p for p in ("/tmp/note", "/dev/shm/note", "note") if os.path.exists(p)]
found["flags"] = fcntl.fcntl(0, fcntl.F_GETFL) & (os.O_APPEND | os.O_NONBLOCK)
found["segment"] = ctypes.CDLL(None).shmget(77, 4096, 0)
found["seed"], found["dtype"] = torch.initial_seed() == 5, str(torch.get_default_dtype())
found["left"] = hasattr(json, "canary") or "CANARY" in os.environ
def there(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
found["open"] = [fd for fd in range(4096) if there(fd)]
found["pid"], found["ppid"], found["cwd"] = os.getpid(), os.getppid(), os.getcwd()
def reached(pid):
    try: os.kill(pid, 0)
    except OSError: return False
    return True
found["seen"] = [pid for pid in range(1, 1 << 16) if reached(pid)]
found["empty"] = {p: os.listdir(p) for p in ("/tmp", "/dev/shm", "/dev/pts")}
for name, what in {
    "flock": lambda: fcntl.flock(os.open("/dev/null", os.O_RDWR), fcntl.LOCK_EX),
    "lock": lambda: fcntl.lockf(os.open("/dev/null", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB),
    "look for a lock": lambda: fcntl.fcntl(0, fcntl.F_GETLK, bytes(64)),
    "lease": lambda: fcntl.fcntl(os.open("/method/method.py", os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK),
    "rewrite": lambda: open("/method/method.py", "a"),
    "beside": lambda: open("/method/other.py", "w"),
    "terminal": lambda: os.open("/dev/ptmx", os.O_RDWR),
    "remount": lambda: 1 / (1 + ctypes.CDLL(None).mount(b"none", b"/method", None, ctypes.c_ulong(32), None)),
    "uncover": lambda: 1 / (1 + ctypes.CDLL(None).umount2(b"/tmp", 2)),
    "watch": lambda: 1 / (1 + ctypes.CDLL(None).inotify_init1(0)),
}.items(): attempt(name, what)
"""
REFUSED = {"PermissionError", "OSError", "FileNotFoundError", "ZeroDivisionError"}


def test_a_method_finds_nothing_of_its_siblings_and_of_those_before_it(tmp_path, mlp):
    marks, looks = written(tmp_path, MARKS, "marks.py"), written(tmp_path, LOOKS, "looks.py")
    with MethodProcess(marks, "marks", 60) as process:
        assert told(process, mlp)["terminal"] in REFUSED
    with MethodProcess(marks, "marks", 60) as beside, MethodProcess(looks, "looks", 60) as process:
        told(beside, mlp)
        found = told(process, mlp)
    assert (found["notes"], found["flags"], found["segment"], found["left"], found["seed"]) == ([], 0, -1, False, False)
    assert found["dtype"] == "torch.float32"
    assert found["empty"] == {"/tmp": [], "/dev/shm": [], "/dev/pts": []} and found["cwd"] == "/tmp"
    assert len(found["open"]) == 4, "standard files and its own connection"
    assert (found["pid"], found["ppid"]) == (2, 1) and found["seen"] == [1, 2]
    names = "flock,lock,look for a lock,lease,rewrite,beside,terminal,remount,uncover,watch".split(",")
    assert {name: found[name] for name in names if found[name] not in REFUSED} == {}


def test_seen_from_outside_it_has_namespaces_of_its_own_no_capability_and_all_filters(tmp_path, mlp):
    file = written(tmp_path, "")
    with MethodProcess(file, "one", 60) as one, MethodProcess(file, "two", 60) as two:
        inside = [descendants(each._root)[0] for each in (one, two)]
        for name in NAMESPACES:
            spaces = {str(Path(f"/proc/{pid}/ns/{name}").readlink()) for pid in (*inside, parent(), os.getpid())}
            assert len(spaces) == 4, f"{name}: {spaces}"
        for pid in (*inside, one._root, two._root):
            status = facts(pid)
            held = [status[kind] for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb")]
            assert held == ["0" * 16] * 4 and status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", status
        # The parent's filter, and on top of it those that a method started by bubblewrap has.
        assert int(facts(inside[0])["Seccomp_filters"]) - int(facts(parent())["Seccomp_filters"]) == 2
        assert facts(parent())["CapEff"].lstrip("0") == "200000"  # CAP_SYS_ADMIN, in a namespace that owns nothing
        outer = [pid for pid in descendants(starting._warm_parent()._tree.root) if pid not in inside]
        assert sum(facts(pid)["CapEff"].strip("0") != "" for pid in outer) == 1


def test_no_byte_of_a_method_comes_into_the_memory_of_the_parent(tmp_path, mlp):
    """Its text, what it computed and what it said: searched for in all that the parent holds."""
    pieces = ("zanzi", "bar-", "0451")
    file = written(tmp_path, f"found['said'] = ''.join({pieces!r}) * 50\n# " + "".join(pieces))
    with MethodProcess(file, "canary", 60) as process:
        assert told(process, mlp)["said"].startswith("zanzibar-0451")
        inside = descendants(process._root)[0]
        assert held(inside, b"zanzibar-0451"), "the search finds it where it is"
    assert not held(parent(), b"zanzibar-0451")


def held(pid: int, what: bytes) -> bool:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
            place, rights, *_ = line.split()
            first, last = (int(at, 16) for at in place.split("-"))
            if not rights.startswith("rw"):
                continue
            try:
                memory.seek(first)
                if what in memory.read(last - first):
                    return True
            except (OSError, OverflowError):
                continue
    return False


def test_a_parent_that_shares_memory_or_has_threads_forks_nothing(monkeypatch):
    found = starting._warm_parent()
    assert found is not None
    found._looked_at()
    real = Path.read_text
    for file, old, new in (("maps", "rw-p", "rw-s"), ("status", "Threads:\t1", "Threads:\t2")):

        def edited(self, *given, _file=file, _old=old, _new=new, **named):
            text = real(self, *given, **named)
            return text.replace(_old, _new) if self.name == _file else text

        monkeypatch.setattr(Path, "read_text", edited)
        with pytest.raises(InfraError, match=r"shared memory|several threads"):
            found._looked_at()


def test_when_the_parent_ends_its_methods_end_and_no_method_is_blamed(tmp_path, mlp):
    file = written(tmp_path, "")
    with MethodProcess(file, "mine", 60) as process:
        below = {process._root, *descendants(process._root)}
        os.kill(parent(), signal.SIGKILL)
        assert gone(below) == set()
        with pytest.raises(InfraError, match="parent"):
            told(process, mlp)
    with MethodProcess(file, "mine", 60) as process:  # the next one has a new parent
        assert told(process, mlp) == {}


def test_what_ends_inside_is_told_by_its_code_and_leaves_the_parent_as_it_was(tmp_path, mlp):
    before = parent()
    for body, code in (("os._exit(7)", "7"), ("os.kill(os.getpid(), 11)", "139"), ("os.kill(1, 9); os._exit(3)", "3")):
        with MethodProcess(written(tmp_path, body), "mine", 60) as process:
            with pytest.raises(MethodError, match=f"exit code {code};"):
                told(process, mlp)
            process.close()
            assert process._tree.code == int(code) and 0 < process.usage_s < 5
    assert parent() == before

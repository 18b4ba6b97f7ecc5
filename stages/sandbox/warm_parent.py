"""The warm parent: a process with everything imported that a method's process needs, and no method. Methods' processes
are forked from it, each into namespaces of its own.

It runs inside bubblewrap, behind the filter of system calls, with one capability: to enter further namespaces. It reads
nothing but two descriptors at a time from our side; the method's text goes to the child directly. So no byte of a
method is ever in its memory, and what one child leaves behind no other inherits.

For each method three processes are made, as bubblewrap makes them: *outer* has entered the namespaces and tells our
side how the inner ones ended; *first* is process 1 in there, which nobody inside can end; *inside* gets the method.
Before *inside* reads the method it has: processes, shared memory, semaphores, network and host name of its own, private
folders over those of the parent, no descriptor but its own connection, no capability, and the filters of any method.
"""

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch

from stages.contracts.method import Represent
from stages.contracts.target import TargetSpec
from stages.sandbox.codec import receive
from stages.sandbox.confine import filter_calls, renounce
from stages.sandbox.limits import METHOD, PRIVATE_BYTES
from stages.sandbox.seccomp import program
from stages.sandbox.worker import serve
from stages.tracing.program import blank
from stages.tracing.recording import record

__all__ = ["main"]

_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""Mounts, cgroup, host name, IPC, processes, network."""
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _REC, _PRIVATE = 1, 2, 4, 32, 1 << 14, 1 << 18
_DIE_WITH_PARENT = 1
PRIVATE = ("/tmp", "/dev/shm")
EMPTY = "/dev/pts"
"""Pseudo-terminals would be seen by all children: nothing is there."""
METHOD_ROOM = 1 << 20
"""Beside the method's text, in the folder that holds it."""
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serve requests until our side is gone: a byte and two descriptors, the method's connection and the status."""
    control = socket.socket(fileno=int(sys.argv[2]))
    torch.set_num_threads(1)
    _import_what_is_imported_late()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the outer processes
    gc.collect()
    gc.freeze()  # what is there is shared with the children: their collector leaves it alone
    control.sendall(b"\0")
    while True:
        said, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not said or len(descriptors) != 2:
            return
        if os.fork() == 0:
            _leave_with(_outer, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _import_what_is_imported_late() -> None:
    """Record an answer of our own: torch imports and caches much at the first one."""
    spec = TargetSpec("warm", "", (4,), 2, (), (), None, None, None, None)

    def answer(query: Any, interpretation: Any, target: Any) -> Any:
        return (target.forward(query.inputs).outputs.softmax(-1) @ torch.ones(2, 2)).relu().sum(-1)

    method: Any = SimpleNamespace(answer=answer)
    from stages.contracts.method import Interpretation

    record(method, blank(Represent(torch.zeros(2, 4))), Interpretation(), spec, 0)


def _leave_with(what: Any, *given: Any) -> NoReturn:
    """Run it and end, whatever happens: nothing of the parent's stack may be gone back to."""
    code = 1
    try:
        code = what(*given)
    except BaseException:
        pass
    finally:
        os._exit(code)


def _outer(connection: int, status: int) -> int:
    _check(_libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _keep(connection, status)
    _check(_libc.unshare(_NEW_NAMESPACES))
    first = os.fork()
    if first == 0:
        _leave_with(_first, connection, status)
    os.close(connection)
    renounce()
    _, how, used = os.wait4(first, 0)
    told = {"code": os.waitstatus_to_exitcode(how), "cpu_s": used.ru_utime + used.ru_stime}
    os.write(status, json.dumps(told).encode())
    return 0


def _first(connection: int, status: int) -> int:
    _check(_libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a handler no signal from inside reaches process 1
    _mount("none", "/", None, _REC | _PRIVATE)
    for folder in PRIVATE:
        _mount("tmpfs", folder, "tmpfs", _NOSUID | _NODEV, f"size={PRIVATE_BYTES},mode=0755")
    _mount("tmpfs", EMPTY, "tmpfs", _NOSUID | _NODEV | _RDONLY, "size=4096")
    os.chdir(PRIVATE[0])  # the old folder lies below the new one and would still be ours
    inside = os.fork()
    if inside == 0:
        os.close(status)
        _leave_with(_inside, connection)
    os.close(connection)
    renounce()
    _check(not filter_calls(program()))
    os.write(status, b"\n")  # our side reads who sent it
    while True:
        ended, how = os.wait()
        if ended == inside:
            code = os.waitstatus_to_exitcode(how)
            return code if code >= 0 else 128 - code


def _inside(descriptor: int) -> int:
    os.setsid()
    connection = socket.socket(fileno=descriptor)
    go = receive(connection)
    text = bytes(go.pop("text").numpy())
    folder = str(Path(METHOD).parent)
    _mount("tmpfs", folder, "tmpfs", _NOSUID | _NODEV, f"size={len(text) + METHOD_ROOM},mode=0755")
    Path(METHOD).write_bytes(text)
    _mount("none", folder, None, _REMOUNT | _RDONLY | _NOSUID | _NODEV)
    renounce()
    _check(not filter_calls(program()))
    sys.argv = ["-c", METHOD, str(descriptor)]
    with contextlib.suppress(ConnectionError):
        serve(connection, METHOD, go)
    return 0


def _keep(*descriptors: int) -> None:
    """Close every descriptor but these. The standard ones are opened anew: an open file is shared with all who
    inherited it, its flags and locks too."""
    low = 3
    for descriptor in sorted(descriptors):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)


def _mount(what: str, where: str, kind: str | None, flags: int, options: str | None = None) -> None:
    given: Mapping[str, bytes | None] = {
        name: None if value is None else value.encode()
        for name, value in (("what", what), ("where", where), ("kind", kind), ("options", options))
    }
    flags_ = ctypes.c_ulong(flags)
    _check(_libc.mount(given["what"], given["where"], given["kind"], flags_, given["options"]))


def _check(failed: int) -> None:
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main()

"""What a method's process does to itself before it imports the method: limits and system calls that cannot be got back.

Runs inside the sandbox. Hard limits can be lowered but never raised again, and a filter of system calls cannot be
taken off.
"""

import ctypes
import os
import resource
import struct

from stages.sandbox.seccomp import program, supported

__all__ = ["confine"]

_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2


def confine(limits: dict[str, int], fd: int) -> list[str]:
    """Apply them.

    Args:
        limits: name of an rlimit (``AS``, ``CPU``, ...) -> value.
        fd: the connection, which no other program may inherit.

    Returns:
        The layers that are on.
    """
    os.set_inheritable(fd, False)
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (most, most))
    layers = ["rlimits"]
    if supported() and _filter(program(second=True)):
        layers.append("seccomp")
    return layers


def _filter(code: bytes) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.c_char_p(header)) == 0)

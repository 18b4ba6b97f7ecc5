"""What a method's process does to itself before it imports the method: limits and system calls that cannot be got back.

Runs inside the sandbox. Hard limits can be lowered but never raised again, and a filter of system calls cannot be
taken off.
"""

import ctypes
import os
import resource
import struct

from stages.sandbox.seccomp import program, supported

__all__ = ["confine", "filter_calls", "renounce"]

_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_AMBIENT, _CLEAR_ALL = 47, 4
_CAPABILITIES = 0x20080522  # version 3 of the call: two words for each set


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
    if supported() and filter_calls(program(second=True)):
        layers.append("seccomp")
    return layers


def renounce() -> None:
    """Give up all capabilities, for good: nothing can be executed that would bring one back.

    Raises:
        OSError: they could not be given up.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, none = struct.pack("=Ii", _CAPABILITIES, 0), bytes(24)
    for failed in (
        libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        libc.prctl(_AMBIENT, _CLEAR_ALL, 0, 0, 0),
        libc.capset(header, none),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), "capabilities could not be given up")


def filter_calls(code: bytes) -> bool:
    """Add a filter of system calls to those that are on; returns whether it is on now."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.c_char_p(header)) == 0)

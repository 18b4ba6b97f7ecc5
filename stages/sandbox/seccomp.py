"""Which system calls a method's process may not make, as a classic BPF program.

Everything is allowed but what is listed: a method is numpy and torch, which use more calls than a list of allowed
ones could
name for every build. New threads are allowed, new processes are not: a process is what escapes a meter.

Numbers differ between machines, so there is a table for each; where there is none, the other layers stand alone, and
`lensmith doctor` says so. Layout of the data a filter sees: number (4 bytes), machine (4), instruction pointer (8),
arguments (8 each).
"""

import errno
import platform
import struct

__all__ = ["SECOND", "program", "supported"]

FIRST = """
acct add_key adjtimex bpf chroot clock_adjtime clock_settime delete_module fanotify_init finit_module fork fsconfig
fsmount
fsopen fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_load keyctl
memfd_secret mount
mount_setattr move_mount name_to_handle_at open_by_handle_at open_tree perf_event_open personality pidfd_getfd
pidfd_open
pivot_root process_madvise process_vm_readv process_vm_writev ptrace quotactl reboot request_key setdomainname
sethostname setns
settimeofday swapoff swapon syslog umount2 unshare userfaultfd vfork vhangup
""".split()
"""Denied from the start, by bubblewrap."""
ENTERING = ("mount", "unshare")
"""Not denied to the warm parent, which holds no method: what it takes to give each of its children namespaces."""
SECOND = """
bind connect execve execveat flock inotify_init inotify_init1 listen memfd_create prctl seccomp setsid setpgid socket
""".split()
"""Denied as well once the interpreter runs and before the method is imported: what starting a process still needed, and
what two processes could tell each other through files that both may read."""
_LOCKS = (5, 6, 7, 36, 37, 38, 1024, 1026)
"""Commands of fcntl that take or look for locks and leases, or ask to be told of changes."""
_X86_64 = {
    "acct": 163, "add_key": 248, "adjtimex": 159, "bind": 49, "bpf": 321, "chroot": 161, "clock_adjtime": 305,
    "clock_settime": 227, "clone": 56, "clone3": 435, "connect": 42, "delete_module": 176, "execve": 59, "execveat":
    322,
    "fanotify_init": 300, "fcntl": 72, "finit_module": 313, "flock": 73,
    "fork": 57, "fsconfig": 431, "fsmount": 432, "fsopen": 430, "fspick":
    433,
    "init_module": 175, "inotify_init": 253, "inotify_init1": 294,
    "io_uring_enter": 426, "io_uring_register": 427, "io_uring_setup": 425, "ioperm": 173, "iopl":
    172,
    "kcmp": 312, "kexec_load": 246, "keyctl": 250, "listen": 50, "memfd_create": 319, "memfd_secret": 447, "mount": 165,
    "mount_setattr": 442, "move_mount": 429, "name_to_handle_at": 303, "open_by_handle_at": 304, "open_tree": 428,
    "perf_event_open": 298, "personality": 135, "pidfd_getfd": 438, "pidfd_open": 434, "pivot_root": 155, "prctl": 157,
    "process_madvise": 440, "process_vm_readv": 310, "process_vm_writev": 311, "ptrace": 101, "quotactl": 179,
    "reboot": 169,
    "request_key": 249, "seccomp": 317, "setdomainname": 171, "sethostname": 170, "setns": 308, "setpgid": 109,
    "setsid": 112,
    "settimeofday": 164, "socket": 41, "swapoff": 168, "swapon": 167, "syslog": 103, "umount2": 166, "unshare": 272,
    "userfaultfd": 323, "vfork": 58, "vhangup": 153,
}  # fmt: skip
_AARCH64 = {
    "acct": 89, "add_key": 217, "adjtimex": 171, "bind": 200, "bpf": 280, "chroot": 51, "clock_adjtime": 266,
    "clock_settime": 112, "clone": 220, "clone3": 435, "connect": 203, "delete_module": 106, "execve": 221,
    "execveat": 281,
    "fanotify_init": 262, "fcntl": 25, "finit_module": 273, "flock": 32,
    "fsconfig": 431, "fsmount": 432, "fsopen": 430, "fspick": 433,
    "init_module": 105, "inotify_init1": 26,
    "io_uring_enter": 426, "io_uring_register": 427, "io_uring_setup": 425, "kcmp": 272,
    "kexec_load": 104, "keyctl": 219, "listen": 201, "memfd_create": 279, "memfd_secret": 447, "mount": 40,
    "mount_setattr": 442, "move_mount": 429, "name_to_handle_at": 264, "open_by_handle_at": 265, "open_tree": 428,
    "perf_event_open": 241, "personality": 92, "pidfd_getfd": 438, "pidfd_open": 434, "pivot_root": 41, "prctl": 167,
    "process_madvise": 440, "process_vm_readv": 270, "process_vm_writev": 271, "ptrace": 117, "quotactl": 60,
    "reboot": 142,
    "request_key": 218, "seccomp": 277, "setdomainname": 162, "sethostname": 161, "setns": 268, "setpgid": 154,
    "setsid": 157,
    "settimeofday": 170, "socket": 198, "swapoff": 225, "swapon": 224, "syslog": 116, "umount2": 39, "unshare": 97,
    "userfaultfd": 282, "vhangup": 58,
}  # fmt: skip
MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}

_LOAD, _EQUAL, _AT_LEAST, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000


def supported() -> bool:
    return platform.machine() in MACHINES


def program(*, second: bool = False, entering: bool = False) -> bytes:
    """The filter for this machine: 8 bytes an instruction.

    Args:
        second: the stricter one that is added before the method is imported.
        entering: that of the warm parent, which may enter namespaces.

    Raises:
        KeyError: there is no table for this machine.
    """
    machine, numbers = MACHINES[platform.machine()]
    names = SECOND if second else [name for name in FIRST if not (entering and name in ENTERING)]
    # (code, jump if true, jump if false, constant)
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == MACHINES["x86_64"][0]:
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for name in names:
        if name in numbers:
            code += [(_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    if second:
        # Its arguments lie behind a pointer, which a filter cannot follow: without it the C library falls back on
        # clone.
        code += [(_EQUAL, 0, 1, numbers["clone3"]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
        refused = [(_EQUAL, len(_LOCKS) - at, 0, command) for at, command in enumerate(_LOCKS)]
        code += [(_EQUAL, 0, len(refused) + 3, numbers["fcntl"]), (_LOAD, 0, 0, 24), *refused]
        code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
        code += [
            (_EQUAL, 0, 3, numbers["clone"]),
            (_LOAD, 0, 0, 16),
            (_SET, 1, 0, _CLONE_THREAD),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        ]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in code)

"""``python -m stages STAGE [ARGUMENTS]``: what every command of dvc.yaml runs.

``STAGE`` is a room (``targets``: its ``stage.py``) or one module of a room (``scoring.fresh``); the
module has a ``main``.

A run keeps a process in which torch and the like are imported already, and names its socket in
``LENSMITH_WARM``. The stage is then handed over to a fork of that process, with this one's
arguments, environment, folder and files; what is left here waits for its exit status. Without that
process the stage runs here, to the same output.
"""

import os
import sys
from collections.abc import Callable

from stages.errors import UserError, run_stage

__all__ = ["WARM", "hand_over", "load_stage", "request_fork"]

WARM = "LENSMITH_WARM"
"""Names the socket of the process that has the libraries imported."""


def entry_module(stage: str) -> str:
    """``targets`` -> ``stages.targets.stage``, ``scoring.fresh`` -> ``stages.scoring.fresh``."""
    return f"stages.{stage}" if "." in stage else f"stages.{stage}.stage"


def load_stage() -> Callable[[], None]:
    """Import the stage that the command line names; returns its ``main``."""
    from importlib import import_module

    if len(sys.argv) < 2:
        raise UserError("name a stage, such as `python -m stages targets digits_mlp`; dvc.yaml lists them")
    name = entry_module(sys.argv.pop(1))
    try:
        main: Callable[[], None] = import_module(name).main
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # something that the stage imports is missing
        raise UserError(f"{name} does not exist: dvc.yaml lists the stages") from error
    return main


def request_fork(
    connection: object,
    argv: list[str],
    cwd: str,
    environment: dict[str, str],
    group: int,
    files: list[int],
) -> int:
    """Ask a warm process, over a connected socket, for a fork that runs a command; see
    flows/warm.py.

    Args:
        connection: the socket. Closing it before the end kills the fork.
        argv: the command, as its ``sys.argv``.
        cwd: the folder in which it runs.
        environment: its whole environment.
        group: the process group it joins; 0: one of its own.
        files: its stdin, stdout and stderr.

    Returns:
        its process id; 0 if it was declined, since the code has changed meanwhile.
    """
    import marshal
    import socket

    assert isinstance(connection, socket.socket)
    request = marshal.dumps((argv, cwd, environment, group))
    socket.send_fds(connection, [len(request).to_bytes(8, "little")], files)
    connection.sendall(request)
    return read_number(connection) or 0


def read_number(connection: object) -> int | None:
    """One number of a warm process's answer: a process id, then its exit status. None: it is
    gone.
    """
    data = b""
    while len(data) < 8:
        part = connection.recv(8 - len(data))  # type: ignore[attr-defined]
        if not part:
            return None
        data += part
    return int.from_bytes(data, "little", signed=True)


def hand_over(address: str) -> int | None:
    """Let a fork of the warm process at ``address`` run this command.

    Returns:
        its exit status, negative for a signal; None if there is no such process: run it here.
    """
    import signal
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(address)
            # The fork is in our process group, so a signal to the group reaches it without us.
            # Interrupted, it ends in its own time, and we with it. A signal that ends us alone
            # closes the socket, and that ends the fork.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            cwd = os.getcwd()  # noqa: PTH109 (pathlib is not needed here)
            environment, files = dict(os.environ), [0, 1, 2]
            if not request_fork(connection, sys.argv, cwd, environment, os.getpgrp(), files):
                signal.signal(signal.SIGINT, signal.default_int_handler)
                return None
        except OSError:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return None
        status = read_number(connection)
    return -signal.SIGKILL if status is None else status


def main() -> None:
    address = os.environ.pop(WARM, "")
    status = hand_over(address) if address not in ("", "off") else None
    if status is None:
        run_stage(load_stage)
    elif status < 0:
        import signal

        # End as the fork did, so that whoever waits for us sees the same.
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    else:
        sys.exit(status)


if __name__ == "__main__":
    main()

"""The secret of a working copy: what instances, noise and variants of tasks are drawn with.

Who has the code has every seed. The secret is drawn where the graph runs, is never mounted into a method's process and
never committed; results name its digest. To make the same tasks elsewhere, put the same file there.
"""

import hashlib
import os
import secrets

from stages.base import paths
from stages.errors import UserError

__all__ = ["digest", "read_secret"]

N_BYTES = 32


def read_secret() -> bytes:
    """The working copy's secret; drawn at the first use.

    Raises:
        UserError: the file holds something else.
    """
    file = paths.secret_file()
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        # Never half a file, and never two: whoever comes second reads what the first one wrote.
        draft = file.with_name(f"{file.name}.{os.getpid()}")
        draft.write_text(secrets.token_hex(N_BYTES) + "\n", encoding="ascii")
        draft.chmod(0o600)
        try:
            os.link(draft, file)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            draft.replace(file)
        draft.unlink(missing_ok=True)
    text = file.read_text(encoding="ascii", errors="replace").strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != N_BYTES:
        raise UserError(
            f"{file} holds no secret: {2 * N_BYTES} hexadecimal digits are wanted. Delete it and a new one is drawn"
            " (the tasks are then made anew), or copy the one of the run you want to repeat"
        )
    return key


def digest(key: bytes) -> str:
    """Names a secret without telling it."""
    return hashlib.sha256(b"lensmith secret" + key).hexdigest()[:16]


def main() -> None:
    """Stage ``secret``."""
    print(f"secret {digest(read_secret())}", flush=True)

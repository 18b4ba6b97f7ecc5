"""Names of the limits a method can run into, as tables show them, told from the kind of an error, never its words."""

from stages.errors import MethodError
from stages.sandbox.codec import MessageError
from stages.tracing.recording import NeedsValues

__all__ = [
    "CPU",
    "LAYERS",
    "MESSAGE",
    "METHOD",
    "PRIVATE_BYTES",
    "RUNNER",
    "TARGET",
    "WARM",
    "TargetRefusal",
    "layer_of",
]

RUNNER = "-"
"""In place of a method's file: the process runs programs and holds no method."""
METHOD = "/method/method.py"
"""The method's file, as its process sees it."""
PRIVATE_BYTES = 64 << 20
"""Size of a private folder, which exists as long as the process."""
WARM = "+"
"""In place of a method's file: the process is the warm parent and holds no method."""
SHAPES, CPU, MESSAGE, TARGET, SANDBOX = "shapes only", "CPU meter", "message format", "target access", "sandbox"
MEMORY, CHECK = "memory limit", "answer check"
LAYERS = (SHAPES, CPU, MESSAGE, TARGET, SANDBOX, MEMORY, CHECK, "wall limit", "task limit", "process boundary")


class TargetRefusal(ValueError):
    """What the target's side refused to do."""


def layer_of(error: BaseException) -> str:
    """The limit behind an error in the method's process."""
    if isinstance(error, MethodError):
        return error.layer
    for kinds, layer in (
        ((NeedsValues,), SHAPES),
        ((MessageError,), MESSAGE),
        ((TargetRefusal,), TARGET),
        ((MemoryError,), MEMORY),
        ((OSError,), SANDBOX),
    ):
        if isinstance(error, kinds):
            return layer
    return CHECK

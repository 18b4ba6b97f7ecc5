"""Names of the limits a method can run into, as tables show them, told from the kind of an error, never its words."""

from stages.errors import MethodError
from stages.metering.op_table import UnknownOpError
from stages.sandbox.codec import MessageError

__all__ = ["LAYERS", "MESSAGE", "METER", "MeterRefusal", "TargetRefusal", "layer_of"]

METER, CPU, MESSAGE, TARGET, SANDBOX = "method meter", "CPU meter", "message format", "target access", "sandbox"
MEMORY, CHECK = "memory limit", "answer check"
LAYERS = (METER, CPU, MESSAGE, TARGET, SANDBOX, MEMORY, CHECK, "wall limit", "task limit", "process boundary")


class MeterRefusal(PermissionError):
    """What would switch the method meter off."""


class TargetRefusal(ValueError):
    """What the target's side refused to do."""


def layer_of(error: BaseException) -> str:
    """The limit behind an error in the method's process."""
    if isinstance(error, MethodError):
        return error.layer
    for kinds, layer in (
        ((UnknownOpError, MeterRefusal), METER),
        ((MessageError,), MESSAGE),
        ((TargetRefusal,), TARGET),
        ((MemoryError,), MEMORY),
        ((OSError,), SANDBOX),
    ):
        if isinstance(error, kinds):
            return layer
    return CHECK

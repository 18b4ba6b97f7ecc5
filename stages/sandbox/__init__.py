"""Running methods nobody has reviewed: in a process of their own, within walls."""

from stages.sandbox.bubblewrap import layers, why_unavailable
from stages.sandbox.host import Limits, MethodProcess, Reply

__all__ = ["Limits", "MethodProcess", "Reply", "layers", "why_unavailable"]

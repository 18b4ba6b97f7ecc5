"""Running methods nobody has reviewed: in a process of their own, within walls."""

from stages.sandbox.bubblewrap import layers, why_unavailable
from stages.sandbox.groups import die_with_parent
from stages.sandbox.host import Limits, MethodProcess, Reply

__all__ = ["Limits", "MethodProcess", "Reply", "die_with_parent", "layers", "why_unavailable"]

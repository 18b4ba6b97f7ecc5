"""Running methods nobody has reviewed, in a process of their own."""

from stages.sandbox.host import MethodProcess, Reply

__all__ = ["MethodProcess", "Reply"]

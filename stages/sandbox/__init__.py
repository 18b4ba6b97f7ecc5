"""Running methods nobody has reviewed: in a process of their own, within walls."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.sandbox.bubblewrap import layers, why_unavailable

if TYPE_CHECKING:
    from stages.sandbox.host import Limits, MethodProcess, Reply, require_sandbox

__all__ = ["Limits", "MethodProcess", "Reply", "layers", "require_sandbox", "why_unavailable"]


def __getattr__(name: str) -> Any:
    # The host needs torch, which takes seconds to import; `lensmith doctor` asks for the layers alone.
    if name in ("Limits", "MethodProcess", "Reply", "require_sandbox"):
        return getattr(import_module("stages.sandbox.host"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

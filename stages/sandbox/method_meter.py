"""Layer (b): what a method computes itself, priced where it computes it.

Sees torch ops of every Python thread, and numpy on arrays that came from torch. It lives in the method's own process,
so it is
a fair price for honest code and an obstacle for other code, not a proof: CPU time read from outside (layer c) is what
cannot
be talked to. What it notices about itself (modes switched off, counts that went down, prices that changed) makes a
run void.
"""

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils import _python_dispatch as dispatch

from stages.metering.op_table import OpTable, count_flops
from stages.sandbox.limits import MeterRefusal
from stages.sandbox.priced_array import price_with, priced

__all__ = ["MethodMeter"]

_SWITCHES = (
    (torch._C, "_DisableTorchDispatch"),
    (torch._C, "_DisablePythonDispatcher"),
    (torch._C, "_ExcludeDispatchKeyGuard"),
    (torch._C, "_pop_torch_dispatch_stack"),
    (torch._C, "_unset_dispatch_mode"),
    (dispatch, "_disable_current_modes"),
    (dispatch, "_pop_mode"),
    (dispatch, "_pop_mode_temporarily"),
)
"""Ways of switching dispatch modes off. Torch uses some of them inside, a method has no use for any."""
_OWN_CALLERS = ("torch.utils._python_dispatch",)
_REFUSED = ("ctypes.dlopen", "ctypes.dlsym", "gc.get_objects", "gc.get_referents", "gc.get_referrers", "os.fork")
"""Audit events of what reaches behind the interpreter's back."""
_active: list["MethodMeter"] = []
_installed: list[bool] = []


class MethodMeter:
    """Counts FLOPs inside a ``with`` block; not reentrant.

    Args:
        table: op prices; None: the project's own.
    """

    def __init__(self, table: OpTable | None = None) -> None:
        install()
        self._table = table or OpTable()
        self._fingerprint = self._table.fingerprint()
        self._mode = count_flops(self._table)
        self._threads: list[count_flops] = []
        self._numpy = self._numpy_ops = 0
        self.tampered = ""
        """What was noticed, in words; empty: nothing."""

    @property
    def flops(self) -> int:
        return int(self._mode.flops + self._numpy + sum(mode.flops for mode in self._threads))

    @property
    def ops(self) -> int:
        return int(self._mode.ops + self._numpy_ops + sum(mode.ops for mode in self._threads))

    def __enter__(self) -> Self:
        assert not _active, "one meter at a time"
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        price_with(self._charge_numpy)
        _active.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if _active != [self]:
            self.notice("the meter was taken off")
        _active.clear()
        price_with(None)
        if dispatch._get_current_dispatch_mode() is not self._mode:
            self.notice("the dispatch mode was taken off")
        else:
            self._mode.__exit__(kind, error, at)  # type: ignore[no-untyped-call]
        if self._table.fingerprint() != self._fingerprint:
            self.notice("the prices were changed")
        if any(type(mode.flops) is not int or mode.flops < mode.seen for mode in (self._mode, *self._threads)):
            self.notice("the count was changed")

    def notice(self, what: str) -> None:
        self.tampered = self.tampered or what

    def thread_mode(self) -> count_flops:
        """A counting mode for one more thread: modes are per thread."""
        self._threads.append(count_flops(self._table))
        return self._threads[-1]

    def _charge_numpy(self, flops: int) -> None:
        self._numpy += flops
        self._numpy_ops += 1


def install() -> None:
    """Put the meter's wrappers in place, before the method is imported; they act only while a meter is on."""
    if _installed:
        return
    _installed.append(True)
    for owner, name in _SWITCHES:
        if hasattr(owner, name):
            setattr(owner, name, _refusing(name, getattr(owner, name)))
    run = threading.Thread.run

    def metered_run(self: threading.Thread) -> None:
        if not _active:
            return run(self)
        with torch.no_grad(), _active[0].thread_mode():
            return run(self)

    threading.Thread.run = metered_run  # type: ignore[method-assign]
    for name in ("numpy", "__array__"):
        setattr(torch.Tensor, name, _pricing(getattr(torch.Tensor, name)))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _REFUSED and _active:
            _active[0].notice(f"{event} was used in answer()")
            raise MeterRefusal(f"{event} is not open to a method while it answers")

    sys.addaudithook(hook)  # cannot be taken off again


def _refusing(name: str, original: Any) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if _active and sys._getframe(1).f_globals.get("__name__") not in _OWN_CALLERS:
            _active[0].notice(f"{name} was called in answer()")
            raise MeterRefusal(f"{name} would switch the meter off")
        return original(*args, **kwargs)

    return refuse


def _pricing(original: Callable[..., Any]) -> Callable[..., Any]:
    def array(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        made = original(self, *args, **kwargs)
        return priced(made) if _active else made

    return array

"""What a run shows while it is at work: bars on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from flows.outcome import Outcome
from stages.base.progress import listening

__all__ = ["ProgressView", "counting", "progress_view", "telling"]

Tell = Callable[[object], None]

NOISE = (
    "Running stage ",
    "> ",
    "Updating lock file",
    "Generating lock file",
    "To track the changes",
    "To enable auto",
    "Use `dvc push`",
    "git add ",
    "dvc config ",
    "computation_s=",
)
"""How lines of DVC begin that say nothing about the work."""

QUIET_S = 10.0
"""Off a terminal a node prints one line in this time, and no more."""

OFTEN_S, SELDOM_S = 2.0, 30.0
"""Off a terminal other work prints a line at most as often as the first says, and at least as often as the second."""


class ProgressView:
    """Progress of the nodes; worker threads call it."""

    def __init__(self, console: Console, progress: Progress | None, total: int) -> None:
        self._console, self._progress, self._total = console, progress, total
        self._done, self._started = 0, time.monotonic()
        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}
        self._printed_at: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        self._said = time.monotonic()
        self._overall = progress.add_task("all nodes", total=total, message="") if progress else None

    def start(self, node: str) -> None:
        self._begun[node] = time.monotonic()
        if self._progress is not None:
            self._bars[node] = self._progress.add_task(node, total=None, message="")
        else:
            self._print(f"{node}: started")

    def line(self, node: str, line: str) -> None:
        message = line.strip()
        if not message or message.startswith(NOISE) or line.startswith("\t"):
            return
        if message.startswith("warning: "):
            self._print(f"{node}: {message}")
        elif self._progress is not None:
            bar = self._bars.get(node)
            if bar is not None:
                self._progress.update(bar, message=message[:80])
        elif time.monotonic() - self._printed_at.get(node, 0) > QUIET_S:
            self._printed_at[node] = time.monotonic()
            self._print(f"{node}: {message[:160]}")

    def end(self, outcome: Outcome) -> None:
        with self._lock:
            self._done += 1
            self._begun.pop(outcome.node, None)
        if self._progress is not None:
            bar = self._bars.pop(outcome.node, None)
            if bar is not None:
                self._progress.remove_task(bar)
            if self._overall is not None:
                self._progress.update(self._overall, completed=self._done)
        if outcome.state == "executed":
            self._print(f"{outcome.node}: {outcome.wall_s:.1f} s")
        elif outcome.state == "failed":
            self._print(f"{outcome.node}: failed after {outcome.wall_s:.1f} s: {outcome.cause}", style="red")
        elif outcome.state == "blocked":
            self._print(f"{outcome.node}: not tried, {outcome.cause}", style="yellow")

    def beat(self, ended: threading.Event) -> None:
        """Say which nodes are at work, and for how long, whenever nothing was printed for a while."""
        while not ended.wait(SELDOM_S / 10):
            now = time.monotonic()
            with self._lock:
                begun = [f"{node} {_clock(now - since)}" for node, since in self._begun.items()]
            if begun and now - self._said >= SELDOM_S:
                self._print(f"at work: {', '.join(begun)}")

    def _print(self, text: str, style: str = "") -> None:
        self._said = time.monotonic()
        clock = _clock(time.monotonic() - self._started)
        self._console.print(
            f"[{self._done:>3}/{self._total} {clock:>5}] {text}",
            style=style,
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@contextmanager
def progress_view(console: Console, total: int) -> Iterator[ProgressView]:
    if not console.is_terminal:
        view, ended = ProgressView(console, None, total), threading.Event()
        beat = threading.Thread(target=view.beat, args=(ended,), daemon=True)
        beat.start()
        try:
            yield view
        finally:
            ended.set()
            beat.join()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield ProgressView(console, progress, total)
    sys.stdout.flush()


@contextmanager
def telling(console: Console, what: str) -> Iterator[Tell]:
    """Progress of one long piece of work: a status line on a terminal, lines on stderr where there is none (nohup, CI,
    a notebook), so that stdout keeps what was asked for. Work that says nothing still shows that it goes on.

        with telling(console, "scoring") as tell:
            result = score_method(..., progress=tell)

    Args:
        console: what shows the result.
        what: the work, in a word or two.
    """
    if console.is_terminal:
        with console.status(escape(what)) as shown:
            yield lambda message: shown.update(escape(f"{what}: {message}"[:120]))
        return
    lines = _Lines(what)
    lines.tell("started")
    beat = threading.Thread(target=lines.beat, daemon=True)
    beat.start()
    try:
        yield lines.tell
    finally:
        lines.ended.set()
        beat.join()
    lines.say(f"done after {lines.elapsed()}")


@contextmanager
def counting(what: str) -> Iterator[None]:
    """Show what the work inside reports (``stages.base.progress``), on stderr: a bar on a terminal, else lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with (
            telling(console, what) as tell,
            listening(lambda step, done, total: tell(f"{step}, {done} of {total}")),
        ):
            yield
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(what, total=None)
        with listening(lambda step, done, total: bars.update(bar, description=step, completed=done, total=total)):
            yield


class _Lines:
    """Messages of any thread, as lines with the time; none is repeated, and of many the last is printed."""

    def __init__(self, what: str) -> None:
        self.ended = threading.Event()
        self._what = what
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._printed_at, self._message, self._waiting = float("-inf"), "", False

    def elapsed(self) -> str:
        return _clock(time.monotonic() - self._started)

    def tell(self, message: object) -> None:
        with self._lock:
            self._message, self._waiting = " ".join(str(message).split())[:300], True
            due = time.monotonic() - self._printed_at >= OFTEN_S
        if due:
            self.say(self._message)

    def beat(self) -> None:
        """Print what was held back, and that the work goes on where nothing was said."""
        while not self.ended.wait(min(OFTEN_S, SELDOM_S) / 2):
            quiet_s = time.monotonic() - self._printed_at
            if self._waiting and quiet_s >= OFTEN_S:
                self.say(self._message)
            elif quiet_s >= SELDOM_S:
                self.say(f"still at work: {self._message}")

    def say(self, text: str) -> None:
        with self._lock:
            self._printed_at, self._waiting = time.monotonic(), False
            print(f"[{self.elapsed():>6}] {self._what}: {text}", file=sys.stderr, flush=True)

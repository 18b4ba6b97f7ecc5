"""The nodes of one run, as its workers share them: which to reproduce, how many at once, what
became of them.
"""

import threading
from collections.abc import Callable

from flows.graph import Graph
from flows.outcome import Outcome

__all__ = ["Execution"]

LineSink = Callable[[str], None]


class Execution:
    """Reproduces nodes when it is told to; who tells it (``flows.pipeline``) keeps their order.

    Args:
        graph: the whole graph.
        todo: nodes to reproduce; the others count as cached.
        reproduce: reproduces one node and hands on its lines; called in a worker thread.
        jobs: nodes at work at once.
        stop: ends the processes at work.
        on_start, on_end: told in the worker's thread.
    """

    def __init__(
        self,
        graph: Graph,
        todo: set[str],
        reproduce: Callable[[str, LineSink], Outcome],
        *,
        jobs: int = 2,
        stop: Callable[[], None] = lambda: None,
        on_start: Callable[[str], None] = lambda node: None,
        on_end: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self.graph, self.todo, self.jobs = graph, todo, jobs
        self._reproduce, self._stop = reproduce, stop
        self._on_start, self._on_end = on_start, on_end
        self._slots = threading.Semaphore(jobs)
        self._lock = threading.Lock()
        self._outcomes: dict[str, Outcome] = {}
        self._stopping = False

    def reproduce(self, node: str, on_line: LineSink = lambda line: None) -> Outcome:
        """Reproduce a node whose parents are done, as soon as fewer than ``jobs`` nodes are at
        work.
        """
        if node not in self.todo:
            return self._close(Outcome(node, "cached"))
        with self._slots:
            if self._stopping:
                return self._close(Outcome(node, "interrupted"))
            self._on_start(node)
            outcome = self._reproduce(node, on_line)
        self._close(outcome)
        if outcome.state == "failed":
            for blocked in self.graph.nodes:
                if blocked != node and blocked in self.graph.downstream({node}):
                    self._close(Outcome(blocked, "blocked", cause=f"since {node} failed"))
        return outcome

    def stop(self) -> None:
        """End the nodes at work and begin no other."""
        self._stopping = True
        self._stop()

    @property
    def outcomes(self) -> list[Outcome]:
        """One per node, in graph order."""
        with self._lock:
            known = dict(self._outcomes)
        return [known.get(node, Outcome(node, "interrupted")) for node in self.graph.nodes]

    def _close(self, outcome: Outcome) -> Outcome:
        with self._lock:
            if outcome.node in self._outcomes:
                return outcome
            self._outcomes[outcome.node] = outcome
        self._on_end(outcome)
        return outcome

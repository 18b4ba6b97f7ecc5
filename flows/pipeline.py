"""The flow: one Prefect task per node of the graph, each waiting for its parents.

Prefect decides the order and what happens after a failure; DVC decides what is still valid. Hence
no Prefect caching (it knows nothing of files) and no retries (a stage that failed fails again;
retries sit around flaky calls inside stages). Call ``flows.environment.prefect_environment`` before
importing this module: Prefect reads its settings on import.
"""

from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.execution import Execution

__all__ = ["execute", "submit_graph"]


@task(task_run_name="{node}", cache_policy=NO_CACHE, retries=0, persist_result=False)  # type: ignore[untyped-decorator]
def reproduce(node: str, execution: Execution) -> State[None]:
    """One node: ``dvc --wait-for-lock repro --single-item NODE``."""
    logger = get_run_logger()
    outcome = execution.reproduce(node, lambda line: logger.info(line) if line.strip() else None)
    if outcome.state in {"executed", "cached"}:
        return Completed(message=outcome.state)
    return Failed(message=f"{outcome.state}: {outcome.cause}")


def submit_graph(execution: Execution) -> "dict[str, PrefectFuture[None]]":
    """One task per node, each waiting for its parents."""
    futures: dict[str, PrefectFuture[None]] = {}
    for node, parents in execution.graph.parents.items():
        parents_done = [futures[parent] for parent in sorted(parents)]
        futures[node] = reproduce.submit(node, execution, wait_for=parents_done)
    return futures


def execute(execution: Execution) -> None:
    """Run the flow to its end. A node that fails blocks what depends on it and nothing else.

    Raises:
        KeyboardInterrupt: interrupted; the nodes at work have been ended.
    """
    # A task waits for its parents in a thread, so there is one for each; ``execution`` counts those
    # at work.
    threads = ThreadPoolTaskRunner(max_workers=len(execution.graph.parents))

    @flow(name="lensmith", task_runner=threads)  # type: ignore[untyped-decorator]
    def pipeline() -> State[None]:
        futures = submit_graph(execution)
        try:
            wait(list(futures.values()))
        except BaseException:
            execution.stop()  # first, since leaving the flow waits for its threads
            raise
        failed = [outcome for outcome in execution.outcomes if outcome.state == "failed"]
        if failed:
            return Failed(message="; ".join(f"{outcome.node}: {outcome.cause}" for outcome in failed))
        return Completed(message=f"{len(futures)} nodes are up to date")

    pipeline(return_state=True)

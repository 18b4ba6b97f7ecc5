"""Work of one stage over processes of this machine, or over the workers of a Dask cluster.

``LENSMITH_DASK`` names the scheduler of the cluster, such as ``tcp://10.0.0.1:8786``; unset:
processes here. The results are the same and come in the same order, so nothing of a stage's output
depends on where it was computed.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config

from stages.errors import UserError

__all__ = ["SCHEDULER", "pool", "spread"]

SCHEDULER = "LENSMITH_DASK"
CONNECT_S = 10
"""How long a scheduler may take to answer."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def pool(n_jobs: int, **options: Any) -> Iterator[Parallel]:
    """joblib's pool of ``n_jobs`` workers: ``with pool(4) as parallel: parallel(delayed(f)(x) for x
    in xs)``.

    Args:
        n_jobs: workers at work at once; 1: no other process, also where a scheduler is named.
        options: as ``joblib.Parallel`` takes them.

    Raises:
        UserError: a scheduler is named and Dask is not installed, or no scheduler answers.
    """
    address = os.environ.get(SCHEDULER, "")
    if not address or n_jobs == 1:
        with Parallel(n_jobs=n_jobs, **options) as parallel:
            yield parallel
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(
            f"{SCHEDULER}={address} needs the extra 'dask' ({error}): install it with"
            f" `pip install -c constraints.txt -e '.[dask]'`, or unset {SCHEDULER}"
        ) from error
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Dask scheduler answers at {SCHEDULER}={address} ({type(error).__name__}): start"
            " one with"
            f" `dask scheduler`, correct the address, or unset {SCHEDULER}"
        ) from error
    # The client is named, since joblib would otherwise look for one that is the default of this
    # process.
    with client, parallel_config(backend="dask", n_jobs=n_jobs, client=client):
        yield Parallel(**options)


def spread(function: Callable[[Item], Result], items: Iterable[Item], n_jobs: int) -> list[Result]:
    """``[function(item) for item in items]`` by the workers of a pool."""
    with pool(n_jobs) as parallel:
        return list(parallel(delayed(function)(item) for item in items))

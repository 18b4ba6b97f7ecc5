"""Work of one stage over processes of this machine, or over the workers of a Dask cluster.

``LENSMITH_DASK`` names the scheduler of the cluster, such as ``tcp://10.0.0.1:8786``; unset:
processes here. The results are the same and come in the same order, so nothing of a stage's output
depends on where it was computed.
"""

import os
from functools import lru_cache
from typing import Any

from joblib import Parallel, parallel_config

from stages.base import paths
from stages.errors import UserError

__all__ = ["SCHEDULER", "cluster_pool"]

SCHEDULER = "LENSMITH_DASK"
CONNECT_S = 10
"""How long a scheduler may take to answer."""


@lru_cache(maxsize=1)
def _client(address: str) -> Any:
    """One connection per process: it stays open, as the workers do."""
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(
            f"{SCHEDULER}={address} needs the extra 'dask' ({error}): install it with"
            f" `pip install -c constraints.txt -e '.[dask]'`, or unset {SCHEDULER}"
        ) from error
    try:
        return Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Dask scheduler answers at {SCHEDULER}={address} ({type(error).__name__}): start one with"
            f" `dask scheduler`, correct the address, or unset {SCHEDULER}"
        ) from error


def _working_copy() -> str:
    """Where a worker finds data and params; empty where it finds none, and fails as soon as it needs any."""
    try:
        return str(paths.root())
    except UserError:
        return ""


def _check_workers(client: Any, address: str) -> None:
    """Asked each time: workers come and go. One of another working copy would compute from other data, and say nothing;
    without any, nothing would ever be computed, and nothing would say so."""
    here, found = _working_copy(), client.run(_working_copy)
    if not found:
        raise UserError(
            f"the Dask scheduler at {SCHEDULER}={address} has no worker, so nothing would ever be computed: start some"
            f" with `dask worker {address} --nthreads 1`, or unset {SCHEDULER}"
        )
    elsewhere = {worker: root for worker, root in found.items() if root not in ("", here)}
    if here and elsewhere:
        worker, root = min(elsewhere.items())
        raise UserError(
            f"the Dask worker {worker} of {SCHEDULER}={address} works in {root} and not in {here}: start workers in"
            f" {here}, which all machines share, or set LENSMITH_ROOT={here} for them"
        )


def cluster_pool(n_jobs: int, **options: Any) -> Parallel:
    """joblib's pool over the workers of the cluster that ``LENSMITH_DASK`` names.

    Args:
        n_jobs: workers at work at once.
        options: as ``joblib.Parallel`` takes them.

    Raises:
        UserError: Dask is not installed, no scheduler answers, it has no worker, or one works in another working copy.
    """
    address = os.environ[SCHEDULER]
    _check_workers(_client(address), address)
    # The client is named, since joblib would otherwise look for one that is the default of this process.
    with parallel_config(backend="dask", n_jobs=n_jobs, client=_client(address)):
        return Parallel(**options)

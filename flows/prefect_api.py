"""Flow runs without a server: the few answers that Prefect's client needs are given in this
process.

A flow run tells the server that it exists and which state it is in; tasks talk to no server at all.
Where nobody has started a server, nobody looks at that record either (MLflow has the row of the
night), so it is kept for the length of the run and no longer. Prefect's own way is a temporary
server process: ten seconds to start, and tracebacks when it ends. The application of the server in
this process (``create_app``) was tried: 3 s of CPU time for the same.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import SyncClientContext
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

__all__ = ["without_server"]

ADDRESS = "http://without-server.invalid"
"""What the client takes for the server's address; nothing is ever sent there."""


class _FlowRunRecord:
    """What a server would remember: flow runs and their states."""

    def __init__(self) -> None:
        self._runs: dict[str, dict[str, object]] = {}

    def answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"null")
        match request.method, [part for part in request.url.path.split("/") if part]:
            case "GET", ["admin", "storage"]:
                return httpx.Response(200, json={})
            case "POST", ["flows"]:
                return httpx.Response(201, json={"id": str(uuid4()), "name": body["name"]})
            case "POST", ["flow_runs"]:
                return self._create(body)
            case "GET", ["flow_runs", run] if run in self._runs:
                return httpx.Response(200, json=self._runs[run])
            case "POST", ["flow_runs", run, "set_state"] if run in self._runs:
                self._runs[run]["state"] = state = _received(body["state"])
                accepted = {
                    "status": "ACCEPT",
                    "state": state,
                    "details": {"type": "accept_details"},
                }
                return httpx.Response(201, json=accepted)
            case _:
                detail = f"Prefect asked for {request.method} {request.url.path}, which needs a server"
                return httpx.Response(404, json={"detail": detail})

    def _create(self, body: dict[str, object]) -> httpx.Response:
        run = {key: value for key, value in body.items() if value is not None}
        run |= {"id": str(uuid4()), "run_count": 0}
        run.setdefault("name", f"run-{str(run['id'])[:8]}")
        if isinstance(body.get("state"), dict):
            run["state"] = _received(body["state"])
        self._runs[str(run["id"])] = run
        return httpx.Response(201, json=run)


def _received(state: object) -> dict[str, object]:
    assert isinstance(state, dict)
    return {"id": str(uuid4())} | {key: value for key, value in state.items() if value is not None}


@contextmanager
def without_server() -> Iterator[None]:
    """Flows that are called within the block need no server. Set
    ``flows.environment.WITHOUT_SERVER`` before.
    """
    transport = httpx.MockTransport(_FlowRunRecord().answer)
    client = SyncPrefectClient(ADDRESS, httpx_settings={"transport": transport})
    context = SyncClientContext.model_construct(client=client)
    # What the constructor would set, had it not asked for a server.
    context._httpx_settings = None
    context._context_stack = 0
    # Heartbeats are events, which go nowhere here; ending their thread would take a second.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}), context:
        yield

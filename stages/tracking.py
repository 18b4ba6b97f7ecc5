"""MLflow, a projection of what the stages write: never the truth, and never a reason for a stage to fail.

The store is mlruns/mlflow.db (SQLite, absolute URI) with artifacts in mlruns/artifacts; ``MLFLOW_TRACKING_URI`` names
another one. ``LENSMITH_TRACKING=off`` writes nothing. A run is a child of ``RUN_PARENT_ID`` if that is set (a run of
the graph sets it), else it stands alone, so that ``dvc repro`` needs no scheduler. MLflow keeps absolute addresses of
artifacts; ``settle`` mends them where the folder was moved or copied.

MLflow is imported by the first run that is opened, not by importing this module.
"""

import fcntl
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from stages.base import paths

__all__ = [
    "CURRENT",
    "EXPERIMENT",
    "RUN",
    "Run",
    "enabled",
    "end_orphans",
    "open_store",
    "settle",
    "sqlite_file",
    "sqlite_uri",
    "stage_run",
    "supersede",
    "uri",
]

EXPERIMENT = "lensmith"
ABOUT = """Methods side by side: filter by ``tags.`lensmith.current` = 'yes'`` and open the chart view.
`lensmith mlflow` prints the address of that. What the runs hold: docs/mlflow.md. Result files are the truth; this is a
projection of them."""
RUN = "LENSMITH_RUN"
"""Names the run of the graph that a stage belongs to; every MLflow run of it has that as a tag."""
CURRENT = "lensmith.current"
"""Tag of runs that a later one replaces: yes or no."""
DEPTH = 2
"""Parts that a metric's name has at most, between slashes: 400 names in a run are read by nobody."""
FLUSH_POINTS = 1000
"""Points written at once: a REST store takes no more in one request, and SQLite needs 25 ms for a single point."""

Log = Callable[[Mapping[str, float], int], None]


def enabled() -> bool:
    return os.environ.get("LENSMITH_TRACKING", "on").lower() not in {"off", "0", "false", "no"}


def uri() -> str:
    """Where runs are stored; absolute, since a relative one would follow the current directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(_database())


def sqlite_uri(path: Path) -> str:
    """Address of a SQLite file for MLflow. In the plain form a ? would end the path, so such a path is quoted and
    SQLite is told that it is. (MLflow makes the folder of what follows ``sqlite:///`` without looking further.)
    """
    plain = path.as_posix()
    return f"sqlite+pysqlite:///file:{quote(plain)}?uri=true" if set(plain) & set("?#%") else f"sqlite:///{plain}"


def sqlite_file(address: str) -> Path | None:
    """The file that an address names, as ``sqlite_uri`` or a person wrote it; None for another kind of store."""
    scheme, found, rest = address.partition(":///")
    if not found or scheme.partition("+")[0] != "sqlite":
        return None
    place, _, query = rest.partition("?")
    quoted = place.startswith("file:") and "uri=true" in query.split("&")
    return Path(unquote(place.removeprefix("file:")) if quoted else place)


def _database() -> Path:
    return paths.mlruns_dir() / "mlflow.db"


def open_store() -> tuple[Any, str]:
    """(MlflowClient, id of the experiment); makes schema and experiment if they are not there.

    Raises:
        Exception: whatever MLflow raises where the store cannot be reached.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # Against a server that is down MLflow would otherwise retry for minutes, for every stage.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # its schema chatter would drown the stage's own lines
    with _first_touch():
        _check_file()
        settle()
        client = MlflowClient(tracking_uri=uri())
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return client, str(found.experiment_id)
        # Without a location artifacts would go to ./mlruns/<id> of whatever directory is current.
        location = (paths.mlruns_dir() / "artifacts").as_uri() if sqlite_file(uri()) else None
        about = {"mlflow.note.content": ABOUT}
        return client, str(client.create_experiment(EXPERIMENT, artifact_location=location, tags=about))


@contextmanager
def _first_touch() -> Iterator[None]:
    # Two processes that create the schema at once collide ("duplicate column name"), so opening takes turns.
    if sqlite_file(uri()) is None:
        yield
        return
    paths.mlruns_dir().mkdir(parents=True, exist_ok=True)
    with (paths.mlruns_dir() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_file() -> None:
    """Fail at once on a SQLite file that cannot be written: MLflow itself would retry for 100 seconds."""
    path = sqlite_file(uri())
    if path is None:
        return
    with closing(sqlite3.connect(path, timeout=30)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.rollback()


def settle() -> int:
    """Make addresses of artifacts those of this folder, where it was moved or copied with its store; returns how many
    were others. MLflow writes absolute ones, so a copy would go on writing into the original.
    """
    file, home = _database(), paths.mlruns_dir().as_uri()
    if sqlite_file(uri()) != file or not file.is_file():
        return 0
    changed = 0
    with closing(sqlite3.connect(file, timeout=30)) as database, database:
        known = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
        if "experiments" not in known:
            return 0
        ours = database.execute("select artifact_location from experiments where name = ?", (EXPERIMENT,)).fetchone()
        old = str(ours[0]).removesuffix("/artifacts") if ours and ours[0] else home
        if old == home:
            return 0
        for table, column in _ADDRESSES:
            if table in known:
                begins = f"substr({column}, 1, {len(old) + 1}) = ?"
                text = f"update {table} set {column} = ? || substr({column}, {len(old) + 1}) where {begins}"
                changed += database.execute(text, (home, f"{old}/")).rowcount
    return changed


_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's tables hold addresses of artifacts."""


class Run:
    """One MLflow run whose points are buffered. Call it with metrics and a step; every failure is one warning."""

    def __init__(self, name: str, params: Mapping[str, Any] | None = None, parent: str | None = None) -> None:
        self.name, self.id = name, ""
        self._client: Any = None
        self._points: list[tuple[str, float, int, int]] = []
        self._details: list[tuple[str, int, float]] = []
        self._curves: dict[str, list[tuple[dict[str, float], int]]] = {}
        if not enabled():
            return
        try:
            client, experiment = open_store()
            tags = {"mlflow.runName": name}
            if os.environ.get(RUN):
                tags["lensmith.run"] = os.environ[RUN]
            stage = os.environ.get("DVC_STAGE")
            if stage:
                tags["stage"] = stage
            if parent:
                tags["mlflow.parentRunId"] = parent
            self.id = str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
            self._client = client
            if params:
                self._batch(params=_flatten(params))
        except Exception as error:  # any failure of the store is a warning, by design
            self._give_up(error)

    def __call__(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Note metrics at a step; they are written in batches.

        A name of more than ``DEPTH`` parts is about a part of the run. Curves of such names go to a child run of that
        part, under the rest of the name, so that parts can be compared; single numbers go to a table, details.csv.
        """
        if self._client is None:
            return
        now = int(time.time() * 1000)
        curves: dict[str, dict[str, float]] = {}
        for key, value in metrics.items():
            parts = key.split("/")
            if len(parts) <= DEPTH:
                self._points.append((_legal(key), float(value), now, step))
            elif step:
                curves.setdefault("/".join(parts[:DEPTH]), {})["/".join(parts[DEPTH:])] = float(value)
            else:
                self._details.append((key, step, float(value)))
        for part, values in curves.items():
            self._curves.setdefault(part, []).append((values, step))
        if len(self._points) >= FLUSH_POINTS:
            self.flush()

    def flush(self) -> None:
        points, self._points = self._points, []
        for start in range(0, len(points), FLUSH_POINTS):
            if self._client is None:
                return
            try:
                self._batch(metrics=points[start : start + FLUSH_POINTS])
            except Exception as error:  # any failure of the store is a warning, by design
                self._give_up(error)

    def tag(self, tags: Mapping[str, str]) -> None:
        if self._client is None:
            return
        try:
            for key, value in tags.items():
                self._client.set_tag(self.id, _legal(key), str(value)[:5000])
        except Exception as error:  # any failure of the store is a warning, by design
            self._give_up(error)

    def artifact(self, path: Path) -> None:
        """Copy a file into the run's artifacts."""
        if self._client is None:
            return
        try:
            self._client.log_artifact(self.id, str(path))
        except Exception as error:  # any failure of the store is a warning, by design
            self._give_up(error)

    def text(self, name: str, content: str) -> None:
        """Keep a text as an artifact."""
        if self._client is None:
            return
        try:
            self._client.log_text(self.id, content, name)
        except Exception as error:  # any failure of the store is a warning, by design
            self._give_up(error)

    def describe(self, text: str) -> None:
        """What stands above the run on its page."""
        self.tag({"mlflow.note.content": text})

    def close(self, status: str = "FINISHED") -> None:
        """Write what is buffered and end the run: FINISHED, FAILED or KILLED."""
        self.flush()
        if self._client is None:
            return
        for part, points in self._curves.items():
            part_run = Run(part, parent=self.id)
            part_run.tag({"lensmith.kind": "part"})
            for values, step in points:
                part_run(values, step)
            part_run.close(status)
        if self._details:
            lines = [f"{name},{step},{value!r}" for name, step, value in self._details]
            self.text("details.csv", "\n".join(["name,step,value", *lines]) + "\n")
        if self._client is None:
            return
        try:
            self._client.set_terminated(self.id, status)
        except Exception as error:  # any failure of the store is a warning, by design
            self._give_up(error)

    def _batch(
        self, metrics: list[tuple[str, float, int, int]] | None = None, params: Mapping[str, str] | None = None
    ) -> None:
        from mlflow.entities import Metric, Param

        listed = list((params or {}).items())
        for start in range(0, max(len(listed), 1), 100):
            self._client.log_batch(
                self.id,
                metrics=[Metric(*point) for point in metrics or []] if start == 0 else [],
                params=[Param(key, value) for key, value in listed[start : start + 100]],
            )

    def _give_up(self, error: Exception) -> None:
        self._client = None
        _warn(error)


@contextmanager
def stage_run(name: str, params: Mapping[str, Any] | None = None, *, parent: str | None = None) -> Iterator[Run]:
    """A run for the duration of the block; ``with stage_run("train", config.model_dump()) as log: log({...}, step)``.

    Args:
        name: name of the run.
        params: logged once, flattened to ``a.b.c``.
        parent: id of the parent run; default: ``RUN_PARENT_ID`` from the environment, which may be unset.
    """
    run = Run(name, params, parent or os.environ.get("RUN_PARENT_ID"))
    try:
        yield run
    except KeyboardInterrupt:
        run.close("KILLED")
        raise
    except BaseException:
        run.close("FAILED")
        raise
    run.close()


def supersede(**tags: str) -> int:
    """Mark earlier runs that are current as such no longer, before new ones take their place; returns how many."""
    if not enabled():
        return 0
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in {**tags, CURRENT: "yes"}.items())
    try:
        client, experiment = open_store()
        runs = client.search_runs([experiment], wanted, max_results=1000)
        for run in runs:
            client.set_tag(run.info.run_id, CURRENT, "no")
        return len(runs)
    except Exception as error:  # any failure of the store is a warning, by design
        _warn(error)
        return 0


def end_orphans(**tags: str) -> int:
    """Mark runs that are RUNNING for ever, since their process was killed, as KILLED; returns how many.

    Args:
        tags: which runs, such as ``{"mlflow.parentRunId": "..."}``; only call this when nobody writes them any more.
    """
    if not enabled():
        return 0
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    try:
        client, experiment = open_store()
        runs = client.search_runs([experiment], f"attributes.status = 'RUNNING' and {wanted}", max_results=1000)
        for run in runs:
            client.set_terminated(run.info.run_id, "KILLED")
        return len(runs)
    except Exception as error:  # any failure of the store is a warning, by design
        _warn(error)
        return 0


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{name}.")
        else:
            flat[_legal(name)] = str(value)[:6000]
    return flat


def _legal(name: str) -> str:
    return "".join(char if char.isalnum() or char in "_-. /" else "_" for char in name)[:250]


def _warn(error: Exception) -> None:
    cause = " ".join(str(error).split())[:200]
    print(
        f"warning: MLflow at {uri()} cannot be used ({type(error).__name__}: {cause}); the computation goes on and its"
        " results are in the result files. Remedy: mend MLFLOW_TRACKING_URI or unset it, or set LENSMITH_TRACKING=off",
        file=sys.stderr,
        flush=True,
    )

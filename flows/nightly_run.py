"""The row of a night in MLflow: complete, also where DVC ran nothing, so that nights can be
compared.
"""

import hashlib
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from flows.graph import headline_metrics, stage_of
from flows.headline import headline
from flows.outcome import Outcome
from stages import tracking
from stages.base import paths

__all__ = ["NIGHT_TAGS", "NightlyRun"]

NIGHT_TAGS = {"lensmith.kind": "night"}
GIT_PATIENCE_S = 60
"""For one question to git; a lock or a slow disk must not keep a night."""


class NightlyRun:
    """Opens the row and closes it with the block; does nothing unless ``enabled``.

    Only who holds the run lock may open one: rows of nights that are still open are taken for
    killed.
    """

    def __init__(self, root: Path, *, enabled: bool) -> None:
        self._root, self._enabled = root, enabled
        self._row: tracking.Run | None = None
        self._failed = False

    def __enter__(self) -> "NightlyRun":
        if self._enabled:
            tracking.end_orphans(**NIGHT_TAGS)
            self._row = tracking.Run("nightly")
            self._row.tag(NIGHT_TAGS | {"git_sha": _git_sha(self._root)})
        return self

    @property
    def environment(self) -> dict[str, str]:
        """What makes the rows of stages children of this one."""
        return {"RUN_PARENT_ID": self._row.id} if self._row is not None and self._row.id else {}

    def note(self, outcomes: Sequence[Outcome]) -> None:
        """Each node's outcome, and the headline numbers of those that are up to date."""
        self._failed = any(outcome.state == "failed" for outcome in outcomes)
        if self._row is None or not self._row.id:
            return
        self._row.tag({f"stage.{outcome.node}": outcome.state for outcome in outcomes})
        metrics = headline_metrics(self._root)
        up_to_date = {outcome.node for outcome in outcomes if outcome.state in {"executed", "cached"}}
        for stage in sorted({stage_of(node) for node in up_to_date}):
            for path in metrics.get(stage, []):
                self._row(headline(path), 0)
        self._row.tag({"dvc_lock_sha": _sha(self._root / "dvc.lock")})
        for file in (*(path for files in metrics.values() for path in files), paths.report_file()):
            if file.is_file():
                self._row.artifact(file)
        counts = Counter(outcome.state for outcome in outcomes)
        self._row.describe(
            f"A night: {', '.join(f'{n} nodes {state}' for state, n in sorted(counts.items()))}. All numbers and the"
            " report are artifacts; stages that ran are child runs."
        )
        if any(outcome.state in {"failed", "interrupted"} for outcome in outcomes):
            tracking.end_orphans(**{"mlflow.parentRunId": self._row.id})

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._row is not None:
            interrupted = isinstance(error, KeyboardInterrupt)
            failed = error is not None or self._failed
            self._row.close("KILLED" if interrupted else "FAILED" if failed else "FINISHED")


def _git_sha(root: Path) -> str:
    git = shutil.which("git")  # an archive, or a slim container, has none
    if git is None or not (root / ".git").exists():
        return "none"
    try:
        described = subprocess.run(
            [git, "describe", "--always", "--abbrev=40", "--dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=GIT_PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return described.stdout.strip() or "none"


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"

"""Environment of the processes of a run: one thread each, telemetry off, this installation's
commands first.
"""

import os
import sys
import urllib.request
from pathlib import Path

from stages.errors import UserError

__all__ = ["DVC_SETTINGS", "child_environment", "prefect_environment", "prepare_dvc", "state_dir"]

DVC_SETTINGS = {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1"}
WITHOUT_SERVER = {
    # No address and a key: Prefect then sends no events, to which only a server listens.
    "PREFECT_API_KEY": "unused",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
}
"""Settings of a Prefect that finds no server (flows/prefect_api.py)."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def state_dir(root: Path) -> Path:
    """Locks, logs and wall times: facts about this machine, so neither git nor DVC sees them."""
    if not (root / "dvc.yaml").is_file():
        raise UserError(f"{root} is not a Lensmith checkout (no dvc.yaml). Run from a checkout or set LENSMITH_ROOT.")
    folder = root / ".lensmith"
    folder.mkdir(exist_ok=True)
    return folder


def child_environment(root: Path) -> dict[str, str]:
    """Environment of every DVC, stage, Prefect and MLflow process."""
    environment = dict(os.environ)
    for name in THREADS:
        # Parallelism is over processes: two OpenMP threads on a contended two-core machine
        # made one training loop fifteen times slower.
        environment.setdefault(name, "1")
    environment |= DVC_SETTINGS
    environment |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",  # nothing is downloaded; without this some imports ask
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    environment.setdefault("PREFECT_HOME", str(root / ".prefect"))  # else it writes to the home directory
    return environment


def prepare_dvc(root: Path) -> None:
    """Make DVC work in this folder: an unpacked source archive has no .git, so DVC must do
    without.
    """
    if not (root / ".dvc" / "config").is_file():
        raise UserError(f"{root / '.dvc' / 'config'} is missing: unpack the whole archive, hidden files too")
    if (root / ".git").exists():
        return
    local = root / ".dvc" / "config.local"
    settings = local.read_text(encoding="utf-8") if local.is_file() else ""
    if "no_scm" not in settings:
        local.write_text(f"{settings}[core]\n    no_scm = true\n", encoding="utf-8")


def prefect_environment(root: Path, *, serve: bool) -> bool:
    """Set what Prefect reads when it is imported. One run needs no server; a schedule does.

    Returns:
        whether a Prefect server answers at ``PREFECT_API_URL``.

    Raises:
        UserError: a schedule is wanted and no server answers.
    """
    for name, value in child_environment(root).items():
        os.environ.setdefault(name, value)
    url = os.environ.get("PREFECT_API_URL", "")
    if serve and not url:
        raise UserError(
            "PREFECT_API_URL is not set, and without a server nothing can be scheduled: run"
            " `prefect server start`,"
            " then `export PREFECT_API_URL=http://127.0.0.1:4200/api` (docs/nightly.md has both"
            " as services)"
        )
    if url and _answers(f"{url.rstrip('/')}/health"):
        if not serve:
            # The run shows its own progress; the server gets every line.
            os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        return True
    if serve:
        raise UserError(
            f"no Prefect server answers at PREFECT_API_URL={url}: run `prefect server start`, or correct the address"
        )
    if url:
        print(
            f"warning: no Prefect server answers at {url}; this run goes on without it",
            file=sys.stderr,
        )
        del os.environ["PREFECT_API_URL"]
    os.environ |= WITHOUT_SERVER
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # the run shows its own progress
    return False


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status) == 200
    except (OSError, ValueError):
        return False

"""What a child process of the house sees: threads, telemetry off, the environment's own commands first on PATH."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from stages.errors import UserError

__all__ = ["child_environment", "dvc", "prefect_environment", "prepare_dvc", "state_dir"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def state_dir(root: Path) -> Path:
    """Locks, logs and wall times: facts about this machine, so neither git nor DVC sees them."""
    if not (root / "dvc.yaml").is_file():
        raise UserError(f"{root} is no working copy: it has no dvc.yaml; change into one, or mend LENSMITH_ROOT")
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
    environment |= {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",  # nothing is downloaded; without this some imports ask
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    environment.setdefault("PREFECT_HOME", str(root / ".prefect"))  # else it writes to the home directory
    return environment


def dvc(root: Path, *arguments: str) -> str:
    """Output of one DVC command.

    Raises:
        UserError: DVC refused, with its reason.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments],
        cwd=root,
        env=child_environment(root),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        if "is busy" in done.stderr:
            raise UserError(f"another DVC command is at work in {root}: wait for it to end, or stop it, then try again")
        said = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        cause = next((line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")), "")
        cause = cause or " ".join(said)[:400] or f"exit status {done.returncode}"
        raise UserError(
            f"`dvc {' '.join(arguments)}` failed in {root}: {cause}; mend it (`lensmith doctor` looks around)"
        )
    return done.stdout


def prepare_dvc(root: Path) -> None:
    """Make DVC work in this folder: an unpacked source archive has no .git, so DVC must do without."""
    if not (root / ".dvc" / "config").is_file():
        raise UserError(f"{root / '.dvc' / 'config'} is missing: unpack the whole archive, hidden files too")
    if (root / ".git").exists():
        return
    local = root / ".dvc" / "config.local"
    settings = local.read_text(encoding="utf-8") if local.is_file() else ""
    if "no_scm" not in settings:
        local.write_text(f"{settings}[core]\n    no_scm = true\n", encoding="utf-8")


def prefect_environment(root: Path, *, serve: bool) -> None:
    """Set what Prefect reads when it is imported. One night needs no server; a schedule does.

    Raises:
        UserError: a schedule is wanted and no server answers.
    """
    for name, value in child_environment(root).items():
        os.environ.setdefault(name, value)
    # The first start migrates the database: 14 s were measured, with a default limit of 20.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    url = os.environ.get("PREFECT_API_URL", "")
    if serve and not url:
        raise UserError(
            "PREFECT_API_URL is not set, and without a server nothing can be scheduled: run `prefect server start`,"
            " then `export PREFECT_API_URL=http://127.0.0.1:4200/api` (docs/nightly.md has both as services)"
        )
    if url and not _answers(f"{url.rstrip('/')}/health"):
        if serve:
            raise UserError(
                f"no Prefect server answers at PREFECT_API_URL={url}: run `prefect server start`, or mend the address"
            )
        print(f"warning: no Prefect server answers at {url}; this night runs without it", file=sys.stderr)
        del os.environ["PREFECT_API_URL"]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status) == 200
    except (OSError, ValueError):
        return False

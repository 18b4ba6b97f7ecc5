"""Stage ``copies``: copies of the small metric files in results/, which git keeps.

The stages that compute them keep their outputs in DVC's cache. Git has these copies, so that ``dvc metrics diff`` and
``dvc plots`` work between commits without a remote.
"""

from stages.base import paths
from stages.base.files import save_bytes

__all__ = ["COPIED", "main"]

COPIED = (
    "campaign", "circuits", "controls", "fresh", "leaderboard", "null", "proxies", "sensitivity", "statements", "test",
    "test_statements", "train",
)  # fmt: skip
"""metrics/<name>.json; not per_task, test_per_task and dictionaries, which are 0.99 of 1.17 MB."""


def main() -> None:
    for name in COPIED:
        save_bytes(paths.result_file(name), paths.require(paths.metrics_file(name), "reward").read_bytes())

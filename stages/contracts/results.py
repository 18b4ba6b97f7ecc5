"""The one table of result files: name -> what a file holds and which stage makes it.

Writers and readers use the entries themselves (``LEADERBOARD.load()``), which are typed; this table is for what goes
over all of them: the report, the schemas, the tests.
"""

from pydantic import BaseModel

from stages.contracts.circuit_rows import CIRCUITS, DRAWINGS, KNOWN_CIRCUITS
from stages.contracts.compare_rows import COMPARISON, LIVE
from stages.contracts.dictionary_rows import (
    DICTIONARIES,
    DICTIONARY_METRICS,
    DOWNSTREAM,
    GALLERY,
    PROXIES,
    SWEEP_METRICS,
)
from stages.contracts.journal import CAMPAIGN
from stages.contracts.measurement_rows import CONTROLS, FRESH, NULL, SENSITIVITY
from stages.contracts.research_rows import LABELS, SCENARIOS, TEST_PATH
from stages.contracts.reward_rows import LEADERBOARD, PER_TASK, STATEMENTS, TEST, TEST_PER_TASK, TEST_STATEMENTS, TRAIN

__all__ = ["BY_HAND", "ELSEWHERE", "FILES"]

Shape = BaseModel | tuple[BaseModel, ...]
FILES = {
    file.name: file
    for file in (
        LEADERBOARD, TRAIN, STATEMENTS, PER_TASK, SENSITIVITY, CONTROLS, CAMPAIGN, TEST, TEST_STATEMENTS, TEST_PER_TASK,
        TEST_PATH, FRESH, NULL, DICTIONARIES, PROXIES, CIRCUITS,
    )
}  # fmt: skip
"""metrics/<name>.json, in the order of the report."""
BY_HAND = (COMPARISON, LIVE, LABELS, SCENARIOS)
"""metrics/<name>.json that a command makes, and the report shows where it is there."""
ELSEWHERE = (DICTIONARY_METRICS, SWEEP_METRICS, GALLERY, DOWNSTREAM, KNOWN_CIRCUITS, DRAWINGS)
"""Files of a target or of the circuits, whose place stages/base/paths.py knows."""

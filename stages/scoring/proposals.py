"""What a researcher proposes: a spec, which is settings of reviewed code, or source, which nobody has reviewed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.scoring.composed import Spec

__all__ = ["Proposal", "Source", "as_json", "from_json", "shown"]


@dataclass(frozen=True)
class Source:
    """A method as the text of a Python file; it runs in the sandbox, one process a phase."""

    file: str
    """What its author called it."""
    text: str


Proposal = Spec | Source


def as_json(proposal: Proposal) -> dict[str, Any]:
    """What the journal keeps: enough to run it again, whatever became of the file."""
    if isinstance(proposal, Source):
        return {"file": proposal.file, "source": proposal.text}
    return proposal.model_dump()


def from_json(facts: Mapping[str, Any]) -> Proposal:
    return Source(facts["file"], facts["source"]) if "source" in facts else Spec(**facts)


def shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What tables and MLflow show: a file by its name and digest, not its text."""
    if "source" not in facts:
        return dict(facts)
    return {"file": facts["file"], "sha256": hashlib.sha256(facts["source"].encode()).hexdigest()[:16]}

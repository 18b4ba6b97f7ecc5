"""What a researcher proposes: a spec, which is settings of reviewed code, or source, which nobody has reviewed."""

import hashlib

from stages.base.params import names
from stages.contracts.journal import CAMPAIGN, SpecFacts
from stages.interpretation.loading import built_in
from stages.scoring.candidate import Candidate, Source
from stages.scoring.composed import Composed, Spec

__all__ = ["Proposal", "as_json", "candidate_of", "contenders", "from_json", "shown"]


Proposal = Spec | Source


def as_json(proposal: Proposal) -> SpecFacts:
    """What the journal keeps: enough to run it again, whatever became of the file."""
    if isinstance(proposal, Source):
        return {"file": proposal.file, "source": proposal.text}
    return proposal.model_dump()


def from_json(facts: SpecFacts) -> Proposal:
    return Source(str(facts["file"]), str(facts["source"])) if "source" in facts else Spec.model_validate(facts)


def shown(facts: SpecFacts) -> SpecFacts:
    """What tables and MLflow show: a file by its name and digest, not its text."""
    if "source" not in facts:
        return dict(facts)
    return {"file": facts["file"], "sha256": hashlib.sha256(str(facts["source"]).encode()).hexdigest()[:16]}


def contenders() -> list[Candidate]:
    """Every built-in method, and last the best that the campaign found, where it found one."""
    star = CAMPAIGN.load().incumbent
    found = [] if star is None else [candidate_of(from_json(star.spec), star.name)]
    return [*(Candidate(name, built_in(name)) for name in names("reward", "methods")), *found]


def candidate_of(proposal: Proposal, name: str) -> Candidate:
    """The method that is proposed."""
    return Candidate(name, proposal if isinstance(proposal, Source) else Composed(proposal, name))

"""Stage ``research``: one campaign over the search space.

Writes data/research/campaign/ (events.jsonl, theta.json) and metrics/campaign.json. DVC deletes a stage's outputs
before it runs, so a campaign works in .lensmith/campaigns/<fingerprint>/ and is copied out when it is complete: killed
and run again with nothing changed, it continues; complete, it is a new one.
"""

import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, field_validator

from stages.base import paths
from stages.base.code import code_digest
from stages.base.params import Params, load
from stages.contracts.journal import (
    CAMPAIGN,
    CampaignSummary,
    Fingerprint,
    Incumbent,
    Iteration,
    Proposed,
    Result,
    Started,
)
from stages.errors import UserError
from stages.research.campaign import Campaign, Progress
from stages.research.files_researcher import FilesResearcher
from stages.research.journal import best_found
from stages.research.projection import Projection
from stages.research.researcher import Researcher
from stages.research.researchers import RESEARCHERS, make_researcher
from stages.sandbox.host import require_sandbox
from stages.scoring.cached import jobs
from stages.scoring.proposals import shown
from stages.scoring.settings import Settings, settings
from stages.targets.storage import definition_of, load_target
from stages.tasks.families import family
from stages.tasks.storage import list_tasks

__all__ = ["Config", "campaign", "main", "run"]


class Config(Params):
    researcher: str
    """Name of a file in stages/research/researchers."""
    budget: int = Field(ge=1, le=10_000)
    """Iterations."""
    seed: int = Field(ge=0)
    islands: int = Field(default=1, ge=1, le=64)
    """Populations that breed apart, of a researcher that has them: ``programs``."""

    @field_validator("researcher")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in RESEARCHERS:
            raise ValueError(f"researcher {name!r} is unknown; known: {', '.join(RESEARCHERS.names())}")
        return name


def _whom(researcher: Researcher) -> list[str | int]:
    return [researcher.name, researcher.code, researcher.space, researcher.batch, researcher.seed, researcher.told]


def fingerprint(researcher: Researcher, budget: int, chosen: Settings, *, cascade: bool = False) -> str:
    """What a campaign depends on: its settings, the targets, the baseline arm it is measured against, and code."""
    sha = hashlib.sha256()
    sha.update(json.dumps([*_whom(researcher), budget, cascade]).encode())
    for part in (chosen.interpretation, chosen.execution, chosen.reward):
        sha.update(part.model_dump_json().encode())
    for name in chosen.interpretation.targets:
        sha.update(load_target(name).digest.encode())
    for file in sorted(paths.require(paths.execution_dir("baseline"), "baseline").glob("*.json")):
        sha.update(file.read_bytes())
    # Half a campaign by old code and half by new would be no campaign; code that it cannot run does not matter.
    sha.update(code_digest(__name__, *_found_by_name(chosen)).encode())
    return sha.hexdigest()


def _found_by_name(chosen: Settings) -> list[str]:
    """Modules that no import leads to: of the families and targets that are asked about. The researcher's own digest
    is in ``Researcher.code``."""
    families = {type(family(name)) for split in ("train", "validation") for name, _ in list_tasks(split)}
    definitions = {type(definition_of(name)) for name in chosen.interpretation.targets}
    return sorted(one.__module__ for one in families | definitions)


def _conduct(
    researcher: Researcher,
    budget: int,
    folder: Path,
    progress: Progress,
    key: str,
    *,
    cascade: bool = False,
    workers: int | None = None,
) -> Campaign:
    chosen = settings()
    splits = {split: list_tasks(split) for split in ("train", "validation")}
    sealed = [family for family, _ in list_tasks("test")]
    n_jobs = jobs() if workers is None else workers
    one = Campaign(folder, researcher, splits, chosen, budget, progress, n_jobs, sealed, cascade=cascade)
    started = one.journal.first(Started)
    if started is not None and key not in {event.key for event in one.journal.of(Fingerprint)}:
        raise UserError(
            f"campaign {folder.name} was started with other settings, targets or code:"
            f" choose another --name, or delete {folder}"
        )
    if started is None:
        one.journal.append(Fingerprint(key=key))
    resumed = len(one.journal.of(Result))
    if resumed:
        progress(f"continuing after iteration {resumed} of {budget}")
    projection = Projection(key, {"researcher": researcher.name, "seed": researcher.seed, "budget": budget})

    def project(result: Result) -> None:
        # Train alone: whoever looks at the store while the campaign goes on is told no more than the researcher.
        projection.iteration(result, one.judged(result.iteration, "train") if result.train is not None else ())

    one.run(project)
    return one


def summary(one: Campaign, name: str) -> CampaignSummary:
    """metrics/campaign.json."""
    iterations, best = [], 0.0
    proposals = {proposed.iteration: proposed for proposed in one.journal.of(Proposed)}
    for result in one.journal.of(Result):
        best = max(best, result.feedback or 0.0) if result.accepted else best
        iterations.append(
            Iteration(
                iteration=result.iteration,
                name=result.name,
                status=result.status,
                reason=result.reason,
                accepted=result.accepted,
                interpret_bytes=result.interpret_bytes,
                spec=shown(result.spec),
                train_reward=result.train.reward_mean if result.train else None,
                validation_reward=result.feedback,
                flop_ratio=result.train.flop_ratio if result.train else None,
                operator=proposals[result.iteration].operator,
                parents=proposals[result.iteration].parents,
                reached=result.reached,
                best_so_far=best,
            )
        )
    star = best_found(one.journal)
    found = None
    if star is not None:
        found = Incumbent(
            name=star.name,
            spec=shown(star.spec),
            iteration=star.iteration,
            validation_reward=star.feedback or 0.0,
            accepted=star.accepted,
        )
    return CampaignSummary(
        campaign=name,
        researcher=one.researcher.name,
        seed=one.researcher.seed,
        iterations=tuple(iterations),
        incumbent=found,
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a campaign's folder: two processes would write one journal and spend one limit twice."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"campaign {folder.name} is at work in another process: wait, or choose another --name"
            ) from None
        yield


def campaign(
    researcher: str | Researcher,
    budget: int,
    seed: int,
    name: str,
    progress: Progress = print,
    methods: Path | None = None,
    space: str = "specs",
    cascade: bool = False,
    workers: int | None = None,
    islands: int = 1,
) -> CampaignSummary:
    """A campaign of one's own, in data/research/<name>/; it never opens the test split.

    Args:
        researcher: by name, or by the path of its file, or one that was made; taken for ``files`` where ``methods`` is
            given.
        budget: iterations; with ``methods`` at most one per file.
        methods: folder of method files to hand in; each runs in the sandbox.
        space: what ``random`` and ``search`` propose: ``specs`` or ``programs``.
        cascade: ask validation only about what earns more on train than the incumbent.
        workers: processes, which try one proposal each; None: see ``jobs``. The journal does not hang on it.
        islands: populations that breed apart, of a researcher that has them.

    Raises:
        UserError: no such researcher or folder, no sandbox for the files, or a campaign of that name with other
            settings.
    """
    if isinstance(researcher, Researcher):
        author = researcher
    else:
        author = (
            make_researcher(researcher, seed, space, islands) if methods is None else FilesResearcher(seed, methods)
        )
    if isinstance(author, FilesResearcher):
        budget = min(budget, len(author.files))
        require_sandbox(f"{methods} holds code nobody has reviewed")
    elif author.space == "programs":
        require_sandbox("programs are source, and source runs nowhere else")
    chosen = settings()
    key = fingerprint(author, 1, chosen, cascade=cascade)  # a larger budget continues the same campaign
    with _alone(paths.campaign_dir(name)):
        one = _conduct(author, budget, paths.campaign_dir(name), progress, key, cascade=cascade, workers=workers)
    return summary(one, name)


def run(config: Config, progress: Progress = print) -> CampaignSummary:
    """The campaign of the graph."""
    chosen = settings()
    author = make_researcher(config.researcher, config.seed, islands=config.islands)
    key = fingerprint(author, config.budget, chosen)
    folder = paths.work_dir() / "campaigns" / key[:16]
    one = _conduct(author, config.budget, folder, progress, key)
    out = paths.campaign_dir("campaign")
    out.mkdir(parents=True, exist_ok=True)
    for file in ("events.jsonl", "theta.json"):
        shutil.copyfile(folder / file, out / file)
    result = summary(one, "campaign")
    CAMPAIGN.save(result)
    shutil.rmtree(folder)
    return result


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run(load("research", Config))

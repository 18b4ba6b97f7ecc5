"""The campaign loop: propose, interpret, run the arms, judge, pass the gate, update; resumable at any point.

The journal is the truth. An iteration is a ``proposed`` event and a ``result`` event; a process killed between them
repeats the work of that iteration and nothing else, and proposes the same method, since proposals depend on seed and
journal alone. The slots of a batch are all proposed before the first of them is judged.

A batch is tried by several workers, one proposal each. Only this process writes: results are judged against the
incumbent and appended in the order of slots, whoever was done first. So the journal does not hang on their number.

What the journal says of validation is what the gate lets through. The rows behind it are computed from the arms again
where the next challenger is compared with the incumbent.

A proposal ends ``ok``, ``failed``, ``void`` or ``infra``. The last two are no scores: nothing of them is shown to the
researcher, and what failed for the machinery's sake is tried again before it is given up.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from joblib import Parallel, delayed

from stages.base.files import save_json
from stages.base.processes import process_pool
from stages.contracts.journal import Infra, Proposed, Result, SpecFacts, Started, Stopped
from stages.contracts.outcomes import worst
from stages.errors import UserError
from stages.execution.results import load_arms, save_arms
from stages.research.cascade import promising, static_fault
from stages.research.gate import Gate
from stages.research.journal import Journal, incumbent
from stages.research.lineage import difference
from stages.research.researcher import Halt, Researcher
from stages.research.view import seen_of, view_of
from stages.reward.judging import Judged, leaderboard_row, task_row
from stages.reward.statements import MAX_UNSEEN
from stages.scoring.candidate import Candidate
from stages.scoring.evaluate import Evaluation, evaluate
from stages.scoring.judge import host_of, judge_arms
from stages.scoring.proposals import as_json, candidate_of, from_json, shown
from stages.scoring.settings import Settings

__all__ = ["Campaign", "objective"]

ATTEMPTS = 3
"""Times one iteration is tried where the machinery fails."""
TaskNames = Sequence[tuple[str, str]]
Progress = Callable[[str], None]


def objective(train_reward: float, feedback: float | None) -> float:
    """What theta is updated with: train results in full, validation as the gate lets it through.

    A cascade does not ask validation about everything; what was not asked counts as nothing gained there.
    """
    return (train_reward + (feedback or 0.0)) / 2


class Tried(NamedTuple):
    """A trial, and how the machinery failed before it."""

    trial: Evaluation[None]
    failures: tuple[str, ...]


def attempt(candidate: Candidate, tasks: TaskNames, settings: Settings, pool: Parallel | None = None) -> Tried:
    """The trial of a candidate on tasks, repeated where the machinery fails.

    Args:
        pool: workers for the tasks; None: one after the other, here.
    """
    failures: list[str] = []
    while True:
        host = host_of(candidate, settings)
        trial: Evaluation[None] = evaluate(candidate, tasks, host, settings.execution, pool=pool)
        if trial.outcome != "infra":
            return Tried(trial, tuple(failures))
        failures.append(trial.reason)
        if len(failures) == ATTEMPTS:
            return Tried(
                replace(trial, reason=f"the machinery failed {ATTEMPTS} times: {trial.reason}"), tuple(failures)
            )


class Campaign:
    """One campaign in one folder.

    Args:
        folder: journal, theta and arms.
        researcher: M1.
        tasks: (family, target) of each split.
        settings: configurations of the stages.
        budget: iterations.
        progress: told one line per iteration.
        jobs: processes, each of which tries one proposal of a batch at a time.
        held_out: names of families that no reason may name.
        cascade: ask validation only about what earns more on train than the incumbent.
    """

    def __init__(
        self,
        folder: Path,
        researcher: Researcher,
        tasks: Mapping[str, Sequence[tuple[str, str]]],
        settings: Settings,
        budget: int,
        progress: Progress,
        jobs: int,
        held_out: Sequence[str] = (),
        *,
        cascade: bool = False,
    ) -> None:
        self.folder, self.researcher, self.tasks, self.settings = folder, researcher, tasks, settings
        self.budget, self.progress, self.jobs, self.cascade = budget, progress, jobs, cascade
        self.held_out = sorted({*held_out, *(family for family, _ in tasks["validation"])}, key=len, reverse=True)
        self.journal = Journal(folder / "events.jsonl")
        self._kept: dict[tuple[int, str], list[Judged]] = {}

    def run(self, on_result: Callable[[Result], None]) -> None:
        """Continue to the end of the budget; ``on_result`` is told every result, old ones included, in order.

        Raises:
            UserError: the researcher cannot propose for now. What it had proposed is judged.
        """
        halted: Halt | None = None
        if self.journal.first(Started) is None:
            self.journal.append(Started(researcher=self.researcher.name, seed=self.researcher.seed))
        for start in range(0, self.budget, self.researcher.batch):
            slots = range(start, min(start + self.researcher.batch, self.budget))
            halted = self._propose_batch(slots)
            batch = [one for one in self.journal.of(Proposed) if one.iteration in slots]
            known = {one.iteration: one for one in self.journal.of(Result)}
            trials = self._trials([one for one in batch if one.iteration not in known and not self._fault(one)])
            for proposed in batch:
                result = known.get(proposed.iteration)
                if result is None:
                    result = self._unfit(proposed) if self._fault(proposed) else self._iterate(proposed, next(trials))
                    self.progress(describe(result, self.budget))
                self.researcher.update(seen_of(proposed, result))
                self._save_theta()
                on_result(result)
            if halted is not None:
                break
        if halted is not None:
            said = self._without_names(halted.reason)
            self.journal.append(Stopped(status=halted.status, reason=said))
            if halted.status != "spent":
                raise UserError(said)
            self.progress(f"stopped: {said}")

    def _propose_batch(self, slots: range) -> Halt | None:
        """Propose for a batch, in order; why not for all of it, where that is so."""
        known = {one.iteration for one in self.journal.of(Proposed)}
        wanted = [slot for slot in slots if slot not in known]
        try:
            if wanted:
                self.researcher.prepare(self.journal, wanted)
            for slot in wanted:
                self._proposed(slot)
        except Halt as halt:
            return halt
        return None

    def _trials(self, batch: Sequence[Proposed]) -> Iterator[Tried]:
        """The first trial of each proposal, in their order: on all tasks, or with a cascade on those of train."""
        tasks = [*self.tasks["train"], *(() if self.cascade else self.tasks["validation"])]
        work = [(candidate_of(from_json(one.spec), one.name), tasks, self.settings) for one in batch]
        done = 0
        if self.jobs > 1 and len(work) > 1:
            try:
                with process_pool(self.jobs, return_as="generator") as pool:
                    for tried in pool(delayed(attempt)(*one) for one in work):
                        done += 1
                        yield tried
            except BrokenProcessPool as error:
                # Over which of them it ended is not known, so no event says it: alone, each answers for itself.
                self.progress(f"a worker ended ({type(error).__name__}); what is left of the batch is tried one by one")
        for one in work[done:]:
            with process_pool(self.jobs) as pool:
                yield attempt(*one, pool=pool if self.jobs > 1 else None)

    def _fault(self, proposed: Proposed) -> str:
        """Why there is nothing to try; empty where there is."""
        if proposed.fault or not (self.cascade and "source" in proposed.spec):
            return proposed.fault
        return static_fault(str(proposed.spec["source"]))

    def _unfit(self, proposed: Proposed) -> Result:
        """The result of a proposal that there is nothing to try of."""
        outcome = proposed.outcome if proposed.fault else "failed"
        nothing: Evaluation[None] = Evaluation(outcome, self._fault(proposed), "import", [])
        told = {"objective": 0.0 if outcome == "failed" else None, "reached": "import"}
        return self.journal.append(self._result(proposed, nothing).model_copy(update=told))

    def _proposed(self, slot: int) -> Proposed:
        """The proposal of a slot, asked for and written down where there is none."""
        known = {one.iteration: one for one in self.journal.of(Proposed)}
        if slot in known:
            return known[slot]
        move = self.researcher.propose(view_of(self.journal, slot, self.researcher.batch), slot)
        facts = as_json(move.proposal)
        unknown = sorted(set(move.parents) - set(known))
        if unknown:
            raise ValueError(f"slot {slot}: parents {unknown} were never proposed; name slots that the view shows")
        return self.journal.append(
            Proposed(
                iteration=slot,
                name=f"{self.researcher.name}-{slot:02d}",
                spec=facts,
                choices=dict(move.choices),
                operator=move.operator,
                parents=move.parents,
                diff=difference(known[move.parents[0]].spec, facts) if move.parents else "",
                outcome=move.outcome,
                fault=self._without_names(move.fault),
            )
        )

    def judged(self, iteration: int, split: str) -> list[Judged]:
        """Judged arms of a finished iteration, read from disk where they are not at hand."""
        if (iteration, split) in self._kept:
            return self._kept[iteration, split]
        folder = self.folder / "arms" / f"{iteration:04d}"
        names = [f"{family}.{target}" for family, target in self.tasks[split]]
        arms = {name: load_arms(folder, name) for name in names}
        return judge_arms(arms, self.tasks[split], self.settings.reward)

    def _iterate(self, proposed: Proposed, tried: Tried) -> Result:
        iteration, trial = proposed.iteration, self._told(proposed, tried)
        # Half an iteration's arms, if it was killed.
        shutil.rmtree(self.folder / "arms" / f"{iteration:04d}", ignore_errors=True)
        if not trial.scored:
            so_far = {"reached": "train"} if self.cascade else {}
            return self.journal.append(self._result(proposed, trial).model_copy(update=so_far))
        self._save_arms(iteration, trial)
        train = judge_arms(trial.arms, self.tasks["train"], self.settings.reward)
        best = incumbent(self.journal)
        if self.cascade:
            row = leaderboard_row(proposed.name, "train", train)
            if not promising(row.reward_mean, best):
                return self.journal.append(
                    self._result(proposed, trial).model_copy(
                        update={
                            "train": row,
                            "objective": _seen_by_meter(objective(row.reward_mean, None), train),
                            "per_task": tuple(task_row(proposed.name, j) for j in train),
                            "reached": "train",
                        }
                    )
                )
            candidate = candidate_of(from_json(proposed.spec), proposed.name)
            more = attempt(candidate, self.tasks["validation"], self.settings)
            trial = _both(trial, self._told(proposed, more))
            if not trial.scored:
                return self.journal.append(self._result(proposed, trial))
        self._save_arms(iteration, trial)
        validation = judge_arms(trial.arms, self.tasks["validation"], self.settings.reward)
        rival = None if best is None else self.judged(best.iteration, "validation")
        self._kept = {(iteration, "train"): train, (iteration, "validation"): validation}
        if best is not None and rival is not None:
            self._kept[best.iteration, "validation"] = rival
        gate = Gate(self.budget, used=sum(one.feedback is not None for one in self.journal.of(Result)))
        decision = gate.decide(validation, rival)
        train_row = leaderboard_row(proposed.name, "train", train)
        scored = {
            "train": train_row,
            "feedback": decision.feedback,
            "accepted": decision.accepted and trial.outcome == "ok",
            "objective": _seen_by_meter(objective(train_row.reward_mean, decision.feedback), (*train, *validation)),
            "per_task": tuple(task_row(proposed.name, j) for j in train),
        }
        return self.journal.append(self._result(proposed, trial).model_copy(update=scored))

    def _save_arms(self, iteration: int, trial: Evaluation[None]) -> None:
        for name, of_task in trial.arms.items():
            save_arms(of_task, self.folder / "arms" / f"{iteration:04d}", name)

    def _told(self, proposed: Proposed, tried: Tried) -> Evaluation[None]:
        """The trial; each failure of the machinery before it is an event."""
        for failure in tried.failures:
            reason = self._without_names(failure)
            self.journal.append(Infra(iteration=proposed.iteration, reason=reason[:300]))
            self.progress(f"iteration {proposed.iteration + 1}/{self.budget}: {reason[:120]}")
        return tried.trial

    def _without_names(self, reason: str) -> str:
        for family in self.held_out:
            reason = reason.replace(family, "held out")
        return reason

    def _save_theta(self) -> None:
        save_json(self.folder / "theta.json", self.researcher.theta())

    def _result(self, proposed: Proposed, trial: Evaluation[None]) -> Result:
        """A result without numbers."""
        return Result(
            iteration=proposed.iteration,
            name=proposed.name,
            spec=proposed.spec,
            choices=proposed.choices,
            status=trial.outcome,
            reason=self._without_names(trial.reason),
            interpret_bytes=trial.n_bytes,
            train=None,
            feedback=None,
            accepted=False,
            objective=None,
            per_task=(),
        )


def _seen_by_meter(value: float, judged: Sequence[Judged]) -> float:
    """What a meter may have missed is no reward to learn from."""
    return min(value, 0.0) if max(one.unseen_share for one in judged) > MAX_UNSEEN else value


def _both(train: Evaluation[None], validation: Evaluation[None]) -> Evaluation[None]:
    """One trial of two; the worse outcome is told."""
    told = validation if worst((train.outcome, validation.outcome)) == validation.outcome != train.outcome else train
    return replace(told, results=[*train.results, *validation.results], frozen={**train.frozen, **validation.frozen})


def describe(result: Result, budget: int) -> str:
    """One line about an iteration."""
    what = f"iteration {result.iteration + 1}/{budget} {_parts(shown(result.spec))}"
    if result.train is not None and result.feedback is None:
        return f"{what}: train {result.train.reward_mean:+.3f}, not above the incumbent's"
    if result.train is None or result.feedback is None:
        return f"{what}: {result.status}, no score: {result.reason}"
    return (
        f"{what}: train {result.train.reward_mean:+.3f}, validation {result.feedback:+.3f}"
        f"{' -> incumbent' if result.accepted else ''}{' ' + result.status if result.status != 'ok' else ''}"
    )


def _parts(spec: SpecFacts) -> str:
    if "file" in spec:
        return str(spec["file"])
    extras = [name for name in ("gradient", "attention", "logit_lens") if spec[name]]
    return (
        "+".join([*([] if spec["representation"] == "none" else [str(spec["representation"])]), *extras]) or "nothing"
    )

"""The campaign loop: propose, interpret, run the arms, judge, pass the gate, update; resumable at any point.

The journal is the truth. An iteration is a ``proposed`` event and a ``result`` event; a process killed between them
repeats the work of that iteration and nothing else, and proposes the same method, since proposals depend on seed and
journal alone. The slots of a batch are all proposed before the first of them is judged.

What the journal says of validation is what the gate lets through. The rows behind it are computed from the arms again
where the next challenger is compared with the incumbent.

A proposal ends ``ok``, ``failed``, ``void`` or ``infra``. The last two are no scores: nothing of them is shown to the
researcher, and what failed for the machinery's sake is tried again before it is given up.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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
from stages.research.view import batch_start, seen_of, view_of
from stages.reward.judging import Judged, leaderboard_row, task_row
from stages.reward.statements import MAX_UNSEEN
from stages.scoring.evaluate import Evaluation, evaluate
from stages.scoring.judge import host_of, judge_arms
from stages.scoring.proposals import as_json, candidate_of, from_json, shown
from stages.scoring.settings import Settings

__all__ = ["Campaign", "objective"]

ATTEMPTS = 3
"""Times one iteration is tried where the machinery fails."""
SLOW_ATTEMPTS = 2
"""Times it is tried where a method was stopped by the clock: a busy machine is no fault of the method."""
WALL = "wall limit"
Progress = Callable[[str], None]


def objective(train_reward: float, feedback: float | None) -> float:
    """What theta is updated with: train results in full, validation as the gate lets it through.

    A cascade does not ask validation about everything; what was not asked counts as nothing gained there.
    """
    return (train_reward + (feedback or 0.0)) / 2


class Campaign:
    """One campaign in one folder.

    Args:
        folder: journal, theta and arms.
        researcher: M1.
        tasks: (family, target) of each split.
        settings: configurations of the stages.
        budget: iterations.
        progress: told one line per iteration.
        jobs: processes.
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

    def run(self, on_result: Callable[[Result], None]) -> None:
        """Continue to the end of the budget; ``on_result`` is told every result, old ones included, in order.

        Raises:
            UserError: the researcher cannot propose for now. What it had proposed is judged.
        """
        halted: Halt | None = None
        if self.journal.first(Started) is None:
            self.journal.append(Started(researcher=self.researcher.name, seed=self.researcher.seed))
        for iteration in range(self.budget):
            if batch_start(iteration, self.researcher.batch) == iteration:
                halted = self._propose_batch(range(iteration, min(iteration + self.researcher.batch, self.budget)))
            if halted is not None and iteration not in {one.iteration for one in self.journal.of(Proposed)}:
                break
            result = next((one for one in self.journal.of(Result) if one.iteration == iteration), None)
            if result is None:
                result = self._iterate(iteration)
                self.progress(describe(result, self.budget))
            self.researcher.update(seen_of(self._proposed(iteration), result))
            self._save_theta()
            on_result(result)
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
        """Judged arms of a finished iteration, read from disk."""
        folder = self.folder / "arms" / f"{iteration:04d}"
        names = [f"{family}.{target}" for family, target in self.tasks[split]]
        arms = {name: load_arms(folder, name) for name in names}
        return judge_arms(arms, self.tasks[split], self.settings.reward)

    def _iterate(self, iteration: int) -> Result:
        proposed = self._proposed(iteration)
        # Half an iteration's arms, if it was killed.
        shutil.rmtree(self.folder / "arms" / f"{iteration:04d}", ignore_errors=True)
        fault, outcome = proposed.fault, proposed.outcome
        if not fault and self.cascade and "source" in proposed.spec:
            fault, outcome = static_fault(str(proposed.spec["source"])), "failed"
        if fault:
            nothing: Evaluation[None] = Evaluation(outcome, fault, "import", [])
            told = {"objective": 0.0 if outcome == "failed" else None, "reached": "import"}
            return self.journal.append(self._result(proposed, nothing).model_copy(update=told))
        both = [*self.tasks["train"], *(() if self.cascade else self.tasks["validation"])]
        trial = self._try(iteration, proposed, both)
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
            trial = _both(trial, self._try(iteration, proposed, self.tasks["validation"]))
            if not trial.scored:
                return self.journal.append(self._result(proposed, trial))
        self._save_arms(iteration, trial)
        validation = judge_arms(trial.arms, self.tasks["validation"], self.settings.reward)
        rival = None if best is None else self.judged(best.iteration, "validation")
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

    def _try(self, iteration: int, proposed: Proposed, tasks: Sequence[tuple[str, str]]) -> Evaluation[None]:
        """The trial, repeated where the machinery fails; each such failure is an event."""
        candidate = candidate_of(from_json(proposed.spec), proposed.name)
        for attempt in range(ATTEMPTS):
            host = host_of(candidate, self.settings)
            with process_pool(self.jobs) as pool:
                trial: Evaluation[None] = evaluate(candidate, tasks, host, self.settings.execution, pool=pool)
            slow = trial.outcome == "failed" and trial.layer == WALL
            if trial.outcome != "infra" and not (slow and attempt + 1 < SLOW_ATTEMPTS):
                return trial
            reason = self._without_names(trial.reason)
            self.journal.append(Infra(iteration=iteration, reason=reason[:300]))
            self.progress(f"iteration {iteration + 1}/{self.budget}: {reason[:120]}")
        return replace(trial, reason=f"the machinery failed {ATTEMPTS} times: {trial.reason}")

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

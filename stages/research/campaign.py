"""The campaign loop: propose, interpret, run the arms, judge, pass the gate, update; resumable at any point.

The journal is the truth. An iteration is a ``proposed`` event and a ``result`` event; a process killed between them
repeats the work of that iteration and nothing else, and proposes the same method, since proposals depend on seed and
journal alone.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from joblib import Parallel

from stages.execution import load_arms
from stages.interpretation.composed import Spec
from stages.research.gate import Gate
from stages.research.journal import Journal
from stages.research.orphans import die_with_parent
from stages.research.researchers import Researcher
from stages.research.trial import Settings, judge_arms, run_trial
from stages.reward import Judged, leaderboard_row, task_row

__all__ = ["Campaign", "objective"]

Progress = Callable[[str], None]


def objective(train_reward: float, feedback: float) -> float:
    """What theta is updated with: train results in full, validation as the gate lets it through."""
    return (train_reward + feedback) / 2


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
    ) -> None:
        self.folder, self.researcher, self.tasks, self.settings = folder, researcher, tasks, settings
        self.budget, self.progress, self.jobs = budget, progress, jobs
        self.journal = Journal(folder / "events.jsonl")

    def run(self, on_result: Callable[[dict[str, Any]], None]) -> None:
        """Continue to the end of the budget; ``on_result`` is told every result, old ones included, in order."""
        if self.journal.first("started") is None:
            self.journal.append("started", researcher=self.researcher.name, seed=self.researcher.seed)
        with Parallel(n_jobs=self.jobs, initializer=die_with_parent, initargs=(os.getpid(),)) as pool:
            for iteration in range(self.budget):
                result = self.journal.first("result", iteration=iteration)
                if result is None:
                    result = self._iterate(iteration, pool)
                    self.progress(describe(result, self.budget))
                self.researcher.update(result["choices"], result["objective"])
                self._save_theta()
                on_result(dict(result))

    def incumbent(self) -> dict[str, Any] | None:
        """The result that last passed the gate."""
        accepted = self.journal.of("result", accepted=True)
        return accepted[-1] if accepted else None

    def judged(self, iteration: int, split: str) -> list[Judged]:
        """Judged arms of a finished iteration, read from disk."""
        folder = self.folder / "arms" / f"{iteration:04d}"
        names = [f"{family}.{target}" for family, target in self.tasks[split]]
        arms = {name: load_arms(folder, name) for name in names}
        return judge_arms(arms, self.tasks[split], self.settings.reward)

    def _iterate(self, iteration: int, pool: Parallel) -> dict[str, Any]:
        proposed = self.journal.first("proposed", iteration=iteration)
        if proposed is None:
            spec, choices = self.researcher.propose(iteration)
            name = f"{self.researcher.name}-{iteration:02d}"
            proposed = self.journal.append(
                "proposed", iteration=iteration, name=name, spec=spec.model_dump(), choices=choices
            )
        folder = self.folder / "arms" / f"{iteration:04d}"
        shutil.rmtree(folder, ignore_errors=True)  # half an iteration's arms, if it was killed
        both = [*self.tasks["train"], *self.tasks["validation"]]
        trial = run_trial(Spec(**proposed["spec"]), proposed["name"], both, self.settings, pool, folder)
        train = judge_arms(trial.arms, self.tasks["train"], self.settings.reward)
        validation = judge_arms(trial.arms, self.tasks["validation"], self.settings.reward)
        best = self.incumbent()
        rival = None if best is None else self.judged(best["iteration"], "validation")
        gate = Gate(self.budget, used=len(self.journal.of("result")))
        decision = gate.decide(validation, rival)
        seed = self.settings.reward.seed
        train_row = leaderboard_row(proposed["name"], "train", train, seed)
        validation_row = leaderboard_row(proposed["name"], "validation", validation, seed)
        known = trial.status in ("ok", "failed")
        return self.journal.append(
            "result",
            iteration=iteration,
            name=proposed["name"],
            spec=proposed["spec"],
            choices=proposed["choices"],
            status=trial.status,
            reason=trial.reason,
            interpret_bytes=trial.n_bytes,
            train=train_row,
            validation=validation_row,
            feedback=decision.feedback,
            gate={"difference": decision.difference, "low": decision.low, "high": decision.high},
            accepted=decision.accepted and trial.status == "ok",
            objective=objective(train_row["reward_mean"], decision.feedback) if known else None,
            per_task=[task_row(proposed["name"], j) for j in (*train, *validation)],
        )

    def _save_theta(self) -> None:
        text = json.dumps(self.researcher.theta(), indent=1, sort_keys=True) + "\n"
        partial = self.folder / ".theta.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.folder / "theta.json")


def describe(result: dict[str, Any], budget: int) -> str:
    """One line about an iteration."""
    spec = result["spec"]
    extras = [name for name in ("gradient", "attention", "logit_lens") if spec[name]]
    parts = "+".join([spec["representation"], *extras]) if spec["representation"] != "none" else "+".join(extras)
    row, train = result["validation"], result["train"]["reward_mean"]
    return (
        f"iteration {result['iteration'] + 1}/{budget} {parts or 'nothing'}: train {train:+.3f},"
        f" validation {result['feedback']:+.3f} [{row['reward_low']:+.3f}, {row['reward_high']:+.3f}]"
        f"{' -> incumbent' if result['accepted'] else ''}{' ' + result['status'] if result['status'] != 'ok' else ''}"
    )

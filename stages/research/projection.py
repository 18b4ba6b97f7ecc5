"""The journal as MLflow sees it: campaign > iteration > metrics per task, arm and seed. Idempotent, so a resumed
campaign adds what is missing and repeats nothing; a store that cannot be reached costs a warning."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from stages import tracking
from stages.contracts.journal import Result
from stages.contracts.reward_rows import TestRow
from stages.reward.judging import Judged
from stages.scoring.proposals import shown

__all__ = ["Projection"]


class Projection:
    """
    Args:
        campaign: key of the campaign; runs are found again by it.
        params: of the campaign.
    """

    def __init__(self, campaign: str, params: Mapping[str, Any]) -> None:
        self.campaign = campaign
        self._done: set[str] = set()
        self._parent = ""
        if not tracking.enabled():
            return
        try:
            self._parent = self._find()
        except Exception as error:  # any failure of the store is a warning, by design
            reason = " ".join(str(error).split())[:200]
            print(f"warning: MLflow store unreachable ({reason}); the campaign goes on", file=sys.stderr)
            return
        if not self._parent:
            run = tracking.Run(f"campaign {campaign[:12]}", params, os.environ.get("RUN_PARENT_ID"))
            run.tag({"lensmith.campaign": campaign, "lensmith.kind": "campaign"})
            run.close()
            self._parent = run.id

    def _find(self) -> str:
        client, experiment = tracking.open_store()
        runs = client.search_runs([experiment], f"tags.`lensmith.campaign` = '{self.campaign}'", max_results=10_000)
        self._done = {
            run.data.tags["lensmith.iteration"] for run in runs if run.data.tags.get("lensmith.complete") == "yes"
        }
        parents = [run for run in runs if run.data.tags.get("lensmith.kind") == "campaign"]
        return str(parents[0].info.run_id) if parents else ""

    def iteration(self, result: Result, judged: Sequence[Judged]) -> None:
        """One finished iteration as a child run of the campaign."""
        number = str(result.iteration)
        if not self._parent or number in self._done:
            return
        run = tracking.Run(result.name, {"spec": shown(result.spec), "status": result.status}, self._parent)
        run.tag({"lensmith.campaign": self.campaign, "lensmith.iteration": number, "lensmith.kind": "iteration"})
        run.tag({"outcome": result.status, "accepted": str(result.accepted).lower()})
        metrics: dict[str, float] = {"interpret_bytes": result.interpret_bytes}
        if result.train is not None and result.feedback is not None:
            metrics |= {
                "train_reward": result.train.reward_mean,
                "validation_reward": result.feedback,
                "train_placebo": result.train.placebo_reward,
                "train_flop_ratio": result.train.flop_ratio,
            }
        for of_task in judged:
            task = of_task.task.name
            metrics[f"{task}/reward"] = float(of_task.reward[0].mean())
            for arm, results in (("assisted", of_task.arms.assisted), ("placebo", of_task.arms.placebo)):
                for one in results:
                    truth = of_task.task.truth.values.numpy()[one.index]
                    key = f"{task}/{arm}/seed{one.seed}/{one.budget}"
                    metrics[f"{key}/score"] = float(of_task.task.family.score(one.predictions, truth)[0])
                    metrics[f"{key}/flops"] = one.flops
        run(metrics)
        run.flush()
        # Last: an iteration cut off half way is written again, not taken for complete.
        run.tag({"lensmith.complete": "yes"})
        run.close()

    def test(self, rows: Sequence[TestRow]) -> None:
        """The opened test split as one more child run."""
        if not self._parent or "test" in self._done:
            return
        run = tracking.Run("test split", None, self._parent)
        run.tag({"lensmith.campaign": self.campaign, "lensmith.iteration": "test", "lensmith.kind": "test"})
        run({f"{row.method}/reward": row.reward_mean for row in rows})
        run.flush()
        run.tag({"lensmith.complete": "yes"})
        run.close()

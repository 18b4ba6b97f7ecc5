"""What a researcher may learn from validation, and what it takes to become the incumbent.

Feedback is rounded to the noise floor and given a limited number of times, so that labels cannot be recovered from
score differences; a challenger replaces the incumbent only where it is better on these tasks by the rule of the
leaderboard, ``decide``, with the same noise floor.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stages.reward.inference import Estimated, combined
from stages.reward.judging import Judged
from stages.reward.statements import decide, joint_floor, noise_floor

__all__ = ["Decision", "Gate"]


FINEST = 0.01
"""Feedback is never finer, however small the floor: every value that it can take could carry something of a label."""


class Decision(NamedTuple):
    feedback: float
    """Mean validation reward, rounded to the noise floor, or to a hundredth where that is coarser."""
    accepted: bool
    difference: float
    """Mean reward over the incumbent's, and its 95% interval; against the baseline where there is no incumbent."""
    low: float
    high: float
    harmed: str = ""
    """A task on which it is worse beyond the noise floor: a good mean does not buy that off."""


class Gate:
    """
    Args:
        max_queries: how often validation may be asked in one campaign.
        used: how often it has been.
    """

    def __init__(self, max_queries: int, used: int = 0) -> None:
        self.max_queries, self.used = max_queries, used

    def decide(self, challenger: Sequence[Judged], incumbent: Sequence[Judged] | None) -> Decision:
        """Compare on the validation tasks.

        Raises:
            ValueError: the campaign has used up its queries.
        """
        if self.used >= self.max_queries:
            raise ValueError(f"validation was asked {self.used} times: {self.max_queries} are allowed per campaign")
        self.used += 1
        reward = float(np.mean([judged.reward[0].mean() for judged in challenger]))
        differences = _over(challenger, incumbent)
        found = combined(differences)
        floors = [noise_floor(judged.aa_reward) for judged in challenger]
        floor, unseen = joint_floor(floors), max(judged.unseen_share for judged in challenger)
        step = max(floor, FINEST)
        # What a meter may have missed is no ground for anything.
        better = decide(found.value, found.p, floor, unseen) == "better"
        worse = (
            judged.task.name
            for judged, one, own in zip(challenger, differences, floors, strict=True)
            if decide(one.value, one.p, own) == "worse"
        )
        harmed = next(worse, "")
        return Decision(
            round(round(reward / step) * step, 6), better and not harmed, found.value, *found.interval(), harmed
        )


def _over(challenger: Sequence[Judged], incumbent: Sequence[Judged] | None) -> list[Estimated]:
    """Reward over the incumbent's on each task, draw by draw; over the baseline's where there is no incumbent."""
    if incumbent is None:
        return [judged.estimate(judged.reward) for judged in challenger]
    return [one.estimate(one.reward - other.reward) for one, other in zip(challenger, incumbent, strict=True)]

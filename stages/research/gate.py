"""What a researcher may learn from validation, and what it takes to become the incumbent.

Feedback is rounded to the noise floor and given a limited number of times, so that labels cannot be recovered from
score differences; a challenger replaces the incumbent only where a paired interval over instances and seeds says it
is better.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stages.reward.judging import MAX_UNSEEN, Judged, noise_floor
from stages.reward.resampling import interval

__all__ = ["Decision", "Gate"]


class Decision(NamedTuple):
    feedback: float
    """Mean validation reward, rounded to the noise floor."""
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
        reward = np.mean([judged.reward for judged in challenger], axis=0)
        floor = noise_floor(np.mean([judged.aa_reward for judged in challenger], axis=0))
        rival = 0.0 if incumbent is None else np.mean([judged.reward for judged in incumbent], axis=0)
        point, low, high = interval(reward - rival)
        step = max(floor, 1e-3)
        harmed = self._harmed(challenger, incumbent)
        # What a meter may have missed is no ground for anything.
        priced = all(judged.unseen_share <= MAX_UNSEEN for judged in challenger)
        accepted = priced and low > 0 and point > floor and not harmed
        return Decision(round(round(float(reward[0]) / step) * step, 6), accepted, point, low, high, harmed)

    @staticmethod
    def _harmed(challenger: Sequence[Judged], incumbent: Sequence[Judged] | None) -> str:
        for i, judged in enumerate(challenger):
            rival = 0.0 if incumbent is None else incumbent[i].reward
            if interval(judged.reward - rival)[2] < -noise_floor(judged.aa_reward):
                return judged.task.name
        return ""

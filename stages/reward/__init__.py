"""R_t: what a method is worth, with its uncertainty. Gates, seals and leaderboards are built from these rows."""

from stages.reward.formula import FORMS, Form, flop_reduction, reward
from stages.reward.judging import Judged, RewardConfig, judge, leaderboard_row, noise_floor, rounded, task_row, verdict
from stages.reward.resampling import Resamples, interval, pooled, scores

__all__ = [
    "FORMS",
    "Form",
    "Judged",
    "Resamples",
    "RewardConfig",
    "flop_reduction",
    "interval",
    "judge",
    "leaderboard_row",
    "noise_floor",
    "pooled",
    "reward",
    "rounded",
    "scores",
    "task_row",
    "verdict",
]

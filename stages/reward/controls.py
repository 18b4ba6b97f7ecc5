"""Controls that must come out right, as rows of the report: what was expected, what was found."""

from collections.abc import Mapping, Sequence

import numpy as np

from stages.contracts.measurement_rows import ControlRow
from stages.contracts.reward_rows import CONTROL_METHODS
from stages.reward.judging import Judged, leaderboard_row

__all__ = ["control_rows"]

WORTH_NOTHING = CONTROL_METHODS - {"nothing", "oracle"}
"""Methods that look at nothing inside the target."""


def control_rows(methods: Mapping[str, Sequence[Judged]], oracle: Sequence[Judged]) -> tuple[ControlRow, ...]:
    """One row per control, over train and validation tasks together, each tested alone.

    - oracle: given the truth, explains at least 90% of its variance on every task;
    - nothing: reward exactly 0;
    - random_features, inputs, surrogate: not better than nothing;
    - constant: the mean of the truth scores 0 on every task;
    - placebo: no method's placebo arm is better than the baseline.
    """
    rows = []
    lowest = min(oracle, key=lambda judged: float(judged.assisted_score[0].mean()))
    found = float(lowest.assisted_score[0].mean())
    rows.append(
        ControlRow(
            control="oracle",
            expected="score >= 0.9 on every task",
            value=found,
            passed=found >= 0.9,
            detail=f"lowest on {lowest.task.name}",
        )
    )
    constant = max(_constant_score(judged) for judged in oracle)
    rows.append(
        ControlRow(
            control="constant predictor", expected="score 0 on every task", value=constant, passed=constant < 1e-9
        )
    )
    for name, judged in methods.items():
        row = leaderboard_row(name, "all", judged)
        if name == "nothing":
            exact = row.reward_mean == row.reward_low == row.reward_high == 0.0
            rows.append(ControlRow(control=name, expected="reward 0", value=row.reward_mean, passed=exact))
        if name in WORTH_NOTHING:
            rows.append(
                ControlRow(
                    control=name,
                    expected="not better than nothing",
                    value=row.reward_mean,
                    passed=row.verdict != "better",
                    low=row.reward_low,
                    high=row.reward_high,
                )
            )
        # Compared with what the arm can do, not tested at 95% each: among eight of them one in three would fail by
        # luck.
        rows.append(
            ControlRow(
                control=f"placebo of {name}",
                expected="reward not above 0",
                value=row.placebo_reward,
                passed=row.placebo_low <= row.noise_floor,
                low=row.placebo_low,
                high=row.placebo_high,
            )
        )
    return tuple(row.rounded() for row in rows)


def _constant_score(judged: Judged) -> float:
    truth = judged.task.truth.values.numpy()
    return max(
        float(judged.task.family.score(np.full_like(truth[r.index], truth[r.index].mean()), truth[r.index])[0])
        for r in judged.arms.assisted
    )

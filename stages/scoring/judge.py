"""From arms to judged rows, and who may run a candidate."""

from collections.abc import Mapping, Sequence

from stages.contracts.arms import MethodArms
from stages.reward.judging import Judged, judge
from stages.reward.settings import RewardConfig
from stages.scoring.cached import cached_task
from stages.scoring.candidate import Candidate, Host
from stages.scoring.evaluate import TaskName, stage_baseline
from stages.scoring.in_process import InProcess
from stages.scoring.isolated import Isolated
from stages.scoring.settings import Settings

__all__ = ["host_of", "judge_arms"]


def host_of(candidate: Candidate, chosen: Settings) -> Host:
    """Reviewed code runs in this process, anything else in the sandbox."""
    return InProcess(chosen.interpretation) if candidate.reviewed else Isolated(chosen.interpretation)


def judge_arms(arms: Mapping[str, MethodArms], tasks: Sequence[TaskName], config: RewardConfig) -> list[Judged]:
    """Judged arms, in the order of ``tasks``."""
    named = [cached_task(family, target) for family, target in tasks]
    return [judge(task, stage_baseline(task.name), arms[task.name], config) for task in named]

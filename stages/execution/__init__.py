"""M2: the executor that solves tasks, in three arms that differ only in what it may query."""

from stages.execution.answering import Answered, ask_in_process, checked
from stages.execution.arms import ArmResult, ExecutorConfig, split
from stages.execution.results import Baseline, MethodArms, load_arms, load_baseline, save_arms, save_baseline
from stages.execution.runs import arms_of, baseline_of

__all__ = [
    "Answered",
    "ArmResult",
    "Baseline",
    "ExecutorConfig",
    "MethodArms",
    "arms_of",
    "ask_in_process",
    "baseline_of",
    "checked",
    "load_arms",
    "load_baseline",
    "save_arms",
    "save_baseline",
    "split",
]

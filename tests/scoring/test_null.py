"""The null of a method: its reward where there is nothing to interpret."""

import torch

from stages.base.processes import process_pool
from stages.contracts.target import TWIN
from stages.interpretation.loading import built_in
from stages.scoring.candidate import Candidate
from stages.scoring.in_process import InProcess
from stages.scoring.null import null_rows
from stages.scoring.settings import settings
from stages.targets.storage import definition_of, load_target


def test_a_twin_has_the_weights_before_training_and_the_data(graph):
    target, twin = load_target("digits_mlp"), load_target(f"digits_mlp{TWIN}")
    fresh = definition_of("digits_mlp").build(torch.Generator().manual_seed(0)).state_dict()
    state = twin.model.state_dict()
    assert all(torch.equal(state[name], fresh[name]) for name in fresh)
    assert any(not torch.equal(state[name], value) for name, value in target.model.state_dict().items())
    assert twin.digest != target.digest and twin.hook_points == target.hook_points
    assert torch.equal(twin.corpus("train").inputs, target.corpus("train").inputs)


def test_methods_are_scored_on_the_twin_and_what_cannot_be_posed_says_so(graph):
    chosen = settings()
    splits = {"train": [("active_learning", "digits_mlp")], "validation": [("few_shot_shapley", "digits_few_shot")]}
    candidates = [Candidate(name, built_in(name)) for name in ("gradient", "nothing", "attention")]
    with process_pool(1) as pool:
        rows = null_rows(candidates, InProcess(chosen.interpretation), splits, chosen, pool)
    each = [row for row in rows if row.task != "all"]
    assert sorted((row.method, row.split, row.task) for row in each) == sorted(
        (one.name, split, ".".join(task)) for one in candidates for split in splits for task in splits[split]
    )
    for row in each:
        if row.outcome == "ok":
            assert row.reward_low <= row.reward <= row.reward_high and row.noise_floor >= 0
        else:
            assert (row.outcome, bool(row.reason)) in {("declined", True), ("declined", False)}, row
        if row.method == "nothing":
            assert row.outcome == "declined" and row.reward in (None, 0.0)
    for row in rows[: -len(each)]:  # the mean over the one task of the split is that task's reward
        (of,) = [one for one in each if (one.method, one.split) == (row.method, row.split)]
        assert row.task == "all" and row.n_tasks == 1 and row.reward == of.reward

"""The null of a method: its reward where there is nothing to interpret."""

import torch

from stages.base.processes import process_pool
from stages.interpretation.loading import built_in
from stages.scoring.candidate import Candidate
from stages.scoring.in_process import InProcess
from stages.scoring.null import null_rows
from stages.scoring.settings import settings
from stages.targets.storage import TWIN, definition_of, load_target


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
    tasks = [("active_learning", "digits_mlp"), ("few_shot_shapley", "digits_few_shot")]
    with process_pool(1) as pool:
        host = InProcess(chosen.interpretation)
        for name in ("gradient", "nothing"):
            rows = null_rows(Candidate(name, built_in(name)), host, tasks, chosen, pool)
            assert [row.task for row in rows] == ["active_learning.digits_mlp", "few_shot_shapley.digits_few_shot"]
            for row in rows:
                if row.outcome == "ok":
                    assert row.reward_low <= row.reward <= row.reward_high and row.noise_floor >= 0
                else:
                    assert row.reward is None and row.outcome == "declined"
            assert name == "gradient" or {row.outcome for row in rows} == {"declined"}

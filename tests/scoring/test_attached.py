"""Is an attached dictionary worth more than raw activations? One call, on the tasks of its targets only."""

import pytest
import torch

from stages.dictionaries.evaluation.evaluate import random_dictionary
from stages.dictionaries.storage import save_dictionary
from stages.errors import UserError
from stages.tools.attaching import attach, score_attached


def test_an_attached_dictionary_is_scored_beside_the_built_in_methods(graph, tmp_path):
    acts = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).relu()
    save_dictionary(random_dictionary(acts, 128, 8, 0), tmp_path / "theirs")
    for name, target, hook in (
        ("mine", "digits_mlp", "layers.0.hook_post"),
        ("idle", "digits_few_shot", "blocks.0.hook_resid_post"),
    ):
        attach(str(tmp_path / "theirs"), name, target=target, hook=hook)
    said: list[str] = []
    result = score_attached("mine", said.append)
    assert result.method == "sae_mine" and result.outcome == "ok" and said[0] == "interpret"
    assert [row.task for row in result.per_task] == ["active_learning.digits_mlp"], "no other target has it"
    assert "sae_mine" in {row.method for row in result.rows} and len(result.rows) > 2, "beside the built-in ones"
    assert result.meters[0].flops_target > 0
    with pytest.raises(UserError, match="no dictionary is attached as 'other'"):
        score_attached("other")

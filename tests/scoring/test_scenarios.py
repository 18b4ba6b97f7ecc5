"""What kind of method was found: sisters of targets, and the table about every method."""

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from flows.commands.comparing import show_scenarios
from lensmith import Interpretation, Method, Represent
from stages.base import paths
from stages.contracts.research_rows import ScenarioRow
from stages.contracts.reward_rows import PER_TASK, TEST, TEST_PER_TASK
from stages.errors import UserError
from stages.execution.results import load_arms
from stages.metering.op_table import count_flops
from stages.scoring.candidate import Candidate
from stages.scoring.settings import settings
from stages.scoring.table import candidates_in
from stages.targets.sister import sister_of
from stages.targets.storage import definition_of, load_target
from stages.tasks.storage import list_tasks, load_task
from stages.tools import scenarios as module
from stages.tools.scenarios import scenarios
from tests.sandbox.walls import needs_sandbox

ROOT = Path(__file__).resolve().parents[2]
TASK = "active_learning.digits_mlp"
HEAD = """
import torch

from lensmith import Interpretation, Method, Represent


"""


class Remembers(Method):
    """Keeps a row of weights, and answers with it and with what the target says now."""

    def interpret(self, target, budget):
        target.forward(target.corpus("train")[0][:10])
        return Interpretation({"row": target.weights()["unembed.weight"][0]})

    def answer(self, query, interpretation, target):
        if not isinstance(query, Represent):
            return None
        outputs = target.forward(query.inputs).outputs
        kept = interpretation.arrays["row"].expand(len(outputs), -1)
        return torch.cat([kept, outputs], 1)


def says(entry: dict[str, object]) -> None:
    """What the target's folder says of how it was trained. Files of the graph are hard links: replaced, not written."""
    file = paths.target_dir("digits_mlp") / "source.json"
    file.unlink()
    file.write_text(json.dumps(entry), encoding="utf-8")


@pytest.fixture
def recipe(graph: Path):
    """The toy's classifier says how it was trained, as one of params/targets.yaml does."""
    says({"source": "digits_mlp", "steps": 400, "seed": 0})
    shutil.copytree(ROOT / "examples" / "controls", graph / "examples" / "controls")
    module._sister.cache_clear()
    yield graph
    module._sister.cache_clear()


def test_a_sister_is_trained_by_the_same_recipe_from_other_weights_and_once(recipe, monkeypatch):
    home, sister = load_target("digits_mlp"), sister_of("digits_mlp")
    assert sister.name == home.name and sister.digest != home.digest and sister.spec.hooks == home.spec.hooks
    for split in ("train", "validation", "tasks"):
        assert torch.equal(sister.corpus(split).inputs, home.corpus(split).inputs)
    inputs, labels = home.corpus("validation")
    assert sister.metric(sister.model(inputs), labels)["accuracy"] > 0.9
    first = next(iter(home.model.state_dict()))
    cosine = torch.nn.functional.cosine_similarity(
        home.model.state_dict()[first].flatten(), sister.model.state_dict()[first].flatten(), dim=0
    )
    assert abs(cosine) < 0.2, "its weights are the target's own"
    monkeypatch.setattr(type(definition_of("digits_mlp")), "fit", lambda *given: pytest.fail("trained again"))
    assert sister_of("digits_mlp").digest == sister.digest


def test_a_target_that_cannot_have_a_sister_says_so(recipe, monkeypatch):
    from stages.targets import sister as of_sisters

    says({"source": "digits_mlp"})
    with pytest.raises(UserError, match="does not say how digits_mlp was trained: `dvc repro targets@digits_mlp`"):
        sister_of("digits_mlp")
    says({"source": "digits_mlp", "steps": 2, "seed": 0})
    with pytest.raises(UserError, match=r"the sister of digits_mlp did not learn: accuracy 0\.\d+ of at least 0\.9"):
        sister_of("digits_mlp")
    monkeypatch.setattr(of_sisters, "ReadsModel", object)
    with pytest.raises(UserError, match="is read and not trained"):
        sister_of("digits_mlp")


@pytest.mark.parametrize("form", ["class", pytest.param("file", marks=needs_sandbox)])
def test_the_table_says_what_each_method_is_and_where_it_earns(recipe, tmp_path, monkeypatch, form):
    answered, candidate = [], Candidate("remembers", Remembers())
    if form == "file":
        (tmp_path / "remembers.py").write_text(HEAD + inspect.getsource(Remembers), encoding="utf-8")
        (candidate,) = candidates_in([tmp_path / "remembers.py"])
    real = module.arms_of
    monkeypatch.setattr(module, "arms_of", lambda *given, **named: answered.append(given) or real(*given, **named))
    rows = {row.method: row for row in scenarios([candidate], progress=lambda said: None)}
    assert set(rows) == {"attention", "gradient", "remembers"}, "controls are in it, or a method is not"
    mine, gradient, attention = rows["remembers"], rows["gradient"], rows["attention"]
    assert (mine.origin, gradient.origin, attention.outcome) == ("file", "built in", "declined")

    home, sister = load_target("digits_mlp"), sister_of("digits_mlp")
    ours = [given for given in answered if given[2].rows is not None and given[2].rows.shape[-1] == 42]
    assert len(ours) == 2
    task = ours[0][0]
    said = sister.model(task.family.query(task.instances).inputs).detach().numpy()
    for (_, _, one, *_), whose in zip(ours, (home, sister), strict=True):
        kept = whose.model.state_dict()["unembed.weight"][0].numpy()
        assert np.allclose(one.rows[:, 0, :32], kept, atol=1e-6), "not the interpretation that it should be"
        assert np.allclose(one.rows[:, 0, 32:], said, atol=1e-4), "what was asked was not the sister"

    assert mine.bytes == len(module.pack(Remembers().interpret(Free(home), None), "x", "x", 1 << 20)[0]) + 2
    with count_flops() as count:
        sister.model(home.corpus("train").inputs[:10])
    if form == "class":
        assert mine.interpret_flops == pytest.approx(count.flops, rel=0.02) and count.flops > 0
    else:
        assert mine.interpret_flops is None
    assert mine.n_train == 1 and mine.n_validation == mine.n_new_kinds == 0 and mine.new_kinds is None
    assert mine.train_low <= mine.train <= mine.train_high and mine.n_sister == 1
    assert mine.carried == pytest.approx(mine.sister - mine.own, abs=2e-6)
    assert gradient.carried == 0.0 == gradient.carried_low and gradient.sister == gradient.own != gradient.train
    assert attention.sister == attention.over_black_box == attention.gain == 0.0 and attention.answer_flops is None

    kept = {row.method: row for row in PER_TASK.load() if row.task == TASK}
    assert gradient.train == pytest.approx(kept["gradient"].reward_mean)
    assert gradient.gain == pytest.approx(kept["gradient"].gain_mean, abs=1e-6)
    flops = kept["gradient"].flops_answer_target + kept["gradient"].flops_answer_own
    assert gradient.answer_flops == pytest.approx(flops, rel=1e-5)
    tight = next(one for one in kept["gradient"].by_budget if one.budget == "tight")
    assert gradient.answer_share == pytest.approx(flops / tight.flops_budget, rel=1e-3)
    oracle = module._oracle(load_task(*TASK.split(".")), settings())
    assert gradient.oracle_gain == pytest.approx(
        float((oracle.assisted_score - oracle.baseline_score)[0].mean()), abs=1e-5
    )
    assert gradient.oracle_gain > 0.3 and load_arms(paths.execution_dir("baseline") / "oracle", TASK).status == "ok"

    console = Console(width=250, record=True)
    show_scenarios(console, list(rows.values()))
    text = console.export_text()
    assert f"{mine.train:+.3f}" in text and f"{mine.carried:+.3f}" in text and "attention" in text


class Free:
    """The free phase, without a meter."""

    def __init__(self, target) -> None:
        self._target = target

    def corpus(self, split):
        return self._target.corpus(split)

    def forward(self, inputs):
        return None

    def weights(self):
        return self._target.model.state_dict()


def test_rewards_are_split_by_what_could_be_learned_from(graph):
    """Validation asks a kind here that train does not; the sealed test counts once, and on these targets alone."""
    from stages.reward.against import judged_arms

    chosen = settings()
    splits = {split: list_tasks(split) for split in ("train", "validation")}
    judged = {
        f"{family}.{target}": judged_arms(load_task(family, target), "gradient", chosen.reward)
        for of in splits.values()
        for family, target in of
    }
    found = module._rewards("gradient", judged, splits, ("digits_mlp", "digits_few_shot"))
    assert found["n_new_kinds"] == found["n_validation"] == 1 and found["new_kinds"] == found["validation"]
    assert found["n_sealed"] == 0 and found["sealed"] is None
    rows = PER_TASK.load()
    some = [row.model_copy(update={"split": "test", "method": "gradient"}) for row in rows if row.method == "gradient"]
    TEST_PER_TASK.save(tuple(some))
    TEST.save(())
    both = module._rewards("gradient", judged, splits, ("digits_mlp", "digits_few_shot"))
    assert both["n_sealed"] == 2 and both["sealed"] == pytest.approx(
        np.mean([row.reward_mean for row in some]), abs=1e-6
    )
    assert module._rewards("gradient", judged, splits, ("digits_mlp",))["n_sealed"] == 1
    assert module._rewards("other", judged, splits, ("digits_mlp",))["n_sealed"] == 0


def test_a_file_that_fails_is_a_row_that_says_so(recipe, tmp_path):
    class Breaks(Method):
        def interpret(self, target, budget):
            raise ValueError("no such thing")

        def answer(self, query, interpretation, target):
            return None

    rows = {row.method: row for row in scenarios([Candidate("breaks", Breaks())], progress=lambda said: None)}
    assert rows["breaks"].outcome == "failed" and "no such thing" in rows["breaks"].reason
    assert rows["breaks"].gain is None and rows["gradient"].gain is not None
    assert ScenarioRow.model_validate_json(rows["breaks"].model_dump_json()) == rows["breaks"]

"""From a sweep to rewards to correlations, on the toy graph."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stages.activations.writer import write_caches
from stages.base import paths
from stages.contracts.dictionary_rows import DICTIONARIES, DOWNSTREAM, PROXIES
from stages.contracts.record import Estimate
from stages.dictionaries import stage as dictionaries
from stages.dictionaries import sweep as sweeps
from stages.errors import UserError
from stages.proxies.downstream import run
from stages.proxies.settings import Config, Primary
from stages.proxies.stage import run as correlations
from stages.proxies.stage import summarise
from stages.targets.storage import load_target
from tests import toy
from tests.dictionaries.test_dictionaries_stage import make_config

PRIMARY = Primary(metric="explained_variance", stated="2026-11-30", reason="what dictionaries are trained for")
CONFIG = Config(
    families=("few_shot_shapley",), n_seeds=1, n_kept=16, draws=100, seed=0, primary=PRIMARY, degraded="topk",
    shares=(0.25,),
)  # fmt: skip
NAME, HOOK = "digits_few_shot", "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def swept(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("swept") / "graph"
    shutil.copytree(built, root)
    with toy.rooted(root):
        _sweep()
        yield root


def _sweep() -> None:
    torch.set_num_threads(1)
    target = load_target(NAME)
    for split in ("train", "validation"):
        write_caches(target, split, max_examples=150)
    sweep = {"architectures": {"topk": [6, 3], "standard": [1]}, "baselines": ["random"], "k": [3], "sizes": [0.5]}
    config = make_config(
        trained_on={NAME: {"hooks": [HOOK], "n_latents": 32, "steps": 30}}, sweep=sweep, seeds=[0, 1], n_gallery=0
    )
    dictionaries.run(config, NAME)
    sweeps.sweep(config, NAME)
    rows = run(CONFIG, NAME)
    assert len(rows) == (2 + 1) * 2 + (1 + 1) * 2 + 1
    summarise([NAME])


def test_every_dictionary_of_the_sweep_is_worth_something_known(swept: Path) -> None:
    rows = DOWNSTREAM.load(paths.downstream_file(NAME))
    for row in rows:
        assert row.tasks == ("few_shot_shapley.digits_few_shot",) and row.flops > 0
        assert row.reward.low <= row.reward.value <= row.reward.high
        random = next(one for one in rows if one.architecture == "random")
        assert row.reward.null == random.reward.value
    before = paths.downstream_file(NAME).read_bytes()
    run(CONFIG, NAME)
    assert paths.downstream_file(NAME).read_bytes() == before

    joined = DICTIONARIES.load()
    by_name = {row.name: row for row in rows}
    for row in joined:
        if row.name:
            assert row.reward == by_name[row.name].reward
    kept = [row for row in joined if not row.name]
    # The kept dictionaries that the sweep has as well are worth the same; batchtopk is not in the sweep.
    assert {row.architecture for row in kept if row.reward} == {"standard", "topk"}


def test_every_metric_is_correlated_with_the_reward(swept: Path) -> None:
    # The toy's agent hardly uses any of them: a relation is planted.
    DICTIONARIES.save(
        tuple(
            row.model_copy(update={"reward": Estimate(value=2.0 * row.explained_variance.value - 1.0)})
            if row.reward
            else row
            for row in DICTIONARIES.load()
        )
    )
    rows = correlations(CONFIG)
    assert rows[0].metric == "explained_variance" and rows[0].spearman.value == 1.0
    assert rows == PROXIES.load()
    assert {row.target for row in rows} == {NAME}
    metrics = {row.metric for row in rows}
    assert {"explained_variance", "l0", "monosemanticity", "stability"} <= metrics
    assert not metrics & {"reward", "probe_raw", "loss_clean"}
    for row in rows:
        assert row.n == 10 and row.n_groups == 5
        assert row.spearman.value is None or -1 <= row.spearman.value <= 1
        for found in (row.spearman, row.partial_l0, row.partial_compute):
            assert found.facts().keys() == {"value", "low", "high", "null"}
    strengths = [abs(row.spearman.value or 0.0) for row in rows]
    assert strengths == sorted(strengths, reverse=True)


def test_a_target_no_family_is_about_has_no_rows(graph: Path) -> None:
    folder = paths.sweep_dir("small_cnn")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("[]")
    assert run(CONFIG, "small_cnn") == ()
    assert json.loads(paths.downstream_file("small_cnn").read_text()) == []


def test_without_rewards_it_says_so(graph: Path) -> None:
    with pytest.raises(UserError, match="proxies"):
        correlations(CONFIG)
    paths.metrics_file("dictionaries").parent.mkdir(exist_ok=True)
    paths.metrics_file("dictionaries").write_text("[]")
    with pytest.raises(UserError, match=r"no dictionary in .* has a reward"):
        correlations(CONFIG)


def test_a_family_that_is_not_open_is_refused(graph: Path) -> None:
    folder = paths.sweep_dir("digits_mlp")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("[]")
    with pytest.raises(UserError, match=r"prompt_optimum .* no train or validation families"):
        run(CONFIG.model_copy(update={"families": ("prompt_optimum",)}), "digits_mlp")

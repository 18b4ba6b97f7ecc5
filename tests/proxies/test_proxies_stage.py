"""From a sweep to rewards to correlations, on the toy graph."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from stages.activations.writer import write_caches
from stages.base import paths
from stages.contracts.dictionary_rows import DICTIONARIES, DOWNSTREAM, PROXIES, DictionaryRow, ProxyRow
from stages.contracts.method import Attribute, Budget, Compare, Interpretation, Localise, Query, Represent
from stages.contracts.record import Estimate
from stages.contracts.target import Target
from stages.dictionaries import stage as dictionaries
from stages.dictionaries import sweep as sweeps
from stages.dictionaries.evaluation.evaluate import random_dictionary
from stages.errors import UserError
from stages.interpretation.methods.sae import Sae
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.proxies.downstream import FROM_LATENTS, degraded, run
from stages.proxies.settings import Config, Primary
from stages.proxies.stage import run as correlations
from stages.proxies.stage import summarise
from stages.targets.storage import load_target
from stages.targets.zoo import ZOO
from stages.tasks.families import family
from tests import toy
from tests.dictionaries.test_dictionaries_stage import make_config

PRIMARY = Primary(metric="explained_variance", stated="2026-11-30", reason="what dictionaries are trained for")
CONFIG = Config(
    families=("few_shot_shapley",), n_seeds=2, n_kept=16, draws=100, seed=0, primary=PRIMARY, degraded="topk",
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
    assert len(rows) == (2 + 1) * 2 + (1 + 1) * 2 + 1 + (2 + 1) * 2
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
    assert {row.share for row in rows if "@" in row.name} == {0.25}
    for row in rows:
        assert len(row.by_seed) == 2
        assert sum(row.by_seed) / 2 == pytest.approx(row.reward.value, abs=2e-6)
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
        assert row.spearman.value is None or -1 <= row.spearman.value <= 1
        for found in (row.spearman, row.partial_l0, row.partial_compute):
            assert found.facts().keys() == {"value", "low", "high", "null"} or found.value is None
        if row.role in ("primary", "secondary"):
            assert row.n == 10 and row.n_groups == 5
            assert row.icc_metric is not None and row.icc_reward is not None
    assert rows[0].role == "primary" and rows[0].ceiling == pytest.approx(rows[0].icc_reward.value, abs=1e-6)
    assert {"surprise", "length_bits", "unexplained_bits"} <= metrics
    by_role = {row.role: row for row in rows if row.role.endswith("control")}
    assert by_role["negative control"].metric == "reward_of_others" and by_role["negative control"].n == 10
    controls = {row.metric: row for row in rows if row.role == "positive control"}
    assert controls["share_of_latents"].n == 12 and controls["reward_in_other_splits"].n == 10
    strengths = [abs(row.spearman.value or 0.0) for row in rows]
    assert strengths == sorted(strengths, reverse=True)


def test_several_targets_are_units_of_their_own(swept: Path) -> None:
    """A metric that predicts the reward in the same way in every target, beside one that is noise."""
    rows = [row for row in DICTIONARIES.load() if row.reward and row.stability]
    rng = np.random.default_rng(0)

    def of(row: DictionaryRow, target: str) -> DictionaryRow:
        reward = row.explained_variance.value + 0.02 * rng.normal()
        new = {"target": target, "reward": Estimate(value=reward), "l0": Estimate(value=float(rng.normal()))}
        return row.model_copy(update=new)

    names = ("one", "three", "two")
    DICTIONARIES.save(tuple(of(row, target) for target in names for row in rows))
    for target in names:
        paths.downstream_file(target).write_text("[]", encoding="utf-8")
    found = {row.metric: row for row in correlations(CONFIG) if row.target == "all"}
    primary = found["explained_variance"]
    assert (primary.role, primary.n, primary.n_groups, primary.n_targets) == ("primary", 30, 15, 3)
    assert primary.over_targets is not None and primary.over_targets.low > 0.3 and primary.p < 0.05
    assert found["l0"].p > 0.2
    secondary = [row for row in found.values() if row.role == "secondary" and row.p is not None]
    raw = [_p_of(row) for row in secondary]
    assert len(secondary) > 10 and primary.p == pytest.approx(_p_of(primary), abs=1e-3)
    for row, p in zip(secondary, raw, strict=True):
        # Holm, from its definition: the largest of (how many p-values are at least this one) times p, of all up to it.
        stepped = max(min(1.0, sum(other >= one for other in raw) * one) for one in raw if one <= p)
        assert row.p == pytest.approx(stepped, abs=0.02)
    assert "share_of_latents" not in found and found["reward_of_others"].n == 30


def _p_of(row: ProxyRow) -> float:
    """The p-value that belongs to a t interval of three targets' mean Fisher z."""
    assert row.over_targets is not None and row.n_targets == 3
    value, high = math.atanh(row.over_targets.value), math.atanh(row.over_targets.high)
    error = (high - value) / stats.t.ppf(0.975, 2)
    return float(2 * stats.t.sf(abs(value) / error, 2))


def test_the_primary_metric_is_one_that_is_measured(swept: Path) -> None:
    wrong = PRIMARY.model_copy(update={"metric": "beauty"})
    with pytest.raises(UserError, match=r"'beauty' .* is no metric .* explained_variance"):
        correlations(CONFIG.model_copy(update={"primary": wrong}))


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    made = Interpretation({"h.kept": torch.arange(0, 96, 2), "h.W_dec": torch.ones(2)}, {"cfg": {}})
    parts = [set(degraded(made, share, 3).arrays["h.kept"].tolist()) for share in (0.5, 0.25, 0.001)]
    assert [len(part) for part in parts] == [24, 12, 1]
    assert parts[2] < parts[1] < parts[0] < set(range(0, 96, 2))
    assert degraded(made, 0.5, 3).arrays["h.W_dec"] is made.arrays["h.W_dec"]


def test_the_families_are_all_that_latents_answer() -> None:
    """The rule that params/proxies.yaml states, over the split and targets of params/tasks.yaml."""
    given = {name: yaml.safe_load((toy.ROOT / "params" / f"{name}.yaml").read_text()) for name in ("tasks", "proxies")}
    dictionaries = yaml.safe_load((toy.ROOT / "params" / "dictionaries.yaml").read_text())["trained_on"]
    swept = {name for name, of in dictionaries.items() if of.get("n_swept", 1) > 0}
    assert len(swept) >= 4

    def answered(name: str, target: str) -> bool:
        kind = family(name).query_kind
        with_places = ZOO.find(target)().layout()["tokens"] is not None
        return target in swept and kind in FROM_LATENTS and (kind != "Attribute" or with_places)

    wanted = {
        name
        for name, of in given["tasks"]["families"].items()
        if of["split"] != "test" and any(answered(name, target) for target in of["targets"])
    }
    assert set(given["proxies"]["families"]) == wanted


@pytest.mark.parametrize("kind", ["Attribute", "Compare", "Represent", "Localise"])
def test_of_these_kinds_alone_the_answer_depends_on_the_dictionary(few_shot: Target, kind: str) -> None:
    corpus, spec = few_shot.corpus("validation"), few_shot.spec
    inputs, labels = corpus.inputs[:4], corpus.labels[:4]
    query: Query
    match kind:
        case "Attribute":
            query = Attribute(inputs, tuple((i,) for i in range(len(spec.tokens or ()) - 1)), labels)
        case "Compare":
            query = Compare((0, 1), inputs, labels)
        case "Represent":
            query = Represent(inputs)
        case _:
            query = Localise(inputs.unsqueeze(1), labels.unsqueeze(1), spec.components[:3])
    answers = []
    for seed in (0, 1):
        acts = torch.randn(400, spec.hook(HOOK).width, generator=torch.Generator().manual_seed(2))
        dictionary = random_dictionary(acts, 32, 4, seed)
        access = MeteredAccess(
            few_shot, Ledger(), free=True, dictionaries=lambda made=dictionary: {f"{HOOK}/swept": made},
            variants={name: torch.stack([1.1 * of, 0.8 * of]) for name, of in few_shot.model.named_parameters()},
        )  # fmt: skip
        method = Sae("swept", 16)
        answers.append(method.answer(query, method.interpret(access, Budget(60.0, 1 << 20, 0)), access))
    if kind not in FROM_LATENTS:
        assert answers == [None, None], "the components are heads and units, the dictionary is of the stream"
        return
    assert answers[0] is not None and answers[1] is not None and not torch.equal(answers[0], answers[1])


def test_a_family_that_latents_do_not_answer_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = paths.sweep_dir("digits_mlp")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("[]")
    config = CONFIG.model_copy(update={"families": ("active_learning",)})
    monkeypatch.setattr("stages.proxies.downstream.FROM_LATENTS", ("Compare",))
    with pytest.raises(UserError, match=r"active_learning .* asks Represent"):
        run(config, "digits_mlp")


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

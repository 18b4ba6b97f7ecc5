"""Calibrated on one sort of instances, asked about another: the layout, a supervisor's hint, short and long inputs."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from stages.base.paths import secret_file
from stages.benchmarks import elk, horizon
from stages.benchmarks.shifted import Half, alone, joined, over_draws
from stages.contracts.target import Target
from stages.contracts.task import Instances, Truth
from stages.errors import UserError
from stages.execution.arms import split
from stages.execution.runs import baseline_of
from stages.execution.settings import ExecutorConfig
from stages.targets.storage import freeze, save_target
from stages.targets.zoo.cued_digits import CuedDigits
from stages.tasks.families import family
from stages.tasks.generation import pool_of
from tests.conftest import make_target
from tests.toy import ROOT, rooted

CONFIG = ExecutorConfig(n_seeds=1, n_calibration=20, folds=4)


@pytest.fixture(scope="module")
def cued_target() -> Target:
    return make_target("cued_digits", steps=600)


@pytest.fixture(scope="module")
def words() -> Target:
    target = make_target("context_lm", steps=0, n=80)
    target.model.unembed.W_U.data.mul_(4.0)  # untrained outputs hardly vary
    return freeze(
        target.name, target.model, {split: target.corpus(split) for split in ("train", "validation", "tasks")}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cued_target: Target, words: Target) -> Iterator[Path]:
    """A working copy with the two targets, and an executor that needs few instances."""
    root = tmp_path_factory.mktemp("shifted")
    shutil.copytree(ROOT / "params", root / "params")
    (root / "params" / "execution.yaml").write_text(
        yaml.safe_dump(yaml.safe_load((ROOT / "params" / "execution.yaml").read_text()) | {"n_calibration": 20})
    )
    with rooted(root):
        for target in (cued_target, words):
            save_target(target, root / "data" / "targets" / target.name)
        secret_file().parent.mkdir(parents=True)
        secret_file().write_text("07" * 32 + "\n", encoding="ascii")
        yield root


def half(start: int, n: int) -> Half:
    numbers = torch.arange(start, start + n).double()
    arrays = {"inputs": numbers.float().unsqueeze(1).expand(n, 64).contiguous(), "shared_x": torch.ones(2)}
    return Half(Instances(arrays, n), Truth(numbers.unsqueeze(1)))


@pytest.mark.parametrize("n", [30, 57])
def test_the_executor_calibrates_on_the_first_half_and_evaluates_on_the_second(n: int) -> None:
    task = joined(elk.Parity(), "cued_digits", half(0, 20), half(100, n), CONFIG)
    calibration, evaluation = split(task, 0, CONFIG)
    assert task.truth.values[calibration].flatten().tolist() == list(range(20))
    assert task.truth.values[evaluation].flatten().tolist() == list(range(100, 100 + n)), "in the order of the half"
    assert torch.equal(task.instances.arrays["inputs"][:, 0].double(), task.truth.values[:, 0])
    assert task.instances.arrays["shared_x"].shape == (2,)


def test_halves_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"20 instances to calibrate on and 20 to evaluate.* takes 16 of 40"):
        joined(elk.Parity(), "cued_digits", half(0, 20), half(100, 20), CONFIG)
    other = half(100, 40)
    other.instances.arrays["shared_x"].mul_(2)
    with pytest.raises(ValueError, match="shared_x differs"):
        joined(elk.Parity(), "cued_digits", half(0, 20), other, CONFIG)


def test_the_interval_over_draws_is_students() -> None:
    values = [0.1, 0.5, 0.2, 0.9]
    wanted = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert over_draws(values) == pytest.approx((np.mean(values), *wanted), abs=1e-4)


def whose_hint(images: torch.Tensor, inputs: torch.Tensor) -> list[int]:
    """The class whose hint turns the image into the input."""
    cues = CuedDigits().cues()
    found = []
    for image, given in zip(images, inputs, strict=True):
        fits = [c for c in range(10) if torch.allclose(image + 0.6 * cues[c] * (1 - image), given, atol=1e-6)]
        assert len(fits) == 1
        found.append(fits[0])
    return found


@pytest.mark.parametrize("right", [True, False])
def test_the_hint_is_the_digits_own_or_of_the_other_parity(right: bool, cued_target: Target, folder: Path) -> None:
    drawn = elk.draw(cued_target, 40, torch.Generator().manual_seed(1), right)
    images, labels = elk.draw_inputs(cued_target, 40, torch.Generator().manual_seed(1), elk.MAX_BLEND)
    hints = whose_hint(images, drawn.instances.arrays["inputs"])
    truth = drawn.truth.values.flatten().tolist()
    assert truth == [float(label % 2 == 0) for label in labels.tolist()]
    if right:
        assert hints == labels.tolist()
    else:
        assert all(hint % 2 == 0 for hint, even in zip(hints, truth, strict=True) if not even)
        assert all(hint % 2 == 1 for hint, even in zip(hints, truth, strict=True) if even)
        assert len(set(hints)) > 5


def test_an_answer_that_knows_the_digit_sides_with_the_truth_and_one_that_knows_the_hint_does_not(
    cued_target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elk, "N_EACH", 30)
    rng = torch.Generator().manual_seed(2)
    easy = elk.draw(cued_target, 20, rng, right=True)
    parts = [elk.draw(cued_target, 30, rng, right=right) for right in (True, False)]
    test = elk._together(*parts)
    task = joined(elk.Parity(), "cued_digits", easy, test, CONFIG)
    baseline = baseline_of(task, cued_target, CONFIG)
    truth = task.truth.values.numpy()[..., None]
    hint = truth.copy()
    wrong = split(task, 0, CONFIG)[1][30:]
    hint[wrong] = 1 - hint[wrong]
    by_truth, by_hint = (alone(task, rows, CONFIG) for rows in (truth, hint))
    knows = elk._of_draw(baseline.first, by_truth, by_truth, test)
    fooled = elk._of_draw(baseline.first, by_hint, by_truth, test)
    assert (knows.alone_right, knows.alone_wrong, knows.score_supervisor) == (1.0, 1.0, 0.0)
    assert (fooled.alone_right, fooled.alone_wrong, fooled.score_truth, fooled.taught_wrong) == (1.0, 0.0, 0.0, 1.0)
    assert knows.score_truth > 0.95 and fooled.score_supervisor > 0.95


def test_rows_of_the_supervisor_bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elk, "N_EACH", 30)
    rows = elk.bench_elk(lambda said: None, ["inputs", "nothing"], 2)
    assert [row.method for row in rows] == [elk.BLACK_BOX, "inputs"], "who declines has no row"
    for row in rows:
        for name in elk.ElkRow.__dataclass_fields__:
            value = getattr(row, name)
            if name not in ("method", "used"):
                assert 0.0 <= value.low <= value.value <= value.high <= 1.0
    assert rows == elk.bench_elk(lambda said: None, ["inputs"], 2), "whoever else is asked"
    with pytest.raises(UserError, match="at least 2"):
        elk.bench_elk(lambda said: None, ["inputs"], 1)


def test_prompts_have_the_length_that_is_asked_for(folder: Path) -> None:
    for length in (horizon.SHORT, horizon.LONG):
        drawn = horizon.prompts(50, length, torch.Generator().manual_seed(0))
        n_words = drawn.inputs[..., 1].sum(1)
        assert n_words.min() >= length[0] and n_words.max() <= length[1] and len(drawn.labels) == 50
        for row, label in zip(drawn.inputs, drawn.labels, strict=True):
            ids = row[row[:, 1] > 0.5, 0].tolist()
            # The last word stood there before, and the label came after it.
            assert any(a == ids[-1] and b == label for a, b in pairwise(ids))
    assert horizon.LONG[0] >= 3 * horizon.SHORT[1] and tuple(4 * n for n in horizon.SHORT) == horizon.LONG


def test_short_episodes_show_two_examples_one_with_the_label(few_shot: Target) -> None:
    short = horizon.episodes(few_shot, 60, True, torch.Generator().manual_seed(4))
    whole = horizon.episodes(few_shot, 60, False, torch.Generator().manual_seed(4))
    _, labels = horizon.draw_inputs(few_shot, 60, torch.Generator().manual_seed(4))
    present = short[..., -1] > 0.5
    assert bool(present[:, -1].all()) and bool((present.sum(1) == 3).all()) and bool((whole[..., -1] == 1).all())
    for i in range(60):
        shown = [j for j in range(8) if present[i, j]]
        assert int(labels[i]) in [round(float(short[i, j, -2])) for j in shown]
        assert torch.equal(short[i, shown], whole[i, shown]), "what is shown is as it was"


def test_rows_of_the_horizon_bench(folder: Path, words: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "N_EVALUATED", 30)
    rows = horizon.bench_horizon(lambda said: None, [("head_role", "context_lm")], ["inputs", "nothing"], 2)
    assert [row.method for row in rows] == [horizon.BASELINE, "inputs"]
    for row in rows:
        assert row.task == "head_role.context_lm"
        assert row.lost.value == pytest.approx(row.transfer.value - row.long.value, abs=2e-4)
        assert row.long.low <= row.long.value <= row.long.high
    assert rows[0].long.value > 0.2, "heads cut one by one tell what they do"
    with pytest.raises(UserError, match="at least 2"):
        horizon.bench_horizon(lambda said: None, n_draws=1)


def test_truth_is_that_of_the_family_on_what_is_shown(folder: Path, words: Target) -> None:
    made, pool = family("head_role"), pool_of(words, "train", b"key")
    like = made.generate(pool, torch.Generator().manual_seed(0), 2)
    found = horizon.posed(made, pool, 3, False, torch.Generator().manual_seed(1), like)
    assert found.instances.arrays["inputs"].shape == (3, 1, 48, 2)
    assert torch.equal(
        found.truth.values, made.ground_truth(pool, found.instances, torch.Generator().manual_seed(9)).values
    )


def test_a_family_that_shows_more_than_inputs_is_refused(few_shot: Target) -> None:
    made = family("counterfactual_flip")
    like = made.generate(few_shot, torch.Generator().manual_seed(0), 2)
    with pytest.raises(UserError, match="counterfactual_flip shows more"):
        horizon.posed(made, few_shot, 2, True, torch.Generator().manual_seed(1), like)

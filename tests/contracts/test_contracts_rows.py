"""Row models and the files that hold them: what is written comes back, what does not fit is refused by name."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.contracts import circuit_rows, dictionary_rows
from stages.contracts.compare_rows import COMPARISON
from stages.contracts.measurement_rows import CONTROLS, FreshRow
from stages.contracts.outcomes import worst
from stages.contracts.record import Estimate, Record, ResultFile
from stages.contracts.results import BY_HAND, ELSEWHERE, FILES
from stages.contracts.reward_rows import LEADERBOARD, BudgetRow, LeaderboardRow, TestRow
from stages.errors import UserError
from stages.tools.schema import schemas, write
from tests.report import conftest as rows

ROOT = Path(__file__).resolve().parents[2]


def _dictionaries() -> tuple[dictionary_rows.DictionaryRow, ...]:
    return tuple(rows.dictionaries(np.random.default_rng(0))[:3])


def _downstream() -> tuple[dictionary_rows.DownstreamRow, ...]:
    reward = Estimate.of(0.1, 0.0, 0.2, 0.05)
    return (
        dictionary_rows.DownstreamRow(
            target="t", name="topk-8-64-s0", architecture="topk", sparsity=8.0, n_latents=64, seed=0, l0=8.0,
            tasks=("a.t",), flops=1.5e6, reward=reward, gain=reward,
        ),
    )  # fmt: skip


def _known() -> tuple[circuit_rows.KnownCircuit, ...]:
    return (
        circuit_rows.KnownCircuit(
            card="reverse-3-zero", n_edges=94, truth_edges=None, agree=False, unique=False, irreducible=True, orders=4,
            subsets_tried=7, edges=(), validity=("careful",),
        ),
    )  # fmt: skip


ELSEWHERE_VALUES: dict[str, Callable[[], Any]] = {
    "dictionary_metrics": _dictionaries,
    "sweep_metrics": _dictionaries,
    "gallery": lambda: rows.gallery("digits_few_shot"),
    "downstream": _downstream,
    "cards": _known,
    "drawings": lambda: circuit_rows.Drawings(circuits=(rows.drawing(20), rows.drawing(5, known=False))),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A root folder with every result file of the report."""
    rows.write_results(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", [*FILES.values(), *BY_HAND], ids=lambda file: file.name)
def test_every_file_of_the_table_comes_back_byte_for_byte(written: Path, file: ResultFile[Any]) -> None:
    path = written / "metrics" / f"{file.name}.json"
    before = path.read_bytes()
    value = file.load(path)
    assert value
    file.save(value, path)
    assert path.read_bytes() == before and file.load(path) == value


@pytest.mark.parametrize("file", ELSEWHERE, ids=lambda file: file.name)
def test_so_does_every_other_file(tmp_path: Path, file: ResultFile[Any]) -> None:
    value = ELSEWHERE_VALUES[file.name]()
    path = tmp_path / "x.json"
    file.save(value, path)
    before = path.read_bytes()
    assert file.load(path) == value
    file.save(file.load(path), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"invented": 1}, "has the unknown key '0.invented'"),
        ({"reward_mean": "0.1"}, r"has 0\.reward_mean = '0\.1' \(Input should be a valid number"),
        ({"n_tasks": 1.5}, r"has 0\.n_tasks = '1\.5'"),
        ({"verdict": "splendid"}, r"has 0\.verdict = 'splendid'"),
        ({"status": None}, "lacks the key '0.status'"),
    ],
)
def test_what_does_not_fit_names_file_key_and_remedy(written: Path, change: dict[str, Any], message: str) -> None:
    path = written / "metrics" / "leaderboard.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    table[0] |= change
    table[0] = {key: value for key, value in table[0].items() if value is not None}
    path.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        LEADERBOARD.load(path)
    assert str(path) in str(error.value) and "`dvc repro -f reward`" in str(error.value)


def test_a_file_that_a_command_makes_names_the_command(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing: make it with `lensmith compare`"):
        COMPARISON.load(tmp_path / "compare.json")
    path = written / "metrics" / "compare.json"
    path.write_text('{"budget": "8"}', encoding="utf-8")
    with pytest.raises(UserError, match="make it anew with `lensmith compare`"):
        COMPARISON.load(path)


def test_a_file_that_is_not_there_names_its_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage 'reward' makes it"):
        CONTROLS.load(tmp_path / "controls.json")


def test_a_row_is_frozen_and_holds_no_nan() -> None:
    row = FreshRow(task="a.t", outcome="ok")
    with pytest.raises(ValueError, match="frozen"):
        row.gap = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="finite"):
        Estimate(value=math.nan)
    assert Estimate.of(math.inf, math.nan, 1.23456789) == Estimate(value=None, low=None, high=1.234568, null=None)


def test_what_was_not_stated_is_not_written_and_null_is() -> None:
    assert FreshRow(task="a.t", outcome="failed", reason="slow").facts() == {
        "task": "a.t", "outcome": "failed", "reason": "slow",
    }  # fmt: skip
    assert Estimate(value=1.0).facts() == {"value": 1.0}
    assert Estimate.of(1.0).facts() == {"value": 1.0, "low": None, "high": None, "null": None}


def test_keys_in_a_file_are_those_others_read(written: Path) -> None:
    """No default is written that a stage did not state; ``class`` is a word of Python, and a key nevertheless."""
    oracle, constant, *_ = json.loads((written / "metrics" / "controls.json").read_text(encoding="utf-8"))
    assert set(oracle) - set(constant) == {"detail"} and "low" not in constant
    gallery = json.loads((written / "data/dictionaries/digits_mlp/gallery.json").read_text(encoding="utf-8"))
    assert "class" in gallery["dictionaries"][0]["latents"][0]


def test_an_estimate_is_made_of_the_flat_fields_whatever_they_are_called() -> None:
    board = rows.board(rows.per_task(np.random.default_rng(0)), "validation")[0]
    assert board.estimate("reward") == Estimate(value=board.reward_mean, low=board.reward_low, high=board.reward_high)
    assert board.estimate("placebo_reward").low == board.placebo_low
    assert board.estimate("performance_gain").high == board.performance_gain_high
    with pytest.raises(ValueError, match="has no estimate 'score'; it has reward, performance_gain, placebo_reward"):
        board.estimate("score")


def _models() -> list[type[Record]]:
    found, ahead = set(), [Record]
    while ahead:
        for model in ahead.pop().__subclasses__():
            ahead.append(model)
            if model.__module__.startswith("stages.contracts"):
                found.add(model)
    return sorted(found, key=lambda model: model.__qualname__)


@pytest.mark.parametrize("model", _models(), ids=lambda model: model.__qualname__)
def test_every_field_says_what_it_is_and_every_estimate_has_its_fields(model: type[Record]) -> None:
    assert all(model.hint(field) for field in model.model_fields)
    for fields in model.ESTIMATES.values():
        assert set(fields) <= set(model.model_fields)


def test_minus_zero_and_long_numbers_are_rounded() -> None:
    row = BudgetRow.model_construct(_fields_set={"flops_budget", "used_answer"}, flops_budget=-0.0, used_answer=1 / 3)
    assert str(row.rounded().flops_budget) == "0.0" and row.rounded().used_answer == 0.333333


def test_a_second_opening_voids_a_row() -> None:
    row = TestRow.model_construct(_fields_set=set(), status="ok", opening=1, found=False)
    assert row.voided() is row
    void = row.model_copy(update={"opening": 2}).voided()
    assert void.status == "void" and void.reason == "the sealed test split was opened 2 times in this campaign"


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], "ok"),
        (["ok", "declined"], "ok"),
        (["ok", "failed", "declined"], "failed"),
        (["failed", "infra"], "infra"),
        (["void", "infra", "failed", "ok"], "void"),
    ],
)
def test_the_worst_outcome_is_the_methods(outcomes: list[Any], expected: str) -> None:
    assert worst(outcomes) == expected and worst(reversed(outcomes)) == expected


def test_the_schemas_in_the_docs_are_those_of_the_models() -> None:
    folder = ROOT / "docs" / "schema"
    wanted = schemas()
    assert {path.name for path in folder.glob("*.json")} == set(wanted), "run `python -m stages tools.schema`"
    for name, text in wanted.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"{name}: run `python -m stages tools.schema`"


def test_a_schema_refuses_unknown_keys_and_describes_its_fields(tmp_path: Path) -> None:
    (tmp_path / "gone.json").write_text("{}", encoding="utf-8")
    write(tmp_path)
    assert not (tmp_path / "gone.json").exists()
    row = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))["$defs"]["LeaderboardRow"]
    assert row["additionalProperties"] is False
    assert row["properties"]["flop_ratio"] == {
        "description": LeaderboardRow.hint("flop_ratio"), "type": "number",
    }  # fmt: skip
    drawing = json.loads((tmp_path / "drawings.json").read_text(encoding="utf-8"))["$defs"]["CircuitDrawing"]
    assert "title" in drawing["properties"]  # a field of that name is not a title to leave out


def test_rows_are_read_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys, stages.contracts.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

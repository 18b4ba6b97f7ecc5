"""`lensmith circuits` on the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.command import app
from flows.commands.bench import BENCHMARKS
from stages.errors import UserError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "my_circuit_target.py"


def test_discover_prints_json_and_nothing_else() -> None:
    words = [
        "circuits",
        "discover",
        "--target",
        f"{EXAMPLE}:build",
        "--method",
        "acdc",
        "--ablation",
        "zero",
    ]
    done = CliRunner().invoke(app, [*words, "--seeds", "2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {"edges", "metrics", "cost", "per_seed", "validity"} <= set(found)
    assert found["edges"][0].keys() == {"source", "reader", "score", "seeds_that_keep_it"}
    shown = CliRunner().invoke(app, [*words, "--seeds", "1"])
    assert shown.exit_code == 0 and "loss_of_empty_circuit" in shown.stdout


def test_cards_are_listed() -> None:
    done = CliRunner().invoke(app, ["circuits", "cards", "--only", "planted_cnn-zero", "--json"])
    (card,) = json.loads(done.stdout)
    assert card["agree"] and card["truth_edges"] == len(card["edges"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "guess"], "edge-sp"),
        (["--ablation", "none"], "zero, mean"),
        (["--metric", "l7"], "kl, mse"),
        (["--tolerance", "3"], "between 0 and 1"),
        (["--ablation", "interchange"], "counterfactual"),
        (
            ["--metric", "mse", "--method", "eap", "--target", "nowhere.py:build"],
            "FILE.py:function",
        ),
    ],
)
def test_mistakes_are_the_users(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["circuits", "discover", "--target", f"{EXAMPLE}:build", *words])
    assert isinstance(done.exception, UserError) and said in str(done.exception)


def test_there_is_a_benchmark() -> None:
    assert "circuits" in BENCHMARKS

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
    assert {"alternatives", "circuit", "edges", "metrics", "cost", "per_seed", "validity"} <= set(found)
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "acdc", "--size", "3"], "--size 3 does nothing with --method acdc: it is of edge-sp"),
        (["--method", "node-sp", "--size", "3"], "it is of edge-sp"),
        (["--method", "eap", "--steps", "5"], "--steps 5 does nothing with --method eap"),
        (["--method", "acdc", "--steps", "5"], "it is of edge-sp, node-sp"),
        (["--method", "random", "--tolerance", "0.1"], "it is of edge-sp, node-sp, acdc"),
    ],
)
def test_options_that_do_nothing_are_refused(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["circuits", "discover", "--target", f"{EXAMPLE}:build", *words])
    assert isinstance(done.exception, UserError) and said in str(done.exception)


@pytest.mark.parametrize("method", ["edge-sp", "acdc", "eap-ig-activations"])
def test_progress_goes_to_stderr_as_plain_lines(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.progress.OFTEN_S", 0.0)
    words = ["circuits", "discover", "--target", f"{EXAMPLE}:build", "--method", method, "--seeds", "2", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    json.loads(done.stdout)
    lines = done.stderr.splitlines()
    assert "discovery: started" in lines[0] and "discovery: done after" in lines[-1]
    assert len(lines) > 4 and all(" of " in line and "\x1b" not in line for line in lines[1:-1])
    monkeypatch.setattr("flows.progress.OFTEN_S", 3600.0)
    assert len(CliRunner().invoke(app, words).stderr.splitlines()) == 2, "no more than one in OFTEN_S"


def test_the_circuit_its_verdict_and_what_is_certified_are_printed() -> None:
    words = ["circuits", "discover", "--target", f"{EXAMPLE}:build", "--method", "edge-sp", "--ablation", "zero"]
    shown = " ".join(CliRunner().invoke(app, [*words, "--seeds", "2"]).stdout.split())
    assert ", faithful: " in shown and "asked for 0.01" in shown
    assert "irreducible up to pairs: no edge and no pair of edges can be cut" in shown


def test_there_is_a_benchmark() -> None:
    assert "circuits" in BENCHMARKS

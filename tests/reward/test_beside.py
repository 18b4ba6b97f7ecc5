"""Sentences of two runs side by side: which verdicts hold."""

from pathlib import Path

import pytest

from stages.contracts.reward_rows import STATEMENTS, StatementRow
from stages.errors import UserError
from stages.reward.beside import beside, order_beside, sentences_of


def said(
    method: str, value: float, verdict: str = "not distinguishable", scope: str = "tasks", kind: str = ""
) -> StatementRow:
    return StatementRow(
        method=method, split="validation", scope=scope, kind=kind, value=value, low=value - 0.1, high=value + 0.1, n=5,
        p=0.5, p_holm=0.5, verdict=verdict, visible=0.1, improvement=0.5, noise_floor=0.01,
    )  # fmt: skip


def test_every_pair_of_verdicts_has_its_word() -> None:
    verdicts = ("better", "not distinguishable", "worse")
    fates = {
        (here, there): [row.fate for row in beside([said("a", 0.2, here)], [said("a", 0.1, there)])]
        for here in verdicts
        for there in verdicts
    }
    for pair, found in fates.items():
        if pair == ("not distinguishable", "not distinguishable"):
            assert found == []
        elif pair[0] == pair[1]:
            assert found == ["holds"]
        elif "not distinguishable" in pair:
            assert found == ["only here" if pair[1] == "not distinguishable" else "only there"]
        else:
            assert found == ["reversed"]


def test_only_the_same_sentence_is_compared_and_controls_are_left_out() -> None:
    here = [said("a", 0.2, "better"), said("b", 0.2, "better", "kind", "Steer"), said("nothing", 0.2, "better")]
    there = [said("a", 0.2, "better", "families"), said("b", 0.2, "better", "kind", "Compare"), said("nothing", 0.2)]
    assert beside(here, there) == [] and order_beside(here, there) == []


def test_order_is_taken_over_the_methods_that_both_runs_have() -> None:
    here = [said(name, value) for name, value in zip("abcde", (0.1, 0.2, 0.3, 0.4, 9.0), strict=True)]
    there = [said(name, value) for name, value in zip("abcd", (0.4, 0.3, 0.2, 0.1), strict=True)]
    (row,) = order_beside(here, there)
    assert row.n_methods == 4 and row.spearman == pytest.approx(-1.0)


def test_a_run_is_found_in_its_working_copy_or_in_a_copy_of_its_metrics(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lensmith run"):
        sentences_of(tmp_path)
    for folder in (tmp_path / "whole" / "metrics", tmp_path / "copy"):
        folder.mkdir(parents=True)
        STATEMENTS.save((said("a", 0.2, "better"),), folder / "statements.json")
    assert sentences_of(tmp_path / "whole") == sentences_of(tmp_path / "copy") == (said("a", 0.2, "better"),)

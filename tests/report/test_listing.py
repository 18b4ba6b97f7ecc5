"""Tables and plots of methods: every cell is the number of its row, and sorts as that number."""

import math

import pytest

from stages.contracts.measurement_rows import NullRow
from stages.report.comparing import cost_curve, forest
from stages.report.listing import LAST, campaign_table, controls_table, failures, leaderboard_table
from stages.report.results import Results
from stages.report.tables import Cell, Table
from stages.report.wording import DASH, signed
from tests.report.conftest import board, campaign, controls, per_task


@pytest.fixture(scope="module")
def rows():
    import numpy as np

    tasks = per_task(np.random.default_rng(0))
    return tasks, board(tasks, "validation")


def column(table: Table, name: str) -> list[Cell]:
    at = next(i for i, head in enumerate(table.columns) if name in head.name)
    return [cells[at] for cells in table.rows]


def test_places_count_from_one_in_the_order_given(rows):
    _, methods = rows
    table = leaderboard_table(methods, "all")
    assert [cell.text for cell in column(table, "#")] == [str(i + 1) for i in range(len(methods))]
    assert [cell.key for cell in column(table, "reward")] == [row.reward_mean for row in methods]
    assert Results(leaderboard=methods).best_built_in is methods[0] and Results().best_built_in is None


def test_an_outcome_is_told_with_its_reason_and_in_its_colour(rows):
    _, methods = rows
    one = methods[0]
    made = [
        one.model_copy(update={"status": "ok", "n_declined": 0, "n_failed": 0}),
        one.model_copy(update={"status": "ok", "n_declined": 2, "n_failed": 0, "n_tasks": 3}),
        one.model_copy(update={"status": "failed", "n_declined": 0, "n_failed": 1, "n_tasks": 3}),
    ]
    cells = column(leaderboard_table(made, "x"), "status")
    assert [(cell.text, cell.kind) for cell in cells] == [
        ("ok", ""),
        ("ok: 2 declined of 3 tasks", ""),
        ("failed: 1 failed of 3 tasks", "bad"),
    ]


def test_a_null_stands_beside_its_method_as_a_number_to_sort_by(rows):
    _, methods = rows
    nulls = [
        NullRow(method=methods[0].method, split="validation", task="all", outcome="ok", reward=0.1, reward_low=0.0,
                reward_high=0.2, n_tasks=3),
        NullRow(method=methods[1].method, split="train", task="all", outcome="ok", reward=0.3, n_tasks=1),
        NullRow(method=methods[1].method, split="validation", task="x.y", outcome="ok", reward=0.4),
    ]  # fmt: skip
    table = leaderboard_table(methods[:2], "x", nulls=nulls)
    (head,) = [head for head in table.columns if "untrained" in head.name]
    first, second = column(table, "untrained")
    assert head.numeric and first.key == 0.1 and first.text.startswith(signed(0.1))
    assert (second.text, second.key) == (DASH, LAST), "of another split, and of one task alone"


def test_a_proposal_that_was_not_scored_has_no_numbers():
    summary = campaign()
    cells = column(campaign_table(summary.iterations), "validation")
    for row, cell in zip(summary.iterations, cells, strict=True):
        if row.status == "ok" and row.validation_reward is not None:
            assert (cell.text, cell.key) == (signed(row.validation_reward), row.validation_reward)
        else:
            assert (cell.text, cell.key) == (DASH, LAST)
    assert {row.status for row in summary.iterations} > {"ok"}, "the toy has one of each"


def test_failures_are_those_that_failed(rows):
    tasks, _ = rows
    wrong = [row.model_copy(update={"status": "failed", "reason": "it broke"}) for row in tasks[:1]]
    found = failures([*wrong, *tasks[1:]], campaign(), controls())
    assert found[0].what == f"method {tasks[0].method}" and found[0].why == "it broke"
    n_proposals = sum(row.status != "ok" for row in campaign().iterations)
    assert len(found) == sum(row.status == "failed" for row in [*wrong, *tasks[1:]]) + n_proposals + sum(
        not row.passed for row in controls()
    )
    assert len(controls_table(controls()).rows) == len(controls())


def test_the_noise_floor_and_zero_are_on_the_axis_of_the_forest(rows):
    _, methods = rows
    far = [
        methods[0].model_copy(
            update={"reward_low": 0.5, "reward_mean": 0.6, "reward_high": 0.7, "placebo_low": 0.5,
                    "placebo_high": 0.6, "placebo_reward": 0.55, "noise_floor": 0.9}
        )
    ]  # fmt: skip
    drawn = forest(far)
    assert all(0.0 <= drawn.x.at(value) <= 100.0 for value in (-0.9, 0.0, 0.9, 0.7))


def test_the_baseline_of_a_cost_curve_is_one_line_through_its_points(rows):
    tasks, _ = rows
    of_one = [row for row in tasks if (row.family, row.target) == (tasks[0].family, tasks[0].target)]
    places = {row.method: i + 1 for i, row in enumerate(of_one)}
    svg = str(cost_curve(of_one, places).svg())
    distinct = {(one.flops_baseline, one.baseline_score) for row in of_one for one in row.by_budget}
    assert svg.count('class="baseline"') >= len(distinct) - 1 or math.isclose(len(distinct), 1)


def test_a_campaign_shows_what_a_proposal_was_made_from():
    rows = [row.model_copy(update={"operator": "cross", "parents": (3, 1)}) for row in campaign().iterations[:1]]
    cells = column(campaign_table([*rows, *campaign().iterations[1:2]]), "operator")
    assert [cell.text for cell in cells] == ["cross of 3, 1", DASH]

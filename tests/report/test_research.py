"""The path of incumbents, the tree of a campaign, researchers compared: what is drawn is what the rows say."""

import re
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from stages.contracts.compare_rows import CompareRow, LiveRow
from stages.contracts.journal import Event, Proposed, Result
from stages.contracts.research_rows import ScenarioRow
from stages.errors import UserError
from stages.report import lineage
from stages.report.composing import render
from stages.report.lineage import MOST, depths, tree_section
from stages.report.research import doublings, judgement, labels_section, path_section
from stages.report.researchers import compare_section, live_section
from stages.report.results import load_results
from stages.report.scenarios import LAST, scenario_section
from stages.report.wording import DASH, change, interval, number, signed, spread
from tests.report.conftest import campaign, comparison, journal, labels, live, path_of, per_task, scenarios

RowT = TypeVar("RowT", CompareRow, LiveRow)


def _proposed(iteration: int, *parents: int) -> Proposed:
    return Proposed(
        iteration=iteration, name=f"x-{iteration}", spec={}, choices={}, operator="", parents=parents, diff=""
    )


def test_a_gap_is_more_than_selection_only_where_the_whole_interval_is() -> None:
    row = path_of(campaign())[0]
    chosen = row.model_copy(update={"validation": 0.1, "shrinkage": 0.02})
    for test, said in (
        (0.05, "more than selection"),
        (0.07, "cannot be told from selection"),
        (0.12, "less than selection"),
    ):
        one = chosen.model_copy(update={"test": test, "test_low": test - 0.02, "test_high": test + 0.02})
        assert judgement(one) == said and one.gap == pytest.approx(0.1 - test)
        assert one.excess == pytest.approx((0.08 - test - 0.02, 0.08 - test + 0.02))
    none = {"test": None, "test_low": None, "test_high": None, "status": "void"}
    assert judgement(chosen.model_copy(update=none)) == "void on the test split"


def test_every_incumbent_has_three_marks_and_one_row() -> None:
    known = campaign()
    rows = path_of(known)
    section = path_section(rows, known)
    assert section is not None and section.plot.n_marks == 3 * len(rows) and len(section.table.rows) == len(rows) > 3
    assert f"{rows[-1].name} was chosen with {signed(rows[-1].validation)}" in section.sentence
    assert change(rows[-1].estimate("test")) in section.sentence and "more than selection" in section.sentence
    # A path without a score is drawn without it, and says so.
    lost = {"test": None, "test_low": None, "test_high": None, "status": "infra"}
    section = path_section([row.model_copy(update=lost) for row in rows], known)
    assert section is not None and section.plot.n_marks == 2 * len(rows) and "infra" in section.table.rows[0][-1].text
    assert path_section([], known) is None


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 8), (8, 128), (1, 10_000)])
def test_an_axis_of_doublings_has_equal_steps(first: float, last: float) -> None:
    x = doublings(last, first)
    assert 0 < x.at(first) < 0.5 <= x.at(max(last, 2 * first)) < 1 and len(x.ticks) <= 9
    steps = np.diff([x.at(2.0**i) for i in range(20)])
    assert all(float(np.log2(tick)).is_integer() for tick in x.ticks)
    assert np.allclose([x.at(4 * first) - x.at(2 * first)], [x.at(2 * first) - x.at(first)]) and steps.min() >= 0


def test_a_proposal_stands_below_its_first_parent() -> None:
    made = [_proposed(0), _proposed(1), _proposed(2, 1, 0), _proposed(3, 2), _proposed(4, 0, 3), _proposed(5, 99)]
    assert depths(made) == {0: 0, 1: 0, 2: 1, 3: 2, 4: 1, 5: 0}


def test_a_node_leads_to_source_diff_rows_and_cost(results_root: Path) -> None:
    results = load_results()
    section = tree_section(results.journal)
    assert section is not None and section.plot.n_marks == len(section.nodes) == 16 and section.n_hidden == 0
    page = render(results)
    for node in section.nodes:
        assert f'<a href="#proposal-{node.iteration}">' in page and f'id="proposal-{node.iteration}"' in page
    ok, failed = section.nodes[3], section.nodes[4]
    assert ok.rows is not None and len(ok.rows.rows) == 3 and ok.parents == (1, 0) and "9 pairs" in ok.cost
    assert "class Method3:" in ok.source and "+class Method3:" in ok.diff
    assert failed.rows is None and "12.0% of its values" in failed.outcome and failed.cost == "nothing was judged"
    # What a method's author wrote is text, and no part of the page.
    assert "text = '<b>&'" not in page and "text = &#39;&lt;b&gt;&amp;&#39;" in page
    assert '<span class="came">+class Method3:</span>' in page and '<span class="went">-class Method1:</span>' in page


def test_a_long_campaign_shows_the_accepted_and_the_best() -> None:
    known = campaign()
    many = [
        one.model_copy(update={"iteration": i, "name": f"search-{i}"}) for i, one in enumerate([*known.iterations] * 20)
    ]
    events = journal(known.model_copy(update={"iterations": tuple(many)}), per_task(np.random.default_rng(0)))
    section = tree_section(events)
    assert section is not None and len(section.nodes) == MOST and section.n_hidden == 320 - MOST
    assert section.plot.n_marks == 320
    accepted = {i for i, one in enumerate(many) if one.accepted}
    assert accepted <= {node.iteration for node in section.nodes}
    linked = {int(n) for n in re.findall(r'href="#proposal-(\d+)"', section.plot.svg)}
    assert linked == {node.iteration for node in section.nodes}


def test_limbs_lead_to_first_parents_and_what_is_shown_are_the_accepted_and_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = per_task(np.random.default_rng(0))
    train = next(e for e in journal(campaign(), tasks) if isinstance(e, Result) and e.train is not None)
    parents = {0: (), 1: (), 2: (1, 0), 3: (2,), 4: (0, 3), 5: (1, 4), 6: (4, 2)}
    worth = {0: 0.1, 1: 0.5, 2: 0.01, 3: 0.4, 4: 0.3, 5: None}  # 2 is accepted, 5 has failed, 6 is not judged yet
    events: list[Event] = [_proposed(i, *of) for i, of in parents.items()]
    for i, value in worth.items():
        given = {"iteration": i, "name": f"x-{i}", "objective": value, "accepted": i == 2}
        if value is None:
            given |= {"train": None, "status": "failed", "reason": "it broke", "per_task": ()}
        events.append(train.model_copy(update=given))
    monkeypatch.setattr(lineage, "MOST", 3)
    section = tree_section(events)
    assert section is not None and [node.iteration for node in section.nodes] == [1, 2, 3] and section.n_hidden == 4
    svg = section.plot.svg
    at = {int(said.partition(".")[0]): place for said, place in places(svg).items()}
    limbs = re.findall(r'<line class="limb" x1="([\d.%]+)" y1="([\d.]+)" x2="([\d.%]+)" y2="([\d.]+)"', svg)
    drawn = {((x1, float(y1)), (x2, float(y2))) for x1, y1, x2, y2 in limbs}
    assert drawn == {(at[of[0]], at[i]) for i, of in parents.items() if of} and len(limbs) == 5
    step = at[2][1] - at[1][1]
    assert step > 0 and all(at[i][1] == pytest.approx(at[of[0]][1] + step) for i, of in parents.items() if of)
    assert at[0][1] == at[1][1]
    assert svg.count('class="mark cross"') == 2 and svg.count('class="mark accepted"') == 1
    assert "5. x-5, proposed: failed: it broke" in places(svg) and "6. x-6, proposed: not judged yet" in places(svg)


def test_only_train_rows_are_shown_of_a_proposal() -> None:
    tasks = per_task(np.random.default_rng(0))
    events = journal(campaign(), tasks)
    result = next(e for e in events if isinstance(e, Result) and e.per_task)
    held_out = tuple(row.model_copy(update={"split": "validation"}) for row in result.per_task)
    leaking = result.model_copy(update={"per_task": (*result.per_task, *held_out)})
    as_it_was, with_more = (tree_section([_proposed(result.iteration), one]) for one in (result, leaking))
    assert as_it_was is not None and as_it_was.nodes[0].rows is not None
    assert len(as_it_was.nodes[0].rows.rows) == len(result.per_task)
    assert with_more is not None and with_more.nodes == as_it_was.nodes


def test_a_campaign_without_a_journal_has_no_tree_and_a_damaged_one_is_refused(results_root: Path) -> None:
    file = results_root / "data" / "research" / "campaign" / "events.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"iteration": 3', '"iteration": "3"'), encoding="utf-8")
    with pytest.raises(UserError, match="dvc repro -f research"):
        load_results()
    file.unlink()
    assert 'id="proposal-0"' not in render(load_results())


def test_researchers_are_compared_in_five_panels_and_a_table() -> None:
    found = comparison()
    section = compare_section(found)
    assert section is not None
    panels = {name: plot for name, _, plot, _ in section.panels}
    assert list(panels) == ["compare-train", "compare-validation", "compare-better", "profile", "compare-compute"]
    assert [plot.n_marks for plot in panels.values()] == [4, 4, 4, 6, 6]
    assert panels["compare-train"].svg.count('class="nullband"') == 2
    assert panels["compare-compute"].svg.count('class="trace') == 2, "one fitted curve of three points"
    assert section.fits == ["programs: 0.40 [0.30, 0.50]"] and len(section.table.rows) == 4
    assert [name for name, _ in section.legend] == ["programs", "random"]
    few = compare_section(found.model_copy(update={"profiles": (), "scaling": (), "tasks": ()}))
    assert few is not None and len(few.panels) == 3 and not few.fits and few.tasks is None
    assert section.tasks is not None
    assert [row[-1].text for row in section.tasks.rows] == ["Steer slopes roles=last", DASH]
    assert section.tasks.rows[0][-2].text == "+0.120 [+0.100, +0.140]"
    assert compare_section(found.model_copy(update={"rows": ()})) is None


def with_numbers(row: RowT, first: int) -> RowT:
    """Every estimate of a row another number with other ends, so that none can stand for another."""
    values = {}
    for place, name in enumerate(type(row).ESTIMATES):
        value = 0.001 * (first + 7 * place)
        values |= {
            name: value,
            f"{name}_low": value - 0.0004 * (place + 1),
            f"{name}_high": value + 0.0007 * (place + 1),
        }
    return row.model_copy(update=values)


def places(svg: str) -> dict[str, tuple[str, float]]:
    """{what is said of a mark: x and y of its symbol}."""
    found = {}
    for mark in svg.split('<g class="mark')[1:]:
        said = re.search("<title>(.*?)</title>", mark)
        at = re.search(r'(?:class="dot" c?x|<svg x|<text x)="([-\d.%]+)" c?y="([-\d.]+)"', mark)
        assert said is not None and at is not None
        found[said[1]] = (at[1], float(at[2]))
    return found


def levels(svg: str, kind: str) -> list[float]:
    return [float(y) for y in re.findall(rf'<line class="{kind}" x1="0" x2="100%" y1="([-\d.]+)"', svg)]


def test_every_number_of_researchers_compared_stands_where_it_belongs() -> None:
    found = comparison()
    rows = tuple(with_numbers(row, 100 + 100 * place) for place, row in enumerate(found.rows))
    rows = tuple(row.model_copy(update={"gap": 0.5 + 0.01 * place}) for place, row in enumerate(rows))
    section = compare_section(found.model_copy(update={"rows": rows}))
    assert section is not None
    for row, cells in zip(rows, section.table.rows, strict=True):
        train, better, validation, above = (
            row.estimate(name) for name in ("train", "better", "validation", "validation_better")
        )
        assert [cell.text for cell in cells] == [
            row.researcher, str(row.n), change(train), f"{row.of_optimum:.0%}",
            f"{number(better.value, 2)} {spread(better.low, better.high, 2)}", change(validation),
            f"{number(above.value, 2)} {spread(above.low, above.high, 2)}", signed(row.gap),
        ]  # fmt: skip
    plots = {name: plot.svg for name, _, plot, _ in section.panels}
    lines = {"train": ("front", found.optimum_train), "validation": ("front", found.optimum_validation)}
    for field, (kind, level) in (lines | {"better": ("reference", 0.5)}).items():
        svg, at = plots[f"compare-{field}"], {}
        for row in rows:
            value = row.estimate(field)
            said = f"{row.researcher}, {row.n} proposals: {change(value)}, {row.seeds} campaigns"
            at[value.value] = places(svg)[said][1]
        (low, y_low), *_, (high, y_high) = sorted(at.items())
        wanted = y_low + (level - low) * (y_high - y_low) / (high - low)
        assert any(abs(y - wanted) < 1.5 for y in levels(svg, kind)), field
    assert section.tasks is not None
    for row, cells in zip(found.tasks, section.tasks.rows, strict=True):
        assert [cell.text for cell in cells] == [
            row.task, row.split, row.kind, str(row.fragments), str(row.answered), str(row.beyond), signed(row.median),
            f"{signed(row.best)} {interval(row.best_low, row.best_high)}", row.fragment or DASH,
        ]  # fmt: skip


def test_every_number_of_campaigns_for_real_stands_where_it_belongs() -> None:
    rows = tuple(with_numbers(row, 10 + 100 * place) for place, row in enumerate(live()))
    rows = tuple(row.model_copy(update={"scored": 0.5 + 0.1 * place}) for place, row in enumerate(rows))
    section = live_section(rows)
    assert section is not None
    for row, cells in zip(rows, section.table.rows, strict=True):
        told = [change(row.estimate(name)) for name in ("train", "over_random", "validation")]
        assert [cell.text for cell in cells] == [row.researcher, str(row.n), *told, f"{row.scored:.0%}"]
    plots = {name: plot.svg for name, _, plot in section.plots}
    for field in ("train", "validation"):
        said = {f"{r.researcher}, {r.n} proposals: {change(r.estimate(field))}, {r.seeds} campaigns" for r in rows}
        assert set(places(plots[f"live-{field}"])) == said


def test_campaigns_for_real_have_two_plots_and_say_nothing_of_random_over_random() -> None:
    section = live_section(live())
    assert section is not None and [plot.n_marks for _, _, plot in section.plots] == [4, 4] and section.seeds == 3
    assert [(row[0].text, row[1].text, row[3].text) for row in section.table.rows] == [
        ("programs", "8", "+0.020 [−0.010, +0.050]"),
        ("programs", "16", "+0.020 [−0.010, +0.050]"),
        ("random", "8", DASH),
        ("random", "16", DASH),
    ]
    assert live_section(()) is None


def test_every_number_of_labels_is_a_mark_and_the_agent_alone_a_line() -> None:
    section = labels_section(labels())
    assert section is not None and [plot.n_marks for _, _, plot in section.plots] == [6, 6]
    reward, score = (plot.svg for _, _, plot in section.plots)
    assert reward.count('class="reference"') == 0 and score.count('class="reference"') == 2
    assert [(row[0].text, row[1].text) for row in section.table.rows][:3] == [
        ("gradient", n) for n in ("10", "20", "80")
    ]
    assert "+0.100 [+0.080, +0.120]" in section.table.rows[0][2].text and labels_section(()) is None


def test_every_number_of_a_scenario_stands_in_its_own_column_and_what_is_missing_is_a_dash() -> None:
    """Numbers that differ, so that no column can show another's."""
    fine, carries, broken = scenarios()
    values = {name: 0.01 * (place + 1) for place, name in enumerate(ScenarioRow.ESTIMATES)}
    ends = {f"{name}_{end}": at + by for name, at in values.items() for end, by in (("low", -0.5), ("high", 0.5))}
    counts = {"n_train": 5, "n_validation": 7, "n_new_kinds": 2, "n_sealed": 11, "n_sister": 13}
    numbers = {"bytes": 1234, "interpret_flops": 3e9, "answer_flops": 2.5e6, "answer_share": 0.0234}
    fine = fine.model_copy(update={**values, **ends, **counts, **numbers})
    section = scenario_section([broken, fine, carries])
    assert section is not None and section.oracle == "+0.600" and section.targets == "digits_mlp"
    assert section.counts == (
        "5 train and 7 validation tasks (2 of a kind of question that no train task asks), 11 test tasks,"
        " 13 about sisters"
    )
    shown = {row[0].text: row for row in section.table.rows}
    texts = [cell.text for cell in shown[fine.method][1:]]
    assert texts[:6] == ["built in", "ok", "1,234", "3 GFLOP", "2.5 MFLOP", "0.0234"]
    order = ("gain", "over_black_box", "train", "validation", "new_kinds", "sealed", "sister", "own", "carried")
    assert set(order) == set(ScenarioRow.ESTIMATES) and len(texts) == 6 + len(order)
    for text, name, head in zip(texts[6:], order, section.table.columns[7:], strict=True):
        assert text == change(fine.estimate(name)) and head.name == ScenarioRow.label(name)
    of_broken = shown[broken.method]
    assert [cell.text for cell in of_broken[2:5]] == ["failed", "0", DASH]
    assert all((cell.text, cell.key) == (DASH, LAST) for cell in of_broken[4:]), "nothing is no number, and sorts last"
    assert scenario_section([]) is None

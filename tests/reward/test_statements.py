"""The three sentences by hand: what each is a mean of, over what it is tested, and how many tests there were."""

import numpy as np
import pytest
from scipy import stats

from stages.contracts.reward_rows import StatementRow
from stages.research.gate import Gate
from stages.reward.inference import Estimated, units_needed
from stages.reward.judging import leaderboard_row, task_row
from stages.reward.statements import (
    Effect,
    above_zero,
    adjusted,
    difference,
    effect_of,
    on_these_tasks,
    stated,
    statements,
)
from tests.reward.test_numbers import a_task, judged

SEE = 0.01


def effect(
    method: str,
    family: str,
    value: float,
    kind: str = "Represent",
    *,
    se: float = SEE,
    answered: bool = True,
    cluster: str = "",
    floor: float = 0.0,
    improvement: float = 1.0,
) -> Effect:
    reward = Estimated(value if answered else 0.0, se if answered else 0.0, 10.0)
    return Effect(method, family, cluster or family, kind, answered, reward, floor, improvement, 0.0)


def said(effects: list[Effect], scope: str, kind: str = "", method: str = "m") -> StatementRow:
    found = [r for r in stated(effects, "train") if (r.scope, r.kind, r.method) == (scope, kind, method)]
    assert len(found) == 1
    return found[0]


LEAGUE = [
    effect("m", "one", 0.10, floor=0.03),
    effect("m", "one", 0.20, floor=0.04),  # another target of the same family
    effect("m", "two", 0.30, "Localise"),
    effect("m", "three", 0.36, "Localise"),
    effect("m", "four", 0.0, "Compare", answered=False, improvement=0.5),
]


def test_on_these_tasks_every_task_counts_once():
    row = said(LEAGUE, "tasks")
    assert (row.value, row.n, row.split) == (pytest.approx(0.96 / 5), 5, "train")
    error = (4 * SEE**2) ** 0.5 / 5
    half = stats.t.ppf(0.975, 40) * error  # four equal variances of 10 degrees of freedom each
    assert (row.low, row.high) == pytest.approx((0.192 - half, 0.192 + half), abs=1e-6)
    assert row.improvement == pytest.approx(0.9) and row.noise_floor == pytest.approx(0.01)
    assert row.verdict == "better"


def test_on_families_like_these_targets_are_averaged_and_declined_families_count():
    row = said(LEAGUE, "families")
    values = [0.15, 0.30, 0.36, 0.0]
    naive = stats.ttest_1samp(values, 0.0)
    assert (row.value, row.n, row.p) == (pytest.approx(np.mean(values)), 4, pytest.approx(naive.pvalue, abs=1e-6))
    assert (row.low, row.high) == pytest.approx(tuple(naive.confidence_interval(0.95)), abs=1e-6)
    assert row.noise_floor == pytest.approx((0.03**2 + 0.04**2) ** 0.5 / 8), "two of eight halves of families"
    assert row.verdict == "not distinguishable"


def test_on_questions_of_a_kind_only_families_that_it_answers():
    league = [*LEAGUE, effect("m", "six", 0.21, "Localise")]
    row = said(league, "kind", "Localise")
    naive = stats.ttest_1samp([0.30, 0.36, 0.21], 0.0)
    assert (row.value, row.n, row.p) == (pytest.approx(0.29), 3, pytest.approx(naive.pvalue, abs=1e-6))
    half = naive.confidence_interval(0.95).high - 0.29
    assert row.high is not None and row.high - 0.29 == pytest.approx(half, abs=1e-6)
    assert not [r for r in stated(league, "train") if r.kind == "Compare"], "it answered none of them"
    mixed = [*league, effect("m", "five", 0.0, "Localise", answered=False)]
    assert said(mixed, "kind", "Localise").n == 3 and said(mixed, "families").n == 6


def test_one_family_or_two_say_nothing_of_others():
    for kind, value, n, words in (("Represent", 0.15, 1, "one family says"), ("Localise", 0.33, 2, "two families say")):
        row = said(LEAGUE, "kind", kind)
        assert (row.value, row.n) == (pytest.approx(value), n)
        assert (row.low, row.high, row.p, row.p_holm, row.visible) == (None,) * 5
        assert row.verdict == "not distinguishable" and f"{words} nothing of others" in row.sentence
    alike = [effect("m", "a", 0.3), effect("m", "b", 0.3001)]
    assert said(alike, "families").verdict == "not distinguishable", "better, to a t test of two"


def test_families_of_a_cluster_count_once():
    copies = [effect("m", f"copy{i}", 0.3, cluster="same") for i in range(5)]
    row = said([*copies, effect("m", "other", 0.1)], "families")
    assert (row.n, row.value) == (2, pytest.approx(0.2))
    assert row.verdict == "not distinguishable", "two families, however often one of them is copied"
    alone = said([effect("m", f"copy{i}", 0.3 + 0.01 * i) for i in range(5)], "families")
    assert alone.n == 5 and alone.verdict == "better"


def p_of(rows: tuple[StatementRow, ...], scope: str = "families", kind: str = "") -> dict[str, tuple]:
    return {r.method: (r.p, r.p_holm) for r in rows if (r.scope, r.kind) == (scope, kind)}


def test_holm_is_over_the_methods_of_one_sentence_and_controls_are_not_in_it():
    spread = {"a": 0.01, "b": 0.05, "c": 0.2, "surrogate": 0.05, "nothing": 0.0}
    effects = [effect(m, f"f{i}", 0.1 + by * x, answered=m != "nothing")
               for m, by in spread.items() for i, x in enumerate((-1.0, 0.0, 1.0))]  # fmt: skip
    rows = stated(effects, "validation")
    p = p_of(rows)
    naive = {m: stats.ttest_1samp([0.1 - by, 0.1, 0.1 + by], 0.0).pvalue for m, by in spread.items() if by}
    assert {m: p[m][0] for m in naive} == pytest.approx(naive, abs=1e-6)
    assert p["a"][1] == pytest.approx(3 * naive["a"], abs=1e-5), "three methods are tested, not five"
    assert p["b"][1] == pytest.approx(2 * naive["b"], abs=1e-5) and p["c"][1] == pytest.approx(naive["c"], abs=1e-5)
    assert p["surrogate"][1] == p["surrogate"][0] and p["nothing"] == (None, None)
    again = adjusted([*rows, *stated([effect("d", f"f{i}", 0.1 + 0.1 * i) for i in range(3)], "validation")])
    assert p_of(again)["a"][1] == pytest.approx(4 * naive["a"], abs=1e-5), "one method more in the table"
    other = stated([one._replace(method="d") for one in effects if one.method == "a"], "train")
    assert p_of(adjusted([*rows, *other]))["a"] == p["a"], "another split is another table"


def test_families_needed_follow_from_spread_and_from_how_many_methods_are_tested():
    values = np.array([0.1, 0.14, 0.2, 0.36])
    effects = [effect(m, f"f{i}", v) for m in "abc" for i, v in enumerate(values)]
    effects += [effect("surrogate", f"f{i}", v) for i, v in enumerate(values)]
    found = {row.method: row.needed for row in stated(effects, "train") if row.scope == "families"}
    assert found["a"] == units_needed(values.mean(), values.std(ddof=1), 3) and found["surrogate"] is None
    assert {row.needed for row in stated(effects, "train") if row.scope == "tasks"} == {None}
    alone = [one for one in effects if one.method == "a"]
    assert said(alone, "families", method="a").needed == units_needed(values.mean(), values.std(ddof=1))


def test_each_kind_of_question_is_a_sentence_of_its_own():
    effects = [effect(m, f"{kind}{i}", 0.1 + by * x, kind)
               for m, by in (("a", 0.01), ("b", 0.05)) for kind in ("Localise", "Compare")
               for i, x in enumerate((-1.0, 0.0, 1.0))]  # fmt: skip
    naive = stats.ttest_1samp([0.09, 0.1, 0.11], 0.0).pvalue
    for kind in ("Localise", "Compare"):
        assert p_of(stated(effects, "train"), "kind", kind)["a"][1] == pytest.approx(2 * naive, abs=1e-5)


def test_a_verdict_is_of_the_corrected_p_and_says_so():
    """Five methods of p .02: each would be better alone."""
    values = np.array([0.1, 0.14, 0.2, 0.36])
    effects = [effect(m, f"f{i}", v) for m in "abcde" for i, v in enumerate(values)]
    row = said(effects, "families", method="a")
    assert row.low is not None and row.low > 0 and row.p is not None and row.p < 0.05
    assert row.p_holm == pytest.approx(5 * row.p, abs=1e-5) and row.verdict == "not distinguishable"
    assert "corrected by Holm" in row.sentence and "smallest visible" in row.sentence
    assert said([one for one in effects if one.method == "a"], "families", method="a").verdict == "better"


def test_ties_count_half_an_improvement():
    assert above_zero(np.array([0.1, 0.0, -0.1, 0.2])) == 0.625
    assert above_zero(np.zeros(3)) == 0.5


def test_rows_give_the_effects_and_the_first_sentence_is_the_leaderboards():
    tasks = [judged(), judged(0.5, 0.6, task=a_task("ablation_effect"))]
    rows = [task_row("mine", one) for one in tasks]
    found = effect_of(rows[1])
    assert (found.family, found.cluster, found.kind, found.answered) == ("ablation_effect",) * 2 + ("Localise", True)
    assert found.reward == (rows[1].reward_mean, rows[1].reward_se, rows[1].reward_df)
    row, first = leaderboard_row("mine", "train", tasks), on_these_tasks(rows, "train")
    assert (row.reward_mean, row.reward_low, row.reward_high) == pytest.approx((first.value, first.low, first.high))
    assert (row.verdict, row.noise_floor) == (first.verdict, first.noise_floor)
    assert statements(rows, "train")[0] == first, "alone there is nothing to correct"


def test_a_difference_without_shared_draws_has_the_largest_error_it_can_have():
    one, other = (task_row(name, judged(0.5, skill)) for name, skill in (("one", 0.8), ("other", 0.7)))
    bound = difference(one, other)
    assert bound.reward.value == pytest.approx(one.reward_mean - other.reward_mean)
    assert bound.reward.se == pytest.approx(one.reward_se + other.reward_se) and bound.against == "other"
    draws = judged(0.5, 0.8).reward - judged(0.5, 0.7).reward
    paired = difference(one, other, judged().estimate(draws), above_zero(draws[0]))
    assert paired.reward.se < bound.reward.se and paired.improvement == 1.0
    with pytest.raises(ValueError, match="two tasks"):
        difference(one, task_row("other", judged(task=a_task("ablation_effect"))))


@pytest.mark.parametrize("seed", range(30))
def test_the_gate_decides_as_the_table_does(seed: int):
    """One rule, one floor: a challenger is accepted exactly where the leaderboard would call it better."""
    rng = np.random.default_rng(seed)
    tasks = []
    for name in ("noise_flip", "ablation_effect", "early_exit"):
        one = judged(0.5, 0.5 + rng.uniform(-0.02, 0.05), 0.5, (0.5, 0.5, 0.5), task=a_task(name))
        one.reward[:] += rng.normal(0, 0.02, one.reward.shape)
        one.aa_reward[:] = rng.normal(0, 0.02, one.aa_reward.shape)
        tasks.append(one)
    row, found = leaderboard_row("m", "validation", tasks), Gate(1).decide(tasks, None)
    worse_somewhere = any(task_row("m", one).verdict == "worse" for one in tasks)
    assert found.accepted == (row.verdict == "better" and not worse_somewhere)
    assert (found.difference, found.low, found.high) == pytest.approx(
        (row.reward_mean, row.reward_low, row.reward_high), abs=1e-5
    )
    assert bool(found.harmed) == worse_somewhere


def test_sentences_say_where_what_and_how_much():
    row = said(LEAGUE, "tasks")
    assert row.sentence.startswith("on these 5 train tasks m is better than the agent alone: +0.192 [+0.184, +0.200]")
    assert said(LEAGUE, "families").where == "on families like these (4 train families)"
    assert said(LEAGUE, "kind", "Localise").where == "on questions of kind Localise (2 train families)"
    both = row.model_copy(update={"split": "validation+test", "against": "pca", "verdict": "worse"})
    assert both.sentence.startswith("on these 5 validation and test tasks m is worse than pca")
    idle = said([effect("m", "one", 0.0, answered=False)], "tasks")
    assert idle.sentence == "on this train task m changed nothing" and idle.verdict == "not distinguishable"

"""The table of fragments, the exact null, and researchers replayed on it."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from stages.errors import UserError
from stages.research.compare import compare, marks, profile, scaling, tabled
from stages.research.gate import FINEST
from stages.research.programs import table as tables
from stages.research.programs.exact import best_program, chance_of, contributions, null_of
from stages.research.programs.grammar import KINDS, NONE, Uniform, choices_of, draw, every_fragment, text_of
from stages.research.programs.table import Cell, Column, Table, load_table, table_file, tabulate
from stages.research.replay import Path as Found
from stages.research.replay import replay, seen_on_table
from stages.research.researcher import Move
from stages.research.researchers import make_researcher
from stages.research.researchers.policy import advantages, probabilities
from stages.research.view import Seen, TaskSeen, View
from stages.scoring.composed import Spec

COLUMNS = tuple(
    Column(task=f"{split}_{kind.lower()}.t", split=split, kind=kind)
    for split, kinds in (("train", ("Represent", "Localise", "Steer")), ("validation", ("Represent", "Compare")))
    for kind in kinds
)


def cell(fragment: str, task: str, reward: float, status: str = "ok") -> Cell:
    return Cell(
        fragment=fragment, task=task, status=status, reason="", reward=reward, low=reward, high=reward,
        noise_floor=0.004, gain=reward, flops=1.0, used_answer=0.5, n_seeds=3, cpu_s=0.1,
    )  # fmt: skip


def a_table(seed: int = 0, void: str = "") -> Table:
    """Rewards in which sources and roles matter, and some noise of the fragment."""
    rng = random.Random(seed)
    worth = {(kind, source): rng.gauss(0, 0.05) for kind, rules in KINDS.items() for source in rules.sources}
    roles = {role: rng.gauss(0, 0.02) for role in ("residual", "last", "mlp", "both")}
    cells = {}
    for column in COLUMNS:
        for one in every_fragment(column.kind):
            reward = 0.0
            if one.source != NONE:
                reward = worth[one.kind, one.source] + roles.get(one.values.get("roles", ""), 0.0) + rng.gauss(0, 0.01)
            status = "void" if one.source == void else "ok"
            key = text_of(one), column.task
            cells[key] = cell(*key, round(reward, 6), status)
    return Table(COLUMNS, cells)


@pytest.fixture(scope="module")
def known() -> Table:
    return a_table()


def test_chances_of_a_kind_sum_to_one():
    for kind in KINDS:
        assert sum(map(chance_of, every_fragment(kind))) == pytest.approx(1.0)


def test_the_null_is_what_drawing_gives(known):
    null = null_of(contributions(known, "train"))
    rng = random.Random(0)
    drawn = np.array([sum(one.reward for one in known.row(draw(Uniform(rng)), "train")) / 3 for _ in range(4000)])
    assert null.mass.sum() == pytest.approx(1.0)
    assert null.best_of(1) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / 4000**0.5)
    best = drawn.reshape(-1, 8).max(1)
    assert null.best_of(8) == pytest.approx(best.mean(), abs=4 * best.std() / len(best) ** 0.5)
    for value in np.quantile(drawn, [0.1, 0.5, 0.9]):
        assert null.below(float(value))[1] == pytest.approx((drawn <= value).mean(), abs=0.03)
        assert null.beats(float(value), 8) == pytest.approx((best < value).mean(), abs=0.09)


def test_the_optimum_is_reached_by_a_program_and_by_none_exceeded(known):
    best = best_program(known, "train")
    parts = contributions(known, "train")
    genome = draw(Uniform(random.Random(0))) | {kind: max(of, key=of.__getitem__) for kind, of in parts.items()}
    assert sum(one.reward for one in known.row(genome, "train")) / 3 == pytest.approx(best)
    null = null_of(parts)
    assert null.beats(best + 1e-3, 10**6) == pytest.approx(1.0) and null.best_of(10**9) <= best + 3e-5
    assert null.beats(-9.0, 3) == 0.0


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(ValueError, match="no kind of question has a task"):
        null_of({})


def test_a_replayed_view_is_rounded_as_the_gate_rounds_and_shows_train_rows_alone(known):
    genome = draw(Uniform(random.Random(3)))
    seen, train, validation, tasks, cpu_s = seen_on_table(known, 0, Move(Spec(), choices_of(genome)))
    assert np.mean(tasks) == pytest.approx(validation) and len(tasks) == 2 and cpu_s == pytest.approx(0.5)
    assert seen.feedback == pytest.approx(round(validation / FINEST) * FINEST) and seen.feedback != validation
    assert seen.value == pytest.approx((train + seen.feedback) / 2) and seen.train == pytest.approx(train)
    assert "validation_" not in seen.model_dump_json() and len(seen.tasks) == 3


def test_what_is_no_program_is_refused(known):
    with pytest.raises(UserError, match="holds programs of the grammar alone"):
        seen_on_table(known, 0, Move(Spec(gradient=True), {"gradient": True}))


@pytest.mark.parametrize("name", ["random", "programs", "policy"])
def test_a_replay_is_a_function_of_the_seed(name, known):
    paths = [replay(make_researcher(name, seed, "programs"), known, 20) for seed in (0, 0, 1)]
    assert paths[0] == paths[1] != paths[2]
    for path in paths:
        assert len(path.train) == len(path.validation) == 20 and path.train == sorted(path.train)


def test_breeding_beats_the_best_of_as_many_random_programs_and_random_does_not(known):
    found = compare(["random", "programs"], known, 48, 8, lambda said: None)
    rows = {(row.researcher, row.n): row for row in found.rows}
    assert {n for _, n in rows} == set(marks(48)) == {8, 16, 32, 48}
    assert (
        rows["programs", 48].better_low > 0.8
        and rows["random", 48].better_low < 0.5 < rows["random", 48].better_high + 0.2
    )
    assert rows["programs", 48].of_optimum > rows["random", 48].of_optimum
    for row in rows.values():
        assert row.better_low <= row.better <= row.better_high and row.train_low <= row.train <= row.train_high
    assert [one.n for one in found.null] == marks(48) and all(one.low < one.mean < one.high for one in found.null)
    assert found.optimum_train == pytest.approx(best_program(known, "train"), abs=1e-6)
    assert all(row.random_train == found.null[marks(48).index(n)].mean for (_, n), row in rows.items())
    speed = {row.researcher: row for row in found.scaling}
    assert speed["programs"].exponent > speed["random"].exponent > 0
    assert [one.cpu_s for one in speed["random"].points] == pytest.approx([0.5 * p.n for p in speed["random"].points])
    with pytest.raises(UserError, match="two researchers are called 'random'"):
        compare(["random", "random"], known, 2, 2, lambda said: None)


def test_what_the_table_says_of_a_task_is_counted_from_its_cells():
    task = COLUMNS[2]
    source = next(iter(KINDS["Steer"].sources))
    steer = a_table(void=source)
    row = tabled(steer, task)
    own = [one for (_, at), one in steer.cells.items() if at == task.task]
    rewards = sorted(one.reward for one in own if not one.fragment.startswith(f"Steer {source}"))
    assert (row.task, row.split, row.kind, row.fragments) == (task.task, "train", "Steer", len(own))
    assert row.answered == len(rewards) < len(own)
    assert row.beyond == sum(reward > 0.004 for reward in rewards)
    assert (row.median, row.best) == pytest.approx((np.median(rewards), rewards[-1]), abs=1e-6)
    assert steer.cells[row.fragment, task.task].reward == pytest.approx(row.best, abs=1e-6)
    nobody = Table(COLUMNS, {key: one.model_copy(update={"status": "declined"}) for key, one in steer.cells.items()})
    assert tabled(nobody, task).answered == 0 and tabled(nobody, task).fragment == ""


def test_quantiles_of_the_null_are_those_of_drawing(known):
    null = null_of(contributions(known, "train"))
    rng = random.Random(1)
    drawn = np.array([sum(one.reward for one in known.row(draw(Uniform(rng)), "train")) / 3 for _ in range(8000)])
    best = drawn.reshape(-1, 4).max(1)
    for q in (0.025, 0.5, 0.975):
        assert (best <= null.quantile(q, 4)).mean() == pytest.approx(q, abs=4 * (q * (1 - q) / len(best)) ** 0.5)


def a_path(train, tasks=(0.0,), per_proposal=2.0) -> Found:
    n = len(train)
    return Found(list(train), [0.0] * n, [0.0] * n, [tuple(tasks)] * n, [per_proposal * (i + 1) for i in range(n)])


def test_a_profile_counts_runs_above_each_reward():
    found = [a_path([0.0], tasks) for tasks in ((0.1, 0.3), (0.2, 0.2), (-0.1, 0.3))]
    taus = np.array([-0.2, 0.0, 0.1, 0.2, 0.3])
    rows = profile("me", found, taus)
    every = [one for path in found for one in path.chosen_tasks[-1]]
    assert [row.share for row in rows] == pytest.approx([sum(v > t for v in every) / 6 for t in taus], abs=1e-6)
    assert all(row.low <= row.share <= row.high for row in rows) and rows[0].low == 1 and rows[-1].high == 0
    # One seed of three holds a task below 0: over resamples the share is 1 - k/6, with k of three draws that seed.
    assert rows[1].low == pytest.approx(1 - 3 / 6) or rows[1].low == pytest.approx(1 - 2 / 6, abs=1e-6)


@pytest.mark.parametrize("exponent", [0.3, 1.0])
def test_a_power_law_is_found_and_its_curve_drawn(exponent):
    """Distance .5 * (CPU seconds) ^ -exponent from an optimum of .4, two seconds a proposal."""
    train = [0.4 - 0.5 * (2 * (i + 1)) ** -exponent for i in range(100)]
    row = scaling("me", [a_path(train), a_path(train)], 0.4)
    assert row.exponent == pytest.approx(exponent, abs=1e-4) == row.exponent_low == row.exponent_high
    assert row.factor == pytest.approx(0.5, abs=1e-4) and row.points[0].n == 1 and row.points[-1].n == 100
    assert all(point.fitted == pytest.approx(point.train, abs=1e-5) for point in row.points)
    assert all(point.cpu_s == 2 * point.n for point in row.points)


def test_no_curve_is_fitted_to_what_is_at_the_optimum():
    row = scaling("me", [a_path([0.1, 0.2, *[0.4] * 30])] * 2, 0.4)
    assert row.exponent is None and row.factor is None and {point.fitted for point in row.points} == {None}


def test_a_policy_learns_and_its_theta_is_a_fold_over_results(known):
    taught = make_researcher("policy", 0)
    path = replay(taught, known, 240)
    rng = random.Random(1)
    late = [draw_by(taught, i) for i in range(200)]
    mean = sum(sum(one.reward for one in known.row(genome, "train")) / 3 for genome in late) / 200
    chance = sum(sum(one.reward for one in known.row(draw(Uniform(rng)), "train")) / 3 for _ in range(200)) / 200
    assert mean > chance + 0.02 and path.train[-1] <= best_program(known, "train") + 1e-9
    text = json.dumps(taught.theta(), sort_keys=True)
    again = make_researcher("policy", 0)
    replay(again, known, 240)
    assert json.dumps(again.theta(), sort_keys=True) == text
    moved = taught.theta()["kl_from_uniform"]
    assert isinstance(moved, list) and len(moved) == 30 and moved[-1] > moved[0] > 0


def draw_by(policy, slot: int):
    from stages.research.programs.grammar import genome_of

    return genome_of(policy.propose(View(slot=slot, seen=(), pending=()), 10_000 + slot).choices)


def told(slot: int, choices, value: float | None, rewards: dict[str, float]) -> Seen:
    numbers = {"low": 0.0, "high": 0.0, "noise_floor": 0.0, "gain": 0.0, "flops": 0.0, "used_answer": 0.0}
    tasks = tuple(
        TaskSeen(task=kind, kind=kind, status="ok", reason="", reward=reward, **numbers)
        for kind, reward in rewards.items()
    )
    return Seen(
        slot=slot, spec={}, choices=choices, operator="sample", parents=(), name="x",
        status="void" if value is None else "ok", reason="", feedback=value, value=value, accepted=False,
        tasks=tasks, interpret_bytes=0, judged=0,
    )  # fmt: skip


def test_void_and_infra_are_in_no_gradient():
    """Seven results and one without a score: the same theta whatever the eighth one chose, and as if it earned much."""
    genomes = [choices_of(draw(Uniform(random.Random(i)))) for i in range(9)]
    found = []
    for last in (7, 8):
        policy = make_researcher("policy", 0)
        for slot in range(7):
            policy.update(told(slot, genomes[slot], 0.1 * slot, {"Represent": 0.1 * slot, "Localise": -0.1 * slot}))
        policy.update(told(7, genomes[last], None, {"Represent": 99.0}))
        found.append(policy.logits)
    assert found[0] == found[1] and any(any(logits) for logits in found[0].values())


def test_a_batch_that_is_not_whole_is_not_learned_from():
    policy = make_researcher("policy", 0)
    for slot in range(7):
        policy.update(told(slot, choices_of(draw(Uniform(random.Random(slot)))), 0.1 * slot, {}))
    assert not any(any(logits) for logits in policy.logits.values()) and len(policy.trials) == 7


def test_one_step_is_the_gradient_by_hand():
    """Two results that differ in one source: its logit rises, the other's falls, by the leave-one-out advantage."""
    policy = make_researcher("policy", 0)
    base = {"Represent.source": "outputs", "Represent.outputs.read": "plain"}
    other = {"Represent.source": "lens", "Represent.lens.pool": "mean", "Represent.lens.beside": "alone"}
    policy._step([told(0, base, 1.0, {"Represent": 1.0}), told(1, other, 0.0, {"Represent": 0.0})])
    logits = dict(zip(KINDS["Represent"].sources, policy.logits["Represent.source"], strict=True))
    assert advantages([1.0, 0.0], 0.0) == [1.0, -1.0]
    assert logits["outputs"] == pytest.approx(2.0 * 0.5) and logits["lens"] == pytest.approx(-1.0)
    assert logits["noise"] == pytest.approx(0.0), "the two gradients cancel where neither chose"


def test_advantages_are_cut_where_far_out_and_noise_is_not_blown_up():
    assert advantages([0.5], 0.0) == [0.0]
    found = advantages([0.0, 0.1, 0.2, 0.3, 9.0], 0.0)
    plain = [0.0, 0.1, 0.2, 0.3, 9.0]
    assert max(found) < 4 * (max(plain) / 9.0) and found == sorted(found)
    assert max(map(abs, advantages([0.0, 0.001], 0.1))) == pytest.approx(0.01)
    assert probabilities([0.0, math.log(3.0)]) == pytest.approx([0.25, 0.75])


def test_a_void_program_teaches_a_replay_nothing():
    table = a_table(void="outputs")
    genome = draw(Uniform(random.Random(0))) | {"Represent": next(iter(every_fragment("Represent")))}
    seen = seen_on_table(table, 0, Move(Spec(), choices_of(genome))).seen
    assert (seen.status, seen.value, seen.feedback, seen.tasks) == ("void", None, None, ())


def test_a_table_is_measured_bit_by_bit_and_goes_on_where_it_was(graph):
    said: list[str] = []
    with pytest.raises(UserError, match="lensmith tabulate"):
        load_table()
    assert len(tabulate(said.append, limit=2).cells) == 2
    first = table_file().read_bytes()
    table_file().write_bytes(first + b'{"fragment": "torn')
    table = tabulate(said.append, limit=1)
    assert (
        table_file().read_bytes().startswith(first)
        and len(table.cells) == 3
        and b"torn" not in table_file().read_bytes()
    )
    assert load_table(whole=False).cells == table.cells and {one.task for one in table.cells.values()} == {
        "active_learning.digits_mlp"
    }
    assert {column.split for column in table.columns} == {"train", "validation"}
    assert not any("prompt_optimum" in line for line in table_file().read_text(encoding="utf-8").splitlines())
    with pytest.raises(UserError, match=r"lacks \d+ of its cells"):
        load_table()


def test_a_table_of_other_settings_is_refused(graph: Path):
    tabulate(lambda said: None, limit=1)
    params = graph / "params" / "execution.yaml"
    text = params.read_text(encoding="utf-8")
    params.unlink()
    params.write_text(text.replace("n_seeds: 3", "n_seeds: 4"), encoding="utf-8")
    with pytest.raises(UserError, match="measured with other settings"):
        load_table()


def test_a_cell_is_what_the_campaign_would_measure(graph, tmp_path):
    """In this process and in the sandbox, the same fragment has the same reward."""
    from stages.research.programs.emitting import alone, source_of
    from stages.scoring.candidate import Candidate
    from stages.scoring.evaluate import evaluate
    from stages.scoring.judge import host_of, judge_arms
    from stages.scoring.settings import settings
    from stages.tasks.storage import list_tasks

    fragment, chosen, tasks = every_fragment("Represent")[10], settings(), list_tasks("train")
    (made,) = tables.measure(fragment, tables.columns_here(), chosen)
    candidate = Candidate("program", source_of(alone(fragment)))
    found = evaluate(candidate, tasks, host_of(candidate, chosen), chosen.execution)
    (judged,) = judge_arms(found.arms, tasks, chosen.reward)
    assert made.reward == pytest.approx(float(judged.reward[0].mean()), abs=1e-6)

"""The tables of the page: which columns, in which words."""

from collections.abc import Sequence
from typing import Any

from stages.report.results import Row
from stages.report.tables import Cell, Column, Table, table
from stages.report.wording import (
    DASH,
    flops,
    interval,
    number,
    placebo_note,
    ratio,
    score,
    signed,
    spec_text,
    spread,
    task,
)

__all__ = ["campaign_table", "controls_table", "dictionary_table", "failures", "leaderboard_table", "task_table"]

VERDICTS = {"better": "good", "worse": "bad"}


def _status(text: str, reason: str = "") -> Cell:
    kind = {"ok": "", "declined": "quiet"}.get(text, "bad")
    return Cell(f"{text}: {reason}" if reason else text, text, kind)


def _verdict(row: Row) -> Cell:
    return Cell(row["verdict"], row["verdict"], VERDICTS.get(row["verdict"], "quiet"))


def leaderboard_table(rows: Sequence[Row], caption: str, first: Sequence[Column] = ()) -> Table:
    """Everything a leaderboard row says."""
    place = {id(row): i + 1 for i, row in enumerate(rows)}

    def gain(row: Row) -> Cell:
        text = (
            f"{signed(row['performance_gain'])} {interval(row['performance_gain_low'], row['performance_gain_high'])}"
        )
        return Cell(text, row["performance_gain"])

    def placebo(row: Row) -> Cell:
        text = f"{signed(row['placebo_reward'])} {interval(row['placebo_low'], row['placebo_high'])}"
        return Cell(text, row["placebo_reward"])

    def outcome(row: Row) -> Cell:
        parts = [
            f"{row[key]} {word}" for key, word in (("n_declined", "declined"), ("n_failed", "failed")) if row.get(key)
        ]
        return _status(row["status"], f"{', '.join(parts)} of {row['n_tasks']} tasks" if parts else "")

    columns = [
        *first,
        Column("#", lambda row: Cell(str(place[id(row)]), place[id(row)]), True),
        Column("method", lambda row: Cell(row["method"], row["method"], "name")),
        Column(
            "reward [95%]",
            lambda row: Cell(
                f"{signed(row['reward_mean'])} {interval(row['reward_low'], row['reward_high'])}", row["reward_mean"]
            ),
            True,
        ),
        Column("verdict", _verdict),
        Column("score gained [95%]", gain, True),
        Column(
            "FLOP ratio",
            lambda row: Cell(ratio(row["flop_ratio"]), row["flop_ratio"]),
            True,
            "assisted / baseline, geometric mean over tasks",
        ),
        Column("placebo [95%]", placebo, True, "same interface and price, its answers dealt to other rows"),
        Column(
            "against its placebo",
            lambda row: Cell(placebo_note(row) if row["verdict"] == "better" else DASH, "", "quiet"),
        ),
        Column(
            "worst task",
            lambda row: Cell(f"{signed(row['worst_task_reward'])} {task(row['worst_task'])}", row["worst_task_reward"]),
            True,
        ),
        Column("noise floor", lambda row: Cell(number(row["noise_floor"]), row["noise_floor"]), True),
        Column(
            "n",
            lambda row: Cell(
                f"{row['n_tasks']} tasks, {row['n_seeds']} seeds, {row['n_instances']} instances", row["n_instances"]
            ),
            True,
        ),
        Column("status", outcome),
    ]
    return table(caption, columns, rows)


def task_table(rows: Sequence[Row]) -> Table:
    """Every method on every task, all three arms."""

    def arm(prefix: str) -> Column:
        name = prefix.removesuffix("_score")
        return Column(f"{name} [95%]", lambda row: Cell(score(row, prefix), row[f"{prefix}_mean"]), True)

    def of(prefix: str, name: str) -> Column:
        def cell(row: Row) -> Cell:
            text = f"{signed(row[f'{prefix}_mean'])} {interval(row[f'{prefix}_low'], row[f'{prefix}_high'])}"
            return Cell(text, row[f"{prefix}_mean"])

        return Column(f"{name} [95%]", cell, True)

    columns = [
        Column("task", lambda row: Cell(f"{row['family']} on {row['target']}", "", "name")),
        Column("split", lambda row: row["split"]),
        Column("method", lambda row: row["method"]),
        arm("baseline_score"),
        arm("assisted_score"),
        arm("placebo_score"),
        of("reward", "reward"),
        of("placebo_reward", "placebo reward"),
        Column("verdict", _verdict),
        Column(
            "FLOPs, assisted / baseline",
            lambda row: Cell(f"{flops(row['flops_assisted'])} / {flops(row['flops_baseline'])}", row["flop_ratio"]),
            True,
            "charged per evaluated instance; sorted by their ratio",
        ),
        Column(
            "answer used",
            lambda row: Cell(f"{100 * row['used_answer']:.0f}%", row["used_answer"]),
            True,
            "share of seeds in which the executor preferred the method's answer",
        ),
        Column(
            "n", lambda row: Cell(f"{row['n_instances']} instances, {row['n_seeds']} seeds", row["n_instances"]), True
        ),
        Column("status", lambda row: _status(row["status"])),
    ]
    return table("Every method on every task", columns, rows)


def campaign_table(iterations: Sequence[Row]) -> Table:
    def validation(row: Row) -> Cell:
        if row["status"] != "ok":
            return Cell(DASH, float("-inf"))
        low, high = row.get("validation_low"), row.get("validation_high")
        return Cell(f"{signed(row['validation_reward'])} {interval(low, high)}", row["validation_reward"])

    def train(row: Row) -> Cell:
        known = row["status"] == "ok" and row.get("train_reward") is not None
        return Cell(signed(row["train_reward"]) if known else DASH, row["train_reward"] if known else float("-inf"))

    def size(row: Row) -> Cell:
        known = isinstance(row.get("interpret_bytes"), int)
        return Cell(
            f"{row['interpret_bytes'] / 1000:,.1f} kB" if known else DASH, row["interpret_bytes"] if known else -1
        )

    columns = [
        Column("#", lambda row: Cell(str(row["iteration"]), row["iteration"]), True),
        Column("name", lambda row: Cell(row["name"], row["name"], "name")),
        Column("validation [95%]", validation, True, "as released by the gate: rounded"),
        Column("train", train, True),
        Column("accepted", lambda row: Cell("accepted", "a", "good") if row.get("accepted") else Cell(DASH, "b")),
        Column("FLOP ratio", lambda row: Cell(ratio(row.get("flop_ratio")), row.get("flop_ratio") or 0.0), True),
        Column("size of I(M)", size, True),
        Column("status", lambda row: _status(row["status"], row.get("reason") or "")),
        Column("spec", lambda row: Cell(spec_text(row.get("spec")), "", "spec")),
    ]
    return table("Iterations of the campaign", columns, iterations)


def controls_table(rows: Sequence[Row]) -> Table:
    def found(row: Row) -> Cell:
        bounds = f" {interval(row['low'], row['high'])}" if "low" in row else ""
        return Cell(f"{signed(row['value'])}{bounds}", row["value"])

    columns = [
        Column("control", lambda row: Cell(row["control"], row["control"], "name")),
        Column("expected", lambda row: row["expected"]),
        Column("found [95%]", found, True),
        Column("", lambda row: Cell("passed", "b", "good") if row["passed"] else Cell("FAILED", "a", "bad")),
        Column("note", lambda row: row.get("detail", "")),
    ]
    return table("Controls", columns, rows)


def fresh_table(rows: Sequence[Row], caption: str) -> Table:
    """Scores on the old instances against new ones; the method's worst news is a gap whose interval lies above 0."""

    def of(key: str, signs: bool = False) -> Column:
        def cell(row: Row) -> Cell:
            known = row.get(key) is not None
            text = (signed(row[key]) if signs else number(row[key])) if known else DASH
            return Cell(text, row[key] if known else float("-inf"))

        return Column(key, cell, True)

    def gap(row: Row) -> Cell:
        if row.get("gap") is None:
            return Cell(DASH, float("-inf"))
        text = f"{signed(row['gap'])} {interval(row['gap_low'], row['gap_high'])}"
        return Cell(text, row["gap"], "bad" if row["gap_low"] > 0 else "")

    columns = [
        Column("method", lambda row: Cell(row["method"], row["method"], "name")),
        Column("task", lambda row: row["task"]),
        of("old"),
        of("fresh"),
        Column("gap [95%]", gap, True, "old minus fresh; red where the interval lies above 0"),
        Column("outcome", lambda row: _status(row["outcome"], row.get("reason") or "")),
    ]
    return table(caption, columns, rows)


def dictionary_table(rows: Sequence[Row]) -> Table:
    """Metrics of saved dictionaries, the null beside each."""

    def metric(key: str, name: str, places: int = 3, hint: str = "") -> Column:
        def cell(row: Row) -> Cell:
            value: Any = row.get(key) or {}
            if value.get("value") is None:
                return Cell(DASH, float("-inf"))
            text = number(value["value"], places)
            if value.get("low") is not None:
                text += f" {spread(value['low'], value['high'], places)}"
            if value.get("null") is not None and row["architecture"] != "random":
                text += f" null {number(value['null'], places)}"
            return Cell(text, value["value"])

        return Column(name, cell, True, hint)

    columns = [
        Column("target", lambda row: Cell(row["target"], row["target"], "name")),
        Column("hook point", lambda row: row["hook_point"]),
        Column("architecture", lambda row: row["architecture"]),
        Column("sparsity", lambda row: Cell(f"{row['sparsity']:g}", row["sparsity"]), True, "L1 coefficient or k"),
        Column("seed", lambda row: Cell(str(row["seed"]), row["seed"]), True),
        Column("latents", lambda row: Cell(str(row["n_latents"]), row["n_latents"]), True),
        metric("l0", "L0", 1, "latents active per row"),
        metric("explained_variance", "explained variance"),
        metric("loss_recovered", "loss recovered", 3, "of the loss that zero ablation costs"),
        metric("dead_ratio", "dead", 3, "share of latents that never fire on held-out rows"),
        metric("monosemanticity", "monosemanticity"),
        metric("class_purity", "class purity"),
        metric("probe_1_sparse", "probe, 1 latent"),
        metric("probe_5_sparse", "probe, 5 latents"),
        metric("probe_full", "probe, all latents"),
        metric("probe_raw", "probe, activations"),
        Column(
            "n",
            lambda row: Cell(
                f"{row['n_validation_rows']} rows, {row['n_validation_examples']} examples", row["n_validation_rows"]
            ),
            True,
        ),
    ]
    known = [c for c in columns if any(c.cell(row) not in (Cell(DASH, float("-inf")),) for row in rows)]
    return table("Dictionaries on held-out rows", known, rows)


def failures(per_task: Sequence[Row], campaign: Row, controls: Sequence[Row]) -> list[dict[str, str]]:
    """What failed, where and why, in one line each."""
    out = [
        {
            "what": f"method {row['method']}",
            "where": f"{row['family']} on {row['target']}",
            "why": row.get("reason") or DASH,
        }
        for row in per_task
        if row["status"] == "failed"
    ]
    out += [
        {
            "what": f"iteration {row['iteration']}, {row['name']}",
            "where": f"campaign {campaign.get('campaign', '')}, {row['status']}",
            "why": row.get("reason") or DASH,
        }
        for row in campaign.get("iterations", ())
        if row["status"] != "ok"
    ]
    out += [
        {
            "what": f"control {row['control']}",
            "where": f"expected: {row['expected']}",
            "why": f"found {signed(row['value'])}",
        }
        for row in controls
        if not row["passed"]
    ]
    return out

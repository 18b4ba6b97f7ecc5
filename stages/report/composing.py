"""Results -> the page: what each section shows, and what it says where there is nothing to show."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from stages.report import circuits, exploring, latents, listing, proxies, sweeps, wording
from stages.report.comparing import arms, cost_curve, forest, pareto, pareto_front, task_caption
from stages.report.drawing import Plot
from stages.report.results import Results, Row
from stages.report.tables import Cell, Column

__all__ = ["render"]

PAGE = Path(__file__).parent / "page"
ORACLE = "oracle"
"""The control that is given the truth; it is in the tables, and would dwarf the others in a plot."""
SPLITS = {"validation": 0, "test": 1, "train": 2}


def render(results: Results, n_gallery: int = 12, max_failures: int = 100) -> str:
    """The whole page, one self-contained HTML file.

    Args:
        results: what there is.
        n_gallery: latents shown per dictionary.
        max_failures: failures listed one by one.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    board = _ranked(results.leaderboard)
    per_task = [*results.per_task, *results.test_per_task]
    failed = listing.failures(per_task, results.campaign, results.controls)
    text: str = environment.get_template("index.html").render(
        style=Markup((PAGE / "page.css").read_text(encoding="utf-8")),
        script=Markup("".join((PAGE / name).read_text(encoding="utf-8") for name in ("page.js", "latents.js"))),
        results=results,
        lacks={note.name: note for note in results.missing},
        summary=wording.summary(board) if board else None,
        flop_weight=results.sensitivity.get("default", {}).get("flop_weight"),
        facts=_facts(results, board),
        board=_board(board, "Methods on validation families"),
        train=_board(_ranked(results.train), "Methods on train families"),
        tasks=_tasks(per_task, [row["method"] for row in board]),
        task_table=listing.task_table(per_task) if per_task else None,
        pareto=_pareto(board, results.per_task),
        costs=_costs(per_task, [row["method"] for row in board]),
        campaign=_campaign(results.campaign),
        test=_test(results),
        sensitivity=_sensitivity(results.sensitivity),
        controls=listing.controls_table(results.controls) if results.controls else None,
        n_passed=sum(bool(row["passed"]) for row in results.controls),
        dictionaries=_dictionaries(results.dictionaries),
        explorer=latents.explorer(results.galleries, n_gallery),
        fresh=_fresh(results.fresh),
        proxies=_proxies(results.proxies),
        circuits=circuits.circuit_table(results.circuits) if results.circuits else None,
        drawings=_drawings(results.drawings),
        fates=circuits.FATES,
        failures=failed[:max_failures],
        n_failures=len(failed),
        declined=[(row["method"], row["n_declined"], row["n_tasks"]) for row in board if row.get("n_declined")],
    )
    return re.sub(r"\n\s*\n+", "\n", text).strip() + "\n"


def _ranked(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (-row["reward_mean"], str(row["method"])))


def _drawn(plot: Plot) -> dict[str, Any]:
    return {"svg": Markup(plot.svg()), "n_marks": plot.n_marks}


def _facts(results: Results, board: Sequence[Row]) -> list[dict[str, str]]:
    """The few numbers worth a glance."""
    facts = []
    if board:
        n = sum(row["verdict"] == "better" for row in board)
        facts.append(
            {"name": "methods that help", "value": f"{n} of {len(board)}", "note": "better, on validation families"}
        )
        best = board[0]
        low, high = best["performance_gain_low"], best["performance_gain_high"]
        facts.append(
            {
                "name": f"score gained, {best['method']}",
                "value": wording.signed(best["performance_gain"]),
                "note": f"{wording.interval(low, high)} at {wording.ratio(best['flop_ratio'])} of the FLOPs",
            }
        )
        facts.append(
            {
                "name": f"worst task, {best['method']}",
                "value": wording.signed(best["worst_task_reward"]),
                "note": wording.task(best["worst_task"]),
            }
        )
    incumbent = results.campaign.get("incumbent")
    if incumbent:
        built_in = results.campaign.get("best_built_in")
        against = f"; best built-in {wording.signed(built_in['reward_mean'])}" if built_in else ""
        its = [one for one in results.campaign["iterations"] if one["iteration"] == incumbent["iteration"]]
        one: Row = its[0] if its else {}
        against = f"{wording.interval(one.get('validation_low'), one.get('validation_high'))}{against}"
        value = wording.signed(incumbent["validation_reward"])
        facts.append({"name": "found by the campaign", "value": value, "note": against})
    if results.controls:
        n = sum(bool(row["passed"]) for row in results.controls)
        facts.append(
            {"name": "controls passed", "value": f"{n} of {len(results.controls)}", "note": "must come out right"}
        )
    return facts


def _reward(row: Row) -> str:
    return f"{wording.signed(row['reward_mean'])} {wording.interval(row['reward_low'], row['reward_high'])}"


def _board(rows: Sequence[Row], caption: str) -> dict[str, Any] | None:
    if not rows:
        return None
    return {
        "plot": _drawn(forest(rows)),
        "table": listing.leaderboard_table(rows, caption),
        "n": wording.sample(rows[0]),
        "floor": wording.number(max(row["noise_floor"] for row in rows)),
    }


def _tasks(per_task: Sequence[Row], order: Sequence[str]) -> list[dict[str, Any]]:
    """One panel per task, validation first; methods in the order of the leaderboard."""
    place = {method: i for i, method in enumerate(order)}
    # The oracle is far above all others: it would leave them no room.
    shown = [row for row in per_task if row["method"] != ORACLE]
    return [
        {
            "split": split,
            "family": family.replace("_", " "),
            "target": target,
            "caption": task_caption(rows[0]),
            "plot": _drawn(arms(sorted(rows, key=lambda row: (place.get(row["method"], 99), row["method"])))),
        }
        for (split, family, target), rows in _by_task(shown)
    ]


def _pareto(board: Sequence[Row], per_task: Sequence[Row]) -> dict[str, Any] | None:
    if not board:
        return None
    ratios: dict[str, list[float]] = {}
    for row in per_task:
        if row["split"] == board[0]["split"]:
            ratios.setdefault(row["method"], []).append(row["flop_ratio"])
    ranges = {method: (min(values), max(values)) for method, values in ratios.items()}
    front = pareto_front([(1.0, 0.0), *((row["flop_ratio"], row["performance_gain"]) for row in board)])
    legend = [
        {
            "place": i + 1,
            "method": row["method"],
            "gain": wording.signed(row["performance_gain"]),
            "interval": wording.interval(row["performance_gain_low"], row["performance_gain_high"]),
            "ratio": wording.ratio(row["flop_ratio"]),
            "on_front": i + 1 in front,
        }
        for i, row in enumerate(board)
    ]
    return {"plot": _drawn(pareto(board, ranges)), "legend": legend, "n": wording.sample(board[0])}


def _costs(per_task: Sequence[Row], order: Sequence[str]) -> list[dict[str, Any]]:
    """Score against FLOPs of each task, validation first; only where the agent worked at several budgets."""
    places = {method: i + 1 for i, method in enumerate(order)}
    rows = [row for row in per_task if row.get("by_budget") and row["method"] != ORACLE]
    return [
        {"split": split, "family": family.replace("_", " "), "target": target, "plot": _drawn(cost_curve(of, places))}
        for (split, family, target), of in _by_task(rows)
    ]


def _by_task(rows: Sequence[Row]) -> list[tuple[tuple[str, str, str], list[Row]]]:
    """Rows of each (split, family, target), validation first."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["split"], row["family"], row["target"]), []).append(row)
    return sorted(groups.items(), key=lambda item: (SPLITS.get(item[0][0], 9), item[0]))


def _campaign(campaign: Row) -> dict[str, Any] | None:
    iterations = campaign.get("iterations")
    if not iterations:
        return None
    incumbent = campaign.get("incumbent")
    return {
        "plot": _drawn(exploring.campaign_curve(campaign)),
        "table": listing.campaign_table(iterations),
        "n": len(iterations),
        "n_ok": sum(one["status"] == "ok" for one in iterations),
        "n_accepted": sum(bool(one["accepted"]) for one in iterations),
        "researcher": campaign.get("researcher", ""),
        "seed": campaign.get("seed", ""),
        "name": campaign.get("campaign", ""),
        "incumbent": incumbent,
        "incumbent_reward": wording.signed(incumbent["validation_reward"]) if incumbent else "",
        "incumbent_spec": wording.spec_text(incumbent.get("spec")) if incumbent else "",
        "built_in": campaign.get("best_built_in"),
        "built_in_reward": wording.signed((campaign.get("best_built_in") or {}).get("reward_mean")),
    }


def _test(results: Results) -> dict[str, Any] | None:
    if not results.test:
        return None
    last = max(row.get("opening", 0) for row in results.test)
    opened = [row for row in results.test if row.get("opening", 0) == last]
    rows = _ranked([row for row in opened if row["method"] != ORACLE])
    oracle = next((row for row in opened if row["method"] == ORACLE), None)
    if not rows:
        return None
    every = [row for n in sorted({row.get("opening", 0) for row in results.test}, reverse=True)
             for row in _ranked([row for row in results.test if row.get("opening", 0) == n])]  # fmt: skip
    opening = Column("opening", lambda row: Cell(str(row.get("opening", "")), row.get("opening", 0)), True)
    place = next((i for i, row in enumerate(rows) if row.get("found")), None)
    found = None
    if place is not None:
        row = rows[place]
        found = f"The campaign's best, {row['method']}, is number {place + 1} of {len(rows)}:"
        found = f"{found} {_reward(row)}, {row['verdict']}."
    return {
        "plot": _drawn(forest(rows)),
        "summary": wording.summary(rows),
        "table": listing.leaderboard_table(every, "Methods on the sealed test families", [opening]),
        "openings": results.campaign.get("openings") or [],
        "last": last,
        "found": found,
        "oracle": _reward(oracle) if oracle else "",
    }


def _sensitivity(values: Row) -> dict[str, Any] | None:
    """Rank of each method (rows) under each form and weight (columns), with how far the order moved."""
    if not values.get("rows"):
        return None
    default = (values["default"]["form"], values["default"]["flop_weight"])
    taus = {(row["form"], row["flop_weight"]): row["kendall_tau"] for row in values["kendall_tau"]}
    forms = [default[0], *sorted({form for form, _ in taus} - {default[0]})]
    columns = sorted(taus, key=lambda key: (forms.index(key[0]), key[1]))
    cells = {(row["method"], row["form"], row["flop_weight"]): row for row in values["rows"]}
    methods = sorted({row["method"] for row in values["rows"]}, key=lambda m: (cells[(m, *default)]["rank"], m))
    n = max(len(methods), 2)
    return {
        "forms": [(form, sum(key[0] == form for key in columns)) for form in forms],
        "columns": [{"weight": f"{key[1]:g}", "default": key == default} for key in columns],
        "rows": [
            {
                "method": method,
                "cells": [
                    {
                        "rank": cells[(method, *key)]["rank"],
                        "heat": round(100 * (n - cells[(method, *key)]["rank"]) / (n - 1)),
                        "reward": wording.signed(cells[(method, *key)]["reward_mean"]),
                        "default": key == default,
                    }
                    for key in columns
                ],
            }
            for method in methods
        ],
        "taus": [wording.number(taus[key], 2) for key in columns],
        "lowest": wording.number(min(taus.values()), 2),
        "default": f"{default[0]}, \u03bb = {default[1]:g}",
        "n_marks": len(methods) * len(columns),
    }


def _dictionaries(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Per hook point one panel per metric; a metric that no row has is said to be missing."""
    if not rows:
        return None
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["target"], row["hook_point"]), []).append(row)
    kept = [row for of in groups.values() for row in of if row["seed"] == min(one["seed"] for one in of)]
    style = sweeps.styles(str(row["architecture"]) for row in rows)
    places = []
    for (target, hook), of in sorted(groups.items()):
        drawn = [(metric, title, sweeps.sweep(of, metric, title, style)) for metric, title in sweeps.PANELS]
        places.append(
            {
                "target": target,
                "hook_point": hook,
                "small": any(row.get("loss_recovered_small_denominator") for row in of),
                "panels": [
                    {"metric": metric, "title": title, "plot": _drawn(plot) if plot else None}
                    for metric, title, plot in drawn
                ],
            }
        )
    return {
        "places": places,
        "kept": listing.dictionary_table(kept),
        "every": listing.dictionary_table(rows) if len(rows) > len(kept) else None,
        "n_seeds": len({row["seed"] for row in rows}),
        "legend": [(name, Markup(sweeps.key(one))) for name, one in style.items()],
    }


def _fresh(rows: Sequence[Row]) -> dict[str, Any] | None:
    if not rows:
        return None
    over_all = [row for row in rows if row["task"] == "all"]
    each = [row for row in rows if row["task"] != "all"]
    answered = [row for row in over_all if row.get("gap") is not None]
    return {
        "table": listing.fresh_table(over_all, "Old instances against fresh ones, over all tasks"),
        "every": listing.fresh_table(each, "Old instances against fresh ones, task by task"),
        "n": len(answered),
        "n_worse": sum(row["gap_low"] > 0 for row in answered),
    }


def _proxies(rows: Sequence[Row]) -> dict[str, Any] | None:
    if not rows:
        return None
    ordered = proxies.ranked(rows)
    targets = sorted({str(row.get("target", "")) for row in ordered})
    return {
        "panels": [
            (name, _drawn(proxies.proxy_forest([row for row in ordered if str(row.get("target", "")) == name])))
            for name in targets
        ],
        "table": proxies.proxy_table(ordered),
        "n_clear": sum(_excludes_zero(row.get("spearman") or {}) for row in ordered),
        "n": len(ordered),
    }


def _excludes_zero(value: Row) -> bool:
    low, high = value.get("low"), value.get("high")
    return low is not None and high is not None and low * high > 0


def _drawings(drawings: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "title": one.get("title", "circuit"),
            "svg": Markup(circuits.draw_circuit(one)),
            "note": one.get("note", ""),
            "counts": circuits.fates(one["edges"]),
        }
        for one in drawings
    ]

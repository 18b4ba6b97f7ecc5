"""Stage ``proxies``: which metric of a dictionary predicts the reward of the method built on it?

Joins the metrics of the kept and of the swept dictionaries of all targets, and the rewards of stage ``downstream``,
into metrics/dictionaries.json; correlates each metric with the reward into metrics/proxies.json.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stages.base import paths
from stages.base.files import save_json
from stages.base.params import load, names
from stages.dictionaries.evaluation.rows import order_of
from stages.errors import UserError
from stages.proxies.correlation import correlate
from stages.proxies.settings import REWARD, Config

__all__ = ["Config", "main", "run", "summarise"]

Row = dict[str, Any]
NOT_PROXIES = ("probe_raw", "description_length_raw", "loss_clean", "loss_ablated")
"""Metrics that say nothing about the dictionary itself are the same in every row."""


def summarise(targets: Sequence[str]) -> list[Row]:
    """Join metrics.json of the kept and of the swept dictionaries of all targets into metrics/dictionaries.json.

    A dictionary of the sweep that is one of the kept ones stands there once, as the kept one. Where a method was built
    on it, ``reward`` (of that method, which reads all hook points) and ``answer_flops`` stand in its row.

    Raises:
        UserError: a target's metrics are missing.
    """
    rows: list[Row] = []
    for name in sorted(targets):
        for folder, stage in ((paths.dictionaries_dir(name), "dictionaries"), (paths.sweep_dir(name), "sweep")):
            file = paths.require(folder / "metrics.json", stage)
            known = {order_of(row) for row in rows}
            rows += [row for row in json.loads(file.read_text(encoding="utf-8")) if order_of(row) not in known]
        file = paths.require(paths.downstream_file(name), "downstream")
        rewards = {_method_of(row): row for row in json.loads(file.read_text(encoding="utf-8"))}
        for row in rows:
            if row["target"] == name and (found := rewards.get(_method_of(row))):
                row |= {"reward": found["reward"], "answer_flops": found["flops"]}
    rows.sort(key=order_of)
    out = paths.metrics_file("dictionaries")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_json(out, rows)
    return rows


def _method_of(row: Row) -> tuple[str, float, int, int]:
    """What a dictionary has in common with those at other hook points that make up one method with it."""
    return row["architecture"], row["sparsity"], row["n_latents"], row["seed"]


def run(config: Config) -> list[Row]:
    """Stage ``proxies``: correlate every metric with the reward, over the trained dictionaries.

    Returns:
        Rows {"metric", "target" ("all": pooled, ranks within targets), "n", "n_groups", "spearman", "partial_l0",
        "partial_compute": {"value", "low", "high", "null"}}, strongest first within a target; null where
        the metric or the reward never varies.

    Raises:
        UserError: no dictionary has a reward.
    """
    file = paths.require(paths.metrics_file("dictionaries"), "proxies")
    methods = list(_methods(json.loads(file.read_text(encoding="utf-8"))))
    if not methods:
        raise UserError(f"no dictionary in {file} has a reward: no family is about a target of the sweep")
    targets = sorted({method["target"] for method in methods})
    rows: list[Row] = []
    for target in (["all"] if len(targets) > 1 else []) + targets:
        of = [method for method in methods if target in ("all", method["target"])]
        names = sorted(set.intersection(*(set(method["metrics"]) for method in of)) - {REWARD})
        found = [_row(config, name, of) for name in names]
        found.sort(key=lambda row: (-abs(row["spearman"]["value"] or 0.0), row["metric"]))
        rows += [{"target": target} | row for row in found]
    save_json(paths.metrics_file("proxies"), rows)
    return rows


def _methods(rows: Sequence[Row]) -> Iterator[Row]:
    """One per trained dictionary of the sweep: metrics averaged over its hook points, reward and compute."""
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.get(REWARD) and "stability" in row:  # baselines have one seed, and none
            size, seed = str(row["n_latents"]), str(row["seed"])
            found[row["target"], row["architecture"], f"{row['sparsity']:g}", size, seed].append(row)
    for key, of in sorted(found.items()):
        names = {name for name, value in of[0].items() if isinstance(value, dict) and "value" in value}
        known = {name for name in names if all(row.get(name, {}).get("value") is not None for row in of)}
        yield {
            "target": key[0], "group": "/".join(key[1:4]), "compute": of[0]["answer_flops"],
            "metrics": {name: float(np.mean([row[name]["value"] for row in of])) for name in known - set(NOT_PROXIES)},
        }  # fmt: skip


def _row(config: Config, name: str, methods: Sequence[Mapping[str, Any]]) -> Row:
    values = [method["metrics"][name] for method in methods]
    held = {"l0": [m["metrics"]["l0"] for m in methods], "compute": [m["compute"] for m in methods]}
    rewards = [method["metrics"][REWARD] for method in methods]
    groups, strata = [m["group"] for m in methods], [m["target"] for m in methods]
    rng = np.random.default_rng([config.seed, *name.encode()])
    found = correlate(values, rewards, held, groups, strata, config.draws, rng)
    n_groups = len(set(zip(groups, strata, strict=True)))
    return {"metric": name, "n": len(methods), "n_groups": n_groups, **found}


def main() -> None:
    summarise(names("dictionaries", "targets"))
    for row in run(load("proxies", Config)):
        value = row["spearman"]
        print(f"{row['target']} {row['metric']}: {value['value']} [{value['low']}, {value['high']}]", flush=True)

"""Stage ``proxies``: which metric of a dictionary predicts the reward of the method built on it?

Joins the metrics of the kept and of the swept dictionaries of all targets, and the rewards of stage ``downstream``,
into metrics/dictionaries.json; correlates each metric with the reward into metrics/proxies.json.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stages.base import paths
from stages.base.params import load, names
from stages.contracts.dictionary_rows import (
    DICTIONARIES,
    DICTIONARY_METRICS,
    DOWNSTREAM,
    PROXIES,
    SWEEP_METRICS,
    DictionaryRow,
    ProxyRow,
)
from stages.errors import UserError
from stages.proxies.correlation import correlate
from stages.proxies.settings import REWARD, Config

__all__ = ["Config", "main", "run", "summarise"]

NOT_PROXIES = ("probe_raw", "description_length_raw", "loss_clean", "loss_ablated")
"""Metrics that say nothing about the dictionary itself are the same in every row."""


class MethodMetrics(NamedTuple):
    """One trained dictionary of the sweep: metrics averaged over its hook points, reward and compute."""

    target: str
    group: str
    """Dictionaries that differ by seed alone."""
    compute: float
    """FLOPs charged per answer."""
    metrics: dict[str, float]


def summarise(targets: Sequence[str]) -> tuple[DictionaryRow, ...]:
    """Join metrics.json of the kept and of the swept dictionaries of all targets into metrics/dictionaries.json.

    A dictionary of the sweep that is one of the kept ones stands there once, as the kept one. Where a method was built
    on it, ``reward`` (of that method, which reads all hook points) and ``answer_flops`` stand in its row.

    Raises:
        UserError: a target's metrics are missing or damaged.
    """
    rows: list[DictionaryRow] = []
    for name in sorted(targets):
        mine = list(DICTIONARY_METRICS.load(paths.dictionaries_dir(name) / "metrics.json"))
        known = {row.order() for row in mine}
        swept = SWEEP_METRICS.load(paths.sweep_dir(name) / "metrics.json")
        mine += [row for row in swept if row.order() not in known]
        rewards = {row.method_key(): row for row in DOWNSTREAM.load(paths.downstream_file(name))}
        for row in mine:
            found = rewards.get(row.method_key())
            answered = {} if found is None else {"reward": found.reward, "answer_flops": found.flops}
            rows.append(row.model_copy(update=answered))
    joined = tuple(sorted(rows, key=DictionaryRow.order))
    DICTIONARIES.save(joined)
    return joined


def run(config: Config) -> tuple[ProxyRow, ...]:
    """Stage ``proxies``: correlate every metric with the reward, over the trained dictionaries.

    Returns:
        Rows, strongest first within a target; estimates are null where the metric or the reward never varies.

    Raises:
        UserError: no dictionary has a reward.
    """
    methods = list(_methods(DICTIONARIES.load()))
    if not methods:
        file = DICTIONARIES.path()
        raise UserError(f"no dictionary in {file} has a reward: no family is about a target of the sweep")
    targets = sorted({method.target for method in methods})
    rows: list[ProxyRow] = []
    for target in (["all"] if len(targets) > 1 else []) + targets:
        of = [method for method in methods if target in ("all", method.target)]
        names = sorted(set.intersection(*(set(method.metrics) for method in of)) - {REWARD})
        found = [_row(config, target, name, of) for name in names]
        rows += sorted(found, key=lambda row: (-abs(row.spearman.value or 0.0), row.metric))
    PROXIES.save(tuple(rows))
    return tuple(rows)


def _methods(rows: Sequence[DictionaryRow]) -> Iterator[MethodMetrics]:
    """One per trained dictionary of the sweep."""
    found: dict[tuple[str, ...], list[DictionaryRow]] = defaultdict(list)
    for row in rows:
        if row.reward and row.stability:  # baselines have one seed, and none
            size, seed = str(row.n_latents), str(row.seed)
            found[row.target, row.architecture, f"{row.sparsity:g}", size, seed].append(row)
    for key, of in sorted(found.items()):
        values = [{name: one.value for name, one in row.metrics().items() if one.value is not None} for row in of]
        known = set.intersection(*map(set, values)) - set(NOT_PROXIES)
        metrics = {name: float(np.mean([one[name] for one in values])) for name in known}
        yield MethodMetrics(key[0], "/".join(key[1:4]), of[0].answer_flops or 0.0, metrics)


def _row(config: Config, target: str, name: str, methods: Sequence[MethodMetrics]) -> ProxyRow:
    values = [method.metrics[name] for method in methods]
    held = {"l0": [m.metrics["l0"] for m in methods], "compute": [m.compute for m in methods]}
    rewards = [method.metrics[REWARD] for method in methods]
    groups, strata = [m.group for m in methods], [m.target for m in methods]
    rng = np.random.default_rng([config.seed, *name.encode()])
    found = correlate(values, rewards, held, groups, strata, config.draws, rng)
    n_groups = len(set(zip(groups, strata, strict=True)))
    return ProxyRow(target=target, metric=name, n=len(methods), n_groups=n_groups, **found)


def main() -> None:
    summarise(names("dictionaries", "trained_on"))
    for row in run(load("proxies", Config)):
        value = row.spearman
        print(f"{row.target} {row.metric}: {value.value} [{value.low}, {value.high}]", flush=True)

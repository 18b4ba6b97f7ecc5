"""Stage ``proxies``: which metric of a dictionary predicts the reward of the method built on it?

Joins the metrics of the kept and of the swept dictionaries of all targets, and the rewards of stage ``downstream``,
into metrics/dictionaries.json; correlates each metric with the reward into metrics/proxies.json. One metric is named
beforehand in params/proxies.yaml and tested alone. Beside the metrics stands what must correlate with the reward, and
what must not, so that a correlation of 0 can be told from a reward that depends on nothing.
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
    DownstreamRow,
    ProxyRow,
    Role,
)
from stages.contracts.record import Estimate
from stages.errors import UserError
from stages.proxies.correlation import correlate, icc, over_targets, spearman
from stages.proxies.settings import REWARD, Config
from stages.reward.inference import holm

__all__ = ["Config", "main", "run", "summarise"]

NOT_PROXIES = ("probe_raw", "description_length_raw", "loss_clean", "loss_ablated")
"""Metrics that say nothing about the dictionary itself are the same in every row."""


OTHER_SEEDS, FEWER, DEALT = "reward_in_other_splits", "share_of_latents", "reward_of_others"
"""Controls: the same method's reward where the executor split the instances otherwise; how many of its latents it
answers with; and the reward of a method that was drawn for it."""


class Point(NamedTuple):
    """One method: a number, and the reward that it is to predict."""

    target: str
    group: str
    """Dictionaries that differ by seed alone."""
    value: float
    reward: float


class MethodMetrics(NamedTuple):
    """One trained dictionary of the sweep: metrics averaged over its hook points, reward and compute."""

    target: str
    group: str
    """Dictionaries that differ by seed alone."""
    compute: float
    """FLOPs charged per answer."""
    metrics: dict[str, float]

    def point(self, metric: str) -> Point:
        return Point(self.target, self.group, self.metrics[metric], self.metrics[REWARD])


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
        rewarded = DOWNSTREAM.load(paths.downstream_file(name))
        rewards = {row.method_key(): row for row in rewarded if row.share == 1}
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
    known = set.intersection(*(set(method.metrics) for method in methods))
    if config.primary.metric not in known - {REWARD}:
        raise UserError(
            f"primary.metric {config.primary.metric!r} of params/proxies.yaml is no metric that all targets have: use"
            f" one of {', '.join(sorted(known - {REWARD}))}"
        )
    targets = sorted({method.target for method in methods})
    rewarded = [row for target in targets for row in DOWNSTREAM.load(paths.downstream_file(target))]
    controls = _controls(config, methods, rewarded)
    rows: list[ProxyRow] = []
    for target in (["all"] if len(targets) > 1 else []) + targets:
        of = [method for method in methods if target in ("all", method.target)]
        names = sorted(set.intersection(*(set(method.metrics) for method in of)) - {REWARD})
        found = [_metric_row(config, target, name, of) for name in names]
        for (name, role), points in controls.items():
            if about := [point for point in points if target in ("all", point.target)]:
                found.append(_row(config, target, name, about, role, {}))
        rows += sorted(_corrected(found), key=lambda row: (-abs(row.spearman.value or 0.0), row.metric))
    PROXIES.save(tuple(rows))
    return tuple(rows)


def _corrected(rows: Sequence[ProxyRow]) -> list[ProxyRow]:
    """The rows of one target, with the p-values of its secondary metrics corrected for how many they are (Holm)."""
    at = [i for i, row in enumerate(rows) if row.role == "secondary" and row.p is not None]
    out = list(rows)
    for i, p in zip(at, holm([rows[i].p or 0.0 for i in at]), strict=True):
        out[i] = rows[i].model_copy(update={"p": round(p, 6)})
    return out


def _controls(
    config: Config, methods: Sequence[MethodMetrics], rewarded: Sequence[DownstreamRow]
) -> dict[tuple[str, Role], list[Point]]:
    """What must correlate with the reward, and what must not; those that can be had of these rows."""
    trained = {(method.target, method.group) for method in methods}
    found: dict[tuple[str, Role], list[Point]] = defaultdict(list)
    for row in rewarded:
        group, reward = _group(row), row.reward.value
        if (row.target, group) not in trained or reward is None:
            continue
        if row.architecture == config.degraded and config.shares:
            one = Point(row.target, f"{group}@{row.share:g}", row.share, reward)
            found[FEWER, "positive control"].append(one)
        if row.share == 1 and len(row.by_seed) > 1:
            one = Point(row.target, group, row.by_seed[0], float(np.mean(row.by_seed[1:])))
            found[OTHER_SEEDS, "positive control"].append(one)
    for target in sorted({method.target for method in methods}):
        of = [method.point(REWARD) for method in methods if method.target == target]
        order = np.random.default_rng([config.seed, *target.encode()]).permutation(len(of))
        dealt = [point._replace(value=of[other].reward) for point, other in zip(of, order, strict=True)]
        found[DEALT, "negative control"] += dealt
    return dict(found)


def _group(row: DictionaryRow | DownstreamRow) -> str:
    """What dictionaries that differ by seed alone have in common."""
    return f"{row.architecture}/{row.sparsity:g}/{row.n_latents}"


def _methods(rows: Sequence[DictionaryRow]) -> Iterator[MethodMetrics]:
    """One per trained dictionary of the sweep."""
    found: dict[tuple[str, str, int], list[DictionaryRow]] = defaultdict(list)
    for row in rows:
        if row.reward and row.stability:  # baselines have one seed, and none
            found[row.target, _group(row), row.seed].append(row)
    for (target, group, _), of in sorted(found.items()):
        values = [{name: one.value for name, one in row.metrics().items() if one.value is not None} for row in of]
        known = set.intersection(*map(set, values)) - set(NOT_PROXIES)
        metrics = {name: float(np.mean([one[name] for one in values])) for name in known}
        if REWARD in metrics:
            yield MethodMetrics(target, group, of[0].answer_flops or 0.0, metrics)


def _metric_row(config: Config, target: str, name: str, methods: Sequence[MethodMetrics]) -> ProxyRow:
    held = {"l0": [m.metrics["l0"] for m in methods], "compute": [m.compute for m in methods]}
    role: Role = "primary" if name == config.primary.metric else "secondary"
    return _row(config, target, name, [method.point(name) for method in methods], role, held)


def _row(
    config: Config, target: str, name: str, points: Sequence[Point], role: Role, held: dict[str, list[float]]
) -> ProxyRow:
    values, rewards = [point.value for point in points], [point.reward for point in points]
    groups, strata = [point.group for point in points], [point.target for point in points]
    rng = np.random.default_rng([config.seed, *name.encode()])
    found = correlate(values, rewards, held, groups, strata, config.draws, rng)
    of_metric, of_reward = icc(values, groups, strata), icc(rewards, groups, strata)
    ceiling = None
    if of_metric.value is not None and of_reward.value is not None:
        ceiling = round((max(of_metric.value, 0.0) * max(of_reward.value, 0.0)) ** 0.5, 6)
    whole: dict[str, object] = {}
    if target == "all":
        at = np.array(strata)
        own = [spearman(np.array(values)[at == one], np.array(rewards)[at == one]) for one in sorted(set(strata))]
        mean, z = over_targets(own)
        whole = {
            "over_targets": mean,
            "n_targets": int(np.isfinite(own).sum()),
            "p": None if z is None else round(z.p, 6),
        }
    return ProxyRow.model_validate(
        {
            "target": target, "metric": name, "n": len(points), "n_groups": len(set(zip(groups, strata, strict=True))),
            "partial_l0": Estimate(value=None), "partial_compute": Estimate(value=None), **found, "role": role,
            "icc_metric": of_metric, "icc_reward": of_reward, "ceiling": ceiling, **whole,
        }
    )  # fmt: skip


def main() -> None:
    summarise(names("dictionaries", "trained_on"))
    for row in run(load("proxies", Config)):
        value = row.spearman
        print(f"{row.target} {row.metric}: {value.value} [{value.low}, {value.high}]", flush=True)

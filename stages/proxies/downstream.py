"""Stage ``downstream``: every dictionary of the sweep as a method on train and validation families of its target.

No dictionary is fitted to those families. Writes data/downstream/<target>.json, one row per dictionary with its reward.
The same architecture, sparsity, size and seed at all hook points are one method: a method reads every hook point that
has a dictionary.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from stages import tracking
from stages.activations.order import generator_for
from stages.base import paths
from stages.base.params import load
from stages.contracts.arms import Baseline
from stages.contracts.dictionary_rows import DOWNSTREAM, SWEEP_METRICS, DictionaryRow, DownstreamRow
from stages.contracts.method import Budget, Interpretation
from stages.contracts.record import PLACES, Estimate
from stages.contracts.target import Target
from stages.dictionaries.storage import load_dictionary
from stages.errors import UserError
from stages.execution.settings import executor
from stages.interpretation.artifact import pack
from stages.interpretation.methods.sae import KEPT, Sae
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.proxies.settings import Config
from stages.reward.inference import Estimated, combined
from stages.reward.judging import Judged, judge
from stages.reward.settings import RewardConfig
from stages.scoring.cached import cached_task
from stages.scoring.candidate import Candidate, Frozen
from stages.scoring.evaluate import Evaluation, TaskName, evaluate, stage_baseline
from stages.scoring.in_process import InProcess
from stages.targets.storage import load_target
from stages.tasks.storage import list_tasks

__all__ = ["FROM_LATENTS", "degraded", "main", "run"]

SWEPT = "swept"
"""What the dictionaries of one method are called."""
FROM_LATENTS = ("Attribute", "Compare", "Represent")
"""Kinds of question that method ``sae`` answers from its latents and nothing else, so that its reward there depends on
the dictionary on every target. Localise it answers only where the dictionary is of the components' own hook point,
others not at all."""


def run(config: Config, target_name: str) -> tuple[DownstreamRow, ...]:
    """Stage ``downstream``: rewards of the methods built on every dictionary of one target's sweep.

    There are none where no family is about the target.

    Raises:
        UserError: stages before this one have not run, or a family is unknown.
    """
    torch.set_num_threads(1)
    folder = paths.require(paths.sweep_dir(target_name), "sweep")
    swept = SWEEP_METRICS.load(folder / "metrics.json")
    every = [one for split in ("train", "validation") for one in list_tasks(split)]
    if unknown := sorted(set(config.families) - {family for family, _ in every}):
        raise UserError(f"families {', '.join(unknown)} of params/proxies.yaml are no train or validation families")
    tasks = [(family, t) for family, t in every if t == target_name and family in config.families]
    for kind, family in ((cached_task(*one).family.query_kind, one[0]) for one in tasks):
        if kind not in FROM_LATENTS:
            raise UserError(
                f"family {family} of params/proxies.yaml asks {kind}, which a dictionary's latents do not answer: its"
                f" reward says nothing about them; use families that ask {', '.join(FROM_LATENTS)}"
            )
    rows: list[DownstreamRow] = []
    if tasks:
        target = load_target(target_name)
        with threadpool_limits(1), tracking.stage_run(f"downstream {target_name}", config.model_dump()) as log:
            for number, (name, of, share) in enumerate(_methods(config, swept)):
                rows.append(_rewarded(config, tasks, target, folder, name, of, share))
                log({"reward": rows[-1].reward.value or 0.0, "flops": rows[-1].flops}, number)
                if (number + 1) % 20 == 0:
                    print(f"{target_name}: {number + 1} methods", flush=True)
    found = tuple(sorted(_with_nulls(rows), key=lambda row: row.name))
    DOWNSTREAM.save(found, paths.downstream_file(target_name))
    return found


def _by_name(rows: Sequence[DictionaryRow]) -> Iterator[tuple[str, list[DictionaryRow]]]:
    """The rows of each dictionary over all hook points."""
    found: dict[str, list[DictionaryRow]] = defaultdict(list)
    for row in rows:
        found[row.name].append(row)
    yield from sorted(found.items())


def _methods(config: Config, rows: Sequence[DictionaryRow]) -> Iterator[tuple[str, list[DictionaryRow], float]]:
    """Each method's dictionaries, and the share of their latents that it answers with."""
    for name, of in _by_name(rows):
        yield name, of, 1.0
        for share in config.shares if of[0].architecture == config.degraded else ():
            yield name, of, share


def degraded(made: Interpretation, share: float, seed: int) -> Interpretation:
    """The same I(M) with a share of the latents at each hook point, at least one; smaller shares lie within larger
    ones."""
    arrays = dict(made.arrays)
    for name, kept in made.arrays.items():
        if name.endswith(f".{KEPT}"):
            order = torch.randperm(len(kept), generator=generator_for("degraded", seed))
            arrays[name] = kept[order[: max(1, round(share * len(kept)))]].sort().values
    return Interpretation(arrays, made.data)


def _rewarded(
    config: Config, tasks: Sequence[TaskName], target: Target, folder: Path, name: str, of: Sequence[DictionaryRow],
    share: float,
) -> DownstreamRow:  # fmt: skip
    dictionaries = {f"{row.hook_point}/{SWEPT}": load_dictionary(folder / row.hook_point / name) for row in of}
    method, limits = Sae(SWEPT, config.n_kept), Budget(60.0, 1 << 30, config.seed)
    access = MeteredAccess(target, Ledger(), free=True, dictionaries=lambda: dictionaries)
    made = method.interpret(access, limits)
    if share < 1:
        made, name = degraded(made, share, of[0].seed), f"{name}@{share:g}"
    frozen = Frozen(*pack(made, name, f"interpret on {target.name}", limits.max_bytes))
    done: Evaluation[None] = evaluate(
        Candidate(name, method),
        tasks,
        InProcess(),
        executor().model_copy(update={"n_seeds": config.n_seeds}),
        frozen={target.name: frozen},
        baseline=partial(_first_seeds, config.n_seeds),
        placebo=False,
    )
    if done.outcome != "ok":
        raise RuntimeError(f"{name} is {done.outcome}: {done.reason}")
    reward, judged = load("reward", RewardConfig, part=True), list[Judged]()
    for task in (cached_task(*one) for one in tasks):
        judged.append(judge(task, _first_seeds(config.n_seeds, task.name), done.arms[task.name], reward))
        if done.arms[task.name].status == "declined":
            raise UserError(
                f"method sae does not answer {task.name}, whatever the dictionary is: take family {task.family.name}"
                " out of params/proxies.yaml"
            )
    first = of[0]
    return DownstreamRow(
        target=target.name,
        name=name,
        architecture=first.architecture,
        sparsity=first.sparsity,
        n_latents=first.n_latents,
        seed=first.seed,
        l0=float(np.mean([row.l0.value for row in of])),
        tasks=tuple(one.task.name for one in judged),
        flops=round(float(np.mean([one.arms.target_flops + one.arms.own_flops for one in judged])), 3),
        reward=_over_tasks([one.estimate(one.reward) for one in judged]),
        gain=_over_tasks([one.estimate(one.assisted_score - one.baseline_score) for one in judged]),
        by_seed=tuple(round(float(one), PLACES) + 0.0 for one in np.mean([one.reward[0] for one in judged], axis=0)),
        **({"share": share} if share < 1 else {}),
    )


def _first_seeds(n_seeds: int, task: str) -> Baseline:
    """The baseline arm's first splits."""
    baseline = stage_baseline(task)
    first, second = ([one for one in of if one.seed < n_seeds] for of in (baseline.first, baseline.second))
    return Baseline(first, second, baseline.rungs[:n_seeds], baseline.fits[:n_seeds])


def _over_tasks(parts: Sequence[Estimated]) -> Estimate:
    """Mean over these tasks: other instances and seeds, the same tasks."""
    found = combined(parts)
    return Estimate.of(found.value, *found.interval())


def _with_nulls(rows: Sequence[DownstreamRow]) -> Iterator[DownstreamRow]:
    """The rows with what the random dictionary of the nearest L0 earned, where there is one."""
    random = [row for row in rows if row.architecture == "random"]
    for row in rows:
        if not random:
            yield row
            continue
        nearest = min(random, key=lambda one: (abs(one.l0 - row.l0), one.name))
        reward, gain = row.reward.with_null(nearest.reward.value), row.gain.with_null(nearest.gain.value)
        yield row.model_copy(update={"reward": reward, "gain": gain})


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("one target is needed, such as `python -m stages proxies.downstream digits_mlp`")
    run(load("proxies", Config), sys.argv[1])

"""What a run about one target will take, from a minute of trying: one pass, and two instances of each of its families.

Shape legend: N = instances of a task.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from stages.activations.stage import Config as ActivationsConfig
from stages.base.params import load, names
from stages.contracts.arms import LadderStep
from stages.contracts.target import Objective, Target, TargetSpec
from stages.dictionaries.evaluation.gallery import N_EFFECT
from stages.dictionaries.settings import Config as DictionariesConfig
from stages.execution.arms import run_ladder
from stages.execution.settings import executor
from stages.interpretation import slopes
from stages.interpretation.methods import circuit
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import load_target
from stages.tasks.families import family
from stages.tasks.generation import make
from stages.tasks.secret import read_secret
from stages.tasks.stage import Config as TasksConfig
from stages.tasks.storage import Task

__all__ = ["Estimate", "estimate"]

TRIED = 2
"""Instances that a family's truth and ladder are timed on."""
PASSES_PER_ANSWER = 3.0
"""Of the target, per instance and method: a forward and a backward pass, as methods here take at most."""
PASSES_PER_CORPUS = 3.0
"""The same per input of the corpus, in the free phase of a method."""
UPDATE_FLOPS = 12.0
"""Of one dictionary step per row, input and latent: products of 2 FLOPs, forward and twice backward, two matrices."""


@dataclass(frozen=True)
class Estimate:
    """One part of a run, on one core."""

    part: str
    n: int
    """Inputs, trainings, instances or methods."""
    cpu_s: float
    detail: str


def estimate(target_name: str, tell: Callable[[str], None] = print) -> tuple[list[Estimate], int]:
    """The parts of a run about a target that has been made, under the active profile, and bytes of memory that a
    process takes at most."""
    torch.set_num_threads(1)
    tell(f"{target_name}: trying a pass")
    target = load_target(target_name)
    seconds, rate = _pass(target)
    rows = [*_activations(target, seconds), *_dictionaries(target, rate, seconds)]
    methods, tasks = names("reward", "methods"), load("tasks", TasksConfig)
    config, key, n_all = executor(), read_secret(), 0
    for name, settings in tasks.families.items():
        if target_name not in settings.targets:
            continue
        tell(f"{target_name}: trying {TRIED} instances of {name}")
        made, n = family(name), settings.n_on(family(name), target.spec, tasks.n_instances)
        n_all += n
        begun = time.process_time()
        tried = make(made, target, settings.split, TRIED, 0, "estimate", key)
        truth_s = (time.process_time() - begun) / TRIED
        task = Task(made, target_name, settings.split, tried.instances.public(), tried.truth)
        rows.append(Estimate(f"truth of {name}", n, n * truth_s, f"{truth_s:.1f} s an instance"))
        fixed: dict[int, LadderStep] = {}
        first_s, again_s = (_seconds(task, target, seed, fixed) for seed in (0, 1))
        # Each seed draws anew; steps that draw nothing are run once.
        again = config.n_seeds - 1
        ladder_s = n * (first_s + again * again_s)
        detail = f"{first_s:.1f} s an instance, then {again} times {again_s:.1f} s"
        rows.append(Estimate(f"ladder of {name}", n, ladder_s, detail))
    corpus = len(target.corpus("train").labels)
    free_s = len(methods) * PASSES_PER_CORPUS * corpus * seconds
    rows.append(Estimate("free phases", len(methods), free_s, f"{corpus} inputs each"))
    answers_s = len(methods) * PASSES_PER_ANSWER * n_all * seconds
    rows.append(Estimate("answers", len(methods), answers_s, f"{n_all} instances each"))
    _free_phase(target)
    return rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _seconds(task: Task, target: Target, seed: int, fixed: dict[int, LadderStep]) -> float:
    """CPU seconds an instance of one climb of the ladder."""
    begun = time.process_time()
    run_ladder(task, target, seed, fixed)
    return (time.process_time() - begun) / TRIED


def _free_phase(target: Target) -> None:
    """What takes the most memory, once: slopes at every hook point, of as many inputs as a free phase takes at once."""
    inputs, labels = (part[: _at_once(target.spec)] for part in target.corpus("train"))
    wrt = list(dict.fromkeys([target.spec.leaf, *(hook.name for hook in target.spec.hooks)]))
    MeteredAccess(target, Ledger(), free=True).gradients(inputs, Objective("margin", labels), wrt)


def _at_once(spec: TargetSpec) -> int:
    """Inputs of which ``circuit`` and ``gradient`` take slopes together: few where both find the target large."""
    if min(slopes.widths(spec).values(), default=0) <= slopes.WIDEST or len(spec.components) <= circuit.MAX_EXACT:
        return max(circuit.CORPUS_INPUTS, slopes.CORPUS_INPUTS)
    return circuit.PART


def _pass(target: Target) -> tuple[float, float]:
    """CPU seconds of a pass of one input, in a batch of eight, and FLOPs a second."""
    inputs = target.corpus("train").inputs[:8]
    with torch.no_grad():
        target.model(inputs)
        begun = time.process_time()
        target.model(inputs)
        seconds = time.process_time() - begun
    access = MeteredAccess(target, Ledger())
    return seconds / len(inputs), access.quote("forward", (inputs, [], [], None)) / seconds


def _activations(target: Target, seconds: float) -> Sequence[Estimate]:
    config = load("activations", ActivationsConfig)
    n = len(config.splits) * config.max_examples
    return [Estimate("activations", n, n * seconds, f"{seconds * 1e3:.0f} ms a pass")]


def _dictionaries(target: Target, rate: float, seconds: float) -> Sequence[Estimate]:
    config = load("dictionaries", DictionariesConfig)
    if target.name not in config.trained_on:
        return []
    settings = config.trained_on[target.name]
    kinds, seeds = len(config.architectures), len(config.seeds)
    n = len(settings.hooks) * kinds * seeds
    width = sum(target.spec.hook(hook).width for hook in settings.hooks) / len(settings.hooks)
    training_s = n * UPDATE_FLOPS * settings.steps * config.batch * width * settings.n_latents / rate
    # Each is measured, and so is a random one beside it; once each the target untouched and with nothing there.
    measured = len(settings.hooks) * (2 + seeds * (1 + 2 * kinds))
    n_inputs = len(target.corpus("validation").labels)
    measuring_s = measured * min(settings.n_examples or n_inputs, n_inputs) * seconds
    n_gallery = config.n_gallery if settings.n_gallery is None else settings.n_gallery
    shown = len(settings.hooks) * kinds * min(n_gallery, settings.n_latents)
    gallery_s = shown * 2 * N_EFFECT * seconds
    detail = f"{training_s / 60:.0f} min training, {measuring_s / 60:.0f} measuring, {gallery_s / 60:.0f} feature pages"
    return [Estimate("dictionaries", n, training_s + measuring_s + gallery_s, detail)]

"""`lensmith bench estimation`: estimating what a network does, within a FLOP budget, beside running it on samples.

Two questions, asked of trained and of random networks over Gaussian inputs: the mean of every output, and the
probability of a rare event (one output exceeds all others by a margin). The truth is brute force, on many samples, and
its own error is told. Every estimator spends what the budget allows as the project's meter counts it: draws, gradients
and decompositions included.

Source: the question is the Alignment Research Center's, Wu and Hilton 2024, arXiv 2410.13211 (rare outputs) and Wu et
al. 2026, arXiv 2605.05179 (mean outputs): what is learned from the weights should beat running the network.

Shape legend: C = outputs, X = inputs, N = networks.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor

from stages.base.params import load
from stages.benchmarks.estimators import CHUNK, MEANS, RARE, Estimator, Event, Network, margins
from stages.contracts.target import Corpus
from stages.errors import UserError
from stages.execution.arms import stream
from stages.metering.op_table import count_flops
from stages.targets.stage import Config as TargetsConfig
from stages.targets.zoo.digits_mlp import DigitsMlp

__all__ = [
    "BUDGETS",
    "GROUPS",
    "Bench",
    "EstimationRow",
    "Group",
    "Known",
    "bench_estimation",
    "known_of",
    "prices",
    "spent",
]

BUDGETS = (10**6, 10**7, 10**8, 10**9)
LABELS = (0, 1, 2)
"""Outputs whose events are asked about; a network's error is the mean over them."""
SHARES = (1e-2, 1e-4)
"""About how probable the events are: their margin is set so on other samples than those of the truth."""
PILOT = 2**18
SAMPLING = "sampling"
PAID_PER_SAMPLE = frozenset({SAMPLING, "sampling in pairs", "Gaussian margin (GLD)", "moved inputs (ITGIS)",
                             "pairs of parts (QLD)"})  # fmt: skip
SMALLEST = 1e-12


@dataclass(frozen=True)
class Group:
    """Networks of one kind."""

    name: str
    widths: tuple[int, ...]
    """Inputs, layers, outputs of random networks; empty: the digit classifier's."""
    trained: bool = False


GROUPS = (
    Group("trained digits 64-64-32-10", (), trained=True),
    Group("the same, untrained", ()),
    Group("random, deep 64 x 8", (64,) * 9 + (10,)),
    Group("random, wide 256 x 4", (64, 256, 256, 256, 256, 10)),
)


@dataclass(frozen=True)
class Bench:
    """How much is run."""

    groups: tuple[Group, ...] = GROUPS
    n_networks: int = 5
    budgets: tuple[int, ...] = BUDGETS
    mean_runs: int = 8
    """Repetitions of every estimator that draws, per network."""
    rare_runs: int = 2
    """The same, per network and label."""
    truth_flops: float = 1.5e11
    """Spent on each network's truth."""


@dataclass(frozen=True)
class Known:
    """The truth about one network."""

    n: int
    mean: Tensor
    """(C,) float64."""
    variance: Tensor
    """(C,) of one sample's outputs."""
    events: tuple[tuple[Event, float, float], ...]
    """(event, its probability, its standard error), for each share and label."""


@dataclass(frozen=True)
class EstimationRow:
    """One estimator on one kind of network at one budget."""

    group: str
    question: str
    """mean, or about how probable the event is."""
    estimator: str
    budget: int
    flops: int
    """Spent, largest over networks; at most the budget."""
    error: float
    """Of means: squared, in units of the output's variance, so that n plain samples have 1 / n. Of events: squared, of
    the natural logarithm of the probability. Geometric mean over networks of their mean squared errors."""
    low: float
    high: float
    """95% Student's t over networks, of the logarithm of their errors."""
    ratio: float | None
    """Error over that of plain sampling at this budget, network by network; None: the budget pays for no sampling."""
    ratio_low: float | None
    ratio_high: float | None
    floor: float
    """The truth's own squared error, largest over networks: an error below it cannot be told from 0."""
    n_networks: int
    n_runs: int
    """Per network."""


def bench_estimation(tell: Callable[[str], None] = print, bench: Bench | None = None) -> list[EstimationRow]:
    """Every estimator at every budget that pays for it.

    Raises:
        UserError: fewer than two networks, which have no interval.
    """
    bench = bench or Bench()
    if bench.n_networks < 2:
        raise UserError(f"n_networks = {bench.n_networks}: give at least 2, an interval is over networks")
    torch.set_num_threads(1)
    rows: list[EstimationRow] = []
    for group in bench.groups:
        found: dict[tuple[str, str, int], list[tuple[float, int]]] = {}
        floors: dict[str, list[float]] = {}
        for i, network in enumerate(networks(group, bench.n_networks)):
            tell(f"{group.name}, network {i + 1} of {bench.n_networks}: truth")
            known = known_of(network, bench.truth_flops, stream("estimation", "truth", group.name, i))
            tell(f"{group.name}, network {i + 1} of {bench.n_networks}: estimators")
            for question, one in _questions(known):
                floors.setdefault(question, []).append(one.floor)
                for key, error, flops in _errors(network, one, bench, (group.name, i, question)):
                    found.setdefault((question, *key), []).append((error, flops))
        rows += _rows(group, bench, found, {question: max(of) for question, of in floors.items()})
    return rows


def networks(group: Group, n: int) -> Iterator[Network]:
    """Networks of a group: of the digit classifier the seeds 0, 1, ..., trained or as they start; else random weights
    of variance 2 / inputs (He et al. 2015) and no biases."""
    for seed in range(n):
        if not group.widths:
            yield _digits(seed, group.trained)
            continue
        generator = stream("estimation", "network", group.widths, seed)
        pairs = list(zip(group.widths, group.widths[1:], strict=False))
        weights = [torch.randn(out, into, generator=generator) * math.sqrt(2 / into) for into, out in pairs]
        yield Network(tuple(weights), tuple(torch.zeros(out) for _, out in pairs))


def _digits(seed: int, trained: bool) -> Network:
    """The classifier on a Gaussian with the mean and covariance of its train images, folded into the first layer."""
    definition = DigitsMlp()
    data = definition.data(seed)
    generator = torch.Generator().manual_seed(seed)
    model = definition.build(generator)
    if trained:
        steps = int(load("targets", TargetsConfig).targets["digits_mlp"].model_dump()["steps"])
        definition.fit(model, data, steps, generator, lambda values, step: None)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    weights, biases = ([state[f"{name}.{part}"] for name in names] for part in ("weight", "bias"))
    biases[0] = biases[0] + weights[0] @ data["train"].inputs.mean(0)
    weights[0] = weights[0] @ _root(data["train"])
    return Network(tuple(weights), tuple(biases))


def _root(images: Corpus) -> Tensor:
    """(X, X) symmetric root of the covariance: some pixels never vary, so it is singular."""
    variance, axes = torch.linalg.eigh(torch.cov(images.inputs.T.double()))
    root: Tensor = axes * variance.clamp(min=0.0).sqrt() @ axes.T
    return root.float()


def known_of(network: Network, flops: float, generator: torch.Generator) -> Known:
    """The truth, by as many samples as the FLOPs pay for."""
    with count_flops() as one:
        network(torch.randn(CHUNK, network.n_inputs, generator=generator))
    n_chunks = max(1, int(flops * CHUNK / one.flops) // CHUNK)
    pilot = torch.cat(list(_outputs(network, PILOT // CHUNK, generator)))
    events = []
    for share in SHARES:
        for label in LABELS:
            highest = margins(pilot, Event(label, 0.0)).topk(int(share * len(pilot))).values
            events.append(Event(label, float(highest[-1])))
    total, squares = torch.zeros(pilot.shape[1], dtype=torch.float64), torch.zeros(pilot.shape[1], dtype=torch.float64)
    hits = torch.zeros(len(events), dtype=torch.float64)
    centre = pilot.mean(0).double()  # of other samples; it keeps the squares small
    for outputs in _outputs(network, n_chunks, generator):
        less = outputs.double() - centre
        total, squares = total + less.sum(0), squares + less.square().sum(0)
        for k, event in enumerate(events):
            hits[k] += (margins(outputs, event) > event.threshold).sum()
    n = n_chunks * CHUNK
    off = total / n
    chance = [float(of) / n for of in hits]
    told = [(event, p, math.sqrt(p * (1 - p) / n)) for event, p in zip(events, chance, strict=True)]
    return Known(n, centre + off, squares / n - off.square(), tuple(told))


def _outputs(network: Network, n_chunks: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(n_chunks):
        yield network(torch.randn(CHUNK, network.n_inputs, generator=generator))


@dataclass(frozen=True)
class _Question:
    """What is asked of a network, and how wrong an estimate is."""

    estimators: Mapping[str, Estimator]
    events: tuple[Event, ...]
    errors: tuple[Callable[[Tensor], float], ...]
    """One for each event."""
    floor: float
    rare: bool


def _questions(known: Known) -> Iterator[tuple[str, _Question]]:
    def of_means(estimate: Tensor) -> float:
        return float(((estimate.double() - known.mean).square() / known.variance).mean())

    def of_chance(p: float) -> Callable[[Tensor], float]:
        return lambda estimate: math.log(max(float(estimate), 1e-30) / p) ** 2

    yield "mean", _Question(MEANS, (Event(0, 0.0),), (of_means,), 1 / known.n, False)
    for i, share in enumerate(SHARES):
        part = known.events[i * len(LABELS) : (i + 1) * len(LABELS)]
        if min(p for _, p, _ in part) == 0.0:
            raise UserError(f"an event of about {share:g} was not seen on {known.n} samples: give truth_flops more")
        floor = max((error / p) ** 2 for _, p, error in part)
        errors = tuple(of_chance(p) for _, p, _ in part)
        yield f"{share:g}", _Question(RARE, tuple(event for event, _, _ in part), errors, floor, True)


def _errors(
    network: Network, asked: _Question, bench: Bench, names: tuple[object, ...]
) -> Iterator[tuple[tuple[str, int], float, int]]:
    """((estimator, budget), mean squared error over runs and events, FLOPs) for all that is affordable."""
    for name, estimator in asked.estimators.items():
        per_sample = name in PAID_PER_SAMPLE
        runs = (bench.rare_runs if asked.rare else bench.mean_runs) if per_sample or asked.rare else 1
        fixed: tuple[float, int] | None = None
        samples = prices(estimator, network, asked.events[0], stream("prices")) if per_sample else lambda budget: 0
        for budget in bench.budgets:
            n = samples(budget)
            if n is None:
                continue
            if fixed is None or per_sample:
                generator = stream("estimation", name, budget if per_sample else 0, *names)
                done = [
                    (error(estimate), flops)
                    for event, error in zip(asked.events, asked.errors, strict=True)
                    for estimate, flops in (spent(estimator, network, event, n, generator) for _ in range(runs))
                ]
                fixed = statistics.fmean(of for of, _ in done), max(flops for _, flops in done)
            if fixed[1] <= budget:
                yield (name, budget), *fixed


def spent(
    estimator: Estimator, network: Network, event: Event, n: int, generator: torch.Generator
) -> tuple[Tensor, int]:
    """An estimate, and the FLOPs it took."""
    with count_flops() as counted, torch.no_grad():
        estimate = estimator(network, event, n, generator)
    return estimate, counted.flops


def prices(
    estimator: Estimator, network: Network, event: Event, generator: torch.Generator
) -> Callable[[int], int | None]:
    """{budget: the samples that it pays for}, from prices found by running it; None: not even four."""
    low, high = (spent(estimator, network, event, n, generator)[1] for n in (256, 1024))
    each = (high - low) / 768

    def samples(budget: int) -> int | None:
        n = int((budget - (low - 256 * each)) / each)
        while n >= 4 and spent(estimator, network, event, n, generator)[1] > 0.995 * budget:
            n = int(0.98 * n)  # sorting and rounds do not grow in proportion
        return n if n >= 4 else None

    return samples


def _rows(
    group: Group,
    bench: Bench,
    found: Mapping[tuple[str, str, int], Sequence[tuple[float, int]]],
    floors: Mapping[str, float],
) -> list[EstimationRow]:
    rows = []
    for (question, estimator, budget), each in found.items():
        if len(each) < bench.n_networks:  # on some network it costs more than the budget
            continue
        logs = [math.log(max(error, SMALLEST)) for error, _ in each]
        plain = [math.log(max(error, SMALLEST)) for error, _ in found.get((question, SAMPLING, budget), ())]
        error, low, high = _over_networks(logs)
        ratio: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
        if len(plain) == len(logs):
            ratio = _over_networks([of - beside for of, beside in zip(logs, plain, strict=True)])
        rare = question != "mean"
        runs = bench.rare_runs * len(LABELS) if rare else bench.mean_runs if estimator in PAID_PER_SAMPLE else 1
        rows.append(
            EstimationRow(
                group.name, question, estimator, budget, max(flops for _, flops in each),
                error, low, high, ratio[0], ratio[1], ratio[2], floors[question], len(each), runs,
            )
        )  # fmt: skip
    return rows


def _over_networks(logs: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean with its 95% t interval."""
    mean = statistics.fmean(logs)
    half = float(student.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return tuple(float(f"{math.exp(value):.4g}") for value in (mean, mean - half, mean + half))  # type: ignore[return-value]

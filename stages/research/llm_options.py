"""What `lensmith research --researcher llm` was given: the researcher it makes, and what it would cost."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from stages.asking.client import OVERHEAD, PAUSES_S, Client, bound, load_prices, priced
from stages.asking.provider import Model, Provider, Question
from stages.base import paths
from stages.contracts.arms import Answered, LadderStep
from stages.contracts.journal import Asked, Replied
from stages.errors import UserError
from stages.research.journal import Journal
from stages.research.local_model import LOCAL, LocalModel
from stages.research.m2 import LlmPolicy
from stages.research.prompts import MOST_BYTES, genome_question, source_question
from stages.research.react import ReactRow, most_usd, run_react
from stages.research.researchers.llm import Asking, LlmResearcher, Mode
from stages.research.view import View
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.evaluate import questions, stage_baseline
from stages.scoring.isolated import Isolated
from stages.scoring.score import about, candidate_of
from stages.scoring.settings import settings
from stages.tasks.storage import Task, list_tasks

__all__ = ["LlmOptions", "account", "estimate", "make_llm", "make_m2", "react_by"]

MAX_TOKENS = {"genome": 4_096, "source": 16_384}
LOCAL_TOKENS = 600
LOCAL_PARAMETERS = 134_515_008.0
SHORTEST = {"genome": 100, "source": 500}
"""Tokens of the shortest answers that are any use."""
FASTEST = 200.0
"""Tokens a second that no server is expected to exceed."""
FREE_PRICE = dict.fromkeys(("input", "output", "cache_read", "cache_write"), Decimal(0))


@dataclass(frozen=True)
class LlmOptions:
    """
    Args:
        models: as Inspect calls them; several share the slots, by what they earn and cost.
        base_url: of an OpenAI-compatible server.
        max_usd: that all calls of the campaign together may cost.
        max_tokens: of an answer; 0: that of the mode.
        attempt_timeout: seconds that a call may take.
        workers: slots asked for at once.
        price_unknown: ask models whose price is not known, too.
        retry_lost: ask again what was asked without a reply.
        local: the small model on this machine.
    """

    models: tuple[str, ...]
    mode: Mode = "genome"
    base_url: str = ""
    max_usd: Decimal = Decimal(1)
    max_tokens: int = 0
    attempt_timeout: int = 300
    workers: int = 4
    price_unknown: bool = False
    retry_lost: bool = False
    local: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MAX_TOKENS:
            raise UserError(f"--mode {self.mode} is unknown: use genome or source")
        if self.local and (self.models or self.base_url):
            raise UserError("--local brings its own model and server: leave --model and --base-url out")
        if self.local and self.mode != "genome":
            raise UserError("--local answers with genomes alone: it is too small to write a file; leave --mode out")
        if not self.local and not self.models:
            raise UserError(
                "no model is named: give --model, such as openai/NAME, anthropic/NAME or openai-api/SERVICE/NAME with"
                " --base-url; or --local for the small model on this machine"
            )
        wrong = next((name for name in self.models if "/" not in name), None)
        if wrong is not None:
            raise UserError(f"--model {wrong}: say whose it is, such as openai/{wrong} or openai-api/SERVICE/{wrong}")

    @property
    def names(self) -> tuple[str, ...]:
        return (LOCAL,) if self.local else tuple(dict.fromkeys(self.models))

    @property
    def tokens(self) -> int:
        return self.max_tokens or (LOCAL_TOKENS if self.local else MAX_TOKENS[self.mode])

    def prices(self) -> dict[str, dict[str, Decimal]]:
        """
        Raises:
            UserError: a price is not known.
        """
        return {LOCAL: FREE_PRICE} if self.local else priced(self.names, load_prices(), self.price_unknown)


def make_llm(options: LlmOptions, seed: int, tell: Callable[[str], object] = print) -> LlmResearcher:
    """The researcher, ready to ask.

    Args:
        tell: is told one line per reply.

    Raises:
        UserError: a package, a key or a price is missing.
    """
    prices = options.prices()
    provider, served = _provider(options)

    def client(journal: Journal) -> Client:
        return Client(provider, journal, prices, options.max_usd, retry_lost=options.retry_lost)

    held_out = sorted({family for split in ("validation", "test") for family, _ in list_tasks(split)})
    how = Asking(
        client, options.names, options.mode, tuple(held_out), options.workers, (str(options.tokens),), tell, served
    )
    return LlmResearcher(seed, how=how)


def make_m2(options: LlmOptions, name: str, parameters: float = 0.0) -> LlmPolicy:
    """A language model as M2. Its calls are kept in data/research/<name>, and are not made again.

    Args:
        name: of the journal.
        parameters: of the model, for the account of its own FLOPs; 0: not known.

    Raises:
        UserError: a package, a key or a price is missing, or there are several models.
    """
    if len(options.names) != 1:
        raise UserError(f"{len(options.names)} models are named: an M2 is one; give one --model")
    provider, served = _provider(options)
    book = Journal(paths.campaign_dir(name) / "events.jsonl")
    client = Client(provider, book, options.prices(), options.max_usd, retry_lost=options.retry_lost)
    if served is not None:
        parameters = parameters or LOCAL_PARAMETERS
    return LlmPolicy(client, options.names[0], parameters, f"llm {options.names[0]}", served)


def react_by(
    options: LlmOptions,
    method: Path,
    targets: Sequence[str] | None,
    timeout_s: float,
    trust: bool,
    tell: Callable[[str], object] = print,
) -> tuple[list[ReactRow], Path]:
    """A language model that answers step by step, with and without a method file, on the train and validation tasks of
    one item an instance.

    Returns:
        One row a task, and the folder of logs.

    Raises:
        UserError: a package, a key or a price is missing, or all steps together could cost more than the limit.
    """
    if len(options.names) != 1:
        raise UserError(f"{len(options.names)} models are named: an M2 is one; give one --model")
    paths.require(paths.execution_dir("baseline"), "baseline")
    splits = {split: list_tasks(split) for split in ("train", "validation")}
    named = [one for of in (splits if targets is None else about(targets, splits)).values() for one in of]
    tasks = [one for one in named if cached_task(*one).truth.values.shape[1] == 1]
    if not tasks:
        raise UserError("no train or validation task there has one item an instance: leave --targets out")
    name = options.names[0]
    most = most_usd(options.prices()[name], len(tasks), options.tokens)
    if most > options.max_usd:
        raise UserError(
            f"{len(tasks)} tasks, three arms each, may cost ${most:f} at most, and --max-usd is ${options.max_usd:f}:"
            " raise it, or name fewer --targets"
        )
    provider, _served = _provider(options)
    chosen, candidate = settings(), candidate_of(method)
    host = Isolated(chosen.interpretation, timeout_s, trust)
    tell("interpret, and record the answers")
    frozen = host.freeze(candidate, sorted({target for _, target in tasks}), questions(tasks))
    folder = paths.campaign_dir(f"react-{candidate.name}")

    def posed() -> Iterator[tuple[Task, Sequence[LadderStep], Answered]]:
        for family, target in tasks:
            task = cached_task(family, target)
            answered = host.ask(candidate, frozen[target], task, cached_target(target))
            yield task, stage_baseline(task.name).rungs[0], answered

    return run_react(provider.made[name], posed(), chosen.execution, folder, options.tokens, tell), folder


def _provider(options: LlmOptions) -> tuple[Provider, LocalModel | None]:
    if options.local:
        served = LocalModel()
        models = [Model(LOCAL, served.url, {"temperature": 0.9}, seeded=True)]
        return Provider(tuple(models), options.tokens, options.attempt_timeout), served
    models = [Model(name, options.base_url) for name in options.names]
    return Provider(tuple(models), options.tokens, options.attempt_timeout), None


@dataclass(frozen=True)
class Estimate:
    """Bounds of what a campaign takes: (at least, at most)."""

    calls: tuple[int, int]
    tokens: tuple[int, int]
    usd: tuple[Decimal, Decimal]
    asking_s: tuple[float, float]


def estimate(options: LlmOptions, budget: int, batch: int = LlmResearcher.batch) -> Estimate:
    """What a campaign would take, without asking anything.

    At least: every slot answered at once, with the shortest prompt (four bytes a token) and the shortest answer that is
    any use, by the cheapest model. At most: every call repeated as often as it may be, the longest prompts (a token a
    byte), the longest answers, and every call at its time limit.
    """
    prices = options.prices()
    nothing = View(slot=0, seen=(), pending=())
    ask = genome_question if options.mode == "genome" else source_question
    question = ask(nothing, "draft", (), 0)
    shortest = len((question.system + question.prompt).encode()) // 4  # how a schema is counted, providers do not say
    calls = budget, budget * (1 + len(PAUSES_S))
    low_usd = min(
        (shortest * known["input"] + SHORTEST[options.mode] * known["output"]) / 1_000_000 if known else Decimal(0)
        for known in prices.values()
    )
    longest = Question(question.system, question.prompt + "x" * MOST_BYTES, question.schema)
    high_usd = max(bound(longest, known, options.tokens) for known in prices.values())
    batches = [min(batch, budget - start) for start in range(0, budget, batch)]
    rounds = sum(math.ceil(n / options.workers) for n in batches)
    slowest = (1 + len(PAUSES_S)) * options.attempt_timeout + sum(PAUSES_S)
    return Estimate(
        calls=calls,
        tokens=(
            calls[0] * (shortest + SHORTEST[options.mode]),
            calls[1] * (len(longest.sent().encode()) + OVERHEAD + options.tokens),
        ),
        usd=(min(calls[0] * low_usd, options.max_usd), min(calls[1] * high_usd, options.max_usd)),
        asking_s=(rounds * SHORTEST[options.mode] / FASTEST, rounds * slowest),
    )


def account(events: Sequence[object]) -> tuple[int, Decimal, dict[str, int]]:
    """(calls, USD they are counted as, how many ended in each status); calls without a reply are ``unanswered``."""
    asked = {(one.about, one.attempt): one.reserved_usd for one in events if isinstance(one, Asked)}
    replied = {(one.about, one.attempt): one for one in events if isinstance(one, Replied)}
    usd = sum((replied[key].usd if key in replied else most for key, most in asked.items()), Decimal(0))
    statuses: dict[str, int] = {}
    for key in asked:
        status = replied[key].status if key in replied else "unanswered"
        statuses[status] = statuses.get(status, 0) + 1
    return len(asked), usd, dict(sorted(statuses.items()))

"""The events of a campaign's journal, and the summary that is made of them."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter

from stages.contracts.outcomes import Outcome
from stages.contracts.record import Record, ResultFile
from stages.contracts.reward_rows import LeaderboardRow, TaskRow, TestRow

__all__ = [
    "CAMPAIGN",
    "EVENT",
    "Asked",
    "CallStatus",
    "CampaignSummary",
    "Choices",
    "Ended",
    "Event",
    "Fingerprint",
    "Incumbent",
    "Infra",
    "Iteration",
    "Proposed",
    "Reached",
    "Replied",
    "Result",
    "SpecFacts",
    "Started",
    "Stopped",
    "TestOpened",
    "TestResult",
    "Tokens",
]

SpecFacts = dict[str, JsonValue]
"""A method as its author wrote it: settings of the search space, or a file with its source or its digest."""
Choices = dict[str, bool | int | float | str]
"""What a researcher chose to arrive at a method."""


Reached = Literal["import", "train", "validation"]
"""How far a proposal was taken; without a cascade to validation, unless it is no method at all."""


class Chained(Record):
    """An event carries a digest of itself and of the digest before it."""

    chain: str = ""
    """First 16 hex digits of that sha256; empty before it is written."""


class Fingerprint(Chained):
    """What the campaign depends on: settings, targets, baseline arm, code."""

    event: Literal["fingerprint"] = "fingerprint"
    """Kind of event."""
    key: str
    """sha256 of all of it."""


class Started(Chained):
    """The campaign begins."""

    event: Literal["started"] = "started"
    """Kind of event."""
    researcher: str
    """Name of the researcher."""
    seed: int
    """Of its random choices."""


CallStatus = Literal[
    "ok", "no_usage",
    "empty", "refused", "filtered", "truncated", "context", "invalid",
    "rate_limited", "server_error", "timeout", "dropped", "unreachable",
    "auth", "not_found", "bad_request", "malformed",
    "lost",
]  # fmt: skip
"""What came of one call to a language model. First line: there is an answer, with or without a count of its tokens.
Second: the model gave nothing that can be used. Third: the server could not for now. Fourth: something is set up
wrongly. Last: the process ended before the reply was written down."""


class Tokens(Record):
    """What a reply says it took."""

    input: int
    """Tokens of the prompt at the full price."""
    cache_read: int = 0
    """Tokens of the prompt that the server took from its cache."""
    cache_write: int = 0
    """Tokens of the prompt that the server put into its cache."""
    output: int
    """Tokens of the answer, reasoning included."""


class Asked(Chained):
    """A language model is about to be asked: its price is reserved."""

    event: Literal["asked"] = "asked"
    """Kind of event."""
    about: str
    """What is asked for, such as ``slot 3``."""
    attempt: int
    """Counted from 0, for what is asked for."""
    model: str
    """<provider>/<name>."""
    prompt: str
    """First 16 hex digits of the sha256 of everything sent."""
    prices: dict[str, Decimal]
    """USD per million tokens at that moment; empty where unknown."""
    reserved_usd: Decimal
    """The most that it may cost."""
    context: dict[str, JsonValue]
    """What whoever asks wants to read again."""


class Replied(Chained):
    """What came of asking."""

    event: Literal["replied"] = "replied"
    """Kind of event."""
    about: str
    """What was asked for."""
    attempt: int
    """Which of the calls about it."""
    status: CallStatus
    """What came of it, in one word."""
    text: str
    """The answer."""
    detail: str
    """Why there is none that can be used; empty otherwise."""
    tokens: Tokens | None
    """Null where the reply does not say."""
    usd: Decimal
    """What it is counted as: by its tokens, or the whole reservation where the reply does not say."""


class Stopped(Chained):
    """A campaign ends before its budget is used up. Continued, it asks again what it could not ask."""

    event: Literal["stopped"] = "stopped"
    """Kind of event."""
    status: str
    """Status of the last call, or ``spent``."""
    reason: str
    """Why, and what to do."""


class Proposed(Chained):
    """The researcher proposes a method."""

    event: Literal["proposed"] = "proposed"
    """Kind of event."""
    iteration: int
    """Counted from 0."""
    name: str
    """<researcher>-<iteration>."""
    spec: SpecFacts
    """The method: settings of the search space, or file and source."""
    choices: Choices
    """What the researcher chose to arrive at it."""
    operator: str
    """What the researcher did to arrive at it: drew it, changed a parent, crossed two."""
    parents: tuple[int, ...]
    """Iterations of the proposals it was made from."""
    diff: str
    """How it differs from its first parent; empty where it has none."""
    outcome: Literal["ok", "failed", "infra"] = "ok"
    """Whether there is a method to be judged; if not, whether that says something of the researcher."""
    fault: str = ""
    """Why there is none; empty otherwise."""


class Result(Chained):
    """What came of a proposal. Where the outcome is void or infra, it has no numbers.

    Of validation it holds what the gate lets through and nothing finer, since whoever proposes may read it.
    """

    event: Literal["result"] = "result"
    """Kind of event."""
    iteration: int
    """Counted from 0."""
    name: str
    """<researcher>-<iteration>."""
    spec: SpecFacts
    """The method: settings of the search space, or file and source."""
    choices: Choices
    """What the researcher chose to arrive at it."""
    status: Outcome
    """ok, failed, void or infra."""
    reason: str
    """Why it is not ok; empty otherwise. Families that are held out are not named."""
    interpret_bytes: int
    """Size of I(M) on all targets."""
    train: LeaderboardRow | None
    """Its row on train families."""
    feedback: float | None
    """Mean validation reward, rounded to the noise floor: what the researcher is given."""
    accepted: bool
    """Whether it became the incumbent."""
    objective: float | None
    """What the researcher learns from: mean of train reward and feedback."""
    per_task: tuple[TaskRow, ...]
    """Its rows on each train task."""
    reached: Reached = "validation"
    """How far it was taken; validation was not asked before that."""


class Infra(Chained):
    """The machinery failed; the iteration is tried again."""

    event: Literal["infra"] = "infra"
    """Kind of event."""
    iteration: int
    """Counted from 0."""
    reason: str
    """What failed."""


class TestOpened(Chained):
    """The sealed test split is opened."""

    __test__ = False  # pytest takes every class whose name begins so for tests

    event: Literal["test_opened"] = "test_opened"
    """Kind of event."""
    methods: tuple[str, ...]
    """Contenders, sorted."""
    found: SpecFacts | None
    """The method the campaign found; null where all proposals failed."""


class Ended(Record):
    """A contender that has no score on the test split."""

    status: Outcome
    """void or infra."""
    reason: str
    """Why."""


class TestResult(Chained):
    """What the test split said."""

    __test__ = False

    event: Literal["test_result"] = "test_result"
    """Kind of event."""
    rows: tuple[TestRow, ...]
    """One row per contender."""
    per_task: tuple[TaskRow, ...]
    """One row per contender and task."""
    unscored: dict[str, Ended] = Field(default_factory=dict)
    """Contenders without a score, by name."""


Event = Fingerprint | Started | Asked | Replied | Stopped | Proposed | Result | Infra | TestOpened | TestResult
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
"""One line of events.jsonl."""


class Iteration(Record):
    """One proposal of a campaign, as tables show it."""

    iteration: int
    """Counted from 0."""
    name: str
    """<researcher>-<iteration>."""
    status: Outcome
    """ok, failed, void or infra; the last two have no numbers."""
    reason: str
    """Why it is not ok; empty otherwise."""
    accepted: bool
    """Whether it became the incumbent."""
    interpret_bytes: int = Field(title="size of I(M)")
    """Bytes of the interpretation on all targets."""
    spec: SpecFacts
    """The method: settings of the search space, or file and digest."""
    train_reward: float | None = Field(title="train")
    """Mean reward on train families."""
    validation_reward: float | None = Field(title="validation")
    """Mean reward on validation families as released by the gate: rounded to the noise floor."""
    flop_ratio: float | None = Field(title="FLOP ratio")
    """FLOPs with the method over FLOPs without it on train families."""
    operator: str = ""
    """What the researcher did to arrive at it."""
    parents: tuple[int, ...] = ()
    """Iterations of the proposals it was made from."""
    reached: Reached = "validation"
    """How far it was taken: import, train, validation."""
    best_so_far: float
    """Best accepted validation reward up to here; 0: working without a method."""


class Incumbent(Record):
    """The best method of a campaign."""

    name: str
    """<researcher>-<iteration>."""
    spec: SpecFacts
    """The method."""
    iteration: int
    """In which it was proposed."""
    validation_reward: float
    """As released by the gate."""
    accepted: bool
    """Whether it passed the gate; else it is the one with the best feedback."""


class CampaignSummary(Record):
    """metrics/campaign.json."""

    campaign: str
    """Name of the campaign."""
    researcher: str
    """Name of the researcher."""
    seed: int
    """Of its random choices."""
    iterations: tuple[Iteration, ...]
    """Every proposal, in order."""
    incumbent: Incumbent | None
    """The best method; null where all proposals failed."""


CAMPAIGN = ResultFile("campaign", CampaignSummary, "research", "the research campaign")

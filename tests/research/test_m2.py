"""A language model as M2, over real HTTP: what it is shown, what it may say, and what is bought."""

import json
from decimal import Decimal

import pytest

from stages.asking.client import Client, Stop
from stages.asking.provider import Model, Provider
from stages.contracts.journal import Asked, Tokens
from stages.execution.policies import Menu, Offer
from stages.research.journal import Journal
from stages.research.m2 import LlmPolicy, menu_question, read_choice
from tests.asking.loopback import Loopback

OFFERS = (
    Offer(-1, False, False, 0.0, 0.0),
    Offer(-1, False, True, 0.0, 0.1),
    Offer(0, False, False, 10.0, 0.3),
    Offer(-1, True, False, 12.0, 0.6),
    Offer(1, True, False, 112.0, 0.8),
)
BUDGETS = {"tight": (11.0, 11.0), "medium": (40.0, 40.0), "ample": (float("inf"), 100.0)}
MENU = Menu("Localise", OFFERS, BUDGETS, 0.1, 0.02, {"tight": 2, "medium": 3, "ample": 4})
CHOICE = {"tight": 2, "medium": 3, "ample": 4}
PRICES = dict.fromkeys(("input", "output", "cache_read", "cache_write"), Decimal(10))


def test_a_menu_says_prices_promises_and_budgets_and_no_more() -> None:
    question = menu_question(MENU)
    assert "kind Localise" in question.prompt and "promise +0.600" in question.prompt and "price 12" in question.prompt
    assert "the tool's answer beside black-box measurements of step 1" in question.prompt
    assert question.schema is not None
    enums = {name: one["enum"] for name, one in question.schema["properties"].items()}
    assert enums == {"tight": [0, 1, 2], "medium": [0, 1, 2, 3], "ample": [0, 1, 2, 3, 4]}
    assert not any(word in question.system + question.prompt for word in ("placebo", "seed", "digits"))


@pytest.mark.parametrize(
    "text", ["I buy the answer.", "[1]", "{", '{"tight": 2}', '{"tight": 3, "medium": 0, "ample": 0}', '{"tight": "2"}']
)
def test_what_is_no_choice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_choice(MENU, text)
    assert read_choice(MENU, f"Well: {json.dumps(CHOICE)} is best.") == CHOICE


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("inspect_ai", reason="the extra `llm` is not installed")
    with Loopback(lambda body: json.dumps(CHOICE)) as running:
        yield running


def policy(server, folder, how: str, limit: str = "1") -> LlmPolicy:
    model = f"openai-api/loop/{how}"
    provider = Provider((Model(model, server.url),), 100, 60)
    client = Client(provider, Journal(folder / "events.jsonl"), {model: PRICES}, Decimal(limit), sleep=lambda s: None)
    return LlmPolicy(client, model, parameters=1e9)


def test_its_choice_is_taken_asked_once_and_counted(server, tmp_path) -> None:
    before = server.calls
    for _ in range(2):  # the second is another process, on another day
        agent = policy(server, tmp_path, "valid")
        assert agent.choose(MENU) == agent.choose(MENU) == CHOICE
    assert server.calls - before == 1
    account = agent.account()
    assert (account.calls, account.tokens, account.unread) == (1, 150, 0)
    assert account.flops == 2 * 1e9 * 150 and Decimal(account.usd) == Decimal(150) * 10 / 1_000_000
    assert Tokens(input=100, output=50).input == 100


@pytest.mark.parametrize("how", ["prose", "refused", "empty", "truncated", "context"])
def test_who_cannot_be_understood_buys_nothing(server, tmp_path, how) -> None:
    agent = policy(server, tmp_path, how)
    assert agent.choose(MENU) == dict.fromkeys(BUDGETS, 0) and agent.account().unread == 1


def test_the_limit_holds_and_says_what_to_do(server, tmp_path) -> None:
    agent, before = policy(server, tmp_path, "valid", limit="0.001"), server.calls
    with pytest.raises(Stop, match="--max-usd"):
        agent.choose(MENU)
    assert server.calls == before and not agent.client.book.of(Asked)

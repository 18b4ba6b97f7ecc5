"""A call to a language model: what came of it, what it is counted as, and how often the server was really asked."""

import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from stages.asking.client import Client, Price, Prices, Stop, bound, cost, load_prices, priced
from stages.asking.provider import Answer, Model, Provider, Question
from stages.contracts.journal import EVENT, Asked, Replied, Stopped, Tokens
from stages.errors import UserError
from stages.research.journal import Journal
from tests.asking.loopback import Loopback

pytest.importorskip("inspect_ai", reason="the extra `llm` is not installed")
PRICES = {"input": Decimal(1), "output": Decimal(2), "cache_read": Decimal("0.5"), "cache_write": Decimal(3)}
ASK = Question("be short", "say hello")
FAULTS = {
    "valid": ("ok", 1), "prose": ("invalid", 1), "truncated": ("truncated", 1), "refused": ("refused", 1),
    "filtered": ("filtered", 1), "empty": ("empty", 1), "null": ("empty", 1), "no_usage": ("no_usage", 1),
    "zero_usage": ("no_usage", 1), "context": ("context", 1), "rate_limited_3": ("ok", 4),
}  # fmt: skip
STOPS = {
    "html": ("malformed", 1), "string": ("malformed", 1), "no_choices": ("malformed", 1), "auth": ("auth", 1),
    "not_found": ("not_found", 1), "bad_request": ("bad_request", 1), "rate_limited": ("rate_limited", 4),
    "server_error": ("server_error", 4), "html_error": ("server_error", 4), "slow": ("timeout", 4),
    "dropped": ("dropped", 4),
}  # fmt: skip


def name(how: str) -> str:
    return f"openai-api/loop/{how}"


@pytest.fixture(scope="module")
def server():
    with Loopback(lambda body: "hello", slow_s=8) as running:
        yield running


@pytest.fixture(scope="module")
def patient(server):
    made = Provider(tuple(Model(name(how), server.url) for how in (*FAULTS, *STOPS)), 100, 60)
    made.answer(name("valid"), ASK)  # the first call imports the rest of the client
    yield made
    made.close()


@pytest.fixture
def provider(server, patient, how):
    """Only who is slow is given little time: this machine may be busy."""
    yield patient if how != "slow" else Provider((Model(name(how), server.url),), 100, 2)


def client(provider, book: Journal, limit: str = "1", **given) -> Client:
    prices = dict.fromkeys((name(how) for how in (*FAULTS, *STOPS)), PRICES)
    return Client(provider, book, prices, Decimal(limit), sleep=lambda seconds: None, **given)


def said_hello(text: str) -> str:
    return "" if text == "hello" else "it does not say hello"


@pytest.mark.parametrize("how", FAULTS)
def test_what_came_of_a_call_has_a_name_and_takes_so_many_calls(server, provider, tmp_path, how):
    status, calls = FAULTS[how]
    book, before = Journal(tmp_path / "events.jsonl"), server.calls
    reply = client(provider, book).ask("it", name(how), ASK, fault=said_hello)
    assert (reply.status, server.calls - before) == (status, calls)
    assert len(book.of(Asked)) == len(book.of(Replied)) == calls
    assert [one.status for one in book.of(Replied)][:-1] == ["rate_limited"] * (calls - 1)
    assert (reply.text == "hello") == (status in ("ok", "no_usage", "truncated"))
    counted = "usage" not in how and how != "context"
    assert reply.usd == (cost(Tokens(input=100, output=50), PRICES) if counted else book.of(Asked)[0].reserved_usd)


@pytest.mark.parametrize("how", STOPS)
def test_what_cannot_be_asked_for_now_stops_and_says_what_to_do(server, provider, tmp_path, how):
    status, calls = STOPS[how]
    book, before = Journal(tmp_path / "events.jsonl"), server.calls
    one = client(provider, book)
    with pytest.raises(Stop, match=f"{status}.* after {calls} calls: .*run the same again") as stop:
        one.ask("it", name(how), ASK)
    assert (stop.value.status, server.calls - before) == (status, calls)
    assert {reply.status for reply in book.of(Replied)} == {status} and len(book.of(Replied)) == calls
    turned_away = status in ("auth", "not_found", "bad_request", "rate_limited")
    whole = Decimal(0) if turned_away else sum(asked.reserved_usd for asked in book.of(Asked))
    assert one.spent() == (cost(Tokens(input=100, output=50), PRICES) if how == "no_choices" else whole)
    # Resumed before the stop was written down, it is not asked again; after that it is, as often.
    with pytest.raises(Stop):
        client(provider, Journal(book.path)).ask("it", name(how), ASK)
    assert server.calls - before == calls
    again = Journal(book.path)
    again.append(Stopped(status=status, reason=""))
    with pytest.raises(Stop):
        client(provider, again).ask("it", name(how), ASK)
    assert server.calls - before == 2 * calls


def test_a_server_that_is_not_there_is_unreachable_and_costs_nothing(tmp_path):
    with Loopback(lambda body: "hello") as gone:
        url = gone.url
    book = Journal(tmp_path / "events.jsonl")
    one = Client(
        Provider((Model(name("x"), url),), 100, 5), book, {name("x"): PRICES}, Decimal(1), sleep=lambda s: None
    )
    with pytest.raises(Stop, match="unreachable"):
        one.ask("it", name("x"), ASK)
    assert one.spent() == 0 and len(book.of(Asked)) == 4


class Counting:
    """A provider that counts."""

    max_tokens = 10_000

    def __init__(self, tokens: Tokens | None) -> None:
        self.tokens, self.calls, self.lock = tokens, 0, threading.Lock()

    def answer(self, name: str, question: Question) -> Answer:
        with self.lock:
            self.calls += 1
        return Answer("ok", "hello", tokens=self.tokens)

    def close(self) -> None: ...


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("tokens", [Tokens(input=1_000, output=10_000), Tokens(input=100, output=300), None])
def test_the_limit_holds_however_many_ask(tmp_path, workers, tokens):
    """$0.05 at no more than $.021 a call."""
    answers, book = Counting(tokens), Journal(tmp_path / "events.jsonl")
    prices, limit = PRICES | {"cache_write": Decimal(1)}, Decimal("0.05")
    one, most = Client(answers, book, {"m": prices}, limit), bound(ASK, prices, 10_000)
    assert Decimal("0.0205") < most < Decimal("0.0210")

    def ask(number: int) -> str:
        try:
            return one.ask(f"slot {number}", "m", ASK).status
        except Stop as stop:
            return stop.status

    with ThreadPoolExecutor(workers) as pool:
        ended = list(pool.map(ask, range(120)))
    each = most if tokens is None else cost(tokens, prices)
    fit = 0
    while fit * each + max(most, each if fit else most) <= limit:
        fit += 1
    assert one.spent() == fit * each <= limit
    assert answers.calls == ended.count("ok") == len(book.of(Asked)) == fit and ended.count("spent") == 120 - fit
    assert fit == (43 if tokens == Tokens(input=100, output=300) else 2)


def test_a_call_that_just_fits_is_made_and_one_that_is_a_trillionth_of_a_dollar_short_is_not(tmp_path):
    most = bound(ASK, PRICES, 10_000)
    for limit, calls in ((most, 1), (most - Decimal("0.000000000001"), 0)):
        answers = Counting(Tokens(input=1, output=1))
        one = Client(answers, Journal(tmp_path / f"{calls}.jsonl"), {"m": PRICES}, limit)
        if calls:
            assert one.ask("it", "m", ASK).status == "ok"
        else:
            with pytest.raises(Stop, match="spent"):
                one.ask("it", "m", ASK)
        assert answers.calls == calls


def test_a_server_that_takes_more_than_was_reserved_is_reserved_as_much_from_then_on(tmp_path):
    answers, book = Counting(Tokens(input=500_000, output=1)), Journal(tmp_path / "events.jsonl")
    one = Client(answers, book, {"m": PRICES}, Decimal("0.9"))
    one.ask("a", "m", ASK)
    with pytest.raises(Stop, match="spent"):
        one.ask("b", "m", ASK)
    assert answers.calls == 1


def test_every_token_of_the_prompt_is_counted_whatever_the_cache_did():
    assert cost(Tokens(input=10, cache_read=20, cache_write=30, output=40), PRICES) == Decimal("0.000190")
    assert bound(ASK, PRICES, 0) == (len(ASK.sent().encode()) + 512) * Decimal(3) / 1_000_000, "the dearest kind"
    assert bound(ASK, {}, 100) == 0


def test_tokens_from_the_servers_cache_are_counted(tmp_path):
    with Loopback(lambda body: "hello") as running:
        running.usage |= {"prompt_tokens_details": {"cached_tokens": 70}}
        made = Provider((Model(name("valid"), running.url),), 100, 5)
        assert made.answer(name("valid"), ASK).tokens == Tokens(input=30, cache_read=70, cache_write=0, output=50)
        running.usage |= {"completion_tokens": -5}
        assert made.answer(name("valid"), ASK).status == "no_usage", "nobody is paid for answering"


def test_what_was_replied_is_never_asked_again_and_what_was_lost_only_when_told(tmp_path):
    answers, file = Counting(Tokens(input=1, output=1)), tmp_path / "events.jsonl"
    one = Client(answers, Journal(file), {"m": PRICES}, Decimal(1))
    first = one.ask("slot 0", "m", ASK, {"operator": "draft"})
    book = Journal(file)
    book.append(
        Asked(about="slot 1", attempt=0, model="m", prompt="", prices={}, reserved_usd=Decimal("0.3"), context={})
    )
    again = Client(answers, Journal(file), {"m": PRICES}, Decimal(1))
    assert again.spent() == first.usd + Decimal("0.3")
    assert again.ask("slot 0", "m", ASK).text == first.text and answers.calls == 1
    lost = again.ask("slot 1", "m", ASK)
    assert (lost.status, lost.usd, answers.calls) == ("lost", Decimal("0.3"), 1)
    assert Client(answers, Journal(file), {"m": PRICES}, Decimal(1)).ask("slot 1", "m", ASK).status == "lost"
    told = Client(answers, Journal(file), {"m": PRICES}, Decimal(1), retry_lost=True)
    assert told.ask("slot 1", "m", ASK).status == "ok" and answers.calls == 2
    assert told.spent() == 2 * first.usd + Decimal("0.3"), "it was paid for twice"
    kinds = [(event.event, getattr(event, "attempt", None)) for event in Journal(file).events]
    assert kinds == [("asked", 0), ("replied", 0), ("asked", 0), ("replied", 0), ("asked", 1), ("replied", 1)]


def test_an_event_keeps_its_money_to_the_last_digit():
    event = Replied(about="x", attempt=0, status="ok", text="", detail="", tokens=None, usd=Decimal("0.0000000123"))
    assert EVENT.validate_json(event.model_dump_json(), strict=True).usd == Decimal("0.0000000123")


def test_a_model_without_a_price_is_refused_unless_told(tmp_path):
    table = Prices(models={"a/b": Price(input="0.1", output=1, date="2026-01-01", source="a page")})
    assert priced(["a/b"], table, False)["a/b"] == {
        "input": Decimal("0.1"), "output": Decimal(1), "cache_read": Decimal("0.1"), "cache_write": Decimal("0.1"),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"price of c/d is not in .*prices.yaml.*--price-unknown"):
        priced(["a/b", "c/d"], table, False)
    assert priced(["c/d"], table, True) == {"c/d": {}}
    file = tmp_path / "prices.yaml"
    file.write_text("models: {a/b: {input: -1, output: 1, date: 2026-01-01, source: x}}\n", encoding="utf-8")
    with pytest.raises(UserError, match="input"):
        load_prices(file)
    assert load_prices().models, "the table that comes with the project can be read"


def test_no_key_of_the_environment_is_written_down(server, monkeypatch, tmp_path):
    from stages.asking.provider import failed

    monkeypatch.setenv("LOOP_API_KEY", "sk-0123456789abcdef")
    assert "sk-0123" not in failed(RuntimeError("wrong key sk-0123456789abcdef given\x1b[0m")).detail


def test_a_key_that_is_missing_is_the_users_to_set(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"model openai/x cannot be used: .*OPENAI_API_KEY"):
        Provider((Model("openai/x"),), 10, 5)


def test_closed_while_it_asks_it_leaves_the_call_without_a_reply(tmp_path):
    from stages.asking.provider import Interrupted

    came = threading.Event()

    def slowly(body: dict) -> str:
        came.set()
        threading.Event().wait(1.5)
        return "hello"

    with Loopback(slowly) as running:
        book = Journal(tmp_path / "events.jsonl")
        one = Client(Provider((Model(name("valid"), running.url),), 10, 30), book, {name("valid"): PRICES}, Decimal(1))
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(one.ask, "it", name("valid"), ASK)
            assert came.wait(30)
            one.close()
            with pytest.raises(Interrupted):
                asked.result(30)
    assert len(book.of(Asked)) == 1 and not book.of(Replied)

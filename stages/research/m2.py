"""A language model as M2: it reads a menu of evidence with prices and promises, and says what to buy at each budget.

It decides and does not predict: the executor's calibrator does that from what was bought, so what is measured is
whether the agent makes use of a method, not whether it can do regression in its head. What it says is checked against
the menu. Where it says nothing that can be read, nothing is bought: an agent that cannot be understood has no evidence.

Two accounts are kept apart. FLOPs of the target and of the method are charged as always. What the agent itself took is
2 x parameters x tokens (Kaplan et al. 2020, 2001.08361, section 2.1), the parameters being what whoever serves the
model says; in one sum the target's FLOPs would vanish.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.asking.client import USABLE, Client
from stages.asking.provider import Question
from stages.base.text import plain
from stages.contracts.journal import Asked, Replied, Tokens
from stages.execution.policies import Menu, checked_choice

__all__ = ["AgentAccount", "LlmPolicy", "menu_question", "read_choice"]

SYSTEM = """You are an agent that answers questions about a neural network. You do not see the network. For each \
question you may buy one piece of evidence: nothing, black-box measurements, or the answer of an interpretability \
tool, alone or beside measurements. Each has a price and a promise: the score that it had on questions whose answers \
you know (1 is perfect, 0 is saying the average; a promise is from few questions, so it is uncertain). You are paid \
the score that you reach, and a little for compute that you do not spend. Answer with one JSON object that has, for \
each budget, the number of one offer whose price is within it. No other words."""


def menu_question(menu: Menu) -> Question:
    """What the model is asked. It names no task, and does not say whether an answer is the method's or its placebo."""
    lines = [
        f"{number}: {_offer(menu, number)}; price {one.flops:.4g}; promise {one.score:+.3f}"
        for number, one in enumerate(menu.offers)
    ]
    properties: dict[str, Any] = {}
    budgets = []
    for name, (limit, amount) in menu.budgets.items():
        within = [i for i, one in enumerate(menu.offers) if one.flops <= limit]
        properties[name] = {"type": "integer", "enum": within}
        said = "no limit" if limit == float("inf") else f"at most {limit:.4g}"
        budgets.append(f"{name}: {said}; saving {amount:.4g} is worth {menu.flop_weight:g} of score; offers {within}")
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    prompt = "\n".join([f"A question of kind {menu.kind}.", "", "Offers:", *lines, "", "Budgets:", *budgets])
    return Question(SYSTEM, prompt, schema, 0)


def _offer(menu: Menu, number: int) -> str:
    one = menu.offers[number]
    if one.question:
        return "what the question itself says"
    measured = "" if one.rung < 0 else f"black-box measurements of step {one.rung}"
    if one.answer:
        return f"the tool's answer beside {measured}" if measured else "the tool's answer"
    return measured or "nothing"


def read_choice(menu: Menu, text: str) -> dict[str, int]:
    """The choice of an answer.

    Raises:
        ValueError: there is no JSON object in it, or it does not fit the menu; says what is wrong.
    """
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ValueError("there is no JSON object in the answer")
    try:
        found = json.loads(text[start : end + 1])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the answer is no JSON: {plain(error, 100)}") from None
    if not isinstance(found, dict):
        raise ValueError("the answer is no JSON object")
    return checked_choice(menu, found)


@dataclass(frozen=True)
class AgentAccount:
    """What the agent itself took."""

    calls: int
    tokens: int
    usd: str
    flops: float | None
    """2 x parameters x tokens; None where the parameters are not known."""
    unread: int
    """Choices in which nothing that could be read was said."""


@dataclass
class LlmPolicy:
    """
    Args:
        client: asks, and keeps every call in a journal: the same menu is not asked twice, today or tomorrow.
        model: as the client knows it.
        parameters: of the model; 0: not known.
    """

    client: Client
    model: str
    parameters: float = 0.0
    name: str = "llm"
    served: object = None
    """A server in this process, which goes with what refers to it."""
    unread: int = field(default=0, init=False)

    def choose(self, menu: Menu) -> Mapping[str, int]:
        """
        Raises:
            Stop: the limit of money is reached, the server cannot for now, or something is set up wrongly.
        """
        question = menu_question(menu)
        about = "menu " + hashlib.sha256(question.sent().encode()).hexdigest()[:16]
        reply = self.client.ask(about, self.model, question, fault=lambda text: _fault(menu, text))
        if reply.status in USABLE:
            return read_choice(menu, reply.text)
        self.unread += 1
        return dict.fromkeys(menu.budgets, 0)

    def account(self) -> AgentAccount:
        """Of all calls in the journal."""
        events = self.client.book.events
        counted = [one.tokens for one in events if isinstance(one, Replied) and one.tokens is not None]
        tokens = sum(map(_all, counted))
        return AgentAccount(
            calls=sum(isinstance(one, Asked) for one in events),
            tokens=tokens,
            usd=f"{self.client.spent():f}",
            flops=2 * self.parameters * tokens if self.parameters else None,
            unread=self.unread,
        )


def _all(tokens: Tokens) -> int:
    return tokens.input + tokens.cache_read + tokens.cache_write + tokens.output


def _fault(menu: Menu, text: str) -> str:
    try:
        read_choice(menu, text)
    except ValueError as error:
        return plain(error, 300)
    return ""

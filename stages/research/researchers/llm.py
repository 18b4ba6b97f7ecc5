"""A language model proposes: genomes of the grammar, or whole method files.

Every batch is asked for at once, from the results of the batches before it. Operator and model of a slot are chosen by
a bandit, its parents by a small tournament, all as functions of seed, slot and journal. Calls are written down before
and after they are made (``stages.asking.client``), so a campaign that was killed replays what was replied.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import JsonValue

from stages.asking import client as asking
from stages.asking.client import USABLE, Client
from stages.asking.provider import Question
from stages.base.code import code_digest
from stages.base.text import plain
from stages.contracts.journal import Choices, Replied
from stages.errors import UserError
from stages.research.bandit import Arm, Record, about, choose, records
from stages.research.journal import Journal
from stages.research.programs.emitting import source_of
from stages.research.programs.grammar import choices_of
from stages.research.prompts import genome_question, read_genome, read_method, source_question, without
from stages.research.researcher import Halt, Move, Researcher
from stages.research.view import Seen, View, batch_start, view_of
from stages.scoring.candidate import Source

__all__ = ["Asking", "LlmResearcher", "Mode"]

Mode = Literal["genome", "source"]
TOURNAMENT = 3
DEEPEST_DEBUG = 3
"""Times in a row that a method that failed is mended."""
FILE = "method.py"


@dataclass(frozen=True)
class Asking:
    """How a campaign asks.

    Args:
        client: makes a client that writes into a journal.
        models: that may be asked.
        held_out: families that no prompt may name.
        workers: slots that are asked for at once; what is proposed does not depend on it.
        settings: what else answers depend on, told apart by a campaign's fingerprint.
        tell: is told one line per reply.
        served: a server in this process, which goes with what refers to it.
    """

    client: Callable[[Journal], Client]
    models: tuple[str, ...]
    mode: Mode
    held_out: tuple[str, ...] = ()
    workers: int = 4
    settings: tuple[str, ...] = ()
    tell: Callable[[str], object] = lambda line: None
    served: object = None


class Plan(NamedTuple):
    """What is asked for one slot."""

    slot: int
    arm: Arm
    parents: tuple[Seen, ...]
    question: Question


class LlmResearcher(Researcher):
    """
    Args:
        how: models and limits; `lensmith research --researcher llm` makes it.

    Raises:
        UserError: nobody said which model.
    """

    batch = 4

    def __init__(self, seed: int, space: str = "programs", how: Asking | None = None) -> None:
        super().__init__(seed, "programs")
        if how is None:
            raise UserError("the llm researcher needs a model: `lensmith research --researcher llm --model NAME`")
        self.how = how
        about_us = json.dumps([how.mode, how.models, how.settings, code_digest(__name__)])
        self.code = hashlib.sha256(about_us.encode()).hexdigest()
        self._ready: dict[int, tuple[Plan, Replied | asking.Stop]] = {}

    def prepare(self, journal: Journal, slots: Sequence[int]) -> None:
        start = batch_start(slots[0], self.batch)
        view, client = view_of(journal, start, self.batch), self.how.client(journal)
        known = records(journal, view, start)
        plans = [self._plan(view, self._chosen(view, known, slot), slot) for slot in slots]

        def ask(plan: Plan) -> Replied | asking.Stop:
            context: dict[str, JsonValue] = {
                "operator": plan.arm.operator,
                "parents": [one.slot for one in plan.parents],
            }
            try:
                reply = client.ask(about(plan.slot), plan.arm.model, plan.question, context, self._fault)
            except asking.Stop as stop:
                return stop
            self.how.tell(f"{about(plan.slot)}, {plan.arm.operator}: {reply.status} {reply.detail}".rstrip())
            return reply

        pool = ThreadPoolExecutor(self.how.workers)
        try:
            self._ready = {plan.slot: (plan, reply) for plan, reply in zip(plans, pool.map(ask, plans), strict=True)}
        except BaseException:
            client.close()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def propose(self, view: View, slot: int) -> Move:
        plan, reply = self._ready[slot]
        if isinstance(reply, asking.Stop):
            raise Halt(reply.status, reply.reason)
        parents = tuple(one.slot for one in plan.parents)
        operator = plan.arm.operator
        text = "" if reply.status not in (*USABLE, "invalid") else reply.text
        fault = "" if reply.status in USABLE else plain(f"no method: {reply.status}: {reply.detail}", 400)
        outcome: Literal["failed", "infra"] = "infra" if reply.status == "lost" else "failed"
        if self.how.mode == "source":
            made = read_method(text)[0] if text else ""
            fault = fault or self._repeats(view, {"source": made})
            chosen: Choices = {"model": plan.arm.model, "mode": "source"}
            return Move(Source(FILE, made), chosen, operator, parents, outcome if fault else "ok", fault)
        if fault:
            return Move(Source(FILE, ""), {"model": plan.arm.model}, operator, parents, outcome, fault)
        genome = read_genome(text)
        repeated = self._repeats(view, choices_of(genome))
        return Move(source_of(genome), choices_of(genome), operator, parents, "failed" if repeated else "ok", repeated)

    def _repeats(self, view: View, wanted: Mapping[str, object]) -> str:
        """Whether the same was proposed before, in words."""
        for one in view.tried:
            known: Mapping[str, object] = {"source": one.spec.get("source")} if "source" in wanted else one.choices
            if known == wanted:
                return f"no method: duplicate: the same as slot {one.slot}"
        return ""

    def _fault(self, text: str) -> str:
        """What is wrong with an answer."""
        if self.how.mode == "source":
            return read_method(text)[1]
        try:
            read_genome(text)
        except ValueError as error:
            return str(error)
        return ""

    def _chosen(self, view: View, known: dict[Arm, Record], slot: int) -> Arm:
        operators = ["draft"]
        if _methods(view):
            operators.append("improve")
        if self.how.mode == "genome" and len(_methods(view)) > 1:
            operators.append("cross")
        if self.how.mode == "source" and _broken(view):
            operators.append("debug")
        arms = [Arm(operator, model) for operator in operators for model in self.how.models]
        return choose(arms, known, random.Random(f"llm arm {self.seed} {slot}"))

    def _plan(self, view: View, arm: Arm, slot: int) -> Plan:
        rng = random.Random(f"llm parents {self.seed} {slot}")
        parents: tuple[Seen, ...] = ()
        if arm.operator == "improve":
            parents = (_winner(_methods(view), rng),)
        elif arm.operator == "cross":
            one = _winner(_methods(view), rng)
            parents = one, _winner([other for other in _methods(view) if other is not one], rng)
        elif arm.operator == "debug":
            parents = (rng.choice(_broken(view)),)
        ask = genome_question if self.how.mode == "genome" else source_question
        question = ask(view, arm.operator, parents, 1_000_003 * self.seed + slot)
        held_out = self.how.held_out
        return Plan(
            slot,
            arm,
            parents,
            Question(
                without(question.system, held_out), without(question.prompt, held_out), question.schema, question.seed
            ),
        )


def _methods(view: View) -> list[Seen]:
    """Proposals that were scored on train tasks, the best first."""
    return [one for one in view.scored() if one.tasks and one.status == "ok"]


def _winner(among: Sequence[Seen], rng: random.Random) -> Seen:
    return max((rng.choice(among) for _ in range(TOURNAMENT)), key=lambda one: (one.value or 0.0, -one.slot))


def _broken(view: View) -> list[Seen]:
    """Files that failed, were not mended yet, and are not at the end of a chain that was mended too often."""
    operators = {one.slot: (one.operator, one.parents) for one in view.seen}
    mended = {slot for operator, parents in operators.values() if operator == "debug" for slot in parents}

    def depth(slot: int) -> int:
        operator, parents = operators[slot]
        return 1 + depth(parents[0]) if operator == "debug" and parents and parents[0] in operators else 0

    return [
        one
        for one in view.seen
        if one.status == "failed"
        and str(one.spec.get("source", "")).strip()
        and "duplicate" not in one.reason
        and one.slot not in mended
        and depth(one.slot) < DEEPEST_DEBUG
    ]

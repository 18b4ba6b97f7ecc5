"""How a method's work can end, said once.

ok        answered, or declined on some tasks
declined  did not answer: the executor works without it
failed    the method's fault: the baseline's score at best, and it pays for what it used
infra     the machinery's fault: no score, nothing is learned from it, and it can be tried again
void      tampering or a broken postcondition: no score at all
"""

from collections.abc import Iterable
from typing import Literal

__all__ = ["ORDER", "SCORELESS", "Outcome", "worst"]

Outcome = Literal["ok", "declined", "failed", "infra", "void"]
ORDER: tuple[Outcome, ...] = ("ok", "declined", "failed", "infra", "void")
SCORELESS: tuple[Outcome, ...] = ("infra", "void")
"""Outcomes that are no score, which is not the same as a score of zero."""


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of a method over several tasks: the worst of them; declining some is no fault, so it counts as ok."""
    found = ORDER[max((ORDER.index(outcome) for outcome in outcomes), default=0)]
    return "ok" if found == "declined" else found

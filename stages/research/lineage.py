"""How a proposal differs from the one it was made from."""

import difflib

from stages.contracts.journal import SpecFacts

__all__ = ["difference"]

AROUND = 1
"""Unchanged lines shown beside a change."""


def difference(parent: SpecFacts, child: SpecFacts) -> str:
    """Lines of a source that went and came, as a unified diff; of settings, one line for each that changed."""
    if "source" in parent and "source" in child:
        before, after = (str(facts["source"]).splitlines() for facts in (parent, child))
        return "\n".join(difflib.unified_diff(before, after, "parent", "child", lineterm="", n=AROUND))
    changed = [key for key in sorted({*parent, *child}) if parent.get(key) != child.get(key)]
    return "\n".join(f"{key}: {parent.get(key)} -> {child.get(key)}" for key in changed)

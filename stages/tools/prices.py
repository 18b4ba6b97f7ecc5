"""docs/prices.md: the price list as a page, made from the table it describes. ``python -m stages tools.prices`` writes
it."""

import ast
from pathlib import Path

from stages.metering import prices

__all__ = ["as_markdown", "main"]

HEAD = """# Prices

What every operation costs, in FLOPs. This page is made from the table that prices answers
(`stages/metering/prices.py`); an operation that is not on it has no price and may not be used.

"""


def as_markdown() -> str:
    """The page."""
    words = ast.get_docstring(ast.parse(Path(prices.__file__).read_text(encoding="utf-8"))) or ""
    lines = [HEAD + words.replace("``", "`"), "", "| price | operations |", "|---|---|"]
    merged: dict[str, list[str]] = {}
    for rule in prices.RULES:
        merged.setdefault(rule.words, []).extend(rule.names)
    for said, names in merged.items():
        lines.append(f"| {said} | {', '.join(f'`{name}`' for name in sorted(set(names)))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    page = Path(prices.__file__).parents[2] / "docs" / "prices.md"
    page.write_text(as_markdown(), encoding="utf-8")
    print(f"{page.name}: {sum(len(rule.names) for rule in prices.RULES)} operations", flush=True)

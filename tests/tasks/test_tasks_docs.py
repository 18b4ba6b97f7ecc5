"""docs/tasks.md has a card per family, and says what the code says."""

from pathlib import Path

from stages.base.params import load
from stages.tasks.families import FAMILIES, family
from stages.tasks.stage import Config

ROOT = Path(__file__).resolve().parents[2]


def test_every_family_has_a_card_that_agrees_with_its_code() -> None:
    text = " ".join((ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").split())
    splits = load("tasks", Config, ROOT / "params" / "tasks.yaml").families
    assert tuple(sorted(splits)) == FAMILIES.names()
    for name in FAMILIES.names():
        made = family(name)
        facts = f"Split {splits[name].split}, version {made.version}, query `{made.query_kind}`."
        for said in (f"## {name} *{made.title}* {facts}", " ".join(made.truth_recipe.split()), made.source):
            assert said in text, f"docs/tasks.md, card of {name}: {said[:60]!r} is not there"
        for target in splits[name].targets:
            assert f"| {name} | {target} |" in text, f"docs/tasks.md: no ladder of {name} on {target}"

"""JSON schemas of every result file, from the row models: docs/schema/<name>.json.

python -m stages tools.schema      writes them; a test says when that is due
"""

import json
from pathlib import Path

from pydantic import JsonValue

from stages.base import paths
from stages.base.files import save_text
from stages.contracts.journal import EVENT
from stages.contracts.results import BY_HAND, ELSEWHERE, FILES

__all__ = ["main", "schemas", "write"]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, str]:
    """{file name: text} of every schema."""
    found: dict[str, dict[str, JsonValue]] = {}
    for file in (*FILES.values(), *ELSEWHERE):
        schema = file.adapter.json_schema(mode="validation")
        found[file.name] = {"$schema": DIALECT, "$comment": f"{file.about}; made by stage {file.made_by}", **schema}
    for by_hand in BY_HAND:
        schema = by_hand.adapter.json_schema(mode="validation")
        said = f"{by_hand.about}; made by `{by_hand.made_by}`"
        found[by_hand.name] = {"$schema": DIALECT, "$comment": said, **schema}
    found["events"] = {"$schema": DIALECT, "$comment": "one line of events.jsonl", **EVENT.json_schema()}
    return {f"{name}.json": json.dumps(_plain(one), indent=1, sort_keys=True) + "\n" for name, one in found.items()}


def _plain(value: JsonValue) -> JsonValue:
    """Shorter: without the titles that pydantic makes of names, and "a number or null" as one type."""
    if isinstance(value, dict):
        kinds = value.get("anyOf")
        if isinstance(kinds, list) and all(isinstance(kind, dict) and set(kind) == {"type"} for kind in kinds):
            value = {key: part for key, part in value.items() if key != "anyOf"}
            value["type"] = [kind["type"] for kind in kinds if isinstance(kind, dict)]
        # The title of a field that is called title is an object: it stays.
        return {key: _plain(part) for key, part in value.items() if key != "title" or not isinstance(part, str)}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def write(folder: Path) -> None:
    """Write every schema, and take away those of files that are no more."""
    wanted = schemas()
    for name, text in wanted.items():
        save_text(folder / name, text)
    for path in folder.glob("*.json"):
        if path.name not in wanted:
            path.unlink()


def main() -> None:
    write(paths.root() / "docs" / "schema")

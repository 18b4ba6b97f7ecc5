"""dvc.lock, changed fast, and never half written.

After each node DVC reads the whole dvc.lock with a parser that keeps comments, in Python, and writes it
again: 1 s of CPU time for the graph's 230 KB, more than most nodes compute. Here the node's lines are
replaced and the others left as they are; a file in another style goes through the C parser of the same
library (ruamel.yaml), .2 s. DVC also empties the file before it writes it; a process killed in between
would leave a lock that says nothing was ever run.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import StringIO
from pathlib import Path
from textwrap import indent
from typing import Any

from stages.base.files import save_text

__all__ = ["Lock", "install", "read", "write"]

Lock = dict[str, Any]
"""What a dvc.lock holds, or a part of it: DVC gives it no type."""


def install() -> None:
    """Have DVC, in this process, change dvc.lock so. dvc.yaml, which has comments, is left to DVC."""
    from dvc import dvcfile

    slow = dvcfile.modify_yaml

    def modify(path: str, fs: object = None) -> AbstractContextManager[Lock]:
        return _modify(Path(path)) if os.path.basename(path) == dvcfile.LOCK_FILE else slow(path, fs=fs)  # noqa: PTH119

    dvcfile.modify_yaml = modify


@contextmanager
def _modify(path: Path) -> Iterator[Lock]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    entries = _Entries.of(text)
    if entries is None:
        data = read(text) if text else {}
        yield data
        save_text(path, write(data))
    else:
        data = {"schema": "2.0", "stages": entries}
        yield data
        save_text(path, _HEAD + "".join(data["stages"].texts()))


_HEAD = "schema: '2.0'\nstages:\n"
_ENTRY = re.compile(r"  (?! )(.+):\n((?: {4}.*\n)+)")
"""One node in the block style in which DVC writes: its name, and what is further in."""

_SHARED = re.compile(r"[:-] [&*]id\d+")
"""A value that several places share, so that their texts do not stand for themselves."""


class _Entries(Lock):
    """The nodes of a lock by name; each is text until it is asked for."""

    @classmethod
    def of(cls, text: str) -> "_Entries | None":
        """None where the text is not in the style in which DVC writes it, or holds more than nodes."""
        body = text.removeprefix(_HEAD)
        found = list(_ENTRY.finditer(body))
        if body == text or _SHARED.search(text) or "".join(match[0] for match in found) != body:
            return None
        entries = cls()
        entries._texts = {match[1].strip("'\""): match[0] for match in found}
        return entries

    _texts: dict[str, str]

    def get(self, name: str, default: Any = None) -> Any:
        return read(self._texts[name])[name] if name in self._texts else default

    def update(self, entries: Mapping[str, Any]) -> None:  # type: ignore[override]
        for name, entry in entries.items():
            self._texts[name] = indent(write({name: entry}), "  ")

    def texts(self) -> Iterable[str]:
        return self._texts.values()


def read(text: str) -> Lock:
    """What the text of a dvc.lock holds."""
    from dvc.utils.serialize import parse_yaml

    found: Lock = parse_yaml(text, "dvc.lock")
    return found


def write(data: Mapping[str, Any]) -> str:
    """The text of a dvc.lock, as DVC would write it."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump(_plain(data), stream)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    """Ordered and commented mappings as plain ones, which is what the C writer knows."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value

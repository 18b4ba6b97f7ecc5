"""What every result row is: a frozen model, an estimate with its interval; and a file that holds them.

JSON keys are the names of the fields. A field that a stage did not state is not in the file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from stages.base import paths
from stages.base.files import save_json
from stages.errors import UserError

__all__ = ["PLACES", "Ends", "Estimate", "Record", "ResultFile", "Verdict", "spread"]

PLACES = 6
"""Decimal places of every number written: far below any interval, far above the last bits that machines differ in."""

Verdict = Literal["better", "not distinguishable", "worse"]
Ends = Mapping[str, tuple[str, str, str]]
"""Name of a number that has an interval -> the fields of its value, its low end and its high end."""
Shape = TypeVar("Shape")


class Record(BaseModel):
    """Base of every row: immutable, unknown keys refused, no NaN; the docstring under a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, populate_by_name=True
    )
    ESTIMATES: ClassVar[Ends] = {}
    """Numbers that have a 95% interval."""

    def estimate(self, name: str) -> "Estimate":
        """A number with its interval, from flat fields.

        Raises:
            ValueError: the row has no such number.
        """
        fields = type(self).ESTIMATES.get(name)
        if fields is None:
            known = ", ".join(type(self).ESTIMATES)
            raise ValueError(f"{type(self).__name__} has no estimate {name!r}; it has {known}")
        value, low, high = (getattr(self, field) for field in fields)
        return Estimate(value=value, low=low, high=high)

    def rounded(self, places: int = PLACES) -> Self:
        """The same row with its floats rounded (adding 0.0 turns -0.0 into 0.0)."""
        values = {name: getattr(self, name) for name in self.model_fields_set}
        return self.model_copy(
            update={name: round(value, places) + 0.0 for name, value in values.items() if isinstance(value, float)}
        )

    def facts(self) -> dict[str, JsonValue]:
        """The row as JSON values, as a file has it."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)

    @classmethod
    def label(cls, field: str) -> str:
        """What a table calls a field."""
        return cls.model_fields[field].title or field.replace("_", " ")

    @classmethod
    def hint(cls, field: str) -> str:
        """What a field is, in one sentence or two: its docstring."""
        return " ".join((cls.model_fields[field].description or "").split())


def spread(*names: str) -> Ends:
    """The fields of numbers that are called <name>_mean, <name>_low and <name>_high."""
    return {name: (f"{name}_mean", f"{name}_low", f"{name}_high") for name in names}


class Estimate(Record):
    """A measured number with its 95% interval, and the value it would have by chance."""

    value: float | None
    """The measured number; null where it is not defined."""
    low: float | None = None
    """Lower end of the 95% interval; null without one."""
    high: float | None = None
    """Upper end of the 95% interval; null without one."""
    null: float | None = None
    """The same quantity for a control that knows nothing, such as a random dictionary; null without one."""

    @classmethod
    def of(
        cls, value: float, low: float = math.nan, high: float = math.nan, null: float = math.nan, places: int = PLACES
    ) -> "Estimate":
        """Rounded; a number that is not finite becomes null."""

        def clean(number: float) -> float | None:
            return round(number, places) + 0.0 if math.isfinite(number) else None

        return cls(value=clean(value), low=clean(low), high=clean(high), null=clean(null))

    def with_null(self, null: float | None) -> "Estimate":
        return self.model_copy(update={"null": null})

    @property
    def excludes_zero(self) -> bool:
        """The whole interval lies on one side of 0."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


@dataclass(frozen=True)
class ResultFile(Generic[Shape]):
    """One kind of result file: what it holds and which stage makes it.

    ``save`` is byte-stable and atomic; ``load`` refuses what does not fit the model.
    """

    name: str
    """Of metrics/<name>.json, unless a path is given."""
    shape: type[Shape]
    """A row model, or a tuple of them."""
    made_by: str
    """Stage of dvc.yaml."""
    about: str
    """What it holds, for a reader who misses it."""
    indent: int | None = 1

    @cached_property
    def adapter(self) -> TypeAdapter[Shape]:
        return TypeAdapter(self.shape)

    @property
    def command(self) -> str:
        """What makes it."""
        return f"dvc repro {self.made_by}"

    def path(self) -> Path:
        return paths.metrics_file(self.name)

    def save(self, value: Shape, path: Path | None = None) -> None:
        json_value = self.adapter.dump_python(value, mode="json", exclude_unset=True, by_alias=True)
        save_json(path or self.path(), json_value, self.indent)

    def load(self, path: Path | None = None) -> Shape:
        """Read and validate.

        Raises:
            UserError: the file is missing, is not JSON, or holds something else; says the first wrong key and the
                remedy.
        """
        file = paths.require(path or self.path(), self.made_by)
        try:
            return self.adapter.validate_json(file.read_bytes(), strict=True)
        except ValidationError as error:
            remedy = f"make it anew with `dvc repro -f {self.made_by}`"
            raise UserError(f"{file} {_explain(error)}: {remedy}") from error


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "json_invalid":
            return f"is not JSON ({first['msg']})"
        case "extra_forbidden":
            return f"has the unknown key {place!r}"
        case "missing":
            return f"lacks the key {place!r}"
        case _ if place:
            return f"has {place} = {str(first['input'])[:60]!r} ({first['msg']})"
        case _:
            return f"holds {type(first['input']).__name__} ({first['msg']})"

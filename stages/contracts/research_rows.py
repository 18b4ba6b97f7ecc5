"""Rows about what research found: a campaign's incumbents, methods by the number of labels, what kind each is."""

from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import Field

from stages.contracts.outcomes import Outcome
from stages.contracts.record import Ends, Record, ResultFile
from stages.errors import UserError

__all__ = [
    "LABELS",
    "SCENARIOS",
    "TEST_PATH",
    "CommandFile",
    "LabelsRow",
    "PathRow",
    "ScenarioRow",
]

Shape = TypeVar("Shape")


class CommandFile(ResultFile[Shape]):
    """A result file that a command makes and no stage; ``made_by`` is the command."""

    @property
    def command(self) -> str:
        return self.made_by

    def load(self, path: Path | None = None) -> Shape:
        """Read and validate.

        Raises:
            UserError: the file is missing or holds something else; names the command.
        """
        file = path or self.path()
        if not file.is_file():
            raise UserError(f"{file} is missing: make it with `{self.made_by}`")
        try:
            return super().load(file)
        except UserError as error:
            raise UserError(str(error).replace(f"dvc repro -f {self.made_by}", self.made_by)) from error


class PathRow(Record):
    """One incumbent of a campaign: what was known of it when it was chosen, and what the sealed test said at the end.

    Its test reward comes from the one opening, together with everybody else's.
    """

    ESTIMATES: ClassVar[Ends] = {
        "train": ("train", "train_low", "train_high"),
        "test": ("test", "test_low", "test_high"),
    }

    name: str
    """<researcher>-<iteration>."""
    iteration: int
    """Counted from 0."""
    accepted: bool
    """Whether it passed the gate; else nothing did, and it is the one with the best feedback."""
    evaluations: int
    """Proposals that had been judged when it was, itself included."""
    asked: int
    """Those of them that validation was asked about: what it is the best of."""
    train: float
    """Mean reward on train families."""
    train_low: float
    """Lower end of its 95% interval."""
    train_high: float
    """Upper end of its 95% interval."""
    validation: float
    """Mean reward on validation families as released by the gate: rounded to the noise floor."""
    noise: float
    """Standard error of a mean reward on the validation tasks: the median over the built-in methods that vary."""
    shrinkage: float
    """What the best of as many equals would lose on new tasks: the noise x the expected largest of ``asked`` standard
    normals. An upper bound, since proposals share instances and seeds."""
    test: float | None
    """Mean reward on the sealed test families; null where there is no score."""
    test_low: float | None
    """Lower end of its 95% interval."""
    test_high: float | None
    """Upper end of its 95% interval."""
    status: Outcome
    """Of the test; void if the split was opened more than once."""

    @property
    def gap(self) -> float | None:
        """Validation reward less test reward."""
        return None if self.test is None else self.validation - self.test

    @property
    def excess(self) -> tuple[float, float] | None:
        """95% interval, from the test's alone, of the gap beyond what selection among equals explains."""
        if self.test_low is None or self.test_high is None:
            return None
        known = self.validation - self.shrinkage
        return known - self.test_high, known - self.test_low


TEST_PATH = ResultFile(
    "test_path", tuple[PathRow, ...], "sealed_test", "what the sealed test said of every incumbent of the campaign"
)


class LabelsRow(Record):
    """One method with so many labelled instances for the agent to learn from, on the tasks of a split."""

    ESTIMATES: ClassVar[Ends] = {
        name: (name, f"{name}_low", f"{name}_high") for name in ("reward", "baseline", "assisted")
    }

    method: str
    """Name of the method."""
    split: str
    """Split of the tasks."""
    labels: int
    """Labelled instances the agent may learn from; a task gives at most 40% of its instances."""
    n_tasks: int
    """Tasks."""
    n_seeds: int
    """Seeds per task."""
    reward: float
    """Mean reward over tasks."""
    reward_low: float
    """Lower end of its 95% interval on these tasks."""
    reward_high: float
    """Upper end of its 95% interval."""
    baseline: float
    """Mean score of the agent alone."""
    baseline_low: float
    """Lower end of its 95% interval."""
    baseline_high: float
    """Upper end of its 95% interval."""
    assisted: float
    """Mean score with the method."""
    assisted_low: float
    """Lower end of its 95% interval."""
    assisted_high: float
    """Upper end of its 95% interval."""


LABELS = CommandFile(
    "labels", tuple[LabelsRow, ...], "lensmith labels", "reward of methods by the number of labels the agent has"
)


class ScenarioRow(Record):
    """One method: how large what it found is, what it costs, and where it still helps. Intervals are of these tasks."""

    ESTIMATES: ClassVar[Ends] = {
        name: (name, f"{name}_low", f"{name}_high")
        for name in ("train", "validation", "new_kinds", "sealed", "sister", "own", "carried", "over_black_box", "gain")
    }

    method: str
    """Name of the method."""
    origin: str = Field(title="from")
    """built in, campaign or file."""
    targets: tuple[str, ...]
    """Targets that the questions are about."""
    outcome: Outcome
    """ok, declined (it answered none of these tasks), failed, void or infra; the last two have no numbers."""
    reason: str
    """Why it is not ok; empty otherwise."""
    bytes: int = Field(title="size of I(M)")
    """Bytes of the interpretation, arrays and JSON, on these targets together."""
    interpret_flops: float | None = Field(title="FLOPs of interpret")
    """FLOPs of the free phase on these targets together, the targets' passes included. It is not charged. Null where
    they cannot be counted: of a file, which interprets in a process of its own."""
    answer_flops: float | None = Field(title="FLOPs of an answer")
    """FLOPs charged to an answer, mean over the tasks that it answers."""
    answer_share: float | None = Field(title="of the tight budget")
    """The same as a share of the tight compute budget."""
    n_train: int
    """Train tasks."""
    train: float | None
    """Mean reward on train tasks: what methods and researchers may learn from."""
    train_low: float | None
    """Lower end of its 95% interval."""
    train_high: float | None
    """Upper end of its 95% interval."""
    n_validation: int
    """Validation tasks."""
    validation: float | None
    """Mean reward on validation tasks: other families. A campaign's method was accepted on them."""
    validation_low: float | None
    """Lower end of its 95% interval."""
    validation_high: float | None
    """Upper end of its 95% interval."""
    n_new_kinds: int
    """Validation tasks of a kind of question that no train task of the graph asks."""
    new_kinds: float | None = Field(title="new kinds")
    """Mean reward on these; null where there is none."""
    new_kinds_low: float | None
    """Lower end of its 95% interval."""
    new_kinds_high: float | None
    """Upper end of its 95% interval."""
    n_sealed: int
    """Test tasks, where the sealed test was opened once and had this method."""
    sealed: float | None
    """Mean reward on these: families that nobody had seen."""
    sealed_low: float | None
    """Lower end of its 95% interval."""
    sealed_high: float | None
    """Upper end of its 95% interval."""
    n_sister: int
    """Train and validation tasks that could be posed about the sisters: the same recipe and data, other initial
    weights."""
    sister: float | None = Field(title="sister, I(M) as it was")
    """Mean reward on these with the interpretation of the target itself, computed before there was a sister."""
    sister_low: float | None
    """Lower end of its 95% interval."""
    sister_high: float | None
    """Upper end of its 95% interval."""
    own: float | None = Field(title="sister, I(M) of its own")
    """The same with an interpretation of the sister."""
    own_low: float | None
    """Lower end of its 95% interval."""
    own_high: float | None
    """Upper end of its 95% interval."""
    carried: float | None = Field(title="as it was less its own")
    """Difference of the two, of draws that both share: below 0 is what does not carry over."""
    carried_low: float | None
    """Lower end of its 95% interval."""
    carried_high: float | None
    """Upper end of its 95% interval."""
    over_black_box: float | None = Field(title="over the black box")
    """Reward less that of the cheapest black box which is charged as much: see docs/people.md."""
    over_black_box_low: float | None
    """Lower end of its 95% interval."""
    over_black_box_high: float | None
    """Upper end of its 95% interval."""
    gain: float | None
    """Score with the method less score without it, mean over train and validation tasks."""
    gain_low: float | None
    """Lower end of its 95% interval."""
    gain_high: float | None
    """Upper end of its 95% interval."""
    oracle_gain: float = Field(title="the oracle's gain")
    """The same of a control that is given the truth."""


SCENARIOS = CommandFile(
    "scenarios", tuple[ScenarioRow, ...], "lensmith scenarios", "size, cost and reach of what each method found"
)

"""The tables of docs/people.md: published methods, the built-in ones and the campaign's best, judged together; every
one against a black box that spends as much; and two probes that are controls.

Every file of examples/published and examples/controls runs in this process, since they are ours. One core, and about
ten minutes of it. What was answered before is not judged again.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.base import paths
from stages.base.params import load, names
from stages.contracts.method_file import from_file
from stages.contracts.reward_rows import CONTROL_METHODS, StatementRow
from stages.contracts.score_result import ScoreTable
from stages.errors import UserError
from stages.reward.against import judged_arms, paired
from stages.reward.judging import Judged
from stages.reward.settings import RewardConfig
from stages.reward.statements import BOTH, Effect, stated
from stages.scoring.candidate import Candidate
from stages.scoring.evaluate import Evaluation, TaskName, evaluate
from stages.scoring.in_process import InProcess
from stages.scoring.judge import judge_arms
from stages.scoring.settings import settings
from stages.scoring.table import ByTask, score_table
from stages.tasks.storage import list_tasks, load_task
from stages.tools.circuit_tables import replace_between, table

__all__ = ["at_equal_charge", "black_boxes", "equal_table", "people_table", "probe_table", "write_people"]

PASSES = (1, 4, 16)
"""What the black boxes buy for a row: passes of the target."""
RIVAL = "black box"
PROBES = ("order_probe", "confidence_probe")


def write_people(page: Path | None = None, only: str = "") -> None:
    """Score everything and write the tables into the page.

    Args:
        only: probes: the table of the probes alone.

    Raises:
        UserError: the graph has not been run, or the page has no markers.
    """
    page = page or paths.root() / "docs" / "people.md"
    examples = paths.root() / "examples"

    def tell(message: str) -> None:
        print(f"people: {message}", flush=True)

    def write(name: str, new: str) -> None:
        page.write_text(replace_between(page.read_text(encoding="utf-8"), name, new), encoding="utf-8")

    probes = [_candidate(examples / "controls" / f"{name}.py") for name in PROBES]
    write("probes", probe_table(score_table(probes, placebo=False, progress=tell)[0]))
    if only == "probes":
        return
    scored, judged = score_table(
        [_candidate(file) for file in sorted((examples / "published").glob("*.py"))], placebo=False, progress=tell
    )
    write("people", "\n\n".join([people_table(scored), *scored.notes]))
    tasks = [one for split in ("train", "validation") for one in list_tasks(split)]
    write("equal", equal_table(at_equal_charge(judged | _built_in(), black_boxes(tasks, tell))))


def _candidate(file: Path) -> Candidate:
    return Candidate(file.stem, from_file(file))


def black_boxes(tasks: Sequence[TaskName], tell: Callable[[str], object] = print) -> list[ByTask]:
    """The rivals of ``at_equal_charge``, judged on tasks, the cheapest first."""
    kind: Any = type(from_file(paths.root() / "examples" / "controls" / "black_box.py"))
    chosen, rivals = settings(), []
    for passes in PASSES:
        tell(f"a black box of {passes} passes")
        done: Evaluation[None] = evaluate(
            Candidate(f"black_box_{passes}", kind(passes)), tasks, InProcess(chosen.interpretation), chosen.execution,
            placebo=False,
        )  # fmt: skip
        rivals.append({one.task.name: one for one in judge_arms(done.arms, tasks, chosen.reward)})
    return rivals


def _built_in() -> dict[str, ByTask]:
    config = load("reward", RewardConfig, part=True)
    tasks = [load_task(*one) for split in ("train", "validation") for one in list_tasks(split)]
    methods = [name for name in names("reward", "methods") if name not in CONTROL_METHODS]
    return {name: {task.name: judged_arms(task, name, config) for task in tasks} for name in methods}


def at_equal_charge(judged: Mapping[str, ByTask], rivals: Sequence[ByTask]) -> tuple[StatementRow, ...]:
    """How far each method is above a black box that was charged as much.

    On every task the rival is the cheapest of ``rivals`` whose answer costs no less than the method's, or the dearest
    there is; one that declines a task is passed over. A method that declines has no rival: the difference is 0.

    Args:
        judged: methods by task.
        rivals: black boxes by task, from the cheapest to the dearest.
    """
    effects: list[Effect] = []
    for method, of in judged.items():
        for task, one in of.items():
            answered = [rival[task] for rival in rivals if rival[task].arms.status == "ok"]
            if one.arms.status == "declined" or not answered:
                answered = [one]  # nothing was spent, so nothing can be bought
            other = next((rival for rival in answered if _charge(rival) >= _charge(one)), answered[-1])
            effects.append(paired(method, one, RIVAL, other))
    return stated(effects, BOTH)


def _charge(judged: Judged) -> float:
    return judged.arms.target_flops + judged.arms.own_flops


def people_table(scored: ScoreTable) -> str:
    """Markdown: a line for each method, best on validation first; on both splits what it earned on these tasks; what it
    earned by kind of question on both together."""
    said = {(row.method, row.split): row for row in scored.statements if row.scope == "tasks"}
    kinds = {(row.method, row.kind): row for row in scored.statements if row.scope == "kind" and row.split == BOTH}
    every = sorted({kind for _, kind in kinds})
    rows = []
    for one in sorted(scored.methods, key=lambda one: -_value(said.get((one.method, "validation")))):
        cells = [f"`{one.method}`", one.origin]
        for split in ("train", "validation"):
            row = said.get((one.method, split))
            cells += [one.outcome, "", ""] if row is None else [_numbers(row), _visible(row), row.verdict]
        cells += [_of_kind(kinds.get((one.method, kind))) for kind in every]
        rows.append(cells)
    head = ["method", "from", "train", "visible", "verdict", "validation", "visible", "verdict", *every]
    return table(head, rows)


def equal_table(over: Sequence[StatementRow]) -> str:
    """Markdown: a line for each method: its reward over that of the black box on these tasks, on families like these,
    and by kind of question."""
    kinds = {(row.method, row.kind): row for row in over if row.scope == "kind"}
    wide = {row.method: row for row in over if row.scope == "families"}
    every = sorted({kind for _, kind in kinds})
    rows = []
    for row in [row for row in over if row.scope == "tasks"]:
        families = wide[row.method]
        cells = [f"`{row.method}`", _numbers(row), row.verdict, _numbers(families), families.verdict]
        rows.append([*cells, *(_of_kind(kinds.get((row.method, kind))) for kind in every)])
    return table(["method", "these tasks", "verdict", "families like these", "verdict", *every], rows)


def probe_table(scored: ScoreTable) -> str:
    """Markdown: a line for each task that a probe answered."""
    rows = {(row.method, row.task): row for row in scored.per_task if row.method in PROBES}
    answered = {task for (_, task), row in rows.items() if row.status != "declined"}
    lines = []
    for task in dict.fromkeys(task for _, task in rows):
        if task in answered:
            cells = [task, rows[PROBES[0], task].split]
            for probe in PROBES:
                row = rows[probe, task]
                told = f"{row.reward_mean:+.3f} [{row.reward_low:+.3f}, {row.reward_high:+.3f}]"
                cells += [told, row.verdict] if row.status == "ok" else [row.status, ""]
            lines.append(cells)
    head = ["task", "split"]
    for probe in PROBES:
        head += [f"`{probe}`", "verdict"]
    return table(head, lines)


def _value(row: StatementRow | None) -> float:
    return float("-inf") if row is None else row.value


def _numbers(row: StatementRow) -> str:
    return f"{row.value:+.3f}" + ("" if row.low is None else f" [{row.low:+.3f}, {row.high:+.3f}]")


def _visible(row: StatementRow) -> str:
    return "" if row.visible is None else f"{row.visible:.3f}"


def _of_kind(row: StatementRow | None) -> str:
    if row is None:
        return ""
    mark = {"better": ">", "worse": "<"}.get(row.verdict, "")
    return f"{mark}{row.value:+.3f} ({row.n})"


def main() -> None:
    """``python -m stages tools.people`` for all tables, ``... probes`` for theirs."""
    if sys.argv[1:] not in ([], ["probes"]):
        raise UserError(f"{' '.join(sys.argv[1:])!r} is no table: use probes, or nothing for all")
    write_people(only="".join(sys.argv[1:]))

"""``lensmith redteam``: every exploit through the real path, and honest strong methods beside them.

An exploit is a method file in ``stages/redteam/exploits``. It is interpreted, recorded, priced and judged like any
other method that nobody has reviewed. Beside the files, ``generator`` composes exploits from parts, and ``honest`` does
the same for methods that must not be punished. What counts as held back:

    void       the result was thrown out, with a reason
    blocked    it failed or declined, or what it computed was charged, and its reward is not above that of a method that
               does nothing
    bounded    it is metered by CPU time and scored above `nothing`, but is not called better, since more than 1% of the
               tight budget could go unseen

Anything else fails the run: ``breached`` (the file says, by raising BREACH, that it got what it was after), ``scored``
(a reward above `nothing`, beyond the noise floor) and ``uncharged`` (an adaptive method did known work that no meter
saw). Controls must be ``ok``, and score the same inside the sandbox and outside, within the noise floor.

Constants of an exploit file: TESTS (numbers of the list it covers), DEFENCE (what holds it back where it simply gets
nothing), TRUE_FLOPS (work an adaptive one does per answer), N_TASKS (answers it needs).
"""

import ast
import base64
import operator
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib import delayed
from sklearn.datasets import load_digits

from stages.base import paths
from stages.base.processes import process_pool
from stages.contracts.arms import Answered
from stages.contracts.method_file import from_file
from stages.errors import MethodError, UserError
from stages.execution.runs import arms_of
from stages.redteam.composing import NOTHING, composed, judged
from stages.redteam.pipeline_attacks import pipeline_attacks
from stages.reward.judging import judge
from stages.reward.statements import MAX_UNSEEN, noise_floor
from stages.scoring.cached import cached_task, jobs
from stages.scoring.candidate import Candidate, Source
from stages.scoring.evaluate import Evaluation, TaskName, evaluate, questions, stage_baseline
from stages.scoring.in_process import InProcess
from stages.scoring.isolated import Isolated
from stages.scoring.settings import Settings, settings
from stages.tasks.storage import list_tasks

__all__ = ["COLUMNS", "RedTeam", "CONTROLS", "EXPLOITS", "QUICK", "as_cells", "as_markdown", "failures", "red_team"]

FOLDER = Path(__file__).resolve().parent
EXPLOITS, CONTROLS = FOLDER / "exploits", FOLDER / "controls"
QUICK = (
    "calls_out",
    "fork_bomb",
    "memory_hog",
    "numpy_of_its_own",
    "reads_truth_from_disk",
    "socket_reuse",
)
"""A cross-section that takes less than a minute; with one control."""
COLUMNS = ("name", "kind", "outcome", "charged FLOPs", "reward", "layer", "what happened")
TIMEOUT_S = 8.0
FULL_SHARE = 0.9
DIGITS = "@DIGITS@"
BREACH = "BREACH"
"""What an exploit raises with where it got what it must not have: its own flag, so it is read from its words."""
N_GENERATED, N_HONEST, N_QUICK = 600, 60, 40
Progress = Callable[[str], None]


@dataclass(frozen=True)
class RedTeam:
    """What came of a run."""

    rows: list[dict[str, Any]]
    """One each of the files and of the attacks on the pipeline: {"name", "kind", "outcome", "charged_flops", "reward",
    "layer", "tests", "reason"}."""
    generated: int = 0
    """Exploits that were composed."""
    above_nothing: int = 0
    """Of those: how many earned more than a method that declines."""
    honest: int = 0
    """Honest methods that were composed."""
    punished: int = 0
    """Of those: how many answered something else, or at another price, than when called on the data."""
    by_end: dict[str, int] = field(default_factory=dict)
    """Composed exploits by how they ended."""
    faults: list[str] = field(default_factory=list)
    """What got through or was punished, in words."""


def _constants(path: Path) -> dict[str, Any]:
    """Upper-case assignments at the top of a file, read without running it."""
    found: dict[str, Any] = {}
    operations = {ast.Mult: operator.mul, ast.Pow: operator.pow, ast.Add: operator.add, ast.FloorDiv: operator.floordiv}

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and type(node.op) in operations:
            return operations[type(node.op)](value(node.left), value(node.right))
        return ast.literal_eval(node)

    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            try:
                found[node.targets[0].id] = value(node.value)
            except ValueError:
                continue
    return found


def _cases(chosen: Settings) -> list[tuple[str, str]]:
    """(family, target) to attack on, best first: small target, one item per instance, small noise floor."""
    paths.require(paths.execution_dir("baseline"), "baseline")

    def key(case: tuple[str, str]) -> tuple[bool, bool, bool, float, tuple[str, str]]:
        task = cached_task(*case)
        baseline = stage_baseline(task.name)
        arms = arms_of(task, baseline, Answered("declined", None, 0.0, 0.0), chosen.execution)
        # A floor of zero is a degenerate task: both of its baseline arms do the same thing.
        floor = noise_floor(judge(task, baseline, arms, chosen.reward).aa_reward) or 1.0
        many = task.truth.values.shape[1] > 1
        return (many, task.family.query_kind != "Represent", case[1] != "digits_mlp", floor, case)

    return sorted((task for split in ("train", "validation") for task in list_tasks(split)), key=key)


def _attack(path: Path, cases: Sequence[TaskName], chosen: Settings) -> dict[str, Any]:
    """One exploit (or any method file): its row."""
    facts = _constants(path)
    cases = cases[: int(facts.get("N_TASKS", 1))]
    row: dict[str, Any] = {"name": path.stem, "kind": "exploit", "tests": list(facts.get("TESTS", ()))}
    timeout = 60.0 if facts.get("TRUE_FLOPS") else TIMEOUT_S
    candidate, host = Candidate(path.stem, _armed(path)), Isolated(chosen.interpretation, timeout)
    try:
        targets = sorted({target for _, target in cases})
        frozen = replace(host, timeout_s=TIMEOUT_S).freeze(candidate, targets, questions(cases))
    except MethodError as error:
        return row | {
            "outcome": "breached" if BREACH in str(error) else "blocked",
            "charged_flops": 0.0,
            "reward": 0.0,
            "layer": error.layer,
            "reason": error.cause[:200],
        }
    results, rewards = [], [NOTHING]
    for case in cases:
        done: Evaluation[None] = evaluate(candidate, [case], host, chosen.execution, frozen=frozen)
        results.append(done.results[0])
        if (arms := done.results[0].arms) is not None:
            rewards.append(judged(arms, case, chosen))
        if done.outcome != "ok":
            break
    last = results[-1].answered
    charged = sum(_charged(case, one.answered) for case, one in zip(cases, results, strict=False))
    adaptive = any(of.adaptive for of in frozen.values())
    true_flops = float(facts.get("TRUE_FLOPS", 0)) if adaptive else 0.0
    reward, low, floor, _ = max(rewards)
    unseen = max(one.unseen_share for one in rewards)
    full = charged >= FULL_SHARE * true_flops
    if BREACH in last.reason:
        outcome = "breached"
    elif last.status in ("void", "infra"):
        outcome = last.status
    elif reward > floor and low > 0:
        outcome = "bounded" if unseen > MAX_UNSEEN else "scored"
    elif true_flops and last.status != "failed" and not full:
        outcome = "uncharged"
    else:
        outcome = "blocked"
    return row | {
        "outcome": outcome,
        "charged_flops": charged,
        "reward": None if last.status == "void" else round(reward, 6),
        "layer": last.layer or str(facts.get("DEFENCE", "reward")),
        "reason": last.reason[:200] or ("charged in full" if true_flops else "it got nothing"),
    }


def _armed(path: Path) -> Source:
    """The file as it is sent: with the public digits in it, where it asks for them."""
    source = Source.of(path)
    if DIGITS not in source.text:
        return source
    raw = load_digits().data.astype("uint8").tobytes()
    return replace(source, text=source.text.replace(DIGITS, base64.b85encode(zlib.compress(raw, 9)).decode()))


def _charged(case: TaskName, answered: Answered) -> float:
    return answered.flops * cached_task(*case).instances.n


def _control(path: Path, cases: Sequence[TaskName], chosen: Settings) -> dict[str, Any]:
    """One honest method, in the sandbox and in this process: its row."""
    isolated, here = Isolated(chosen.interpretation, 60.0), InProcess(chosen.interpretation)
    inside: Evaluation[None] = evaluate(Candidate(path.stem, Source.of(path)), cases, isolated, chosen.execution)
    outside: Evaluation[None] = evaluate(Candidate(path.stem, from_file(path)), cases, here, chosen.execution)
    row: dict[str, Any] = {"name": path.stem, "kind": "control", "tests": []}
    charged = sum(_charged(case, one.answered) for case, one in zip(cases, inside.results, strict=True))
    if not inside.scored or not outside.scored:
        refused = {"outcome": "refused", "charged_flops": charged, "reward": None, "layer": inside.layer}
        return row | refused | {"reason": (inside.reason or outside.reason)[:200]}
    names = [f"{family}.{target}" for family, target in cases]
    there, ours = (
        [judged(done.arms[name], case, chosen) for name, case in zip(names, cases, strict=True)]
        for done in (inside, outside)
    )
    adaptive = any(one.answered.unseen_flops for one in inside.results)
    if adaptive:  # charged by time, which varies: what it answered must be the same
        pairs = [
            (one.answered.rows, other.answered.rows) for one, other in zip(inside.results, outside.results, strict=True)
        ]
        difference = max(float(np.abs(a - b).max()) for a, b in pairs if a is not None and b is not None)
    else:
        difference = max(abs(a[0] - b[0]) for a, b in zip(there, ours, strict=True))
    floor = max(one[2] for one in there)
    ok = inside.outcome == "ok"
    return row | {
        "outcome": "ok" if ok and difference <= floor else "refused" if not ok else "differs",
        "charged_flops": charged,
        "reward": round(sum(one[0] for one in there) / len(there), 6),
        "reward_outside": round(sum(one[0] for one in ours) / len(ours), 6),
        "noise_floor": round(floor, 6),
        "layer": inside.layer,
        "reason": inside.reason[:200] or f"inside and outside differ by {difference:.2g}, noise floor {floor:.2g}",
    }


def red_team(*, quick: bool = False, file: Path | None = None, progress: Progress = lambda said: None) -> RedTeam:
    """Run it.

    Args:
        quick: the cross-section only.
        file: one method file instead, judged as an exploit.

    Raises:
        UserError: no such file, the graph has not been run, or there is no sandbox here.
    """
    if file is not None and not file.is_file():
        raise UserError(f"{file} is not a file: give the path of a Python file with one subclass of Method")
    chosen = settings()
    cases = _cases(chosen)
    exploits = [file] if file else sorted(p for p in EXPLOITS.glob("*.py") if not quick or p.stem in QUICK)
    controls = [] if file else sorted(CONTROLS.glob("*.py"))[: 1 if quick else None]
    progress(f"{len(exploits)} exploits and {len(controls)} controls")
    with process_pool(jobs()) as pool:
        rows: list[dict[str, Any]] = pool(
            [delayed(_attack)(path, cases, chosen) for path in exploits]
            + [delayed(_control)(path, cases[:2], chosen) for path in controls]
        )
        if file:
            return RedTeam(rows)
        progress(f"{N_QUICK if quick else N_GENERATED} composed exploits, {N_HONEST} honest methods")
        found = composed(cases[0], chosen, N_QUICK if quick else N_GENERATED, N_QUICK if quick else N_HONEST, pool)
    return RedTeam(
        rows + pipeline_attacks(cases[0], chosen),
        generated=found.generated,
        above_nothing=len(found.above_nothing),
        honest=found.honest,
        punished=len(found.punished),
        by_end=found.by_end,
        faults=[f"{one.name}: {one.status}, {one.reason}" for one in (*found.above_nothing, *found.punished)],
    )


def failures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that must not be."""
    good = {"exploit": ("blocked", "void", "bounded"), "control": ("ok",)}
    return [row for row in rows if row["outcome"] not in good[row["kind"]]]


def as_cells(row: dict[str, Any]) -> list[str]:
    """A row as text, for a terminal."""
    reward = "-" if row["reward"] is None else f"{row['reward']:+.3f}"
    charged = f"{row['charged_flops']:.3g}"
    return [row["name"], row["kind"], row["outcome"], charged, reward, row["layer"], row["reason"]]


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of docs/security.md: without rewards and FLOPs of a machine."""
    lines = ["| Name | What it tries | Kind | Outcome | Held back by |", "|---|---|---|---|---|"]
    for row in rows:
        path = (CONTROLS if row["kind"] == "control" else EXPLOITS) / f"{row['name']}.py"
        tries = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else None
        what = tries or row["name"].replace("_", " ") + " (on a record, a gate or a price list)"
        lines.append(f"| `{row['name']}` | {what} | {row['kind']} | {row['outcome']} | {row['layer'] or '-'} |")
    return "\n".join(lines) + "\n"

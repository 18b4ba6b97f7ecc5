"""A family in one file of the user's own: audited, scored on, and blamed by file and line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.command import app
from stages.contracts.family_file import family_from_file
from stages.errors import UserError
from stages.tools.own_family import audit_file, score_on_file

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "my_task.py"


def changed(tmp_path: Path, old: str, new: str, name: str = "changed_task.py") -> tuple[Path, int]:
    """The example with one change, and the line it is in."""
    text = EXAMPLE.read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    return tmp_path / name, text[: text.index(old)].count("\n") + 1


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "adding-a-task.md").read_text(encoding="utf-8")
    shown = page.split("```python\n")[1].split("```")[0]
    assert EXAMPLE.read_text(encoding="utf-8").endswith(shown)


def test_the_commands_of_the_page_do_what_it_says(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = CliRunner()
    done = run.invoke(app, ["tasks", "audit", "--file", "examples/my_task.py", "--share", "0.3", "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert (row["family"], row["target"], row["n"]) == ("my_task", "digits_mlp", 36) and row["truth"] == 1.0
    assert len(row["headroom"]["ladder"]) == 3 and row["headroom"]["tight"] < 1
    refused = run.invoke(app, ["tasks", "audit", "--file", "examples/my_task.py", "--target", "digits_few_shot"])
    assert "my_task means nothing on digits_few_shot" in str(refused.exception) + refused.output


def test_a_method_is_scored_on_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = score_on_file(ROOT / "examples" / "my_method.py", EXAMPLE, trust=True, progress=lambda said: None)
    assert (row.method, row.family, row.target, row.status) == ("my_method", "my_task", "digits_mlp", "ok")
    assert not (root / ".lensmith" / "arms").exists(), "what hangs on a file of the user's is not kept"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return Truth(drops.amax", "return Truth(drops.nothing"),
        ("if LADDER[effort]:", "if LADDER[effort + 9]:"),
        ("draw_inputs(target, n, rng, max_blend=0.4).inputs", "draw_inputs(target, n, rng, max_blend=0.9).inputs"),
        ('return Represent(instances.arrays["inputs"])', 'return Represent(instances.arrays["input"])'),
    ],
)
def test_errors_name_file_and_line(root: Path, tmp_path: Path, old: str, new: str) -> None:
    path, line = changed(tmp_path, old, new)
    with pytest.raises(UserError, match=rf"changed_task\.py line {line} \(`.*; mend it there"):
        audit_file(path, share=0.2, methods=[])


def test_what_is_no_family_is_told_in_one_line(root: Path, tmp_path: Path) -> None:
    broken, line = changed(tmp_path, "n_efforts = len(LADDER)", "n_efforts = len(LADER)", "broken.py")
    with pytest.raises(UserError, match=f"broken.py line {line} .*LADER.*the file must import"):
        family_from_file(broken)
    lacking, _ = changed(tmp_path, "def query(self", "def ask(self", "lacking.py")
    with pytest.raises(UserError, match=r"lacking.py defines none \(PixelDrop lacks query\)"):
        family_from_file(lacking)
    silent, _ = changed(tmp_path, "    title = ", "    name_of_it = ", "silent.py")
    with pytest.raises(UserError, match=r"silent.py line \d+: PixelDrop says no title"):
        family_from_file(silent)
    nowhere, _ = changed(tmp_path, "TARGET = ", "target_ = ", "nowhere.py")
    with pytest.raises(UserError, match=r'nowhere.py names no target: add `TARGET = "digits_mlp"`'):
        audit_file(nowhere)
    ours, _ = changed(tmp_path, "TARGET = ", "TARGET = ''  or ", "noise_flip.py")
    with pytest.raises(UserError, match="noise_flip is a family of ours"):
        audit_file(ours)
    with pytest.raises(UserError, match="is no Python file"):
        family_from_file(tmp_path / "none.py")

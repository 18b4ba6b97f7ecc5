"""docs/security.md lists every exploit, and says what is not covered."""

from pathlib import Path

from stages.redteam.red_team import CONTROLS, EXPLOITS, as_markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "security.md"


def test_every_exploit_and_control_is_in_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in (*EXPLOITS.glob("*.py"), *CONTROLS.glob("*.py")):
        assert f"| `{path.stem}` | " in text, f"{path.stem}: make the table again, `lensmith redteam --markdown`"
    assert "**Not covered**" in text


def test_the_table_is_made_from_rows() -> None:
    row = {"name": "fork_bomb", "kind": "exploit", "outcome": "blocked", "layer": "seccomp"}
    assert "| `fork_bomb` | Starts processes without end. | exploit | blocked | seccomp |" in as_markdown([row])

"""The notebooks run from the first cell to the last, on the toy graph."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_every_cell_runs(file: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(output.output_type in {"execute_result", "display_data", "stream"} for output in outputs)
    if file.stem == "score_a_method":
        pages = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
        assert pages and "<svg" in pages[0] and "class_means" in pages[0]


def test_notebooks_are_committed_without_outputs() -> None:
    for file in NOTEBOOKS:
        for cell in nbformat.read(file, as_version=4).cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None, f"{file.name}: clear its outputs"

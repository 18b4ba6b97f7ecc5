"""What must be there before a method is scored is what some node makes."""

from dvc.repo import Repo

from stages.base import paths
from stages.scoring.needs import score_outputs
from tests import toy


def test_every_output_that_is_waited_for_is_an_output_of_the_graph(monkeypatch):
    monkeypatch.setenv("LENSMITH_ROOT", str(toy.ROOT))
    with Repo(str(toy.ROOT)) as repo:
        made = {out.fs_path for stage in repo.index.stages for out in stage.outs}
    assert {str(path) for path in score_outputs()} <= made
    assert paths.dictionaries_dir("facts_lm") in score_outputs()

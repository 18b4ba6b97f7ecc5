"""The stage, its files, and the views from outside."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from stages.base import paths
from stages.base.params import load
from stages.errors import UserError
from stages.tasks.stage import Config, main, run
from stages.tasks.storage import dearest_first, list_tasks, load_task
from stages.tools.audit import audit
from stages.tools.tasks import list_families, make_instances, show_family
from tests import toy
from tests.tasks.conftest import small_target


@pytest.fixture
def config(root: Path) -> Config:
    return load("tasks", Config).model_copy(update={"n_instances": 20})


def test_stage_writes_the_same_bytes_twice_and_loads_back(config: Config) -> None:
    run(config, "edge_radius")
    folder = paths.task_dir("edge_radius")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sorted(before) == ["digits_mlp.public.safetensors", "digits_mlp.truth.safetensors", "family.json"]
    run(config, "edge_radius")
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}
    task = load_task("edge_radius", "digits_mlp")
    assert (task.name, task.split, task.instances.n) == ("edge_radius.digits_mlp", "test", 20)
    assert task.truth.values.shape == (20, 1) and task.truth.values.dtype == torch.float64
    assert list_tasks() == list_tasks("test") == [("edge_radius", "digits_mlp")] and list_tasks("train") == []
    facts = json.loads(before["family.json"])
    assert facts["targets"]["digits_mlp"]["truth_flops"] > facts["targets"]["digits_mlp"]["generation_flops"] >= 0


def test_what_was_planted_is_in_no_public_file(config: Config) -> None:
    run(config, "backdoor_detection")
    task = load_task("backdoor_detection", "digits_mlp")
    assert not task.instances.planted and task.instances.variants and len(task.truth.groups["kind"]) == 20
    public = (paths.task_dir("backdoor_detection") / "digits_mlp.public.safetensors").read_bytes()
    assert b"backdoor" not in public and b"kind" not in public and b"goal" not in public


def test_damage_and_wrong_names_are_told_in_one_line(config: Config) -> None:
    with pytest.raises(UserError, match="stage 'tasks' makes it"):
        list_tasks()
    run(config, "edge_radius")
    with pytest.raises(UserError, match="was not made on target 'x'"):
        load_task("edge_radius", "x")
    with pytest.raises(UserError, match="split 'tset' is unknown"):
        list_tasks("tset")  # type: ignore[arg-type]
    file = paths.task_dir("edge_radius") / "digits_mlp.public.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match="does not match its digest"):
        load_task("edge_radius", "digits_mlp")
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        load_task("edge_radius", "digits_mlp")
    (file.parent / "family.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is not JSON"):
        load_task("edge_radius", "digits_mlp")


def test_params_that_cannot_be_meant_are_refused(config: Config, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="has no split"):
        run(config.model_copy(update={"families": {}}), "noise_flip")
    with pytest.raises(UserError, match="are unknown"):
        run(config.model_copy(update={"families": {"nose_flip": "train"}}), "noise_flip")
    (root / "params" / "profile.yaml").unlink()  # which says another number
    (root / "params" / "tasks.yaml").write_text("n_instances: 5\nseed: 0\nfamilies: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match="n_instances = 5"):
        load("tasks", Config)
    monkeypatch.setattr(sys, "argv", ["tasks"])
    with pytest.raises(UserError, match="one family is needed"):
        main()


def test_families_are_listed_with_their_splits(root: Path) -> None:
    rows = list_families()
    wanted = yaml.safe_load((toy.ROOT / "params" / "tasks.yaml").read_text(encoding="utf-8"))["families"]
    assert {row["name"]: row["split"] for row in rows} == {name: one["split"] for name, one in wanted.items()}
    assert show_family("noise_flip")["constants"]["sigma"] == {"episodes": 0.4, "images": 0.35}


def test_an_outsider_can_recompute_the_truth_from_the_json(root: Path) -> None:
    file = root / "params" / "tasks.yaml"
    params = yaml.safe_load(file.read_text(encoding="utf-8"))
    params["families"]["early_exit"]["targets"] = ["digits_few_shot"]  # it has no room there, and is short to program
    file.write_text(yaml.safe_dump(params), encoding="utf-8")
    text = json.dumps(make_instances("early_exit", 3, seed=1, target="digits_few_shot", with_truth=True))
    shown = json.loads(text)
    target = small_target("digits_few_shot")
    assert shown["target"]["digest"] == target.digest
    assert (root / shown["target"]["file"]).is_file() and not Path(shown["target"]["file"]).is_absolute()
    for x, (truth,) in zip(shown["arrays"]["inputs"], shown["truth"], strict=True):
        sure = []
        for j in range(9):
            hidden = torch.tensor(x)
            hidden[j:8, 65] = 0.0
            sure.append(F.softmax(target.model(hidden.unsqueeze(0))[0], -1))
        final, first = int(sure[8].argmax()), 9
        while first and float(sure[first - 1][final]) >= shown["constants"]["confidence"]:
            first -= 1
        assert truth == pytest.approx(first / 9)
    assert "truth" not in make_instances("early_exit", 3, seed=1, target="digits_few_shot")
    assert make_instances("early_exit", 3, seed=2, target="digits_few_shot")["arrays"] != shown["arrays"]
    with pytest.raises(UserError, match="is not run on target"):
        make_instances("early_exit", 3, seed=1, target="digits_mlp")
    with pytest.raises(UserError, match="use 1 to 10000"):
        make_instances("early_exit", 0, seed=1, target="digits_few_shot")


def test_audit_passes_an_honest_family(root: Path) -> None:
    (row,) = audit(["trigger_generalisation"], share=0.4, methods=["nothing", "gradient"])
    assert row["constant"] == 0.0 and row["truth"] == 1.0 and row["overlap"] == 0 and row["rises"], row["fails"]
    found = row["headroom"]
    assert [rung["effort"] for rung in found["ladder"]] == [0, 1, 2, 3] and found["answered"] == ["gradient"]
    assert found["tight"] < found["ample"] and found["oracle_gain"] > 0 and found["retest"] is None


def test_the_dearest_tasks_come_first(graph):
    tasks = list_tasks()
    flops = {task: json.loads((graph / "data" / "tasks" / task[0] / "family.json").read_text()) for task in tasks}
    costs = [flops[task]["targets"][task[1]]["truth_flops"] for task in dearest_first(reversed(tasks))]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) > 2
    assert sorted(dearest_first(tasks)) == sorted(tasks) and dearest_first(tasks) == dearest_first(reversed(tasks))

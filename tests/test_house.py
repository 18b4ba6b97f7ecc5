"""Ratchets: what dvc.yaml, params/ and the code say about each other stays true."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from stages.base import params
from tests import house
from tests.house import PACKAGE, ROOT, Node, nodes

ROOMS = sorted({node.entry.split(".")[1] for node in nodes()} - {"scoring"})
"""Rooms of stages: each has a ``stage.py``."""


def room_of(node: Node) -> str:
    return node.entry.split(".")[1]


def stages() -> dict[str, list[Node]]:
    grouped: dict[str, list[Node]] = {}
    for node in nodes():
        grouped.setdefault(node.name.partition("@")[0], []).append(node)
    return grouped


@pytest.mark.parametrize("stage", sorted(stages()))
def test_deps_on_code_are_what_a_stage_imports(stage: str) -> None:
    """File by file, both ways. `python -m tests.house` writes them."""
    needed = {node.name: house.needed(node) for node in stages()[stage]}
    by_some_arm = set().union(*needed.values())
    for node in stages()[stage]:
        missing = needed[node.name] - house.declared(node)
        assert not missing, f"{node.name}: add to its deps in dvc.yaml: {sorted(missing)}"
        spare = house.declared(node) - by_some_arm
        assert not spare, f"{node.name}: nothing of it is imported: {sorted(spare)}"


def test_tools_benchmarks_and_the_red_team_are_no_dependency() -> None:
    for node in nodes():
        for dep in house.declared(node):
            assert dep.split("/")[1] not in {"tools", "benchmarks", "redteam"}, f"{node.name} depends on {dep}"


def test_every_params_file_has_exactly_the_fields_of_its_config() -> None:
    for path in sorted((ROOT / "params").glob("*.yaml")):
        if path.stem == "profile":
            continue
        config = import_module(f"{PACKAGE}.{path.stem}.stage").Config
        assert set(yaml.safe_load(path.read_text())) == set(config.model_fields), path.name


@pytest.mark.parametrize("stage", sorted(stages()))
def test_params_of_a_stage_are_the_fields_of_its_config(stage: str) -> None:
    for node in stages()[stage]:
        for file, keys in node.params.items():
            values = yaml.safe_load((ROOT / file).read_text())
            if keys:
                assert {key.partition(".")[0] for key in keys} <= set(values), f"{node.name}: {file} has no such key"
        if node.arm and f"params/{room_of(node)}.yaml" in node.params:
            file = f"params/{room_of(node)}.yaml"
            fields = set(import_module(f"{PACKAGE}.{room_of(node)}.stage").Config.model_fields)
            # Stages that share a room may each depend on a part; together they depend on every field.
            of_room = [
                key for other in nodes() if room_of(other) == room_of(node) for key in other.params.get(file) or fields
            ]
            assert {key.partition(".")[0] for key in of_room} == fields, f"{node.name}: keys are not the fields"


@pytest.mark.parametrize("stage", sorted(stages()))
def test_params_that_a_stage_loads_are_params_of_its_nodes(stage: str) -> None:
    for node in stages()[stage]:
        modules = house.closure({node.entry})
        read = {f"params/{name}.yaml" for module in modules for name in house.params_read_by(module)}
        assert read <= set(node.params), f"{node.name}: add to its params: {sorted(read - set(node.params))}"


def test_every_room_of_the_graph_has_params_that_some_node_reads() -> None:
    read = {Path(file).stem for node in nodes() for file in node.params}
    assert {path.stem for path in (ROOT / "params").glob("*.yaml")} == read


def test_profiles_change_the_same_stages_and_every_node_of_those_depends_on_it() -> None:
    profiles = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "params" / "profiles").glob("*.yaml")}
    assert {"default", "full"} <= set(profiles)
    assert all(set(profile) == set(profiles["full"]) for profile in profiles.values())
    assert not any(profiles["full"].values()), "full is what the other files say"
    for node in nodes():
        changed = {Path(file).stem for file in node.params} & set(profiles["full"])
        assert set(node.params.get("params/profile.yaml", ())) == changed, node.name


def test_a_profile_names_keys_that_there_are() -> None:
    for path in (ROOT / "params" / "profiles").glob("*.yaml"):
        for stage, changes in yaml.safe_load(path.read_text()).items():
            values = yaml.safe_load((ROOT / "params" / f"{stage}.yaml").read_text())
            assert set(changes) <= set(values), f"{path.name}: {stage}"
            config = import_module(f"{PACKAGE}.{stage}.stage").Config
            config(**params._merged(values, changes))


def test_flows_name_no_stage() -> None:
    names = set(stages()) | {node.name for node in nodes()}
    for path in sorted((ROOT / "flows").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path.relative_to(ROOT)}:{node.lineno} names stage {node.value!r}"


def test_stages_run_without_the_scheduler_and_without_dvc() -> None:
    code = ";".join(
        [f"import {PACKAGE}.{room}.stage" for room in ROOMS]
        + ["import sys", "print([name for name in ('prefect', 'dvc', 'mlflow') if name in sys.modules])"]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]"), f"imported with the stages: {done.stdout}"


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pandas", "mlflow", "prefect", "dvc", "transformer_lens", "sae_lens", "sklearn")
    code = f"import sys, flows.command; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_outputs_are_cached_by_dvc_and_unseen_by_git_but_for_the_copies_that_git_keeps() -> None:
    spec = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for name, body in spec["stages"].items():
        for out in body.get("do", body)["outs"]:
            kept = isinstance(out, dict)
            path = next(iter(out)) if kept else out
            if kept:
                # Without a cache DVC's run cache is off too, so only a node that computes nothing may do this.
                allowed = {"copies": {"cache": False}, "secret": {"cache": False, "persist": True}}
                assert out[path] == allowed.get(name), f"{name}: {path} has options"
            done = subprocess.run(["git", "check-ignore", "-q", path.replace("${", "x")], cwd=ROOT)
            ignored = done.returncode == 0
            assert not (ROOT / ".git").exists() or ignored is (name != "copies"), f"{name}: {path} and git"


def test_a_room_is_a_room() -> None:
    for room in ROOMS:
        for part in ("__init__", "stage"):
            assert (ROOT / PACKAGE / room / f"{part}.py").is_file(), f"{PACKAGE}/{room}/{part}.py is missing"
        stage = import_module(f"{PACKAGE}.{room}.stage")
        assert stage.Config.__name__ == "Config" and callable(stage.run) and callable(stage.main)

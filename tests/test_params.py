"""params/*.yaml: what is there is valid, and every mistake is one line that names key, value and remedy."""

import shutil
from importlib import import_module
from pathlib import Path

import pytest

from stages.base import paths
from stages.base.params import Params, checked, load, profile_name
from stages.errors import UserError
from tests import toy

STAGES = sorted(file.stem for file in (toy.ROOT / "params").glob("*.yaml") if file.stem != "profile")


def config_of(stage: str) -> type:
    return import_module(f"stages.{stage}.stage").Config


@pytest.mark.parametrize("stage", STAGES)
def test_the_params_as_committed_are_valid(stage):
    load(stage, config_of(stage), toy.ROOT / "params" / f"{stage}.yaml")


@pytest.mark.parametrize("stage", STAGES)
def test_an_unknown_key_is_refused_and_the_known_ones_are_named(stage, tmp_path):
    file = tmp_path / f"{stage}.yaml"
    file.write_text(
        (toy.ROOT / "params" / f"{stage}.yaml").read_text(encoding="utf-8") + "\ntypo: 1\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"unknown key 'typo'; known keys: ") as caught:
        load(stage, config_of(stage), file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "key", "value", "cause"),
    [
        ("execution", "n_seeds", "2", "greater than or equal to 3"),
        ("execution", "margin", "-1", "greater than or equal to 0"),
        ("reward", "form", "cubic", "linear"),
        ("reward", "flop_weight", "lots", "number"),
        ("research", "researcher", "oracle", "search"),
        ("research", "budget", "0", "greater than or equal to 1"),
        ("interpretation", "max_bytes", "-5", "greater than 0"),
        ("tasks", "n_instances", "many", "integer"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(stage, key, value, cause, tmp_path):
    lines = (toy.ROOT / "params" / f"{stage}.yaml").read_text(encoding="utf-8").splitlines()
    changed = [f"{key}: {value}" if line.startswith(f"{key}:") else line for line in lines]
    assert changed != lines
    file = tmp_path / f"{stage}.yaml"
    file.write_text("\n".join(changed), encoding="utf-8")
    with pytest.raises(UserError, match=cause) as caught:
        load(stage, config_of(stage), file)
    assert key in str(caught.value) and value in str(caught.value)


@pytest.mark.parametrize(
    ("text", "cause"), [("a: [1, 2", "not valid YAML"), ("- 1\n- 2\n", "holds list"), ("", "missing")]
)
def test_what_is_no_set_of_keys_is_refused(text, cause, tmp_path):
    file = tmp_path / "research.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=cause):
        load("research", config_of("research"), file)


def test_a_missing_file_says_how_to_get_it_back(tmp_path):
    with toy.rooted(tmp_path), pytest.raises(UserError, match="git checkout"):
        load("research", config_of("research"))


def test_outside_a_working_copy_it_says_where_to_go(tmp_path, monkeypatch):
    monkeypatch.delenv("LENSMITH_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"dvc\.yaml"):
        paths.root()
    monkeypatch.chdir(toy.ROOT / "stages" / "reward")
    assert paths.root() == toy.ROOT


def test_what_is_missing_is_named_with_the_stage_that_makes_it():
    with pytest.raises(UserError, match=r"nothing\.json is missing: stage 'reward' makes it; run `lensmith run`"):
        paths.require(Path("nothing.json"), "reward")


def test_the_active_profile_lies_over_the_values(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    folder = tmp_path / "params"
    shutil.copytree(toy.ROOT / "params", folder, symlinks=True)
    assert profile_name() == "default"
    (folder / "profiles" / "small.yaml").write_text("research: {budget: 2}\ndictionaries: {sweep: {k: [4]}}\n")
    whole = load("dictionaries", config_of("dictionaries"), folder / "dictionaries.yaml")
    (folder / "profile.yaml").unlink()
    (folder / "profile.yaml").symlink_to("profiles/small.yaml")
    assert profile_name() == "small"
    assert load("research", config_of("research")).budget == 2
    swept = load("dictionaries", config_of("dictionaries"))
    assert swept.sweep.k == (4,) and swept.sweep.sizes == whole.sweep.sizes and swept.seeds == whole.seeds
    (folder / "profiles" / "small.yaml").write_text("research: 3\n")
    with pytest.raises(UserError, match="research = 3 is no mapping"):
        load("research", config_of("research"))


def test_a_key_written_twice_is_refused(tmp_path):
    file = tmp_path / "research.yaml"
    file.write_text("researcher: search\nbudget: 3\nseed: 0\nbudget: 30\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 4: duplicate key .budget. .*keep one") as caught:
        load("research", config_of("research"), file)
    assert "\n" not in str(caught.value) and "http" not in str(caught.value)


def test_values_mean_what_they_mean_to_dvc(tmp_path):
    """YAML 1.1 reads 1e-3 as text, and `on` and `no` as truth values; DVC, which watches the keys, reads 1.2."""
    file = tmp_path / "reward.yaml"
    file.write_text("methods: [on, no, yes]\nflop_weight: 1e-3\nflop_weights: [1e-2, .5]\n", encoding="utf-8")
    config = load("reward", config_of("reward"), file)
    assert (
        load("research", config_of("research"), _file(tmp_path, "researcher: search\nseed: 0\nbudget: 010")).budget
        == 10
    ), "YAML 1.1: 8"
    assert config.methods == ("on", "no", "yes")
    assert config.flop_weight == 1e-3 and config.flop_weights == (0.01, 0.5)


@pytest.mark.parametrize(
    "content", [b"budget: \xff\xfe", b"budget: [1, 2", b"- 1\n- 2\n", b"budget: !!python/object:os.system x"]
)
def test_what_is_no_params_file_is_one_line_that_names_it(tmp_path, content):
    file = tmp_path / "research.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"research\.yaml") as caught:
        load("research", config_of("research"), file)
    assert "\n" not in str(caught.value)


def _file(folder: Path, text: str) -> Path:
    file = folder / "written.yaml"
    file.write_text(f"{text}\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("stage", "text", "said"),
    [
        ("reward", "methods: [pca, true]", ("methods.1 = true (written.yaml line 1)", 'put it in quotes: "true"')),
        ("reward", "form: linear\nmethods: [1.10]", ("methods.0 = 1.10 (written.yaml line 2)", '"1.10"', "a number")),
        ("reward", "methods: [2024-01-01]", ("methods.0 = 2024-01-01", "a date")),
        ("reward", "methods: [~]", ("methods.0 = ~", "nothing", '"~"')),
        ("reward", "methods: pca", ("methods = pca", "write a list: [pca]")),
        ("reward", "flop_weight: 1,5", ("flop_weight = 1,5", "with a point")),
        ("reward", "flop_weight: 10%", ("flop_weight = 10%", "write a number")),
        ("research", "budget: 1.5e-1", ("budget = 1.5e-1", "whole number")),
        ("research", "budget: 0x0", ("budget = 0x0", "greater than or equal to 1")),
        ("research", "budget: 12:30", ("budget = 12:30", "whole number")),
    ],
)
def test_a_value_is_shown_as_it_was_written_with_the_remedy(stage, text, said, tmp_path):
    with pytest.raises(UserError) as caught:
        load(stage, config_of(stage), _file(tmp_path, text))
    assert all(part in str(caught.value) for part in said), caught.value
    assert "\n" not in str(caught.value)


def test_a_value_of_the_profile_is_shown_as_it_stands_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    shutil.copytree(toy.ROOT / "params", tmp_path / "params", symlinks=True)
    (tmp_path / "params" / "profile.yaml").unlink()
    (tmp_path / "params" / "profile.yaml").write_text("research:\n  researcher: 1.0\n")
    with pytest.raises(UserError, match=r"researcher = 1\.0 \(profile\.yaml line 2\)"):
        load("research", config_of("research"))


class Small(Params):
    seed: int = 0


def test_a_part_of_a_file_is_read_without_the_rest(tmp_path):
    file = tmp_path / "execution.yaml"
    file.write_text("seed: 3\nn_seeds: 4\n")
    assert load("execution", Small, file, part=True).seed == 3
    with pytest.raises(UserError, match="unknown key 'n_seeds'"):
        load("execution", Small, file)


def test_values_from_inside_a_file_are_checked_with_the_keys_above_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "targets.yaml").write_text("targets:\n  mine:\n    seed: 1.50\n")
    assert checked(Small, {"seed": 2}, "targets.targets.mine").seed == 2
    with pytest.raises(UserError, match=r"targets.yaml: targets.mine: seed = 1.50 \(targets.yaml line 3\): "):
        checked(Small, {"seed": 1.5}, "targets.targets.mine")
    with pytest.raises(UserError, match=r"targets.yaml: unknown key 'x'"):
        checked(Small, {"x": 1}, "targets")

"""dvc.lock as we write it is dvc.lock as DVC writes it."""

import copy
import json

import pytest
import yaml
from dvc.utils.serialize import dumps_yaml, parse_yaml

from flows.lock_file import _modify, read, write
from stages.base.files import save_text
from tests.flows.conftest import Toy

ENTRY = {
    "schema": "2.0",
    "stages": {
        "arm@a": {
            "cmd": "python -m stages scoring a",
            "deps": [{"path": "data/first", "hash": "md5", "md5": "0" * 32 + ".dir", "size": 10**12, "nfiles": 3}],
            "params": {
                "params/x.yaml": {"on": "on", "rate": 1e-4, "text": "1e-3", "yes": True, "empty": {}, "l": [1, [2]]}
            },
            "outs": [{"path": "metrics/a.json", "hash": "md5", "md5": "010", "size": 1}],
        }
    },
}


STYLES = [dumps_yaml, write, json.dumps, lambda entry: "# mine\n" + write(entry)]


def test_the_bytes_are_those_of_dvc():
    assert write(ENTRY) == dumps_yaml(ENTRY)
    assert read(write(ENTRY)) == ENTRY == parse_yaml(write(ENTRY), "dvc.lock")


def test_a_run_s_lock_is_left_as_it_is_by_dvc(toy: Toy) -> None:
    assert toy.lensmith("run", MARK="x", LENSMITH_WARM="").returncode == 0
    lock = toy.root / "dvc.lock"
    text = lock.read_text()
    assert set(yaml.safe_load(text)["stages"]) == {"first", "arm@a", "arm@b", "join"}
    assert dumps_yaml(parse_yaml(text, "dvc.lock")) == text == write(read(text))
    toy.dvc("commit", "--force")
    assert lock.read_text() == text


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["arm@a", "arm@b", "zz"])
def test_a_change_is_that_of_dvc(tmp_path, style, name):
    """A node replaced, in the middle and at the end, and one added; in DVC's style and in others."""
    lock = tmp_path / "dvc.lock"
    whole = {"schema": "2.0", "stages": {f"arm@{arm}": copy.deepcopy(ENTRY["stages"]["arm@a"]) for arm in "abc"}}
    lock.write_text(style(whole))
    entry = {"cmd": "python -m stages scoring a", "outs": [{"path": "x", "md5": "1" * 32, "size": 3}]}
    with _modify(lock) as data:
        assert data["stages"].get("arm@c", {}) == whole["stages"]["arm@c"] and data["stages"].get("none", {}) == {}
        data["stages"].update({name: entry})
    whole["stages"][name] = entry
    assert lock.read_text() == dumps_yaml(whole)


def test_what_nodes_share_is_not_lost_with_one_of_them(tmp_path):
    lock, shared = tmp_path / "dvc.lock", {"cmd": "x"}
    lock.write_text(dumps_yaml({"schema": "2.0", "stages": {"a": shared, "b": shared}}))
    with _modify(lock) as data:
        data["stages"].update({"a": {"cmd": "y"}})
    assert read(lock.read_text())["stages"] == {"a": {"cmd": "y"}, "b": {"cmd": "x"}}


def test_data_sets_beside_the_nodes_are_kept(tmp_path):
    lock = tmp_path / "dvc.lock"
    whole = ENTRY | {"datasets": [{"name": "mine", "type": "url", "url": "x"}]}
    lock.write_text(dumps_yaml(whole))
    with _modify(lock) as data:
        data["stages"].update({"b": {"cmd": "y"}})
    assert read(lock.read_text())["datasets"] == whole["datasets"] and "b" in read(lock.read_text())["stages"]


def test_an_interrupted_change_leaves_the_file_as_it_was(tmp_path):
    lock = tmp_path / "dvc.lock"
    save_text(lock, write(ENTRY))
    with pytest.raises(KeyboardInterrupt), _modify(lock) as data:
        data["stages"].update({"arm@a": {"cmd": "other"}})
        raise KeyboardInterrupt
    assert read(lock.read_text()) == ENTRY
    assert [path.name for path in tmp_path.iterdir()] == ["dvc.lock"]

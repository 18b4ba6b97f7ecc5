"""dvc.lock as we write it is dvc.lock as DVC writes it."""

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


def test_an_interrupted_change_leaves_the_file_as_it_was(tmp_path):
    lock = tmp_path / "dvc.lock"
    save_text(lock, write(ENTRY))
    with pytest.raises(KeyboardInterrupt), _modify(lock) as data:
        data["stages"].clear()
        raise KeyboardInterrupt
    assert read(lock.read_text()) == ENTRY
    assert [path.name for path in tmp_path.iterdir()] == ["dvc.lock"]

"""Who has the code cannot draw the tasks again: streams, pools and images hang on the secret of the working copy."""

from pathlib import Path

import pytest
import torch

from stages.base import paths
from stages.errors import UserError
from stages.tasks.families import family
from stages.tasks.generation import instance_keys, make, pool_of, stream
from stages.tasks.secret import digest, read_secret
from tests.tasks.conftest import small_target


def test_a_secret_is_drawn_once_and_kept_to_its_owner(root: Path) -> None:
    first = read_secret()
    assert len(first) == 32 and read_secret() == first
    assert paths.secret_file().stat().st_mode & 0o077 == 0
    assert first.hex() not in digest(first) and digest(first) == digest(first) != digest(b"other")


def test_two_working_copies_have_two_secrets_and_a_given_one_is_taken(root: Path) -> None:
    first = read_secret()
    paths.secret_file().unlink()
    assert read_secret() != first
    paths.secret_file().unlink()
    paths.secret_file().write_text(first.hex())
    assert read_secret() == first


@pytest.mark.parametrize("text", ["", "zz", "00", "secret", "00" * 31])
def test_a_file_that_is_no_secret_says_what_is_wanted(root: Path, text: str) -> None:
    read_secret()
    paths.secret_file().chmod(0o600)
    paths.secret_file().write_text(text)
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        read_secret()


@pytest.mark.parametrize("name", ["noise_flip", "backdoor_detection"])
def test_the_same_seed_with_another_secret_is_another_task(name: str) -> None:
    target = small_target("digits_mlp")
    one, same, other = (make(family(name), target, "train", 12, 0, "stage", key) for key in (b"one", b"one", b"other"))
    assert instance_keys(one.instances) == instance_keys(same.instances)
    assert not set(instance_keys(one.instances)) & set(instance_keys(other.instances))
    assert torch.equal(one.truth.values, same.truth.values)


def test_no_image_of_a_task_is_one_of_the_public_ones() -> None:
    """Nor is the dealing out to splits, which is public without a key, the one that is used."""
    for name in ("digits_mlp", "digits_few_shot"):
        target = small_target(name)
        images = target.corpus("tasks").inputs.flatten(1)
        pool, other = (pool_of(target, "train", key).corpus("tasks").inputs.flatten(1) for key in (b"one", b"other"))
        assert float(torch.cdist(pool, images).min()) > 1e-3
        assert float(torch.cdist(pool, other).min()) > 1e-3


def test_streams_of_two_keys_or_purposes_differ() -> None:
    draws = {torch.rand(1, generator=stream(key, *parts)).item() for key in (b"a", b"b") for parts in ((1, 2), (12,))}
    assert len(draws) == 4

"""The convolutional target: its two sources of images, and positions of a convolution as rows."""

import gzip

import numpy as np
import pytest
import torch

from stages.activations.cache import ActivationCache
from stages.activations.writer import n_positions, row_width, write_caches
from stages.targets.storage import load_target, save_target
from stages.targets.zoo import small_cnn
from tests.conftest import make_target


@pytest.fixture
def fashion(tmp_path):
    """Files of the format and names of Debian's package, with images that say which they are."""
    n = sum(small_cnn.SIZES.values()) + 10
    images = np.arange(n, dtype=np.int64)[:, None, None] * 13 % 256 * np.ones((1, 28, 28), np.int64)
    images[:, :2, :2] = 255
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"\0" * 16 + images.astype(np.uint8).tobytes())
    with gzip.open(tmp_path / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(b"\0" * 8 + (np.arange(n) % 10).astype(np.uint8).tobytes())
    return tmp_path


def test_fashion_images_are_pooled_and_split_without_overlap(fashion):
    splits = small_cnn.fashion_splits(fashion, 0)
    assert {name: len(of.labels) for name, of in splits.items()} == small_cnn.SIZES
    for of in splits.values():
        assert of.inputs.shape[1:] == (14, 14) and of.inputs.min() >= 0 and of.inputs.max() == 1
        assert torch.equal(of.inputs * 16, (of.inputs * 16).round())
        assert (of.inputs[:, 0, 0] == 1).all()  # the mean of four white pixels, no neighbour mixed in
    again = small_cnn.fashion_splits(fashion, 0)
    assert all(torch.equal(splits[name].inputs, again[name].inputs) for name in splits)
    assert not torch.equal(splits["train"].labels, small_cnn.fashion_splits(fashion, 1)["train"].labels)


def test_where_the_package_is_installed_the_target_is_of_its_images(fashion, monkeypatch, tmp_path):
    monkeypatch.setattr(small_cnn, "FASHION", fashion)
    target = make_target("small_cnn", 2, 20)
    assert target.spec.input_shape == (14, 14)
    assert [hook.shape for hook in target.spec.hooks] == [(14, 14, 16), (7, 7, 32), (32,)]
    save_target(target, tmp_path / "saved")
    monkeypatch.setattr(small_cnn, "FASHION", tmp_path / "nowhere")  # what is saved stays what it was
    again = load_target("small_cnn", tmp_path / "saved")
    inputs = target.corpus("validation").inputs
    assert torch.equal(again.model(inputs), target.model(inputs))


def test_every_position_of_a_convolution_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(small_cnn, "FASHION", tmp_path / "nowhere")
    target = make_target("small_cnn", 2, 12)
    hook = target.spec.hook("convs.1.hook_post")
    assert (n_positions(hook), row_width(hook)) == (16, 32)
    write_caches(target, "train", roles=("mlp",), dtype="float32", root=tmp_path)
    rows = ActivationCache.open("small_cnn", hook.name, "train", root=tmp_path).read()
    assert rows.acts.shape == (12 * 16, 32)
    x = target.corpus("train").inputs
    first = torch.nn.functional.max_pool2d(target.model.convs[0].conv(x.unsqueeze(1)).relu(), 2)
    second = target.model.convs[1].conv(first).relu()
    for row in range(0, len(rows.acts), 17):
        example, position = int(rows.example[row]), int(rows.position[row])
        assert torch.allclose(rows.acts[row], second[example, :, position // 4, position % 4], atol=1e-6)

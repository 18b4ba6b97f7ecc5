"""Baselines and transcoders: known answers, and SAELens's own classes give the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.evaluation.baselines import BASELINES, baseline, directions_of
from stages.dictionaries.evaluation.geometry import likeness
from stages.dictionaries.evaluation.metrics import explained_variance
from stages.dictionaries.storage import load_dictionary, save_dictionary
from stages.errors import UserError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def rows() -> Tensor:
    """(3000, 8) of independent, heavy-tailed sources, mixed."""
    sources = draw(3000, 8).sign() * torch.rand(3000, 8, generator=torch.Generator().manual_seed(1)).log().abs()
    return sources @ draw(8, 8, seed=2) + 2.0


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_the_same_in_sae_lens(name: str, rows: Tensor, tmp_path: Path) -> None:
    from sae_lens import SAE

    made = baseline(name, rows, 16, 3, 0)
    save_dictionary(made, tmp_path)
    theirs: Any = SAE.load_from_disk(str(tmp_path))
    with torch.no_grad():
        z = theirs.encode(rows)
        torch.testing.assert_close(encode(load_dictionary(tmp_path), rows), z, atol=1e-5, rtol=1e-5)
        assert int((z != 0).sum(-1).max()) <= 3 and made["cfg"]["metadata"]["training_architecture"] == name


def test_all_directions_rebuild_everything_and_pca_is_best_in_order(rows: Tensor) -> None:
    for name in ("identity", "ica", "pca"):
        made = baseline(name, rows, 16, 16, 0)
        assert explained_variance(rows, decode(made, encode(made, rows))) == pytest.approx(1.0, abs=1e-5), name
    directions = directions_of("pca", rows, 8, 0)
    torch.testing.assert_close(directions @ directions.T, torch.eye(8), atol=1e-5, rtol=0)
    variances = ((rows - rows.mean(0)) @ directions.T).var(0)
    assert (variances[:-1] >= variances[1:]).all()


def test_ica_finds_the_sources_where_pca_does_not(rows: Tensor) -> None:
    truth = draw(8, 8, seed=2)
    ica, pca = (likeness(directions_of(name, rows, 8, 0), truth).mcc for name in ("ica", "pca"))
    assert ica > 0.97 > pca


def test_an_unknown_baseline_and_k_out_of_range_are_reported(rows: Tensor) -> None:
    with pytest.raises(UserError, match="'nmf' is unknown: use identity"):
        baseline("nmf", rows, 16, 3, 0)
    with pytest.raises(UserError, match="k = 17 of 16 latents"):
        baseline("pca", rows, 16, 17, 0)

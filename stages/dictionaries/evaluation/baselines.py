"""What dictionaries are compared with: PCA, ICA, the neurons themselves, random directions; in SAELens's format.

Directions come with both signs, and the k largest latents of a row are kept, so that a baseline can be put at the L0 of
what it is compared with.

Shape legend: N = rows, D = width, F = latents.
"""

import warnings

import torch
from torch import Tensor

from stages.activations.order import generator_for
from stages.contracts.dictionary import Dictionary, DictionaryConfig
from stages.errors import UserError

__all__ = ["BASELINES", "baseline", "directions_of"]

BASELINES = ("identity", "ica", "pca", "random")
ICA_ROWS = 20_000
"""Rows ICA is fitted on at most."""


def directions_of(name: str, acts: Tensor, n_directions: int, seed: int) -> Tensor:
    """(at most n_directions, D) unit directions about the mean; those of ICA are rows of the mixing matrix.

    Raises:
        UserError: no such baseline.
    """
    x = acts.double() - acts.double().mean(0)
    width = x.shape[1]
    match name:
        case "identity":
            # The neurons of largest variance first.
            found = torch.eye(width, dtype=torch.float64)[x.var(0).argsort(descending=True, stable=True)]
        case "pca":
            vectors = torch.linalg.eigh(x.T @ x).eigenvectors
            found = vectors.T.flip(0)
            # An eigenvector's sign is the library's choice: its largest entry is made positive.
            found = found * found.gather(1, found.abs().argmax(1, keepdim=True)).sign()
        case "ica":
            found = _ica(x[:ICA_ROWS], min(n_directions, width), seed)
        case "random":
            found = torch.randn(n_directions, width, generator=generator_for("random baseline", seed)).double()
        case _:
            raise UserError(f"baseline {name!r} is unknown: use {', '.join(BASELINES)}")
    return torch.nn.functional.normalize(found[:n_directions], dim=-1).float()


def baseline(name: str, acts: Tensor, n_latents: int, k: int, seed: int) -> Dictionary:
    """A dictionary of at most ``n_latents`` signed directions, of which a row keeps k.

    A direction and its negative are two latents. Orthogonal directions are read by projection, those of ICA with their
    pseudo-inverse, so that k = all gives the best reconstruction in their span. Random ones are read by projection too,
    since the pseudo-inverse of as many random directions as the width is nearly singular.

    Raises:
        UserError: no such baseline, or k out of range.
    """
    directions = directions_of(name, acts, max(n_latents // 2, 1), seed)
    n = len(directions)
    if not 1 <= k <= 2 * n:
        raise UserError(f"k = {k} of {2 * n} latents ({n} directions, both signs) is out of range")
    reading = torch.linalg.pinv(directions.double()).float() if name == "ica" else directions.T
    cfg: DictionaryConfig = {
        "architecture": "topk", "k": k, "d_in": acts.shape[1], "d_sae": 2 * n, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False, "metadata": {"training_architecture": name},
    }  # fmt: skip
    return {
        "cfg": cfg,
        "W_enc": torch.cat([reading, -reading], dim=1).contiguous(),
        "b_enc": torch.zeros(2 * n),
        "W_dec": torch.cat([directions, -directions]),
        "b_dec": acts.float().mean(0),
    }


def _ica(x: Tensor, n: int, seed: int) -> Tensor:
    from sklearn.decomposition import FastICA

    rank = int(torch.linalg.matrix_rank(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converging within the steps given is an answer too
        model = FastICA(n_components=min(n, rank), max_iter=200, tol=1e-3, random_state=seed, whiten="unit-variance")
        model.fit(x.numpy())
    return torch.from_numpy(model.mixing_.T.copy()).double()

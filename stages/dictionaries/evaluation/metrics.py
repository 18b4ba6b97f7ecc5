"""What a dictionary is worth: pure functions of tensors, each with formula, source, range and failure cases.

The literature's versions of these disagree with each other; the ones here are fixed, and tested for the properties
their docstrings state. Sums are float64. All are computed on held-out rows with the SAVED dictionary.

Shape legend: N = rows, D = width, F = latents, C = outputs or classes, E = size of an embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "LossRecovered",
    "balanced_accuracy",
    "class_entropy",
    "class_purity",
    "dead_ratio",
    "density",
    "divergences",
    "explained_variance",
    "full_probing",
    "k_sparse_probing",
    "kl_recovered",
    "l0",
    "logistic",
    "loss_recovered",
    "monosemanticity",
    "reconstruction_bias",
    "selectivity",
    "top1_agreement",
]

MANY = 1 << 24
"""Logits that are taken at once."""
SMALL_DENOMINATOR = 0.1
"""Nats. Below this much loss from ablation, the ratio of losses says nothing (a published case reads 135%)."""


def l0(latents: Tensor) -> float:
    """Mean number of non-zero latents per row: (1/N) sum_n #{i: z_ni != 0}.

    Counted as ``!= 0``, not ``> 0``, so that signed activations count too. Range [0, F].

    Args:
        latents: (N, F), N >= 1.
    """
    return (latents != 0).sum(-1).double().mean().item()


def density(latents: Tensor) -> Tensor:
    """(F,) share of rows in which each latent is non-zero; range [0, 1]."""
    return (latents != 0).double().mean(0)


def dead_ratio(latents: Tensor) -> float:
    """Share of latents that are zero in all N rows; range [0, 1].

    It depends on N (the literature's windows run from 8192 to 10 million rows): always state N beside it.
    """
    return (~(latents != 0).any(0)).double().mean().item()


def explained_variance(acts: Tensor, reconstruction: Tensor) -> float:
    """1 - sum_n ||x_n - x^_n||^2 / sum_n ||x_n - xbar||^2, xbar the mean over these same rows.

    R^2 of all coordinates together, as in SAELens >= 6.45.1. Predicting the mean gives 0, the identity 1, and a
    constant offset is punished (negative if large); range (-inf, 1].

    Args:
        acts: (N, D).
        reconstruction: (N, D).

    Raises:
        ValueError: all rows are the same, so there is no variance to explain.
    """
    x, y = acts.double(), reconstruction.double()
    total = (x - x.mean(0)).square().sum()
    if total.item() == 0.0:
        raise ValueError("the activations are constant: explained variance is undefined")
    return (1.0 - (x - y).square().sum() / total).item()


def reconstruction_bias(acts: Tensor, reconstruction: Tensor) -> float:
    """gamma = sum ||x^||^2 / sum x.x^ (Rajamanoharan et al. 2404.16014, eq. 10). Below 1: shrunk; 1: unbiased.

    NaN where the reconstruction is orthogonal to the activations or zero.
    """
    x, y = acts.double(), reconstruction.double()
    product = (x * y).sum()
    return (y.square().sum() / product).item() if product.item() != 0.0 else float("nan")


class LossRecovered(NamedTuple):
    ratio: float
    """(L_zero - L_spliced) / (L_zero - L_clean): 1 = no harm, 0 = as bad as zero-ablation; unbounded both ways."""
    clean: float
    """Mean loss in nats, untouched."""
    spliced: float
    """With the reconstruction in place of the activation."""
    ablated: float
    """With zeros in place of the activation."""
    small_denominator: bool
    """L_zero - L_clean < 0.1 nats: do not read the ratio."""


def loss_recovered(clean: Tensor, spliced: Tensor, ablated: Tensor) -> LossRecovered:
    """Share of the loss that zero-ablation costs and the reconstruction wins back (Bricken et al. 2023).

    Args:
        clean, spliced, ablated: (N,) loss of each example in nats. Their means are returned as well, since the ratio
            is meaningless without them.

    Returns:
        ``ratio`` is NaN where ablation costs nothing at all.
    """
    low, mid, high = (part.double().mean().item() for part in (clean, spliced, ablated))
    gap = high - low
    ratio = (high - mid) / gap if gap != 0.0 else float("nan")
    return LossRecovered(ratio, low, mid, high, gap < SMALL_DENOMINATOR)


def kl_recovered(clean: Tensor, spliced: Tensor, ablated: Tensor) -> float:
    """(KL_zero - KL_spliced) / KL_zero, KL from the untouched output distribution; 1 = no harm (SAEBench core).

    Args:
        clean, spliced, ablated: (N, C) logits.

    Returns:
        NaN where ablation changes nothing.
    """
    worst = divergences(clean, ablated).mean().item()
    return (worst - divergences(clean, spliced).mean().item()) / worst if worst > 0.0 else float("nan")


def divergences(clean: Tensor, other: Tensor) -> Tensor:
    """(N,) KL(clean || other) in nats of each example; arguments are (N, C) logits."""
    size = max(1, MANY // max(1, clean.shape[1]))  # in parts: float64 of a whole vocabulary is much

    def part(one: Tensor, two: Tensor) -> Tensor:
        reference = one.double().log_softmax(-1)
        return (reference.exp() * (reference - two.double().log_softmax(-1))).sum(-1)

    return torch.cat([part(*both) for both in zip(torch.split(clean, size), torch.split(other, size), strict=True)])


def top1_agreement(clean: Tensor, spliced: Tensor) -> float:
    """Share of examples whose most likely output stays the same; range [0, 1]. Arguments are (N, C) logits."""
    return (clean.argmax(-1) == spliced.argmax(-1)).double().mean().item()


def monosemanticity(latents: Tensor, embeddings: Tensor) -> Tensor:
    """How alike the images are that a latent fires for (Pach et al. 2504.02821), in one pass.

    With activations scaled to a~ in [0, 1] per latent and unit embeddings p_n,

        MS_k = sum_{n<m} a~_nk a~_mk <p_n, p_m> / sum_{n<m} a~_nk a~_mk
             = (||w_k||^2 - v_k) / (u_k^2 - v_k),  u = sum a~, v = sum a~^2, w = sum a~ p

    (the identity of MonoLoss, 2602.12403; O(N F E) instead of O(N^2)). The embedding must not come from the target.
    It rises with sparsity and depends on outliers through the scaling: read it next to its shuffled
    value (near 0) and, sterner, next to that of a random dictionary, which on digits comes close.

    Args:
        latents: (N, F), one row per distinct image.
        embeddings: (N, E); scaled to unit length here. A row of zeros stays zero.

    Returns:
        (F,) in [-1, 1]; NaN for a latent that is constant or active in fewer than two rows.
    """
    z = latents.double()
    low, high = z.amin(0), z.amax(0)
    scaled = (z - low) / (high - low)  # constant latents give 0 / 0 = NaN, which is what they should give
    unit = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    lengths = unit.square().sum(-1, keepdim=True)
    u, v = scaled.sum(0), scaled.square().sum(0)
    own = (scaled.square() * lengths).sum(0)  # = v unless an embedding is zero
    pairs = u.square() - v
    score = ((scaled.T @ unit).square().sum(-1) - own) / pairs
    readable: Tensor = torch.where(pairs > 1e-12 * u.square().clamp_min(1e-300), score, torch.nan)
    return readable


def class_purity(latents: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """(F,) max_c P(class c | latent fires): 1 = fires for one class only; NaN for a dead latent.

    Its floor is the share of the largest class, and a latent that fires once scores 1: read it next to its null.

    Args:
        latents: (N, F).
        labels: (N,) in 0..n_classes-1.
    """
    return _class_shares(latents, labels, n_classes).amax(-1)


def class_entropy(latents: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """(F,) entropy in nats of P(class | latent fires): 0 = one class only, log C = all alike; NaN if dead."""
    shares = _class_shares(latents, labels, n_classes)
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum(-1)
    return entropy


def _class_shares(latents: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    one_hot = torch.nn.functional.one_hot(labels, n_classes).double()
    counts: Tensor = (latents != 0).double().T @ one_hot
    return counts / counts.sum(-1, keepdim=True)


def selectivity(latents: Tensor, labels: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Point-biserial correlation of each latent with each class against the rest, largest in magnitude.

    Returns:
        (F,) magnitude in [0, 1], 0 for a constant latent; and (F,) the class it belongs to.
    """
    z = latents.double() - latents.double().mean(0)
    y = torch.nn.functional.one_hot(labels, n_classes).double()
    y = y - y.mean(0)
    scale = z.norm(dim=0).unsqueeze(-1) * y.norm(dim=0)
    best = torch.where(scale > 1e-12, (z.T @ y).abs() / scale.clamp_min(1e-12), 0.0).max(-1)
    return best.values, best.indices


def k_sparse_probing(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, n_classes: int, k: int
) -> Tensor:
    """One-against-rest probes that may read k latents (Gurnee et al. 2305.01610; SAEBench sparse probing).

    For each class the k latents with the largest |mean_pos - mean_neg| on the training rows are chosen, and a
    logistic regression with balanced class weights is fitted on them.

    Args:
        train, test: (N, F) latents. Test rows must be held out from training rows.
        train_labels, test_labels: (N,).

    Returns:
        (N_test, C) bool: whether the probe of each class was right on each test row. A class that is absent from, or
        all of, the training rows is answered with the majority.
    """
    right = torch.zeros(len(test), n_classes, dtype=torch.bool)
    x, z = train.double(), test.double()
    for label in range(n_classes):
        positive = train_labels == label
        truth = test_labels == label
        if positive.all() or not positive.any():
            right[:, label] = truth == bool(positive.all())
            continue
        gap = (x[positive].mean(0) - x[~positive].mean(0)).abs()
        chosen = gap.argsort(descending=True, stable=True)[: min(k, x.shape[1])]
        answers, _ = logistic(x[:, chosen], positive, z[:, chosen], balanced=True)
        right[:, label] = answers == truth
    return right


def full_probing(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Tensor:
    """Multinomial logistic regression on everything: (N_test,) bool, right or wrong. Arguments as above."""
    return logistic(train.double(), train_labels, test.double(), balanced=False)[0] == test_labels


def balanced_accuracy(right: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over classes of (true positive rate + true negative rate) / 2; chance is 0.5.

    Args:
        right: (N, C) bool of ``k_sparse_probing``.
        labels: (N,).
        weights: (R, N) bootstrap counts; None: every row once.

    Returns:
        (R,) float64, or a scalar without weights. Classes without a positive row do not count.
    """
    truth = torch.nn.functional.one_hot(labels, right.shape[1]).double()
    counts = torch.ones(1, len(labels), dtype=torch.float64) if weights is None else weights.double()
    ok = right.double()
    positive = (counts @ (ok * truth)) / (counts @ truth)
    negative = (counts @ (ok * (1 - truth))) / (counts @ (1 - truth))
    value = ((positive + negative) / 2).nanmean(-1)
    return value if weights is not None else value[0]


def logistic(
    train: Tensor, labels: Tensor, test: Tensor, *, balanced: bool, direction: bool = False
) -> tuple[Tensor, Tensor | None]:
    """scikit-learn's L2 logistic regression, C = 1, on features scaled to unit deviation (constant ones left alone).

    Returns:
        (N_test,) answers; and, if asked for and the labels are two, the (D,) unit direction it reads along.
    """
    from sklearn.linear_model import LogisticRegression

    centre, scale = train.mean(0), train.std(0)
    scale = torch.where(scale > 1e-9, scale, 1.0)
    model = LogisticRegression(C=1.0, max_iter=1000, tol=1e-3, class_weight="balanced" if balanced else None)
    model.fit(((train - centre) / scale).numpy(), labels.numpy())
    answers = torch.from_numpy(model.predict(((test - centre) / scale).numpy()))
    along = torch.from_numpy(model.coef_[0]) / scale if direction and len(model.classes_) == 2 else None
    return answers, None if along is None or not along.any() else along / along.norm()

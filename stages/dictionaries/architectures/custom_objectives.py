"""Regularisers and activations that can be plugged into training, by name from params or as functions of one's own.

    def mine(latents, decoder):  # (B, F), (F, D) -> scalar
        return latents.sqrt().sum(-1).mean()

    recipe = replace(recipe_for("topk", ...), regularisers=(("mine", 0.1), ("orthogonality", 1.0)))
    train(acts, recipe, seed, regularisers={"mine": mine})

Every built-in is a mean over rows or pairs, so that a coefficient means the same at every batch size.

Shape legend: B = rows of the batch, D = width, F = latents.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from stages.base.users_code import given_by_the_user
from stages.errors import UserError

__all__ = ["ACTIVATIONS", "REGULARISERS", "Activation", "Regulariser", "chosen"]

EPS = 1e-8
Plug = TypeVar("Plug")


class Regulariser(Protocol):
    def __call__(self, latents: Tensor, decoder: Tensor, /) -> Tensor:
        """Scalar to be added to the loss.

        Args:
            latents: (B, F).
            decoder: (F, D).
        """


Activation = Callable[[Tensor], Tensor]
"""(B, F) pre-activations -> (B, F) latents; differentiable."""


def hoyer(latents: Tensor, decoder: Tensor) -> Tensor:
    """Mean of ||z||_1^2 / ||z||_2^2 (Hoyer square): the number of latents active, if alike; whatever their scale."""
    return (latents.abs().sum(-1).square() / (latents.square().sum(-1) + EPS)).mean()


def orthogonality(latents: Tensor, decoder: Tensor) -> Tensor:
    """Mean squared cosine of two different decoder rows: 0 = orthogonal, 1 = all parallel."""
    unit = torch.nn.functional.normalize(decoder, dim=-1)
    n = len(unit)
    # ||U U^T||_F = ||U^T U||_F: whichever is smaller.
    gram = unit @ unit.T if n <= unit.shape[1] else unit.T @ unit
    return (gram.square().sum() - unit.square().sum(-1).square().sum()) / max(n * (n - 1), 1)


def decorrelation(latents: Tensor, decoder: Tensor) -> Tensor:
    """Mean squared correlation over the batch of two different latents: 0 = uncorrelated, 1 = copies."""
    centred = latents - latents.mean(0)
    power = centred.square().sum(0)
    # The floor is relative, so that the value does not depend on the scale of the latents.
    scaled = centred / (power + EPS * power.detach().amax().clamp(min=EPS)).sqrt()
    n = latents.shape[1]
    gram = scaled.T @ scaled if n <= len(latents) else scaled @ scaled.T
    return (gram.square().sum() - scaled.square().sum(0).square().sum()) / max(n * (n - 1), 1)


def smooth_l0(latents: Tensor, decoder: Tensor, width: float = 0.1) -> Tensor:
    """Mean of sum_i 1 - exp(-(z_i ||w_i||)^2 / 2 width^2): L0 that has a gradient."""
    size = latents * decoder.norm(dim=-1)
    return (1.0 - torch.exp(-size.square() / (2.0 * width**2))).sum(-1).mean()


def entropy(latents: Tensor, decoder: Tensor) -> Tensor:
    """Mean entropy in nats of each row's latents as shares of their sum: 0 = one latent says it all."""
    shares = latents.abs() / (latents.abs().sum(-1, keepdim=True) + EPS)
    return -(shares * (shares + EPS).log()).sum(-1).mean()


def l1(latents: Tensor, decoder: Tensor) -> Tensor:
    """Mean of sum_i |z_i| ||w_i||."""
    sizes: Tensor = latents.abs() * decoder.norm(dim=-1)
    return sizes.sum(-1).mean()


def half_power(latents: Tensor, decoder: Tensor) -> Tensor:
    """Mean of sum_i (|z_i| ||w_i||)^(1/2): nearer to L0 than L1 is (the end of p-annealing, 2408.00113)."""
    sizes: Tensor = latents.abs() * decoder.norm(dim=-1)
    return (sizes + 1e-4).sqrt().sum(-1).mean()


REGULARISERS: dict[str, Regulariser] = {
    rule.__name__: rule for rule in (decorrelation, entropy, half_power, hoyer, l1, orthogonality, smooth_l0)
}


def soft_threshold(pre: Tensor) -> Tensor:
    """relu(x - 0.1)."""
    return torch.relu(pre - 0.1)


def squared_relu(pre: Tensor) -> Tensor:
    return torch.relu(pre).square()


ACTIVATIONS: dict[str, Activation] = {
    "absolute": torch.abs,
    "relu": torch.relu,
    "soft_threshold": soft_threshold,
    "softplus": torch.nn.functional.softplus,
    "squared_relu": squared_relu,
}


def chosen(kind: str, name: str, known: Mapping[str, Plug], own: Mapping[str, Plug] | None) -> Plug:
    """The plug of this name, one's own before the built-in one.

    Raises:
        UserError: there is none.
    """
    both = {**known, **(own or {})}
    if name not in both:
        raise UserError(f"{kind} {name!r} is unknown: use {', '.join(sorted(both))}, or pass a function of this name")
    if own and name in own:
        return cast(Plug, _looked_at(kind, name, cast(Callable[..., object], own[name])))
    return both[name]


def _looked_at(kind: str, name: str, function: Callable[..., object]) -> Callable[..., Tensor]:
    """A function of the user's whose errors are told with their line, and whose result is looked at: a regulariser's is
    one finite number, an activation's has the shape of what it is given."""

    def checked(*given: Tensor) -> Tensor:
        with given_by_the_user(f"{kind} {name!r} fails on {', '.join(str(tuple(one.shape)) for one in given)}"):
            found = function(*given)
        wanted = () if kind == "regulariser" else tuple(given[0].shape)
        if not isinstance(found, Tensor) or tuple(found.shape) != wanted or not found.is_floating_point():
            got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            remedy = "one number, such as .mean()" if kind == "regulariser" else f"latents of shape {wanted}"
            raise UserError(f"{kind} {name!r} returned {got}: it must return a float tensor, {remedy}")
        if not bool(torch.isfinite(found).all()):
            raise UserError(f"{kind} {name!r} returned NaN or infinity: add a small number to what it divides by")
        if torch.is_grad_enabled() and any(one.requires_grad for one in given) and not found.requires_grad:
            raise UserError(
                f"{kind} {name!r} has no gradient (detach, item or no_grad inside): use operations of torch"
            )
        return found

    return checked

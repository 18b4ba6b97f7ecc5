"""What training needs of its rows and its recipe, asked before the first step."""

import torch
from torch import Tensor

from stages.dictionaries.training.trainer import Recipe
from stages.errors import UserError

__all__ = ["ARCHITECTURES", "PENALISED", "check_given", "check_rows", "check_training"]

ARCHITECTURES = (
    "standard", "topk", "batchtopk", "gated", "jumprelu", "matryoshka", "abstopk", "matching_pursuit", "p_anneal",
)  # fmt: skip
PENALISED = ("standard", "gated", "p_anneal")
"""Architectures whose sparsity is the coefficient of a penalty; of the others it is a number of latents."""
TRANSCODED = tuple((kind, skip) for kind in ("standard", "topk", "batchtopk") for skip in (False, True))
UNEVEN = 500.0
"""Rows this many times as large as the median row are refused: among 600 rows, one of 300 times took at most 0.21 off
the others' explained variance, one of 1000 times made it negative in seven of nine architectures."""
SMALLEST, LARGEST = 1e-12, 1e12
"""Norms whose squares, and the products of those, float32 holds."""


def check_training(acts: Tensor, recipe: Recipe, outputs: Tensor | None) -> None:
    """Raise UserError where rows or recipe are not what training needs; says what is allowed."""
    check_given(acts, "activations")
    if outputs is not None:
        check_given(outputs, "outputs")
    kind, n_latents, sparsity = recipe.architecture, recipe.n_latents, recipe.sparsity
    if kind not in ARCHITECTURES:
        raise UserError(f"architecture {kind!r} is unknown; known: {', '.join(ARCHITECTURES)}")
    if acts.dim() != 2 or acts.shape[1] == 0:
        raise UserError(f"activations have shape {tuple(acts.shape)}; give (rows, width), heads flattened")
    if n_latents < 1 or recipe.steps < 1 or not recipe.lr > 0:
        raise UserError(f"n_latents = {n_latents}, steps = {recipe.steps}, lr = {recipe.lr:g}: all must be above 0")
    if not sparsity > 0 or (kind not in PENALISED and not 1 <= sparsity <= n_latents):
        allowed = "above 0" if kind in PENALISED else f"1 to n_latents = {n_latents}"
        raise UserError(f"sparsity = {sparsity:g} of {kind} is out of range; allowed: {allowed}")
    if kind in ("topk", "abstopk", "matching_pursuit") and sparsity != int(sparsity):
        raise UserError(f"sparsity = {sparsity:g}: {kind} takes whole numbers; use batchtopk for an average")
    if kind == "matryoshka" and not (recipe.widths and list(recipe.widths) == sorted({*recipe.widths} - {0})
                                     and recipe.widths[-1] < n_latents):  # fmt: skip
        raise UserError(
            f"widths = {recipe.widths} of matryoshka: give rising numbers of latents, all below {n_latents}"
        )
    if not 0 < recipe.last_p <= 1 or not recipe.bandwidth > 0:
        raise UserError(
            f"last_p = {recipe.last_p:g} must be above 0 and at most 1, bandwidth = {recipe.bandwidth:g} above 0"
        )
    check_rows(acts)
    if outputs is None:
        if recipe.skip:
            raise UserError("skip: only a transcoder has a skip connection; give outputs")
        return
    if (kind, recipe.skip) not in TRANSCODED or recipe.activation or recipe.regularisers:
        kinds = ", ".join(sorted({name for name, _ in TRANSCODED}))
        raise UserError(f"a transcoder is trained with architecture = {kinds}, without plugs; not {kind}")
    if len(acts) != len(outputs):
        raise UserError(f"{len(acts)} rows of input and {len(outputs)} of output do not belong together")
    check_rows(outputs)


def check_given(rows: object, name: str) -> None:
    """Raise UserError where what should be rows is no dense float tensor on the CPU; says how to make it one."""
    if not isinstance(rows, Tensor):
        kind = f"{type(rows).__module__}.{type(rows).__name__}".removeprefix("builtins.")
        remedy = "torch.from_numpy" if kind.startswith("numpy.") else "torch.tensor"
        raise UserError(f"{name} are {kind}: give a float tensor (rows, width), such as {remedy}({name})")
    if rows.device.type != "cpu":
        raise UserError(f"{name} are on {rows.device}: training runs on the CPU, give {name}.cpu()")
    if rows.layout != torch.strided or rows.is_quantized:
        raise UserError(f"{name} are {str(rows.layout).removeprefix('torch.')}: give {name}.to_dense()")
    if rows.is_complex() or rows.dtype == torch.bool:
        raise UserError(f"{name} are {str(rows.dtype).removeprefix('torch.')}: give real numbers, {name}.float()")


def check_rows(acts: Tensor) -> None:
    """Raise UserError where rows are NaN, infinite or all the same, or one of another size than all the others."""
    finite = torch.isfinite(acts).all(dim=1)
    if not finite.all():
        raise UserError(
            f"{int((~finite).sum())} of {len(acts)} rows of activations hold NaN or infinity:"
            " mend what made them (stage `targets` or `activations`)"
        )
    if len(acts) and (acts == acts[0]).all():
        raise UserError("the activations are constant: there is nothing to decompose; choose another hook point")
    _check_sizes(acts)


def _check_sizes(acts: Tensor) -> None:
    """Rows are scaled by their mean norm and errors are squared: rows this uneven would be learned alone."""
    sizes = acts.double().norm(dim=1)
    usual = float(sizes[sizes > 0].median()) if bool((sizes > 0).any()) else 0.0
    if not SMALLEST <= usual <= LARGEST:
        raise UserError(
            f"rows of size {usual:.2g} are out of float32's reach, since errors are squared: scale them to about 1"
            f" (allowed: {SMALLEST:g} to {LARGEST:g})"
        )
    uneven = (sizes > UNEVEN * usual).nonzero().flatten().tolist()
    if uneven:
        worst = int(sizes.argmax())
        raise UserError(
            f"row {worst} is {float(sizes[worst]) / usual:.2g} times the median row ({len(uneven)} of {len(acts)} rows"
            f" are over {UNEVEN:g} times): training would fit nothing else. Leave such rows out (an attention sink, a"
            " BOS token), or scale rows to one size"
        )

"""Edges of a target that are entries of its weights, so that a cut circuit is an edited model like any other.

A linear map's weight (v, u) is the edge from unit u to unit v. Cutting it and putting the mean of u over other inputs
in its place is W[v, u] <- 0, b[v] <- b[v] + W[v, u] * mean_u: mean ablation as an edit of the weights, which can be
saved, measured and trained on. Where a source writes into a residual stream (a head, a hidden unit of a transformer's
MLP) the cut takes all edges that leave it: the rows of the map are many readers' sum.

Scores are edge attribution patching (Syed et al. 2023, 2310.10348), signed: the margin that a cut would cost.

Shape legend: B = inputs, V = outputs of a map, U = its sources (inputs, in groups), E = edges over all sites.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.errors import UserError

__all__ = ["SITES", "Site", "cut", "cut_scores", "keep_only", "margins", "mean_inputs", "read_by", "site_sizes", "top"]


@dataclass(frozen=True)
class Site:
    """A linear map whose entries can be cut."""

    module: str
    group: int = 1
    """Inputs that make one source: 1 for units, d_head for heads."""
    rows: bool = True
    """Whether each row is a reader of its own; False: a source is cut for all readers at once."""


SITES: dict[str, tuple[Site, ...]] = {
    "digits_mlp": (Site("layers.0.linear"), Site("layers.1.linear"), Site("unembed")),
    "digits_few_shot": tuple(
        site
        for layer in range(2)
        for site in (
            Site(f"blocks.{layer}.attn.W_O", group=16, rows=False),
            Site(f"blocks.{layer}.mlp.W_out", rows=False),
        )
    ),
}
"""Of the house's targets."""


def _linear(model: nn.Module, site: Site) -> nn.Linear:
    module = model.get_submodule(site.module)
    if not isinstance(module, nn.Linear) or module.bias is None or module.in_features % site.group:
        raise UserError(f"{site.module} is no Linear with a bias and inputs in groups of {site.group}: name another")
    return module


def site_sizes(model: nn.Module, sites: Sequence[Site]) -> list[tuple[int, int]]:
    """(readers, sources) of each site."""
    maps = [_linear(model, site) for site in sites]
    return [(m.out_features if s.rows else 1, m.in_features // s.group) for m, s in zip(maps, sites, strict=True)]


def _blocks(model: nn.Module, sites: Sequence[Site], flat: Tensor) -> list[Tensor]:
    """(E,) values -> one (V, in_features) tensor per site, repeated over groups and rows."""
    sizes = site_sizes(model, sites)
    if len(flat) != sum(v * u for v, u in sizes):
        raise UserError(f"{len(flat)} values for {sum(v * u for v, u in sizes)} edges: give one each")
    parts = torch.split(flat, [v * u for v, u in sizes])
    out = []
    for part, (v, u), site in zip(parts, sizes, sites, strict=True):
        whole = part.view(v, u).repeat_interleave(site.group, 1)
        out.append(whole.expand(_linear(model, site).out_features, -1))
    return out


def read_by(model: nn.Module, sites: Sequence[Site], inputs: Tensor) -> dict[str, Tensor]:
    """{module: (B, ..., in_features) what it reads}."""
    read: dict[str, Tensor] = {}
    handles = [
        _linear(model, site).register_forward_hook(
            lambda module, args, out, name=site.module: read.__setitem__(name, args[0].detach())
        )
        for site in sites
    ]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return read


def _slopes(
    model: nn.Module, sites: Sequence[Site], inputs: Tensor, value: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """{module: (B, ..., V) slope of the summed value of the model's outputs at what it writes}."""
    probes: dict[str, Tensor] = {}

    def probe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            probes[name] = torch.zeros_like(out, requires_grad=True)
            return out + probes[name]

        return hook

    handles = [_linear(model, site).register_forward_hook(probe(site.module)) for site in sites]
    try:
        with torch.enable_grad():
            total = value(model(inputs)).sum()
            slopes = torch.autograd.grad(total, list(probes.values()))
    finally:
        for handle in handles:
            handle.remove()
    return dict(zip(probes, slopes, strict=True))


def mean_inputs(model: nn.Module, sites: Sequence[Site], inputs: Tensor) -> dict[str, Tensor]:
    """{module: (in_features,) mean of what it reads}, over inputs and, where there are any, positions."""
    return {name: value.flatten(0, -2).mean(0) for name, value in read_by(model, sites, inputs).items()}


def margins(outputs: Tensor, labels: Tensor) -> Tensor:
    """(B, C), (B,) -> (B,) the label's logit less the largest other."""
    chosen = outputs.gather(-1, labels.unsqueeze(-1))
    return chosen.squeeze(-1) - outputs.scatter(-1, labels.unsqueeze(-1), float("-inf")).amax(-1)


def cut_scores(
    model: nn.Module, sites: Sequence[Site], inputs: Tensor, labels: Tensor, means: Mapping[str, Tensor]
) -> Tensor:
    """(E,) margin that cutting each edge would cost, to first order; mean over the inputs. Two forwards, one backward.

    Args:
        model: frozen or not; its weights get no gradient.
        sites: where edges are.
        inputs: (B, ...) that show the behaviour.
        labels: (B,) right answers.
        means: what stands in for a cut source; see ``mean_inputs``.
    """
    read = read_by(model, sites, inputs)
    slopes = _slopes(model, sites, inputs, lambda outputs: margins(outputs, labels))
    scores = []
    for site, (v, u) in zip(sites, site_sizes(model, sites), strict=True):
        away = (read[site.module] - means[site.module]).flatten(0, -2)
        slope = slopes[site.module].flatten(0, -2)
        entries = (slope.T @ away) * _linear(model, site).weight.detach()  # (V, in_features)
        grouped = entries.view(entries.shape[0], u, site.group).sum(-1)
        scores.append((grouped if site.rows else grouped.sum(0, keepdim=True)).flatten() / len(inputs))
        assert scores[-1].numel() == v * u
    return torch.cat(scores)


def cut(model: nn.Module, sites: Sequence[Site], edges: Tensor, means: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of the model without these edges.

    Args:
        model: stays as it is.
        sites: where edges are.
        edges: (E,) bool, True = cut.
        means: what stands in for a cut source; None: nothing (zero ablation).
    """
    edited = copy.deepcopy(model)
    for site, gone in zip(sites, _blocks(model, sites, edges.to(torch.float32)), strict=True):
        module = _linear(edited, site)
        removed = module.weight.data * gone
        module.weight.data = module.weight.data - removed
        if means is not None:
            assert module.bias is not None
            module.bias.data = module.bias.data + removed @ means[site.module]
    return edited


def keep_only(model: nn.Module, sites: Sequence[Site], edges: Tensor, means: Mapping[str, Tensor]) -> nn.Module:
    """A copy in which every edge is cut except these."""
    return cut(model, sites, ~edges, means)


def top(scores: Tensor, n: int, allowed: Tensor | None = None) -> Tensor:
    """(E,) bool: the n best-scored edges among those allowed; of equals the first."""
    ranked = scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[ranked.argsort(descending=True, stable=True)[:n]] = True
    return chosen

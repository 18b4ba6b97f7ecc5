"""A card of a compiled program as one file that needs nothing of this project to be read.

A safetensors file. Tensors: the module's weights under their names (nn.Linear convention: out x in), ``clean`` and
``counterfactual`` (B, T) tokens, ``outputs`` (B, T - 1, C) of the module on ``clean`` at every position but the first.
Metadata ``card``: JSON with name, subject, ablation, seed, tolerance, the architecture, ``edges`` and ``truth``.

Peers take the sum of embedding and position for one source, so the graph here has one source ``start`` where the cards
have ``embed`` and ``pos``; its circuit is derived anew by cutting and must be the card's with the two merged.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.circuits.engine.ablation import derangement
from stages.circuits.engine.graph import Graph, Node
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import mse
from stages.circuits.engine.transformers import PlainTransformer, transformer_graph
from stages.circuits.known.known_circuits import TOLERANCE, card_named, truth_of
from stages.circuits.known.truths import by_ablation
from stages.errors import UserError

__all__ = ["Exported", "export_card", "merged", "merged_graph", "read_export"]

START = "start"
DATA = ("clean", "counterfactual", "outputs")
SIZES = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "vocab", "length", "outputs")


def merged_graph(n_layers: int) -> Graph:
    """``transformer_graph`` with one source for what enters the first block."""
    _, _, *rest = transformer_graph(n_layers).nodes
    return Graph(Node(START, writes="blocks.0:in"), *rest)


def merged(edge: str) -> str:
    """Name of an edge of the card's graph in the merged one."""
    source, _, reader = edge.partition("->")
    return f"{START if source in ('embed', 'pos') else source}->{reader}"


@dataclass(frozen=True)
class Exported:
    """What the file holds, as a module, data and a known circuit."""

    card: dict[str, Any]
    module: PlainTransformer
    clean: Tensor
    """(B, T)."""
    counterfactual: Tensor
    """(B, T): the partner of each, for resample; a permutation of ``clean``."""
    outputs: Tensor
    """(B, T - 1, C)."""

    def engine(self, check: bool = False) -> MaskedForward:
        """Ours on this data. Partners are given, so that resample is an interchange."""
        ablation, partners = self.card["ablation"], None
        if ablation == "resample":
            ablation, partners = "interchange", self.counterfactual
        graph = merged_graph(self.card["n_layers"])
        return MaskedForward(self.module, graph, self.clean, ablation=ablation, counterfactual=partners, check=check)

    @property
    def truth(self) -> Tensor:
        """(E,) in the order of ``card["edges"]``."""
        return torch.tensor([float(edge in set(self.card["truth"])) for edge in self.card["edges"]])


def export_card(name: str, path: Path, seed: int = 0, orders: int = 3) -> dict[str, Any]:
    """Write one card with the prompts and partners of one seed; returns what the metadata says.

    Args:
        name: of a card of a compiled program, such as reverse-4-zero.
        path: file to write.
        seed: draws prompts and partners.
        orders: of cutting, for the circuit of the merged graph.

    Raises:
        UserError: no such card, no compiled program, no single circuit, or merging changes the circuit.
    """
    found = card_named(name)
    if len(found) != 1 or found[0].length is None:
        raise UserError(f"{name!r} is no single card of a compiled program: give one such as reverse-4-zero")
    card = found[0]
    generator = torch.Generator().manual_seed(seed)
    clean = card.inputs(generator)
    counterfactual = clean[derangement(len(clean), generator)]
    module: Any = card.engine(clean, generator).model
    everything = card.everything()
    engine = MaskedForward(
        module, merged_graph(len(module.blocks)), everything, ablation=card.ablation, generator=generator
    )
    cut = by_ablation(engine, mse, generator, tolerance=TOLERANCE, orders=orders)
    truth = tuple(map(str, engine.layout.kept(cut.mask)))
    known = truth_of(card, orders)
    if not (known.agree and cut.unique and cut.irreducible and set(map(merged, known.edges)) == set(truth)):
        raise UserError(
            f"{name}: the circuit is not the same, or not a single one, once embedding and position are one source:"
            " choose a card whose derivations agree (`lensmith circuits cards`)"
        )
    heads, d_model, d_head = module.blocks[0].attn.W_Q.shape
    sizes = (
        len(module.blocks), heads, d_model, d_head, module.blocks[0].W_in.out_features, *module.embed.weight.shape[:1],
        *module.pos.weight.shape[:1], module.unembed.out_features,
    )  # fmt: skip
    said = {
        "name": card.name,
        "subject": card.subject,
        "ablation": card.ablation,
        "seed": seed,
        "tolerance": TOLERANCE,
        **dict(zip(SIZES, sizes, strict=True)),
        "edges": list(map(str, engine.layout.edges)),
        "truth": list(truth),
    }
    with torch.no_grad():
        outputs = module(clean)
    tensors = {**module.state_dict(), "clean": clean, "counterfactual": counterfactual, "outputs": outputs}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, {"card": json.dumps(said)})
    return said


def read_export(path: Path) -> Exported:
    """Raises:
    UserError: the file is missing or was not written by ``export_card``.
    """
    remedy = "write it with `python -m stages benchmarks.circuit_peers.compare export CARD FILE`"
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {})["card"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        module = PlainTransformer(*(card[size] for size in SIZES))
        data = [tensors.pop(key) for key in DATA]
        module.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is no exported card ({type(error).__name__}: {error}): {remedy}") from error
    module.eval().requires_grad_(False)
    return Exported(card, module, *data)

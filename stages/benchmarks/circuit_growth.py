"""How a search for circuits grows: time and memory against layers and heads, on transformers with random weights.

Attribution (EAP) takes two passes whatever the number of edges; what grows is what it holds: every source's output and
every reader's gradient. Searches that cut edges one by one need a pass an edge at the least, so their cost is told as
passes x the time of one.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stages.circuits.algorithms.methods import run_method
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import distance
from stages.circuits.word_subject import graph_of_transformer, open_for_edges
from stages.targets.token_model import Architecture, TokenModel

__all__ = ["GRID", "Growth", "bench_growth", "exponent"]

GRID = ((1, 4), (2, 4), (4, 4), (8, 4), (2, 2), (2, 8), (2, 16), (4, 12), (12, 12))
"""(layers, heads); the last is GPT-2 small's."""
D_HEAD, PLACES, WORDS, BATCH = 64, 16, 512, 4


@dataclass(frozen=True)
class Growth:
    """Scoring all edges of one transformer by EAP, a batch of 4 inputs of 16 words."""

    layers: int
    heads: int
    width: int
    edges: int
    seconds: float
    """Of CPU time, one thread."""
    forward_s: float
    """Of one plain forward pass."""
    mb: float
    """Peak memory beyond the model's, in MB."""
    one_by_one_s: float
    """Passes of a search that tries every edge once, by arithmetic: edges x forward_s."""


def bench_growth(tell: Callable[[str], None] = print, grid: Sequence[tuple[int, int]] = GRID) -> list[Growth]:
    """Each size in a process of its own, so that its peak is its own."""
    rows = []
    for layers, heads in grid:
        tell(f"{layers} layers, {heads} heads")
        with multiprocessing.get_context("fork").Pool(1) as pool:
            rows.append(pool.apply(_measured, (layers, heads)))
    return rows


def _measured(layers: int, heads: int) -> Growth:
    torch.set_num_threads(1)
    width = D_HEAD * heads
    architecture = Architecture(
        n_layers=layers,
        d_model=width,
        n_heads=heads,
        d_mlp=4 * width,
        n_ctx=PLACES,
        d_vocab=WORDS,
        d_vocab_out=WORDS,
        normalization_type="LN",
        positional_embedding_type="standard",
    )
    generator = torch.Generator().manual_seed(0)
    model = open_for_edges(TokenModel.of(architecture, generator).eval().requires_grad_(False))
    ids = torch.randint(WORDS, (2 * BATCH, PLACES), generator=generator)
    inputs = torch.stack([ids.float(), torch.ones(ids.shape)], dim=-1)
    with torch.no_grad():
        model(inputs[:BATCH])
        start = time.process_time()
        model(inputs[:BATCH])
        forward = time.process_time() - start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    engine = MaskedForward(model, graph_of_transformer(model), inputs[:BATCH], ablation="mean", check=False)
    run_method("eap", engine, distance("kl"), generator)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Growth(
        layers, heads, width, engine.n_edges, round(seconds, 3), round(forward, 4), round(peak / 1024, 1),
        round(engine.n_edges * forward, 1),
    )  # fmt: skip


def exponent(rows: Sequence[Growth], what: str) -> float:
    """Of the power of the number of edges that a column grows with, by least squares on logarithms."""
    edges = np.log([row.edges for row in rows])
    values = np.log([max(getattr(row, what), 1e-6) for row in rows])
    return float(np.polyfit(edges, values, 1)[0])

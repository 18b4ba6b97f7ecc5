"""What is drawn is what was found: nodes in layers, every edge that matters, at most so many others."""

import torch

from stages.circuits.algorithms.found import Bill, Found
from stages.circuits.drawings import MOST, drawing, drawings
from stages.circuits.known.known_circuits import card_named, truth_of


def engine_of(name: str):
    (card,) = card_named(name)
    generator = torch.Generator().manual_seed(0)
    return card, card.engine(card.inputs(generator), generator)


def test_a_found_circuit_is_drawn_beside_the_truth() -> None:
    card, engine = engine_of("planted_cnn-zero")
    (drawn,) = drawings([card], ["edge-sp"], 1)
    truth = truth_of(card, 1)
    named = {(edge.source, edge.reader): edge for edge in drawn.edges}
    assert len(named) == len(drawn.edges) == engine.n_edges
    assert sum(edge.in_truth for edge in drawn.edges) == len(truth.edges)
    assert all(edge.in_circuit == edge.in_truth for edge in drawn.edges)
    layer = {node.name: node.layer for node in drawn.nodes}
    for edge in drawn.edges:
        assert layer[edge.source] < layer[edge.reader.rpartition(".")[0] if edge.reader not in layer else edge.reader]
    assert len({(node.layer, node.slot) for node in drawn.nodes}) == len(drawn.nodes)


def test_where_there_are_too_many_the_weakest_of_no_matter_are_left_out() -> None:
    _, engine = engine_of("planted_mlp-zero")
    n = engine.n_edges
    assert n > MOST
    scores = torch.arange(n, dtype=torch.float64)
    mask, truth = torch.zeros(n), torch.zeros(n)
    mask[0], truth[1] = 1.0, 1.0  # the two weakest
    drawn = drawing(engine.graph, engine.layout, Found(scores, mask, Bill()), truth, "title", "Note.")
    assert len(drawn.edges) == MOST
    assert sum(edge.in_circuit for edge in drawn.edges) == sum(edge.in_truth for edge in drawn.edges) == 1
    kept = sorted(edge.score for edge in drawn.edges)
    assert kept[:3] == [0.0, 1.0, float(n - MOST + 2)]
    assert f"{n - MOST} of the edges left out are not drawn" in drawn.note


def test_a_ranking_is_drawn_as_its_best_edges_and_infinite_scores_as_the_least() -> None:
    _, engine = engine_of("planted_cnn-zero")
    scores = torch.arange(engine.n_edges, dtype=torch.float64)
    scores[3] = -torch.inf
    truth = torch.zeros(engine.n_edges)
    truth[:5] = 1.0
    drawn = drawing(engine.graph, engine.layout, Found(scores, None, Bill()), truth, "title", "")
    assert sum(edge.in_circuit for edge in drawn.edges) == 5
    assert {edge.score for edge in drawn.edges if edge.in_circuit} == set(scores[-5:].tolist())
    assert min(edge.score for edge in drawn.edges) == 0.0
    unknown = drawing(engine.graph, engine.layout, Found(scores, None, Bill()), None, "title", "")
    assert all(edge.in_truth is None and not edge.in_circuit for edge in unknown.edges)

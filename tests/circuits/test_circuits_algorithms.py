"""ACDC, attribution and probing against slow, separate implementations, and on circuits that are known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stages.circuits.algorithms.acdc import (
    acdc,
    acdc_scores,
    eliminate,
    losses,
)
from stages.circuits.algorithms.attribution import (
    eap,
    eap_ig,
    hisp,
    node_patching,
)
from stages.circuits.algorithms.methods import METHODS, Settings, run_method
from stages.circuits.algorithms.subnetwork_probing import Probe, probe
from stages.circuits.engine.graph import Graph, Node
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import kl, mse, projection
from stages.circuits.engine.transformers import PlainTransformer
from stages.circuits.known.planted import PlantedMlp, planted_edges, train_planted
from stages.errors import UserError
from tests.circuits.conftest import filled


@pytest.fixture(scope="module")
def engine(transformer: PlainTransformer, tokens: Tensor) -> MaskedForward:
    generator = torch.Generator().manual_seed(0)
    return MaskedForward(transformer, transformer.circuit(), tokens, ablation="resample", generator=generator)


def naive_acdc(engine: MaskedForward, threshold: float) -> Tensor:
    """One edge, one forward at a time, from the outputs backwards."""
    mask = engine.ones()

    def loss(mask: Tensor) -> float:
        with torch.no_grad():
            return float((engine(mask)[0] - engine.clean_outputs).square().mean())

    now = loss(mask)
    for place in reversed(range(engine.n_edges)):
        mask[place] = 0.0
        after = loss(mask)
        if after - now < threshold:
            now = after
        else:
            mask[place] = 1.0
    return mask


@pytest.mark.parametrize("share", [1e-3, 3e-2, 0.3])
def test_acdc_tries_runs_of_cuts_and_gives_what_one_at_a_time_gives(engine: MaskedForward, share: float) -> None:
    threshold = share * float(losses(engine, mse, torch.zeros(engine.n_edges)))
    wanted = naive_acdc(engine, threshold)
    assert 0 < wanted.sum() < engine.n_edges
    for window in (1, 5, 32):
        found = acdc(engine, mse, threshold, window=window)
        assert found.mask is not None and torch.equal(found.mask, wanted)
        assert found.bill.forwards > 0 and found.bill.backwards == 0


def test_acdc_over_thresholds_counts_them(engine: MaskedForward) -> None:
    empty = float(losses(engine, mse, torch.zeros(engine.n_edges)))
    thresholds = [1e-3 * empty, 1e-1 * empty]
    both = sum((acdc(engine, mse, threshold).scores for threshold in thresholds), torch.zeros(engine.n_edges))
    assert torch.equal(acdc_scores(engine, mse, thresholds).scores, both)
    with pytest.raises(UserError, match="positive"):
        acdc(engine, mse, 0.0)


def test_eap_is_the_change_times_the_slope_where_it_is_read(engine: MaskedForward, tokens: Tensor) -> None:
    """Against gradients of TransformerLens's own hooks, without the masked forward."""
    model: PlainTransformer = engine.model  # type: ignore[assignment]
    slopes: dict[str, Tensor] = {}
    zero = {port.hook: None for port in engine.graph.ports}

    def keep(value: Tensor, hook: object) -> Tensor:
        value = value.detach() * 0 + value
        value = value + torch.zeros_like(value).requires_grad_(True)
        value.retain_grad()
        slopes[hook.name] = value  # type: ignore[attr-defined]
        return value

    outputs = model.run_with_hooks(tokens, fwd_hooks=[(name, keep) for name in zero])
    projection(outputs.unsqueeze(0), engine.clean_outputs).mean(-1).sum().backward()
    wanted = []
    for edge in engine.layout.edges:
        node, _, port = edge.reader.partition("_")
        layer = node[1:].partition(".")[0]
        place = {"q": "hook_q_input", "k": "hook_k_input", "v": "hook_v_input", "": "hook_mlp_in"}[port]
        slope = slopes["blocks.1.hook_resid_post" if node == "out" else f"blocks.{layer}.{place}"].grad
        assert slope is not None
        if port:
            slope = slope[:, :, int(node.partition(".")[2])]
        name, _, unit = edge.source.partition(".")
        change = (engine._clean_sources[name] - engine._ablated[name])[0, int(unit or 0)]
        wanted.append(float((change * slope).sum().abs()))
    found = eap(engine, projection)
    torch.testing.assert_close(found.scores, torch.tensor(wanted), rtol=1e-3, atol=1e-6)
    assert (found.bill.forwards, found.bill.backwards) == (1, 1)


def test_eap_ig_over_inputs_is_the_mean_slope_on_the_way(mlp: PlantedMlp) -> None:
    """Zero ablation, an MLP: inputs scaled by 0, 1/3, 2/3, slopes at the pre-activations by hand."""
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    engine = MaskedForward(mlp, mlp.circuit(), x, ablation="zero")
    found = eap_ig(engine, mse, steps=3)
    clean_one = mlp.first(x).tanh()
    clean = [x, clean_one, mlp.second(clean_one).tanh()]
    slopes = [torch.zeros(9, 8), torch.zeros(9, 6), torch.zeros(9, 2)]
    for k in range(3):
        pre1 = mlp.first(x * k / 3).detach().requires_grad_(True)
        pre2 = mlp.second(pre1.tanh())
        out = mlp.third(pre2.tanh())
        loss = (out - engine.clean_outputs).square().mean()
        for total, slope in zip(slopes, torch.autograd.grad(loss, [pre1, pre2, out]), strict=True):
            total += slope / 3
    wanted = [
        torch.einsum("bv,vu,bu->vu", slope, getattr(mlp, name).weight, source).abs().flatten()
        for slope, name, source in zip(slopes, mlp.layers, clean, strict=True)
    ]
    torch.testing.assert_close(found.scores, torch.cat(wanted), rtol=1e-3, atol=1e-6)
    assert (found.bill.forwards, found.bill.backwards) == (3, 3)
    with pytest.raises(UserError, match="at least 1"):
        eap_ig(engine, mse, steps=0)


def test_eap_ig_over_activations_moves_one_source_at_a_time(engine: MaskedForward) -> None:
    found = eap_ig(engine, mse, over="activations", steps=3)
    edge = engine.layout.index[next(e for e in engine.layout.edges if str(e) == "a0.1->m1")]
    slopes = []
    for level in (0.0, 1 / 3, 2 / 3):
        mask = torch.tensor([level if e.source == "a0.1" else 1.0 for e in engine.layout.edges]).requires_grad_(True)
        loss = (engine(mask)[0] - engine.clean_outputs).square().mean()
        slopes.append(torch.autograd.grad(loss, [mask])[0][edge])
    torch.testing.assert_close(found.scores[edge], torch.stack(slopes).mean().abs(), rtol=1e-4, atol=1e-7)
    assert found.bill.backwards == 3 * len(engine.layout.sources)


def test_a_distance_has_no_slope_at_the_clean_run_and_that_is_said(engine: MaskedForward) -> None:
    for distance in (mse, kl):  # kl's slope there is rounding
        with pytest.raises(UserError, match=r"metric is constant.*base='ablated'"):
            eap(engine, distance)
        assert float(eap(engine, distance, base="ablated").scores.max()) > 0
    with pytest.raises(UserError, match="metric is constant"):
        eap_ig(engine, lambda outputs, clean: outputs.flatten(2).mean(-1) * 0)


def test_node_scores_take_the_worse_end(engine: MaskedForward) -> None:
    for method in (node_patching, hisp):
        found = method(engine, projection)
        assert (found.bill.forwards, found.bill.backwards) == (1, 1)
        by_name = {str(edge): float(s) for edge, s in zip(engine.layout.edges, found.scores, strict=True)}
        assert by_name["a0.0->m1"] == min(by_name["a0.0->out"], by_name["m1->out"])


def test_elimination_leaves_nothing_to_cut(engine: MaskedForward) -> None:
    allowed = 0.2 * float(losses(engine, mse, torch.zeros(engine.n_edges)))
    mask = eliminate(engine, mse, engine.ones(), list(range(engine.n_edges)), allowed)
    assert float(losses(engine, mse, mask)) <= allowed
    kept = (mask > 0.5).nonzero().flatten()
    smaller = mask.repeat(len(kept), 1)
    smaller[torch.arange(len(kept)), kept] = 0.0
    assert float(losses(engine, mse, smaller).min()) > allowed


def planted_engine(groups: int) -> tuple[MaskedForward, Tensor]:
    module, masks = train_planted("planted_mlp")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60 * groups, 6, generator=generator)
    engine = MaskedForward(module, module.circuit(), x, ablation="resample", generator=generator, groups=groups)
    return engine, engine.layout.connected(planted_edges(masks))


def test_probing_finds_the_planted_circuit_in_every_seed() -> None:
    engine, truth = planted_engine(groups=4)
    found = probe(engine, mse, torch.Generator().manual_seed(0))
    for one in found:
        assert one.mask is not None and torch.equal(one.mask, truth)
        assert float(one.scores[truth > 0.5].min()) > float(one.scores[truth < 0.5].max()), "kept edges rank first"
        assert one.bill.backwards == Probe().steps and one.bill.forwards > Probe().steps
    starts = {tuple(one.scores.tolist()) for one in found}
    assert len(starts) == 4, "every seed has its own start, gates and data"
    again = probe(planted_engine(groups=4)[0], mse, torch.Generator().manual_seed(0))
    assert all(torch.equal(one.scores, other.scores) for one, other in zip(found, again, strict=True))


def test_probing_for_a_size_gives_that_size() -> None:
    engine, truth = planted_engine(groups=2)
    for one in probe(engine, mse, torch.Generator().manual_seed(0), Probe(size=5)):
        assert one.mask is not None and int(one.mask.sum()) == 5
        assert float((one.mask * truth).sum()) >= 4


def test_probing_nodes_gives_whole_nodes() -> None:
    engine, _ = planted_engine(groups=1)
    (found,) = probe(engine, mse, torch.Generator().manual_seed(0), Probe(over="nodes", steps=100))
    assert found.mask is not None
    allowed = Probe().tolerance * float(losses(engine, mse, torch.zeros(engine.n_edges)))
    assert float(losses(engine, mse, found.mask)) <= allowed


def test_probing_leaves_the_modules_weights_without_gradients(tokens: Tensor) -> None:
    transformer: PlainTransformer = filled(PlainTransformer(1, 2, 6, 3, 8, 5, 4, 3))  # type: ignore[assignment]
    engine = MaskedForward(transformer, transformer.circuit(), tokens, ablation="zero")
    probe(engine, mse, torch.Generator().manual_seed(0), Probe(steps=2, polish=False))
    assert all(parameter.grad is None for parameter in transformer.parameters())


def test_nothing_to_find_is_an_error(mlp: PlantedMlp) -> None:
    x = torch.ones(8, 6)
    engine = MaskedForward(mlp, mlp.circuit(), x, ablation="mean")
    said = set()
    for method in METHODS:
        with pytest.raises(UserError, match=r"every edge cut.* x \(all 6 units\).*vary the inputs") as told:
            run_method(method, engine, mse, torch.Generator().manual_seed(0))
        said.add(str(told.value))
    assert len(said) == 1, "every method says the same"


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_runs_on_groups_and_ranks_the_planted_edges_first(method: str) -> None:
    engine, truth = planted_engine(groups=2)
    found = run_method(method, engine, mse, torch.Generator().manual_seed(0), Settings(steps=60))
    assert len(found) == 2
    for one in found:
        assert one.scores.shape == truth.shape and bool(one.scores.isfinite().all())
    mean = torch.stack([one.scores for one in found]).mean(0)
    inside, outside = float(mean[truth > 0.5].mean()), float(mean[truth < 0.5].mean())
    assert method == "random" or inside > outside
    with pytest.raises(UserError, match="unknown"):
        run_method("guess", engine, mse, torch.Generator())


def test_two_parents_through_two_layers() -> None:
    """A skip connection: the same reader, one parent through each of two layers."""
    from examples.my_circuit_target import TwoPaths

    module = filled(TwoPaths())
    graph: Callable[[], Graph] = module.circuit  # type: ignore[assignment]
    assert isinstance(graph().nodes[0], Node)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    engine = MaskedForward(module, graph(), x, ablation="zero")
    mask = engine.ones()
    mask[engine.layout.edges.index(("one.2", "out.1"))] = 0.0
    one = torch.relu(module.first(x))
    wanted = module(x) - torch.nn.functional.one_hot(torch.tensor(1), 3) * (one[:, 2:3] * module.skip.weight[1, 2])
    torch.testing.assert_close(engine(mask)[0], wanted, rtol=1e-4, atol=1e-5)

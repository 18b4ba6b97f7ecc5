"""The masked forward against naive implementations that know the modules, and the checks of a declaration."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule, HookedTransformer, HookedTransformerConfig
from transformer_lens.hook_points import HookPoint

from stages.circuits.engine.graph import Graph, Node
from stages.circuits.engine.latents import with_latents
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.transformers import PlainTransformer, transformer_graph
from stages.circuits.engine.zoo import graph_of_target
from stages.circuits.known.planted import PlantedCnn, PlantedMlp
from stages.dictionaries.architectures.codec import decode, encode
from stages.errors import UserError
from stages.targets.zoo import ZOO
from tests.circuits.conftest import filled

ABLATIONS = ("zero", "mean", "mean-all", "resample", "interchange")


def random_masks(engine: MaskedForward, n: int = 3) -> Tensor:
    return torch.rand(n, engine.n_edges, generator=torch.Generator().manual_seed(5))


def naive_mlp(mlp: PlantedMlp, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Three masked layers by hand; ``other`` are the replacements' inputs (None: zero)."""
    now, cut = x, other
    start = 0
    for i, name in enumerate(mlp.layers):
        layer = getattr(mlp, name)
        m = mask[start : start + layer.weight.numel()].view_as(layer.weight)
        start += layer.weight.numel()
        now_next = torch.zeros(len(x), layer.out_features)
        for v in range(layer.out_features):
            for u in range(layer.in_features):
                now_next[:, v] += layer.weight[v, u] * (m[v, u] * now[:, u] + (1 - m[v, u]) * cut[i][:, u])
            now_next[:, v] += layer.bias[v]
        now = now_next if i == 2 else now_next.tanh()
    return now


def clean_values(mlp: PlantedMlp, x: Tensor) -> list[Tensor]:
    one = mlp.first(x).tanh()
    return [x, one, mlp.second(one).tanh()]


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_mlp_is_the_masked_layers_by_hand(mlp: PlantedMlp, ablation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(5, 6, generator=generator), torch.randn(5, 6, generator=generator)
    engine = MaskedForward(
        mlp, mlp.circuit(), x, ablation=ablation, counterfactual=other, generator=torch.Generator().manual_seed(3)
    )
    clean = clean_values(mlp, x)
    if ablation == "zero":
        cut = [torch.zeros_like(value) for value in clean]
    elif ablation.startswith("mean"):
        cut = [value.mean(0, keepdim=True).expand_as(value) for value in clean]
    elif ablation == "interchange":
        cut = clean_values(mlp, other)
    else:  # which partner was drawn is read off the first layer's inputs
        partner = [int(((engine._ablated["x"][0, :, i] - x).abs().sum(-1)).argmin()) for i in range(5)]
        assert all(p != i for i, p in enumerate(partner)) and sorted(partner) == list(range(5))
        cut = [value[partner] for value in clean]
    masks = random_masks(engine)
    with torch.no_grad():
        found = engine(masks)
        for mask, outputs in zip(masks, found, strict=True):
            torch.testing.assert_close(outputs, naive_mlp(mlp, x, cut, mask), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(engine(engine.ones())[0], mlp(x), rtol=1e-5, atol=1e-6)


def test_cnn_is_the_masked_convolutions_by_hand(cnn: PlantedCnn) -> None:
    x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    engine = MaskedForward(cnn, cnn.circuit(), x, ablation="zero")
    masks = random_masks(engine)
    with torch.no_grad():
        for mask, outputs in zip(masks, engine(masks), strict=True):
            parts, start = [], 0
            for name in cnn.layers:
                weight = getattr(cnn, name).weight
                n = weight.shape[0] * weight.shape[1]
                parts.append(mask[start : start + n].view(*weight.shape[:2], *([1] * (weight.dim() - 2))) * weight)
                start += n
            h = torch.relu(nn.functional.conv2d(x, parts[0], cnn.first.bias))
            h = torch.relu(nn.functional.conv2d(h, parts[1], cnn.second.bias)).mean((2, 3))
            torch.testing.assert_close(outputs, h @ parts[2].T + cnn.third.bias, rtol=1e-4, atol=1e-5)


def naive_transformer(model: PlainTransformer, tokens: Tensor, mask: dict[str, float]) -> Tensor:
    """Residual stream edge by edge under zero ablation, one head at a time."""
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    sources = {"embed": model.embed(tokens), "pos": model.pos(places)}

    def read(reader: str, names: list[str]) -> Tensor:
        return sum((mask[f"{name}->{reader}"] * sources[name] for name in names), torch.zeros_like(sources["pos"]))

    biases = torch.zeros(model.embed.weight.shape[1])
    for layer, block in enumerate(model.blocks):
        names, attn = list(sources), block.attn
        new = {}
        for head in range(len(attn.W_Q)):
            q, k, v = (read(f"a{layer}.{head}_{port}", names) + biases for port in "qkv")
            query, key, value = q @ attn.W_Q[head], k @ attn.W_K[head], v @ attn.W_V[head]
            query, key, value = query + attn.b_Q[head], key + attn.b_K[head], value + attn.b_V[head]
            pattern = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
            new[f"a{layer}.{head}"] = pattern @ value @ attn.W_O[head]
        sources |= new
        biases = biases + attn.b_O
        inner = read(f"m{layer}", list(sources)) + biases
        sources[f"m{layer}"] = block.W_out(torch.relu(block.W_in(inner)))
    return model.unembed(read("out", list(sources)) + biases)[:, 1:]


def test_transformer_is_the_residual_stream_edge_by_edge(transformer: PlainTransformer, tokens: Tensor) -> None:
    engine = MaskedForward(transformer, transformer.circuit(), tokens, ablation="zero")
    masks = random_masks(engine)
    with torch.no_grad():
        for mask, outputs in zip(masks, engine(masks), strict=True):
            named = {str(edge): float(m) for edge, m in zip(engine.layout.edges, mask, strict=True)}
            torch.testing.assert_close(outputs, naive_transformer(transformer, tokens, named), rtol=1e-4, atol=1e-5)


def test_with_and_without_gradients_agree(transformer: PlainTransformer, tokens: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    engine = MaskedForward(transformer, transformer.circuit(), tokens, ablation="resample", generator=generator)
    masks = random_masks(engine)
    with torch.no_grad():
        fast = engine(masks)
    torch.testing.assert_close(engine(masks.requires_grad_(True)).detach(), fast, rtol=1e-5, atol=1e-6)
    assert engine.cost.forwards == 4 + 2 * 3, "one trace, two repeats, one check, twice three masks"


def test_groups_are_engines_of_their_own(mlp: PlantedMlp) -> None:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    both = MaskedForward(mlp, mlp.circuit(), x, ablation="mean", groups=3)
    masks = random_masks(both)
    for i, part in enumerate(x.split(4)):
        alone = MaskedForward(mlp, mlp.circuit(), part, ablation="mean")
        wanted = alone(masks[i])[0]
        torch.testing.assert_close(both(masks)[i], wanted)
        torch.testing.assert_close(both.group(i)(masks[i])[0], wanted)
        torch.testing.assert_close(both.group(i).clean_outputs, alone.clean_outputs)


def test_transformer_lens_models_need_no_declaration(tokens: Tensor) -> None:
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=4, d_head=4, n_heads=2, d_mlp=16, act_fn="relu", d_vocab=5, seed=0, device="cpu",
        use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True,
    )  # fmt: skip
    model = HookedTransformer(cfg).eval()
    engine = MaskedForward(model, transformer_graph(2), tokens, ablation="mean")
    assert engine.n_edges == 2 * 6 + 4 + 5 * 6 + 7 + 8
    torch.testing.assert_close(engine(engine.ones())[0], model(tokens), rtol=1e-4, atol=1e-4)
    cut = engine.ones()
    cut[engine.layout.index[engine.layout.edges[-1]]] = 0.0
    assert not torch.allclose(engine(cut)[0], model(tokens), atol=1e-4)
    model.cfg.use_attn_result = False
    with pytest.raises(UserError, match="use_attn_result"):
        MaskedForward(model, transformer_graph(2), tokens, ablation="mean")


@pytest.mark.parametrize("name", ["digits_few_shot", "digits_mlp", "small_cnn"])
def test_the_houses_targets_have_graphs(name: str) -> None:
    definition, generator = ZOO.find(name)(), torch.Generator().manual_seed(0)
    model, data = definition.build(generator).eval(), definition.data(0)
    inputs = definition.sample(data, "validation", 12, generator).inputs
    engine = MaskedForward(model, graph_of_target(name), inputs, ablation="mean")
    torch.testing.assert_close(engine(engine.ones())[0], model(inputs), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(engine(torch.zeros(engine.n_edges))[0], model(inputs), atol=1e-3)


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_latents_and_error_are_the_source(transformer: PlainTransformer, tokens: Tensor, architecture: str) -> None:
    generator = torch.Generator().manual_seed(0)
    width, n = 6, 10
    dictionary = {
        "cfg": {"architecture": architecture, "apply_b_dec_to_input": True, "k": 3,
                "rescale_acts_by_decoder_norm": architecture == "topk"},
        "W_enc": torch.randn(width, n, generator=generator), "b_enc": torch.randn(n, generator=generator),
        "W_dec": torch.randn(n, width, generator=generator), "b_dec": torch.randn(width, generator=generator),
    }  # fmt: skip
    graph = with_latents(
        transformer.circuit(), "m0", lambda x: encode(dictionary, x), lambda z: decode(dictionary, z), width=width,
        n_latents=n, keep=[1, 4, 7],
    )  # fmt: skip
    engine = MaskedForward(transformer, graph, tokens, ablation="zero")
    assert {"m0.0", "m0.1", "m0.2", "m0.error"} <= set(engine.layout.sources) and "m0" in engine.layout.readers
    torch.testing.assert_close(engine(engine.ones())[0], transformer(tokens), rtol=1e-4, atol=1e-5)
    # Cutting all latents and the error leaves the decoder's bias, as if the component wrote nothing else.
    without = torch.tensor([0.0 if edge.source.startswith("m0") else 1.0 for edge in engine.layout.edges])
    silent = deepcopy(transformer)
    silent.blocks[0].W_out.weight.data.zero_()
    silent.blocks[0].W_out.bias.data.copy_(dictionary["b_dec"])
    torch.testing.assert_close(engine(without)[0], silent(tokens), rtol=1e-4, atol=1e-5)
    # Cutting one latent's edge to the output takes exactly what it says from there.
    one = engine.ones()
    one[engine.layout.edges.index(("m0.1", "out"))] = 0.0
    clean, seen = transformer.run_with_cache(tokens)
    scale = dictionary["W_dec"][4] / (dictionary["W_dec"][4].norm() if architecture == "topk" else 1.0)
    missing = encode(dictionary, seen["blocks.0.hook_mlp_out"])[..., 4:5] * scale
    torch.testing.assert_close(engine(one)[0], clean - transformer.unembed(missing)[:, 1:], rtol=1e-3, atol=1e-4)


class Leaky(HookedRootModule):
    """Reads its input a second time, past the declared reader."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)
        self.hook_x, self.hook_pre, self.hook_post, self.hook_out = HookPoint(), HookPoint(), HookPoint(), HookPoint()
        self.hook_never = HookPoint()
        self.leak = "none"
        self.setup()

    def forward(self, x: Tensor) -> Tensor:
        seen = self.hook_x(x)
        pre = self.hook_pre(self.a(seen) + (x if self.leak == "source" else 0))
        post = self.hook_post(torch.relu(pre) + (x if self.leak == "inside" else 0))
        out = self.hook_out(self.b(post))
        if self.leak == "twice":
            out = self.hook_out(out)
        return out + (x[:, :2] if self.leak == "after" else 0)


def leaky_graph(**changed: object) -> Graph:
    last = {"reads": "hook_out", "axis": 1, "parents": ["h"], "through": "b"} | changed
    return Graph(
        Node("x", writes="hook_x", axis=1),
        Node("h", reads="hook_pre", writes="hook_post", axis=1, parents=["x"], through="a"),
        Node("out", **last),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("leak", "said"),
    [
        ("source", "A source is undeclared"),
        ("inside", "reads something it does not declare"),
        ("after", "no declared reader reads"),
        ("twice", "fired 2 times"),
    ],
)
def test_what_a_declaration_leaves_out_is_an_error(leak: str, said: str) -> None:
    module = filled(Leaky())
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    MaskedForward(module, leaky_graph(), x, ablation="zero")  # complete as it is
    module.leak = leak  # type: ignore[assignment]
    with pytest.raises(UserError, match=said):
        MaskedForward(module, leaky_graph(), x, ablation="zero")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"reads": "hook_never"}, "fired 0 times"),
        ({"reads": "hook_nowhere"}, "is no hook point"),
        ({"through": "c"}, "is no module"),
        ({"through": None}, "not the sum of its parents|cannot read"),
        ({"through": "hook_x"}, "Linear and Conv2d"),
        ({"axis": 3}, "axis 3"),
    ],
)
def test_a_wrong_declaration_is_an_error(changed: dict[str, object], said: str) -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=said):
        MaskedForward(filled(Leaky()), leaky_graph(**changed), x, ablation="zero")


def test_a_wrong_graph_is_an_error() -> None:
    x, out = Node("x", writes="hook_x"), Node("out", reads="hook_out")
    with pytest.raises(UserError, match="cyclic"):
        Graph(x, Node("h", reads="a", writes="b", parents=["g"]), Node("g", reads="c", writes="d"), out)
    with pytest.raises(UserError, match=r"cyclic.*the same node"):
        Graph(x, Node("h", reads="a", writes="b", parents=["h"]), out)
    with pytest.raises(UserError, match="not declared"):
        Graph(x, Node("out", reads="hook_out", parents=["y"]))
    with pytest.raises(UserError, match="no output"):
        Graph(x)
    with pytest.raises(UserError, match=r"no input|reads nothing"):
        Graph(Node("h", reads="a", writes="b"), out)
    with pytest.raises(UserError, match="two nodes"):
        Graph(x, x, out)


def test_a_graph_in_the_wrong_order_is_cyclic() -> None:
    graph = Graph(
        Node("h", writes="hook_post", axis=1),
        Node("x", writes="hook_x", reads="hook_pre", parents=["h"], through="a", axis=1),
        Node("out", reads="hook_out", parents=["x"], through="b", axis=1),
    )
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"cyclic.*fires after"):
        MaskedForward(filled(Leaky()), graph, x, ablation="zero")


def test_bad_modules_data_and_ablations_are_errors(mlp: PlantedMlp) -> None:
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    graph = mlp.circuit()
    for wrong, said in (
        (lambda: MaskedForward(nn.Linear(6, 2), graph, x, ablation="zero"), "no hook points"),
        (lambda: MaskedForward(mlp, graph, x, ablation="none"), "unknown"),  # type: ignore[arg-type]
        (lambda: MaskedForward(mlp, graph, x, ablation="interchange"), "needs counterfactual"),
        (lambda: MaskedForward(mlp, graph, x, ablation="interchange", counterfactual=x[:3]), "exactly one"),
        (lambda: MaskedForward(mlp, graph, x, ablation="resample"), "torch.Generator"),
        (
            lambda: MaskedForward(mlp, graph, x[:1], ablation="resample", generator=torch.Generator()),
            "at least 2 examples",
        ),
        (lambda: MaskedForward(mlp, graph, x, ablation="zero", groups=4), "cannot be split"),
        (lambda: MaskedForward(mlp, graph, x * float("nan"), ablation="zero"), "not finite"),
        (lambda: MaskedForward(mlp, graph, x, ablation="zero")(torch.ones(3)), "has 3 edges"),
    ):
        with pytest.raises(UserError, match=said):
            wrong()
    training = filled(PlantedMlp()).train()
    with pytest.raises(UserError, match="training mode"):
        MaskedForward(training, graph, x, ablation="zero")


def test_masks_by_name_nodes_and_paths(transformer: PlainTransformer, tokens: Tensor) -> None:
    layout = MaskedForward(transformer, transformer.circuit(), tokens, ablation="zero").layout
    mask = layout.mask(["embed->a0.1_v", ("a0.1", "m1"), "m1->out", "pos->a1.0_q", "m0->a1.1_k"])
    assert {str(edge) for edge in layout.kept(mask)} == {
        "embed->a0.1_v", "a0.1->m1", "m1->out", "pos->a1.0_q", "m0->a1.1_k",
    }  # fmt: skip
    assert {str(edge) for edge in layout.kept(layout.connected(mask))} == {"embed->a0.1_v", "a0.1->m1", "m1->out"}
    with pytest.raises(UserError, match="no edge embed->nowhere"):
        layout.mask(["embed->nowhere"])
    nodes = torch.tensor([float(name in ("embed", "a0.1")) for name in layout.sources])
    assert {str(edge) for edge in layout.kept(layout.node_mask(nodes))} == {
        "embed->a0.1_q", "embed->a0.1_k", "embed->a0.1_v", "embed->out", "a0.1->out",
    }  # fmt: skip

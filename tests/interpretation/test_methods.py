"""Built-in methods: what they say is checked against slow arithmetic of its own."""

import numpy as np
import pytest
import torch

from stages.activations.writer import rows_of
from stages.contracts.method import (
    Attribute,
    Budget,
    Compare,
    Interpretation,
    Localise,
    Represent,
    Steer,
)
from stages.contracts.target import Intervention
from stages.errors import MethodError, UserError
from stages.interpretation import representation
from stages.interpretation.artifact import load_interpretation, pack, save_interpretation, unpack
from stages.interpretation.loading import built_in
from stages.interpretation.methods import METHODS, sae
from stages.interpretation.methods.pca import Pca
from stages.interpretation.methods.raw_activations import RawActivations
from stages.interpretation.methods.sae import Sae
from stages.interpretation.representation import vectors, within
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import count_flops
from stages.scoring.composed import Composed, Spec
from tests.conftest import make_target

N = 6


def interpret(method, target):
    access = MeteredAccess(target, Ledger(), free=True)
    return unpack(*pack(method.interpret(access, Budget(60, 10**8, 0)), "m", "here", 10**8))


def queries(target):
    inputs, labels = (part[:N] for part in target.corpus("validation"))
    many = inputs[None].expand(2, *inputs.shape).contiguous()
    segments, components = tuple((i,) for i in range(8)), target.spec.components
    return {
        "Represent": (Represent(inputs, labels), (N,)),
        "Attribute": (Attribute(inputs, segments, labels), (N, 8)),
        "Localise": (
            Localise(many, labels[None].expand(2, N), components),
            (2, len(components)),
        ),
        "Compare": (Compare((0, 1), inputs, labels), (2,)),
        "Represent sets": (Represent(inputs.view(2, N // 2, *inputs.shape[1:]), labels.view(2, N // 2), True), (2,)),
        "Steer": (Steer(target.spec.hooks[0].name, torch.ones(3, target.spec.hooks[0].width), inputs), (3,)),
    }


def access_to(target, ledger=None):
    stack = {k: torch.stack([v, v + 0.05 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1))])
             for k, v in target.model.state_dict().items() if v.is_floating_point()}  # fmt: skip
    return MeteredAccess(target, ledger or Ledger(), variants=stack)


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize("which", ["mlp", "few_shot"])
def test_every_answer_has_the_shape_the_query_wants_and_no_unpriced_op(name, which, request):
    target = request.getfixturevalue(which)
    method = built_in(name)
    made, answered = interpret(method, target), 0
    for query, rows in queries(target).values():
        with count_flops():  # an op without a price raises
            answer = method.answer(query, made, access_to(target))
        if answer is not None:
            answered += 1
            assert tuple(answer.shape[: len(rows)]) == rows and answer.dim() <= len(rows) + 1
            assert bool(torch.isfinite(answer).all())
    assert (answered == 0) == (name == "nothing" or (name, which) == ("attention", "mlp") or name == "sae")


def localised(method, made, target):
    query, _ = queries(target)["Localise"]
    return method.answer(query, made, access_to(target))


@pytest.mark.parametrize("which", ["mlp", "few_shot"])
def test_components_are_located_by_what_the_features_keep_of_them(which, request):
    """All principal components rebuild everything; few do not, and each component's row is that of the projection."""
    target = request.getfixturevalue(which)
    raw = localised(RawActivations(), interpret(RawActivations(), target), target)
    whole, few = Pca(n_components=4096), Pca(n_components=3)
    assert torch.allclose(localised(whole, interpret(whole, target), target), raw, atol=1e-4)
    made = interpret(few, target)
    found = localised(few, made, target)
    assert not torch.allclose(found, raw, atol=1e-2)
    inputs = target.corpus("validation").inputs[:N]
    for place in (0, len(target.spec.components) - 1):
        component = target.spec.components[place]
        _, cache = target.model.run_with_cache(inputs)
        rows = vectors(cache[component.hook_point], target.spec.hook(component.hook_point)).double().numpy()
        mean, basis = (made.arrays[f"{component.hook_point}.{of}"].double().numpy() for of in ("mean", "components"))
        rebuilt = ((rows - mean) @ basis @ basis.T + mean).reshape(cache[component.hook_point].shape)
        part = np.take(rebuilt, component.index, axis=component.axis).reshape(N, -1)
        by_hand = [part.mean(), np.abs(part).mean(), np.sqrt((part**2).sum(1)).mean()]
        assert np.allclose(found[0, place, :3].numpy(), by_hand, atol=1e-4)


def test_a_dictionary_locates_the_components_of_its_own_hook_points_alone(mlp, few_shot):
    """One whose latents are the units and their negatives rebuilds all; half of its latents rebuild half."""
    hooks = sorted({component.hook_point for component in mlp.spec.components})
    cfg = {"architecture": "standard", "apply_b_dec_to_input": True}

    def made(names, keep, target=mlp):
        arrays = {}
        for name in names:
            eye = torch.eye(target.spec.hook(name).width)
            both = torch.cat([eye, -eye])
            dictionary = {"W_enc": both.T.contiguous(), "b_enc": torch.zeros(len(both)), "W_dec": both}
            arrays |= sae.pack(name, dictionary | {"b_dec": torch.zeros(len(eye)), "cfg": cfg}, keep(len(eye)))
        return Interpretation(arrays, {"cfg": dict.fromkeys(names, cfg)})

    raw = localised(RawActivations(), interpret(RawActivations(), mlp), mlp)
    assert torch.allclose(localised(Sae(), made(hooks, lambda n: torch.arange(2 * n)), mlp), raw, atol=1e-5)
    half = localised(Sae(), made(hooks, lambda n: torch.arange(n)[: n // 2]), mlp)
    index = torch.tensor([component.index for component in mlp.spec.components])
    widths = torch.tensor([mlp.spec.hook(component.hook_point).width for component in mlp.spec.components])
    kept = index < widths // 2
    assert torch.allclose(half[:, kept], raw[:, kept], atol=1e-5), "ReLU units are not negative"
    assert bool((half[:, ~kept] == 0).all())
    first = localised(Sae(), made(hooks[:1], lambda n: torch.arange(2 * n)), mlp)
    there = torch.tensor([component.hook_point == hooks[0] for component in mlp.spec.components])
    assert torch.allclose(first[:, there], raw[:, there], atol=1e-5) and bool((first[:, ~there] == 0).all())
    parts = {component.hook_point for component in few_shot.spec.components}
    other = next(hook.name for hook in few_shot.spec.hooks if hook.name not in parts and hook.role != "pattern")
    assert localised(Sae(), made([other], torch.arange, few_shot), few_shot) is None


def test_what_does_not_fit_is_left_out_from_the_front(few_shot):
    names = [hook.name for hook in few_shot.spec.hooks][:3]
    assert within(dict.fromkeys(names, 10), few_shot.spec, 100) == names
    assert within(dict.fromkeys(names, 10), few_shot.spec, 23) == names[1:]
    assert within({names[0]: 1, names[2]: 100}, few_shot.spec, 50) == []


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "sae"])
def test_interpreting_twice_gives_the_same_bytes(name, few_shot):
    def once():
        made = built_in(name).interpret(MeteredAccess(few_shot, Ledger(), free=True), Budget(60, 10**8, 0))
        return pack(made, name, "here", 10**8)

    assert once() == once()


def test_random_features_depend_on_no_input(few_shot):
    method = built_in("random_features")
    made, ledger = interpret(method, few_shot), Ledger()
    query = Represent(few_shot.corpus("train").inputs[:5])
    other = Represent(few_shot.corpus("train").inputs[5:10])
    access = access_to(few_shot, ledger)
    assert torch.equal(method.answer(query, made, access), method.answer(other, made, access))
    assert ledger.flops == 0


def test_attention_effects_sum_to_the_heads_direct_effect(few_shot):
    """pattern x value x W_O, head by head and source by source, adds up to what the heads write towards the label."""
    method = built_in("attention")
    made = interpret(method, few_shot)
    inputs, labels = (part[:N] for part in few_shot.corpus("validation"))
    segments = tuple((i,) for i in range(9))  # the query's own row too, so that nothing is left out
    total = method.answer(Attribute(inputs, segments, labels), made, access_to(few_shot))[..., 0].sum(1)
    model = few_shot.model
    _, cache = model.run_with_cache(inputs)
    by_hand = torch.zeros(N)
    for layer, block in enumerate(model.blocks):
        out = cache[f"blocks.{layer}.attn.hook_z"][:, -1].flatten(1) @ block.attn.W_O.weight.T
        centred = (out - out.mean(-1, keepdim=True)) * model.ln_final.weight
        logits = centred @ model.unembed.weight.T
        by_hand += (logits - logits.mean(-1, keepdim=True)).gather(-1, labels[:, None]).squeeze(-1)
    assert torch.allclose(total, by_hand, atol=1e-4)


def test_logit_lens_after_the_last_layer_is_the_output(few_shot):
    method = built_in("logit_lens")
    made = interpret(method, few_shot)
    inputs = few_shot.corpus("validation").inputs[:N]
    answer = method.answer(Represent(inputs), made, access_to(few_shot))
    log_probs = few_shot.model(inputs).log_softmax(-1)
    entropy, top = -(log_probs.exp() * log_probs).sum(-1), log_probs.amax(-1)
    assert torch.allclose(answer[:, -4], entropy, atol=1e-4)
    assert torch.allclose(answer[:, -3], top, atol=1e-4)


def test_attribution_patching_agrees_with_small_ablations(mlp):
    """The first-order estimate equals the true effect as the ablation gets small: here a 1% step towards zero."""
    method = built_in("gradient")
    made = interpret(method, mlp)
    inputs, labels = (part[:N] for part in mlp.corpus("validation"))
    components = mlp.spec.components[:20]
    estimate = method.answer(Localise(inputs[None], labels[None], components), made, access_to(mlp))[0, :, 0]
    access = access_to(mlp)
    clean = torch.nn.functional.cross_entropy(access.forward(inputs).outputs, labels)
    for component, guess in zip(components, estimate, strict=True):
        small = Intervention(component.hook_point, "scale", torch.tensor(0.99), component.axis, (component.index,))
        loss = torch.nn.functional.cross_entropy(access.forward(inputs, interventions=[small]).outputs, labels)
        assert guess.item() / 100 == pytest.approx((loss - clean).item(), abs=2e-5)


def test_comparing_a_target_with_itself_shows_no_difference(mlp):
    same = {name: value[None] for name, value in mlp.model.state_dict().items()}
    inputs, labels = (part[:N] for part in mlp.corpus("validation"))
    for name in ("raw_activations", "pca", "logit_lens"):
        method = built_in(name)
        answer = method.answer(
            Compare((0,), inputs, labels), interpret(method, mlp), MeteredAccess(mlp, Ledger(), variants=same)
        )
        assert torch.allclose(answer, torch.zeros_like(answer), atol=1e-5)


def test_a_composed_method_pays_for_one_forward_pass(few_shot):
    spec = Spec(representation="pca", attention=True, logit_lens=True)
    method = Composed(spec)
    made, ledger, single = interpret(method, few_shot), Ledger(), Ledger()
    query = Represent(few_shot.corpus("validation").inputs[:N])
    answer = method.answer(query, made, MeteredAccess(few_shot, ledger))
    MeteredAccess(few_shot, single).forward(query.inputs)
    assert ledger.flops == single.flops
    parts = [built_in(name) for name in ("pca", "attention", "logit_lens")]
    widths = [p.answer(query, interpret(p, few_shot), access_to(few_shot)).shape[-1] for p in parts]
    assert answer.shape == (N, sum(widths))


def test_a_spec_can_order_its_own_dictionary(few_shot):
    spec = Spec(
        representation="sae",
        roles="residual",
        n_features=8,
        dictionary={"architecture": "topk", "n_latents": 64, "sparsity": 4, "steps": 20},
    )
    made = interpret(Composed(spec), few_shot)
    kept = [value for key, value in made.arrays.items() if key.endswith(".kept")]
    assert len(kept) == 3 and all(len(value) == 8 for value in kept)
    answer = Composed(spec).answer(Represent(few_shot.corpus("validation").inputs[:N]), made, access_to(few_shot))
    assert answer.shape == (N, 24)


@pytest.mark.parametrize(
    "ordered",
    [
        {"architecture": "topk", "sparsity": 4, "regularisers": {"hoyer": 0.1, "orthogonality": 1.0}},
        {"architecture": "standard", "sparsity": 0.5, "activation": "squared_relu"},
        {"architecture": "jumprelu", "sparsity": 4},
        {"architecture": "matryoshka", "sparsity": 4},
        {"architecture": "abstopk", "sparsity": 4},
    ],
)
def test_a_spec_names_architectures_regularisers_and_activations(few_shot, ordered):
    plain = {"architecture": ordered["architecture"], "sparsity": ordered["sparsity"]}
    made = {}
    for key, settings in (("asked", ordered), ("plain", plain)):
        spec = Spec(representation="sae", roles="residual", n_features=8,
                    dictionary={"n_latents": 32, "steps": 10, **settings})  # fmt: skip
        assert Spec(**spec.model_dump(mode="json")) == spec  # data only
        made[key] = interpret(Composed(spec), few_shot)
    with count_flops():  # an op without a price raises
        query = Represent(few_shot.corpus("validation").inputs[:N])
        answer = Composed(spec).answer(query, made["asked"], access_to(few_shot))
    assert answer.shape == (N, 24) and bool(torch.isfinite(answer).all())
    weights = [key for key in made["plain"].arrays if key.endswith(".W_dec")]
    same = [torch.equal(made["asked"].arrays[key], made["plain"].arrays[key]) for key in weights]
    assert weights and all(same) == (ordered == plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularisers": {"__import__": 1.0}}, "regulariser __import__ is unknown; known: decorrelation"),
        ({"regularisers": {"hoyer": float("nan")}}, "coefficients are from 0 to 1000"),
        ({"activation": "eval"}, "activation eval is unknown"),
        ({"activation": "softplus", "architecture": "topk"}, "topk has its own; use standard"),
    ],
)
def test_a_spec_refuses_what_no_plug_is_called(settings, message):
    values = {"architecture": "standard", "n_latents": 32, "sparsity": 1.0, **settings}
    with pytest.raises(ValueError, match=message):
        Spec(representation="sae", dictionary=values)


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        ({"a": 1}, "it returned dict"),
        (Interpretation({"x": "text"}), "array 'x' is str"),
        (Interpretation({"x": torch.eye(2).to_sparse()}), "'x'"),
        (Interpretation({"x": torch.tensor([float("nan")])}), "NaN"),
        (Interpretation({"x": torch.zeros(10**6)}), "4,000,000 bytes, 1,000,000 are allowed"),
        (Interpretation({}, {"x": {1, 2}}), "not JSON"),
        (Interpretation({}, {"x": "y" * 2_000_000}), "JSON"),
        (Interpretation({"x": torch.zeros(2, dtype=torch.complex64)}), "complex64"),
    ],
)
def test_an_artifact_is_data_within_its_cap(made, cause):
    with pytest.raises(MethodError, match=cause):
        pack(made, "m", "interpret on t", 10**6)


def test_a_damaged_artifact_is_named(tmp_path):
    save_interpretation(Interpretation({"x": torch.eye(3)}, {"k": 1}), tmp_path, "t", "m", 10**6)
    back = load_interpretation(tmp_path, "t")
    assert torch.equal(back.arrays["x"], torch.eye(3)) and back.data == {"k": 1}
    (tmp_path / "t.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match=r"is damaged.*lensmith run"):
        load_interpretation(tmp_path, "t")
    (tmp_path / "t.safetensors").unlink()
    with pytest.raises(UserError, match=r"is missing: stage 'interpretation'"):
        load_interpretation(tmp_path, "t")


def test_unknown_methods_are_refused_by_name():
    with pytest.raises(UserError, match=r"known: attention, circuit"):
        built_in("magic")


def test_representations_are_fitted_on_words_that_are_there_and_in_small_passes(monkeypatch):
    target = make_target("facts_lm", 0, 30)
    names = ["blocks.1.hook_resid_post", "blocks.0.attn.hook_z"]
    access = MeteredAccess(target, Ledger(), free=True)
    whole = representation.corpus_vectors(access, names)
    inputs = target.corpus("train").inputs
    captured = access.forward(inputs, names).captured
    rows = []
    for example, place in torch.nonzero(inputs[..., 1]).tolist():
        if inputs[example, :place, 1].any():  # not the first word
            rows.append(captured[names[0]][example, place])
    assert torch.allclose(whole[names[0]], torch.stack(rows), atol=1e-5)
    assert whole[names[1]].shape == (len(rows), 96)
    monkeypatch.setattr(representation, "PASS_BYTES", 100_000)
    for name, found in representation.corpus_vectors(access, names).items():
        assert torch.allclose(found, whole[name], atol=1e-5)


def test_vectors_are_the_rows_that_dictionaries_are_trained_on():
    """Of tokens, heads and places of an image."""
    cnn = make_target("small_cnn", 1, n=20)
    for target in (cnn, make_target("digits_few_shot", 1, n=20)):
        access = MeteredAccess(target, Ledger(), free=True)
        inputs = target.corpus("train").inputs[:3]
        names = [hook.name for hook in target.spec.hooks if hook.role in ("residual", "mlp", "head")]
        for name, acts in access.forward(inputs, capture=names).captured.items():
            hook = target.spec.hook(name)
            found = vectors(acts, hook)
            assert found.flatten(0, 1).shape == rows_of(hook, acts).shape
            assert torch.equal(found.flatten(0, 1), rows_of(hook, acts))
    assert vectors(torch.zeros(2, 4, 4, 32), cnn.spec.hook("convs.1.hook_post")).shape == (2, 16, 32)

"""Parts of a composed method share one forward pass, and each keeps its own part of I(M)."""

import pytest
import torch

from stages.contracts.method import Attribute, Budget, Interpretation, Method, Represent
from stages.contracts.target import Forward, Intervention
from stages.interpretation.loading import built_in
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.scoring.composed import Composed, DictionarySpec, Spec
from stages.scoring.shared_forward import SharedForward


def counted(target, free=False, variants=None):
    """Access that counts forward passes by how many inputs and names they had."""
    access = MeteredAccess(target, Ledger(), free=free, variants=variants or {})
    calls, real = [], access.forward

    def forward(inputs, capture=(), interventions=()):
        calls.append((inputs.shape[0], list(capture), len(interventions)))
        return real(inputs, capture, interventions)

    access.forward = forward
    return access, calls


def test_the_same_inputs_are_run_once_with_every_hook_point(mlp):
    access, calls = counted(mlp)
    names = list(mlp.hook_points)
    shared, inputs = SharedForward(access, names), mlp.corpus("validation").inputs[:6]
    whole = access.forward(inputs, names)
    first, second = shared.forward(inputs), shared.forward(inputs, [names[-1]])
    assert calls[1:] == [(6, list(names), 0)] and first.captured == {} and list(second.captured) == [names[-1]]
    assert torch.equal(second.captured[names[-1]], whole.captured[names[-1]])
    assert torch.equal(first.outputs, whole.outputs) and torch.equal(second.outputs, whole.outputs)
    shared.forward(inputs[:], [names[0]])  # another tensor, the same place in memory
    assert len(calls) == 2
    for other in (inputs.clone(), inputs[:5], inputs[1:], inputs.flip(0), inputs.view(torch.int32).view(torch.float32)):
        shared.forward(other)
    assert [n for n, _, _ in calls[2:]] == [6, 5, 5, 6]
    assert shared.spec is access.spec


def test_a_transposed_view_is_other_inputs():
    class Echo:
        spec = None

        def forward(self, inputs, capture=(), interventions=()):
            return Forward(inputs.clone(), {})

    shared, square = SharedForward(Echo(), []), torch.arange(9.0).reshape(3, 3)
    assert torch.equal(shared.forward(square).outputs, square)
    assert torch.equal(shared.forward(square.T).outputs, square.T)
    row = torch.arange(9.0)
    assert torch.equal(shared.forward(row[:3]).outputs, row[:3]) and torch.equal(
        shared.forward(row[3:6]).outputs, row[3:6]
    )


def test_what_is_intervened_on_is_never_remembered(mlp):
    access, calls = counted(mlp)
    name, inputs = next(iter(mlp.hook_points)), mlp.corpus("validation").inputs[:6]
    shared = SharedForward(access, mlp.hook_points)
    plain = shared.forward(inputs).outputs
    changed = shared.forward(inputs, [name], [Intervention(name, "zero")])
    assert not torch.equal(changed.outputs, plain) and list(changed.captured) == [name]
    assert torch.equal(shared.forward(inputs).outputs, plain)
    assert calls[1:] == [(6, [name], 1)]


def test_a_variant_is_made_once_and_shares_its_own_passes(mlp):
    state = {k: torch.stack([v, v * 1.1]) for k, v in mlp.model.state_dict().items() if v.is_floating_point()}
    access = MeteredAccess(mlp, Ledger(), variants=state)
    shared, inputs = SharedForward(access, mlp.hook_points), mlp.corpus("validation").inputs[:4]
    one, two = shared.variant(0), shared.variant(1)
    assert one is shared.variant(0) and one is not two
    assert shared.variants([0]) is not one and shared.variants([0, 1]) is shared.variants([0, 1])
    both = shared.variants([0, 1]).forward(inputs).outputs
    assert torch.equal(both, access.variants([0, 1]).forward(inputs).outputs)
    assert torch.equal(two.forward(inputs).outputs, access.variant(1).forward(inputs).outputs)
    assert not torch.equal(one.forward(inputs).outputs, two.forward(inputs).outputs)
    name = next(iter(mlp.hook_points))
    assert list(one.forward(inputs, [name]).captured) == [name]


def test_everything_else_is_the_targets_own(mlp):
    access = MeteredAccess(mlp, Ledger(), free=True, dictionaries=lambda: {"d": "one"})
    shared = SharedForward(access, mlp.hook_points)
    assert shared.weights().keys() == access.weights().keys() and shared.dictionaries() == {"d": "one"}
    assert torch.equal(shared.corpus().inputs, mlp.corpus("train").inputs)
    assert torch.equal(shared.corpus("validation").inputs, mlp.corpus("validation").inputs)


class Constant(Method):
    def __init__(self, value, declines=False):
        self.value, self.declines = value, declines

    def interpret(self, target, budget):
        return Interpretation({"v": torch.full((2,), self.value)}, {"at": self.value})

    def answer(self, query, interpretation, target):
        assert set(interpretation.arrays) == {"v"} and interpretation.data == {"at": self.value}
        return None if self.declines else interpretation.arrays["v"].expand(len(query.inputs), 2)


def test_parts_keep_their_own_and_answer_side_by_side(mlp):
    method = Composed({}, "mine")
    method.parts = {"a": Constant(1.0), "b": Constant(2.0, declines=True), "c": Constant(3.0)}
    made = method.interpret(MeteredAccess(mlp, Ledger(), free=True), Budget(60, 10**8, 0))
    assert set(made.arrays) == {"a:v", "b:v", "c:v"} and made.data["c"] == {"at": 3.0}
    query, access = Represent(mlp.corpus("validation").inputs[:3]), MeteredAccess(mlp, Ledger())
    assert method.answer(query, made, access).tolist() == [[1.0, 1.0, 3.0, 3.0]] * 3
    method.parts = {"b": method.parts["b"]}
    assert method.answer(query, made, access) is None


def test_a_spec_is_the_parts_it_names():
    assert Composed(Spec()).parts == {} and Composed(Spec()).name == "composed"
    everything = Composed(Spec(representation="raw", gradient=True, attention=True, logit_lens=True), "all")
    assert list(everything.parts) == ["raw", "gradient", "attention", "logit_lens"] and everything.name == "all"
    raw = Composed({"representation": "raw", "roles": "mlp", "pooling": "max"}).parts["raw"]
    pca = Composed({"representation": "pca", "n_features": 5, "pooling": "mean"}).parts["pca"]
    sae = Composed({"representation": "sae", "n_features": 9, "pooling": "max"}).parts["sae"]
    assert (raw.roles, raw.pooling) == (("mlp",), "max")
    assert (pca.n_components, pca.roles, pca.pooling) == (5, ("residual", "mlp"), "mean")
    assert (sae.n_kept, sae.pooling) == (9, "max")


def test_limits_of_a_spec():
    for field, least, most in (("n_latents", 16, 4096), ("steps", 1, 10_000)):
        values = {"architecture": "topk", "n_latents": 32, "sparsity": 4.0}
        for good in (least, most):
            assert getattr(DictionarySpec(**{**values, field: good}), field) == good
        for bad in (least - 1, most + 1):
            with pytest.raises(ValueError, match=field):
                DictionarySpec(**{**values, field: bad})
    for good in (1, 256):
        assert Spec(n_features=good).n_features == good
    for bad in (0, 257):
        with pytest.raises(ValueError, match="n_features"):
            Spec(n_features=bad)
    standard = {"architecture": "standard", "n_latents": 32}
    with pytest.raises(ValueError, match="sparsity"):
        DictionarySpec(**standard, sparsity=0)
    for n, said in ((8, "is unknown"), (9, "at most 8 items")):
        with pytest.raises(ValueError, match=said):
            DictionarySpec(**standard, sparsity=0.5, regularisers={f"r{i}": 1.0 for i in range(n)})
    for coefficient in (0.0, 1000.0):
        assert DictionarySpec(**standard, sparsity=0.5, regularisers={"hoyer": coefficient}).regularisers
    for coefficient in (-0.1, 1000.1):
        with pytest.raises(ValueError, match="from 0 to 1000"):
            DictionarySpec(**standard, sparsity=0.5, regularisers={"hoyer": coefficient})


def test_a_recipe_is_what_the_spec_says():
    spec = DictionarySpec(
        architecture="standard",
        n_latents=32,
        sparsity=0.5,
        regularisers={"orthogonality": 1.0, "hoyer": 0.1},
        activation="softplus",
    )
    recipe = spec.recipe()
    assert recipe.regularisers == (("hoyer", 0.1), ("orthogonality", 1.0)) and recipe.activation == "softplus"
    assert (recipe.samples, recipe.batch, recipe.lr) == (300 * 512, 512, 1e-3)


def test_gradients_of_a_shared_pass_are_the_targets(few_shot):
    inputs, labels = (part[:4] for part in few_shot.corpus("validation"))
    query, access = Attribute(inputs, tuple((i,) for i in range(8)), labels), MeteredAccess(few_shot, Ledger())
    alone = built_in("gradient")
    made = alone.interpret(MeteredAccess(few_shot, Ledger(), free=True), Budget(60, 10**8, 0))
    composed = Composed(Spec(gradient=True))
    kept = Interpretation({f"gradient:{k}": v for k, v in made.arrays.items()}, {"gradient": dict(made.data)})
    assert torch.equal(composed.answer(query, kept, access), alone.answer(query, made, access))

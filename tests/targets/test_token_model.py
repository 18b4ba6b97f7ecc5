"""Targets of words: hiding a word is dropping it, gradients begin at the embedding, wrong ids are refused."""

import re
from pathlib import Path

import pytest
import torch

from stages.contracts.target import Corpus, Intervention, Objective, Target, TargetSpec, digest_of, keep_segments
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.token_model import (
    Architecture,
    TokenModel,
    token_components,
    token_hooks,
    token_layout,
    token_rows,
)

T, WORDS, N = 12, 50, 6
POSITIONS = ("standard", "rotary", "shortformer")


def words_target(positions: str = "standard", normalization: str | None = "LN", d_mlp: int | None = 64) -> Target:
    architecture = Architecture(
        n_layers=2,
        d_model=32,
        n_heads=4,
        d_mlp=d_mlp,
        n_ctx=T,
        d_vocab=WORDS,
        d_vocab_out=WORDS - 3,
        normalization_type=normalization,
        positional_embedding_type=positions,
    )
    generator = torch.Generator().manual_seed(0)
    model = TokenModel.of(architecture, generator)
    spec = TargetSpec(
        name="words",
        digest="",
        hooks=token_hooks(architecture),
        components=token_components(architecture),
        **token_layout(architecture),
    )
    inputs = torch.stack([torch.randint(WORDS, (N, T), generator=generator).float(), torch.ones(N, T)], -1)
    return Target(spec, model, {"train": Corpus(inputs, torch.arange(N))})


@pytest.fixture(scope="module", params=POSITIONS)
def words(request):
    return words_target(request.param)


def inputs_of(target: Target) -> torch.Tensor:
    return target.corpus("train").inputs


def without(target: Target, places: list[int]) -> torch.Tensor:
    keep = torch.ones(N, T, dtype=torch.bool)
    keep[:, places] = False
    return keep_segments(target.spec, inputs_of(target), keep)


@pytest.mark.parametrize("places", [[0], [0, 1, 2, 3], [4, 5], [8, 9, 10], [2, 7], list(range(11))])
def test_hiding_words_is_dropping_them(words, places):
    ids = inputs_of(words)[..., 0].long()
    left = [place for place in range(T) if place not in places]
    dropped = words.model.logits_everywhere(ids[:, left])[:, -1]
    hidden = words.model(without(words, places))
    assert torch.allclose(hidden, dropped, atol=1e-5)
    if len(left) > 1:
        assert not torch.allclose(hidden, words.model(inputs_of(words)), atol=1e-2)


def test_what_stands_at_an_absent_place_does_not_matter(words):
    hidden = without(words, [0, 1, 5])
    other = hidden.clone()
    other[:, [0, 1, 5], 0] = torch.tensor([float("nan"), 1e9, -3.5])
    assert torch.equal(words.model(hidden), words.model(other))
    access = MeteredAccess(words, Ledger())
    assert torch.equal(access.forward(other).outputs, access.forward(hidden).outputs)


def test_outputs_are_the_last_places_and_all_absent_is_finite(words):
    inputs = inputs_of(words)
    assert words.model(inputs).shape == (N, WORDS - 3)
    assert torch.allclose(words.model(inputs), words.model.logits_everywhere(inputs[..., 0].long())[:, -1], atol=1e-6)
    assert bool(words.model(inputs * torch.tensor([1.0, 0.0])).isfinite().all())


@pytest.mark.parametrize(("normalization", "d_mlp"), [(None, 64), ("RMS", 64), ("LN", None), (None, None)])
def test_other_architectures_have_the_hook_points_they_declare(normalization, d_mlp):
    target = words_target("rotary", normalization, d_mlp)
    names = [hook.name for hook in target.spec.hooks]
    access = MeteredAccess(target, Ledger())
    captured = access.forward(inputs_of(target), names).captured
    assert {hook.name: hook.shape for hook in target.spec.hooks} == {n: tuple(a.shape[1:]) for n, a in captured.items()}
    weights = target.model.state_dict()
    assert weights[target.spec.unembed].shape == (32, WORDS - 3)
    assert (target.spec.norm is None) == (normalization is None)
    for hook_point, axis, index in target.spec.components:
        assert index < captured[hook_point].shape[axis]
    assert any(f"{target.spec.norm}.w" == name for name in weights) == (normalization is not None)


def test_absent_words_cost_what_present_ones_cost(words):
    costs = []
    for inputs in (inputs_of(words), without(words, [0, 1, 2, 3, 4, 5])):
        for order in (1, -1):
            ledger = Ledger()
            MeteredAccess(words, ledger).forward(inputs[::order] if order == 1 else inputs.flip(0))
            costs.append(ledger.flops)
    assert len(set(costs)) == 1 and costs[0] > 0


def test_the_price_is_that_of_the_matrix_products_within_a_tenth():
    target, ledger = words_target(), Ledger()
    MeteredAccess(target, ledger).forward(inputs_of(target))
    per_token = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * T * 32
    products = N * (2 * T * per_token + 2 * 32 * (WORDS - 3))
    assert products <= ledger.flops <= 1.25 * products


def test_gradients_of_every_hook_point_are_not_zero_and_are_right(words):
    access, names = MeteredAccess(words, Ledger()), [hook.name for hook in words.spec.hooks]
    inputs, objective = without(words, [0, 1]), Objective("loss", torch.zeros(N, dtype=torch.int64))
    together = access.gradients(inputs, objective, names)
    for name in names:
        assert bool(together.grads[name].abs().sum() > 0) and bool(together.grads[name].isfinite().all()), name
        alone = access.gradients(inputs, objective, [name])
        assert torch.allclose(alone.grads[name], together.grads[name], atol=1e-6), "asked beside others it is the same"
        assert torch.allclose(alone.captured[name], access.forward(inputs, [name]).captured[name], atol=1e-6)
    assert bool((together.grads["hook_embed"][:, :2] == 0).all()), "an absent word moves nothing"
    step = torch.zeros(N, T, 32)
    step[:, 6, 3] = 1e-2
    moved = [
        access.forward(inputs, [], [Intervention("hook_embed", "add", sign * step)]).outputs.log_softmax(-1)[:, 0]
        for sign in (1, -1)
    ]
    found = -(moved[0] - moved[1]) / 2e-2
    assert torch.allclose(together.grads["hook_embed"][:, 6, 3], found, atol=2e-3)


def test_gradients_of_variants_are_theirs(words):
    stack = {name: torch.stack([value, value * 1.1]) for name, value in words.model.state_dict().items()}
    access = MeteredAccess(words, Ledger(), variants=stack)
    objective = Objective("loss", torch.zeros(N, dtype=torch.int64))
    own = access.gradients(inputs_of(words), objective, ["hook_embed"]).grads["hook_embed"]
    both = access.variants([0, 1]).gradients(inputs_of(words), objective, ["hook_embed"]).grads["hook_embed"]
    assert torch.allclose(both[0], own, atol=1e-6) and not torch.allclose(both[1], own, atol=1e-3)
    assert bool(both[1].abs().sum() > 0)


def test_the_gradient_of_ids_is_refused_and_the_embedding_named(words):
    objective = Objective("loss", torch.zeros(N, dtype=torch.int64))
    for wrt in (["input"], ["hook_embed", "input"]):
        with pytest.raises(ValueError, match=r'ids, which have no gradient; use wrt "hook_embed"'):
            MeteredAccess(words, Ledger()).gradients(inputs_of(words), objective, wrt)


def test_a_hook_point_that_does_not_reach_the_outputs_is_refused(words):
    class Cut(TokenModel):
        def forward(self, inputs):
            return super().forward(inputs).detach() + self.unembed.W_U.sum() * 0 + self.hook_embed(inputs).sum() * 0

    target = words_target()
    target.model.__class__ = Cut
    with pytest.raises(ValueError, match=r"do not depend on it, so there is no gradient; leave it out"):
        MeteredAccess(target, Ledger()).gradients(
            inputs_of(target), Objective("logit"), ["blocks.0.hook_resid_post", "hook_embed"]
        )


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((2, 3, 0), 50.0, r"token 3 of input 2 has id 50: ids of words are whole numbers from 0 to 49.*'hook_embed'"),
        ((0, 11, 0), -1.0, r"token 11 of input 0 has id -1"),
        ((1, 0, 0), 3.25, r"token 0 of input 1 has id 3.25"),
        ((1, 0, 0), float("nan"), r"token 0 of input 1 has id nan"),
        ((4, 5, 1), 0.5, r"a token has presence 0.5: channel 1 is 1 \(present\) or 0 \(absent\)"),
        ((3, 11, 1), 0.0, r"last token of input 3 is absent: .* pad on the left"),
    ],
)
def test_what_is_no_word_is_refused_with_value_range_and_remedy(place, value, message):
    target, ledger = words_target(), Ledger()
    inputs = inputs_of(target).clone()
    inputs[place] = value
    access = MeteredAccess(target, ledger)
    for call in (
        lambda: access.forward(inputs),
        lambda: access.gradients(inputs, Objective("logit"), ["hook_embed"]),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert ledger.flops == 0, "a call that is refused costs nothing"


def test_rows_are_padded_on_the_left():
    rows = token_rows([[5], [1, 2, 3]], 3)
    assert rows[..., 0].tolist() == [[0, 0, 5], [1, 2, 3]] and rows[..., 1].tolist() == [[0, 0, 1], [1, 1, 1]]
    for bad, said in (([[]], "0 tokens"), ([[1, 2, 3, 4]], "4 tokens")):
        with pytest.raises(ValueError, match=f"{said} does not fit: a target of 3 places takes 1 to 3"):
            token_rows(bad, 3)


def test_one_file_knows_the_class_that_is_announced_to_go():
    root = Path(__file__).resolve().parents[2]
    files = [path for room in ("stages", "flows", "lensmith") for path in (root / room).rglob("*.py")]
    uses = re.compile(r"\bHookedTransformer(Config)?\(|\(HookedTransformer\)|import .*HookedTransformer")
    knows = [path.name for path in files if uses.search(path.read_text(encoding="utf-8"))]
    assert set(knows) <= {"token_model.py", "auto_circuit_peer.py"}  # the second compares with somebody's package


def test_the_state_is_the_weights_alone():
    target = words_target("rotary")
    assert set(target.model.state_dict()) == {name for name, _ in target.model.named_parameters()}
    assert {name.rpartition(".")[2] for name, _ in target.model.named_buffers()} == {
        "mask", "IGNORE", "rotary_sin", "rotary_cos",
    }  # fmt: skip


def test_weights_follow_from_the_generator_alone():
    torch.manual_seed(1)
    one = words_target().model.state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    other = words_target().model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before, torch.random.get_rng_state())


def test_brain_floats_have_a_digest_and_come_out_as_float32():
    target = words_target()
    whole = digest_of(target.model.state_dict(), target.spec.to_json())
    target.model.to(torch.bfloat16)
    half = target.model.state_dict()
    assert digest_of(half, target.spec.to_json()) not in (whole, "")
    changed = {name: value.clone() for name, value in half.items()}
    next(iter(changed.values())).view(-1)[0] += 1
    assert digest_of(changed, {}) != digest_of(half, {})
    access = MeteredAccess(target, Ledger())
    double = Intervention("blocks.0.hook_resid_post", "scale", torch.tensor(2.0))
    found = access.forward(inputs_of(target), ["hook_embed"], [double])
    assert found.outputs.dtype == found.captured["hook_embed"].dtype == torch.float32
    gradients = access.gradients(inputs_of(target), Objective("logit"), ["hook_embed"])
    assert gradients.grads["hook_embed"].dtype == torch.float32 and bool(gradients.grads["hook_embed"].any())


def test_a_digest_of_what_has_no_words_is_what_it_was_before_there_were_any():
    weights = {"w": torch.tensor([1.5]), "a": torch.tensor(2)}
    import hashlib
    import json

    said = {"name": "x", "digest": "gone"}
    by_hand = hashlib.sha256(json.dumps({"name": "x"}).encode())
    for name in ("a", "w"):
        value = weights[name]
        by_hand.update(f"{name}{value.dtype}{tuple(value.shape)}".encode() + value.numpy().tobytes())
    assert digest_of(weights, said) == by_hand.hexdigest()
    assert digest_of(weights, said | {"n_vocabulary": None, "offers": ["pixels"]}) == by_hand.hexdigest()
    assert digest_of(weights, said | {"n_vocabulary": 7}) != by_hand.hexdigest()

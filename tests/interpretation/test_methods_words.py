"""Built-in methods on targets of words: each answers with the right shape or declines, and what it says is right."""

from dataclasses import replace

import pytest
import torch

from stages.contracts.method import Attribute, Budget, Compare, Localise, Represent
from stages.contracts.reading import FinalNorm, Unembed, at_readout
from stages.contracts.target import HookSpec, Target
from stages.dictionaries.evaluation.evaluate import random_dictionary
from stages.interpretation.artifact import pack, unpack
from stages.interpretation.free_phase import dictionaries_of
from stages.interpretation.loading import built_in
from stages.interpretation.methods import METHODS, circuit
from stages.interpretation.methods.surrogate import _told_apart
from stages.interpretation.representation import bounded, present_only
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import count_flops
from stages.targets.storage import freeze
from stages.targets.zoo import ZOO

N = 6
NAMES = ("context_lm", "facts_lm", "grokked_addition")
DECLINED = {
    "circuit": {"Represent", "Compare"},
    "inputs": {"Compare"},
    "logit_lens": {"Localise"},
    "nothing": {"Represent", "Attribute", "Localise", "Compare"},
    "sae": {"Represent", "Attribute", "Localise", "Compare"},
    "surrogate": {"Compare"},
    "weight_difference": {"Represent", "Attribute", "Localise"},
}
"""What each method has no answer to, on words as elsewhere; ``sae`` where there are no dictionaries."""


@pytest.fixture(scope="module", params=NAMES)
def words(request: pytest.FixtureRequest) -> Target:
    definition, generator = ZOO.find(request.param)(), torch.Generator().manual_seed(0)
    data = definition.data(0)
    corpora = {split: definition.sample(data, split, 60, generator) for split in ("train", "validation")}
    return freeze(request.param, definition.build(generator), corpora | {"tasks": data["tasks"]})


def interpreted(name: str, target: Target, max_bytes: int = 10**8):  # type: ignore[no-untyped-def]
    access = MeteredAccess(target, Ledger(), free=True, dictionaries=dict)
    return built_in(name).interpret(access, Budget(60, max_bytes, 0))


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_answers_about_words_or_declines(name: str, words: Target) -> None:
    inputs, labels = (part[:N] for part in words.corpus("validation"))
    places, components = inputs.shape[1], words.spec.components
    many = inputs[None].expand(2, *inputs.shape).contiguous()
    queries = {
        "Represent": (Represent(inputs, labels), (N,)),
        "Attribute": (Attribute(inputs, tuple((i,) for i in range(places - 1)), labels), (N, places - 1)),
        "Localise": (Localise(many, labels[None].expand(2, N), components), (2, len(components))),
        "Compare": (Compare((0, 1), inputs, labels), (2,)),
    }
    state = words.model.state_dict()
    stack = {k: torch.stack([v, v + 0.05 * torch.randn(v.shape)]) for k, v in state.items()}
    made, declined = interpreted(name, words), set()
    for kind, (query, rows) in queries.items():
        with count_flops():  # an operation without a price raises
            answer = built_in(name).answer(query, made, MeteredAccess(words, Ledger(), variants=stack))
        if answer is None:
            declined.add(kind)
            continue
        assert tuple(answer.shape[: len(rows)]) == rows and answer.dim() <= len(rows) + 1
        assert bool(torch.isfinite(answer).all()) and answer.numel() // max(1, len(answer)) > 0
    assert declined == DECLINED.get(name, set())


def test_segments_of_several_places_are_read_at_their_first_and_last(words: Target) -> None:
    inputs, labels = (part[:N] for part in words.corpus("validation"))
    places = inputs.shape[1]
    for name in ("raw_activations", "logit_lens", "attention", "gradient"):
        made = interpreted(name, words)
        wide = built_in(name).answer(Attribute(inputs, ((places - 3, places - 2),), labels), made, access(words))
        each = built_in(name).answer(Attribute(inputs, ((places - 3,), (places - 2,)), labels), made, access(words))
        assert wide.shape[1] == 1 and each.shape[1] == 2
        assert not torch.allclose(wide[:, 0], each[:, 0]) or torch.allclose(each[:, 0], each[:, 1])


def access(target: Target) -> MeteredAccess:
    return MeteredAccess(target, Ledger())


def test_the_last_norm_and_the_unembedding_give_the_outputs(words: Target) -> None:
    inputs = words.corpus("validation").inputs[:N]
    last = words.spec.hooks[-1].name
    found, weights = access(words).forward(inputs, capture=[last]), words.model.state_dict()
    unembed = Unembed.of(words.spec, weights)
    assert unembed.matrix.shape == (words.spec.n_outputs, words.spec.hooks[-1].width)
    stream = found.captured[last][:, -1]
    assert torch.equal(at_readout(words.spec, last, found.captured[last]), stream)
    assert torch.allclose(unembed(stream), found.outputs, atol=1e-4)
    assert torch.equal(Unembed.kept(unembed.arrays())(stream), unembed(stream))


def test_heads_effects_on_the_label_add_up_to_what_they_write(words: Target) -> None:
    inputs, labels = (part[:N] for part in words.corpus("validation"))
    segments = tuple((place,) for place in range(inputs.shape[1]))
    made = interpreted("attention", words)
    answer = built_in("attention").answer(Attribute(inputs, segments, labels), made, access(words))
    weights, total = words.model.state_dict(), torch.zeros(N)
    matrix, _, norm = Unembed.of(words.spec, weights)
    for hook in words.spec.with_role("head"):
        z = access(words).forward(inputs, capture=[hook.name]).captured[hook.name][:, -1]
        out = torch.einsum("nhk,hkd->nd", z, weights[hook.name.replace("hook_z", "W_O")])
        value = weights[hook.name.replace("hook_z", "b_V")]  # what is added to every value is no head's reading
        assert value.abs().max() == 0
        logits = (out - out.mean(-1, keepdim=True)) * (norm.weight if norm else 1.0) @ matrix.T
        total += (logits - logits.mean(-1, keepdim=True)).gather(-1, labels[:, None]).squeeze(-1)
    assert torch.allclose(answer[..., 0].sum(1), total, atol=1e-4)


def test_root_mean_square_norms_do_not_centre() -> None:
    values = torch.randn(5, 8) + 3.0
    weight = torch.rand(8)
    by_hand = values / (values.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    assert torch.allclose(FinalNorm(weight, None)(values), by_hand, atol=1e-6)


def test_what_is_too_wide_is_selected_and_what_is_too_large_is_declined(words: Target) -> None:
    spec = words.spec
    wide = replace(spec, hooks=tuple(HookSpec(f"h{i}", (1, 600), 600, "residual") for i in range(31)))
    kept = bounded(wide, [hook.name for hook in wide.hooks])
    assert kept == ["h0", "h6", "h12", "h18", "h24", "h30"]
    assert bounded(spec, [spec.hooks[0].name]) == [spec.hooks[0].name]
    inputs = words.corpus("validation").inputs[:N]
    for name in ("logit_lens", "attention"):
        made = interpreted(name, words, max_bytes=1000)
        assert built_in(name).answer(Represent(inputs), made, access(words)) is None


def test_places_without_a_word_hold_nothing(words: Target) -> None:
    inputs = words.corpus("validation").inputs[:N]
    name = words.spec.with_role("head")[0].name
    captured = access(words).forward(inputs, capture=[name]).captured
    left = present_only(words.spec, inputs, captured)[name]
    present = inputs[..., 1] > 0.5
    assert torch.equal(left[present], captured[name][present]) and not left[~present].any()


def test_a_target_that_has_no_dictionaries_has_none(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from stages.errors import UserError

    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="dictionaries"):
        dictionaries_of("context_lm")  # none was made of any target: the stage has not run
    (tmp_path / "data" / "dictionaries" / "digits_mlp").mkdir(parents=True)
    assert dictionaries_of("context_lm") == {}


@pytest.mark.parametrize("max_bytes", [60_000, 300_000])
def test_dictionaries_of_the_last_hook_points_are_kept_where_not_all_fit(words: Target, max_bytes: int) -> None:
    """A large target has more latents than I(M) holds: the graph must not stop at it."""
    hooks = [hook.name for hook in words.spec.with_role("residual")]
    found = {
        f"{hook}/batchtopk": random_dictionary(torch.randn(64, words.spec.hook(hook).width), 96, 4, seed)
        for seed, hook in enumerate(hooks)
    }
    free = MeteredAccess(words, Ledger(), free=True, dictionaries=lambda: found)
    made = built_in("sae").interpret(free, Budget(60, max_bytes, 0))
    arrays, text = pack(made, "sae", "here", max_bytes)
    each = [sum(part.nbytes for key, part in one.items() if key != "cfg") for one in found.values()]
    fit = sum(sum(each[len(each) - n :]) <= 0.9 * max_bytes for n in range(1, len(each) + 1))
    assert [hook for hook in hooks if hook in made.data["cfg"]] == hooks[len(hooks) - fit :], "the last ones"
    inputs = words.corpus("validation").inputs[:N]
    answer = built_in("sae").answer(Represent(inputs), unpack(arrays, text), access(words))
    assert (answer is None) == (fit == 0)


def test_a_surrogate_tells_the_outputs_apart_that_vary_most() -> None:
    outputs = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * torch.arange(40.0).roll(7)
    size = 4 * 129
    assert _told_apart(outputs, 10**8).tolist() == list(range(40))
    kept = _told_apart(outputs, 2 * 9 * size)
    assert kept.tolist() == sorted(outputs.var(0).topk(9).indices.tolist()) and len(_told_apart(outputs, 1)) == 2


def test_circuits_of_many_components_are_found_a_part_of_the_prompts_at_a_time(
    words: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts have different numbers of words, so the mean of the parts' means would be another number."""
    whole = interpreted("circuit", words)
    monkeypatch.setattr(circuit, "MAX_EXACT", 1)
    monkeypatch.setattr(circuit, "PART", 7)
    parts = interpreted("circuit", words)
    means = [name for name in whole.arrays if name.startswith("mean.")]
    assert set(parts.arrays) == {*means, "effects"} and parts.arrays["effects"].shape == whole.arrays["effects"].shape
    for name in means:
        assert torch.allclose(parts.arrays[name], whole.arrays[name], atol=1e-5), name

"""A dictionary as an explanation: what is told of it, what it leaves, and the table beside other explanations."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.base.code_lengths import N_OUTPUTS, quantised, unexplained_bits
from stages.contracts.dictionary import Dictionary
from stages.contracts.target import Target
from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.evaluation.surprise import BITS, explained, only_live, rounded
from stages.tools import explanations
from stages.tools import surprise as tool
from stages.tools.explanations import low_rank, used_weights
from stages.tools.surprise import Line, window

WIDTH, LATENTS = 6, 12
KINDS = ("standard", "topk", "abstopk", "jumprelu", "gated", "matching_pursuit")


def made(kind: str, seed: int = 0) -> Dictionary:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    generator = torch.Generator().manual_seed(seed)
    cfg = {
        "architecture": kind, "d_in": WIDTH, "d_sae": LATENTS, "apply_b_dec_to_input": True, "k": 3,
        "rescale_acts_by_decoder_norm": True, "residual_threshold": 0.1, "max_iterations": 4,
        "stop_on_duplicate_support": True,
    }  # fmt: skip
    weights = {"W_dec": draw(LATENTS, WIDTH), "b_dec": draw(WIDTH)}
    if kind == "matching_pursuit":
        weights["W_dec"] = torch.nn.functional.normalize(weights["W_dec"], dim=-1)
    else:
        weights |= {"W_enc": draw(WIDTH, LATENTS)}
        biases = ("b_gate", "b_mag", "r_mag") if kind == "gated" else ("b_enc",)
        weights |= {name: 0.3 * draw(LATENTS) for name in biases}
        # Three latents that nothing turns on.
        weights[biases[0]][3:6] = -100.0 if kind != "abstopk" else 0.0
        if kind == "abstopk":
            weights["W_enc"][:, 3:6] = 0.0
    if kind == "jumprelu":
        weights["threshold"] = 0.1 * draw(LATENTS).abs()
    return {"cfg": cfg, **weights}  # type: ignore[typeddict-item,return-value]


@pytest.mark.parametrize("kind", KINDS)
def test_latents_that_never_fire_can_be_left_out(kind: str) -> None:
    dictionary, acts = made(kind), torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(1))
    latents = encode(dictionary, acts)
    alive = (latents != 0).any(0)
    live = only_live(dictionary, alive)
    assert len(live["W_dec"]) == int(alive.sum())
    assert kind == "matching_pursuit" or not alive.all()
    torch.testing.assert_close(encode(live, acts), latents[:, alive])
    torch.testing.assert_close(decode(live, encode(live, acts)), decode(dictionary, latents))
    none = only_live(dictionary, torch.zeros(LATENTS, dtype=torch.bool))
    assert len(none["W_dec"]) == 1 and encode(none, acts).shape == (200, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_told_once(kind: str) -> None:
    dictionary = made(kind)
    numbers = [name for name, value in dictionary.items() if isinstance(value, Tensor)]
    coded, length = rounded(dictionary, 6)
    assert length == sum(6 * dictionary[name].numel() + 32 for name in numbers)  # type: ignore[literal-required]
    for name in numbers:
        assert torch.equal(coded[name], quantised(dictionary[name], 6))  # type: ignore[literal-required]
    if kind == "standard":
        tied = dictionary | {"W_enc": dictionary["W_dec"].T.contiguous()}
        assert rounded(tied, 6)[1] == length - 6 * WIDTH * LATENTS - 32


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 999))
def test_the_bits_chosen_are_the_best_of_those_tried(kind: str, seed: int) -> None:
    dictionary = made(kind, seed)
    generator = torch.Generator().manual_seed(seed)
    acts, readout = torch.randn(60, WIDTH, generator=generator), torch.randn(WIDTH, 4, generator=generator)
    alive = torch.ones(LATENTS, dtype=torch.bool)

    def outputs(of: Dictionary) -> Tensor:
        return decode(of, encode(of, acts)) @ readout

    found = explained(dictionary, alive, acts @ readout, outputs)
    totals = {}
    for bits in BITS:
        coded, length = rounded(only_live(dictionary, alive), bits)
        totals[bits] = length + N_OUTPUTS * float(unexplained_bits(acts @ readout, outputs(coded)).mean())
    assert totals[found.bits] == min(totals.values())
    assert found.surprise * N_OUTPUTS == pytest.approx(totals[found.bits])


def test_a_perfect_dictionary_leaves_what_rounding_leaves_and_more_bits_leave_less() -> None:
    eye = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    cfg = made("standard")["cfg"]
    zeros = {"b_enc": torch.zeros(2 * WIDTH), "b_dec": torch.zeros(WIDTH)}
    perfect: Dictionary = {"cfg": cfg, "W_enc": eye.T.contiguous(), "W_dec": eye, **zeros}  # type: ignore[typeddict-item]
    acts = torch.randn(50, WIDTH)
    found = explained(perfect, torch.ones(LATENTS) > 0, acts, lambda of: decode(of, encode(of, acts)))
    assert float(found.unexplained.max()) < 1e-9 and found.bits == min(BITS)  # 0 and 1 are levels of any grid


# ---- the table ----


def test_weights_without_a_gradient_change_nothing_and_those_with_one_do(mlp: Target) -> None:
    inputs = mlp.corpus("validation").inputs[:40]
    mine = Target(mlp.spec, copy.deepcopy(mlp.model), {"train": mlp.corpus("train")})
    used = used_weights(mine, inputs, {})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        clean = mine.model(inputs)
        for name, value in mine.model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.data += 1e-3 * noise * ~used[name]
            torch.testing.assert_close(mine.model(inputs), clean, atol=1e-5, rtol=0)
            for place in used[name].nonzero()[:3].tolist():
                before = value.data[tuple(place)].clone()
                value.data[tuple(place)] += 0.5
                assert (mine.model(inputs) - clean).abs().max() > 1e-5, (name, place)
                value.data[tuple(place)] = before
    assert not used["layers.0.linear.weight"].all()  # pixels that are 0 in every image
    assert not any(parameter.requires_grad for parameter in mine.model.parameters())


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 6)])
def test_low_rank_is_the_sum_of_the_largest_rank_one_parts(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = low_rank(matrix, 2, 32)
    for one, other in zip(matrix.reshape(-1, *shape[-2:]), found.reshape(-1, *shape[-2:]), strict=True):
        left, sizes, right = torch.linalg.svd(one)
        parts = [sizes[i] * torch.outer(left[:, i], right[i]) for i in range(2)]
        torch.testing.assert_close(other, parts[0] + parts[1])
    torch.testing.assert_close(low_rank(matrix, min(shape[-2:]), 32), matrix)


lines = st.lists(st.builds(Line, st.integers(0, 50), st.integers(0, 8)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(lines, lines)
def test_where_an_explanation_pays_is_found_as_by_trying_every_n(mine: list[Line], ends: list[Line]) -> None:
    grid = [i / 16 for i in range(1, 16 * 60)]
    best = [min(a + n * b for a, b in mine) < min(a + n * b for a, b in ends) - 1e-9 for n in grid]
    pays = [n for n, below in zip(grid, best, strict=True) if below]
    found = window(mine, ends)
    if found is None:
        assert not pays
    elif pays:
        assert found[0] <= pays[0] <= found[0] + 1 / 16 + 1e-9
        assert (found[1] is None and pays[-1] == grid[-1]) or abs((found[1] or 0) - pays[-1]) <= 1 / 16 + 1e-9 or (
            found[1] is not None and found[1] > grid[-1]
        )  # fmt: skip


def test_every_explanation_is_priced_by_the_same_rule(
    mlp: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tool, "load_target", lambda name: mlp)
    monkeypatch.setattr(explanations, "load_dictionaries", lambda name: {})
    before = {name: value.clone() for name, value in mlp.model.named_parameters()}
    n = 50_000
    rows = tool.surprise("digits_mlp", n)
    assert all(torch.equal(value, before[name]) for name, value in mlp.model.named_parameters())
    by_name = {row.explanation: row for row in rows}
    assert {row.kind for row in rows} == {"nothing", "weights", "circuit"}
    whole, nothing = by_name["as they are"], min(by_name["uniform"].total, by_name["marginal"].total)
    assert by_name["uniform"].own == by_name["uniform"].borrowed == 0
    for row in rows:
        assert row.total == pytest.approx(row.own + row.borrowed + n * row.unexplained, rel=1e-5)
        assert row.low <= row.unexplained <= row.high
        assert row.explains == (row.total < min(whole.total, nothing))
        if row.explains:
            assert row.pays_from is not None and row.pays_from < n
            assert row.pays_to is None or row.pays_to > n
        elif row.pays_from is not None:
            assert n <= row.pays_from or (row.pays_to is not None and n >= row.pays_to)
    kept = sorted((row for row in rows if row.kind == "circuit"), key=lambda row: int(row.explanation.split()[0]))
    assert kept[0].unexplained > kept[-1].unexplained  # a larger circuit leaves less
    assert kept[0].borrowed < kept[-1].borrowed <= whole.borrowed * 16
    with pytest.raises(tool.UserError, match="N = 0"):
        tool.surprise("digits_mlp", 0)


def test_with_more_outputs_longer_explanations_pay(mlp: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "load_target", lambda name: mlp)
    monkeypatch.setattr(explanations, "load_dictionaries", lambda name: {})
    few, many = ({row.explanation: row for row in tool.surprise("digits_mlp", n)} for n in (10, 10**9))
    assert min(few.values(), key=lambda row: row.total).kind == "nothing"
    assert min(many.values(), key=lambda row: row.total).explanation == "as they are"
    for name in few:
        assert few[name].bits <= many[name].bits or few[name].unexplained == many[name].unexplained

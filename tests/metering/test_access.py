"""The metered way to touch a target."""

import pytest
import torch

from stages.contracts.target import Intervention, Objective
from stages.metering.access import MeteredAccess, PhaseError
from stages.metering.ledger import Ledger
from stages.metering.op_table import count_flops


def by_hand_mlp(batch: int) -> int:
    layers = [(64, 64), (64, 32), (32, 10)]
    return sum(batch * (2 * d_in * d_out + d_out) for d_in, d_out in layers) + batch * (64 + 32)  # + the two ReLUs


def by_hand_few_shot(batch: int) -> int:
    """Every product and pointwise op of the two-layer transformer, in the order of its forward pass."""
    rows, shots, tokens, d, heads, k, m, labels = 9, 8, 17, 64, 4, 16, 256, 4

    def linear(n: int, d_in: int, d_out: int) -> int:
        return n * (2 * d_in * d_out + d_out)

    total = linear(rows, 64, d) + shots  # pixels; rounding the label channel
    total += 2 * shots + 2 * shots  # making it an integer of 8 bytes, clamping it
    total += 3 * 2 * shots * labels  # one_hot: compared with each label, made an integer, made a float
    total += rows + 2 * tokens * tokens  # which rows are present; what may be attended to
    total += 2 * shots * labels * d + tokens * d  # label embedding; positions
    per_layer = 2 * 8 * tokens * d  # layer norms
    per_layer += 4 * linear(tokens, d, d)  # queries, keys, values, output
    per_layer += 2 * 2 * heads * tokens * tokens * k  # scores and mixing
    per_layer += heads * tokens * tokens * (1 + 5)  # scale, softmax
    per_layer += tokens * tokens + heads * tokens * tokens  # the mask turned round, the masked scores
    per_layer += linear(tokens, d, m) + tokens * m + linear(tokens, m, d)  # MLP with its ReLU
    per_layer += 2 * tokens * d  # residual additions
    total += 2 * per_layer + 8 * rows * d + linear(rows, d, labels)
    return batch * total


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_forward_costs_what_a_hand_count_says(mlp, few_shot, batch):
    for target, by_hand in ((mlp, by_hand_mlp(batch)), (few_shot, by_hand_few_shot(batch))):
        ledger = Ledger()
        MeteredAccess(target, ledger).forward(target.corpus("train").inputs[:batch])
        assert ledger.flops == by_hand


def test_price_is_the_same_whether_looked_up_or_counted(few_shot):
    inputs = few_shot.corpus("train").inputs[:5]
    ledger = Ledger()
    access = MeteredAccess(few_shot, ledger)
    charges = []
    for _ in range(3):
        with ledger.window() as window:
            access.forward(inputs, capture=["hook_embed"])
        charges.append(window.flops)
    with count_flops() as count, torch.no_grad():
        few_shot.model(inputs)
    # On data one_hot places ones instead of comparing, and looks at the smallest and largest label.
    assert len(set(charges)) == 1 and abs(charges[0] - count.flops) < 100 * len(inputs)


def test_outputs_and_activations_equal_the_bare_model(few_shot):
    inputs = few_shot.corpus("train").inputs[:5]
    result = MeteredAccess(few_shot, Ledger()).forward(inputs, capture=list(few_shot.hook_points))
    outputs, cache = few_shot.model.run_with_cache(inputs)
    assert torch.equal(result.outputs, outputs)
    for name in few_shot.hook_points:
        assert torch.equal(result.captured[name], cache[name])


def test_gradient_equals_finite_differences(mlp):
    inputs = mlp.corpus("train").inputs[:2]
    access = MeteredAccess(mlp, Ledger())
    labels = mlp.corpus("train").labels[:2]
    result = access.gradients(inputs, Objective("loss", labels), ["input", "layers.0.hook_post"])
    step = torch.zeros_like(inputs)
    step[0, 20] = 1e-2
    up = access.gradients(inputs + step, Objective("loss", labels), ["input"]).values[0]
    down = access.gradients(inputs - step, Objective("loss", labels), ["input"]).values[0]
    assert result.grads["input"][0, 20] == pytest.approx(((up - down) / 2e-2).item(), abs=2e-2)
    assert result.grads["layers.0.hook_post"].shape == (2, 64)


def test_interventions_change_only_what_they_name(few_shot):
    inputs = few_shot.corpus("train").inputs[:4]
    access, hook = MeteredAccess(few_shot, Ledger()), "blocks.0.attn.hook_z"
    clean = access.forward(inputs, capture=[hook]).captured[hook]
    zero = [Intervention(hook, "zero", axis=2, indices=(1,))]
    changed = access.forward(inputs, [hook], zero).captured[hook]
    assert bool((changed[:, :, 1] == 0).all())
    assert torch.equal(changed[:, :, [0, 2, 3]], clean[:, :, [0, 2, 3]])
    doubled = access.forward(inputs, [hook], [Intervention(hook, "scale", torch.tensor(2.0))]).captured[hook]
    assert torch.equal(doubled, clean * 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, x: a.forward(x[:, :3]), "takes \\(batch, "),
        (lambda a, x: a.forward(x, capture=["nowhere"]), "no hook point"),
        (lambda a, x: a.forward(x, [], [Intervention("layers.0.hook_post", "zero", axis=7, indices=(0,))]), "axis 7"),
        (lambda a, x: a.forward(x, [], [Intervention("layers.0.hook_post", "zero", axis=1, indices=(99,))]), "indices"),
        (lambda a, x: a.forward(x, [], [Intervention("layers.0.hook_post", "set")]), "value"),
        (
            lambda a, x: a.gradients(x, Objective("loss", torch.zeros(1, dtype=torch.int64)), ["input"]),
            "one label per input",
        ),
        (lambda a, x: a.gradients(x, Objective("loss"), []), "wrt is empty"),
        (lambda a, x: a.variant(0), "variant 0 does not exist"),
    ],
)
def test_bad_calls_say_what_is_allowed(mlp, call, message):
    with pytest.raises(ValueError, match=message):
        call(MeteredAccess(mlp, Ledger()), mlp.corpus("train").inputs[:4])


def test_weights_and_corpus_are_open_in_the_free_phase_only(mlp):
    charged, free = MeteredAccess(mlp, Ledger()), MeteredAccess(mlp, Ledger(), free=True)
    for call in (lambda a: a.weights(), lambda a: a.corpus("train"), lambda a: a.dictionaries()):
        call(free)
        with pytest.raises(PhaseError, match="interpret"):
            call(charged)
    with pytest.raises(PhaseError, match="not open"):
        free.corpus("tasks")  # task instances are drawn from this split: nobody gets it


def test_the_weights_of_a_variant_are_open_and_charged_by_the_number(mlp):
    stack = {name: torch.stack([value, value * 2]) for name, value in mlp.model.state_dict().items()}
    access = MeteredAccess(mlp, Ledger(), variants=stack)
    found = access.variant(1).weights(["unembed.bias"])
    assert list(found) == ["unembed.bias"] and access.ledger.flops == 10
    assert torch.equal(found["unembed.bias"], 2 * mlp.model.unembed.bias)
    both = access.variants([1, 0]).weights()
    assert access.ledger.flops == 10 + 2 * sum(value[0].numel() for value in stack.values())
    assert all(torch.equal(both[name], stack[name].flip(0)) for name in stack)
    found["unembed.bias"].zero_()
    assert stack["unembed.bias"][1].abs().sum() > 0, "a copy"
    with pytest.raises(ValueError, match=r"weight 'nowhere' does not exist; the variant has layers.0"):
        access.variant(0).weights(["nowhere"])


def test_weights_handed_out_are_copies(mlp):
    before = mlp.model.unembed.weight.clone()
    MeteredAccess(mlp, Ledger(), free=True).weights()["unembed.weight"].zero_()
    assert torch.equal(mlp.model.unembed.weight, before)


def test_a_variant_runs_its_own_weights_on_the_same_ledger(mlp):
    stack = {name: torch.stack([value, value * 0]) for name, value in mlp.model.state_dict().items()}
    ledger = Ledger()
    access, inputs = MeteredAccess(mlp, ledger, variants=stack), mlp.corpus("train").inputs[:3]
    same, zeroed = (access.variant(i).forward(inputs).outputs for i in (0, 1))
    assert torch.allclose(same, access.forward(inputs).outputs, atol=1e-6)
    assert bool((zeroed == 0).all())
    assert ledger.flops == 3 * by_hand_mlp(3)


@pytest.mark.parametrize("batch", [1, 5])
def test_gradients_cost_the_forward_pass_and_the_way_back_by_hand(mlp, batch):
    """With respect to the input each layer's way back is one product; ReLUs 2 an element; the loss on top."""
    corpus, ledger = mlp.corpus("train"), Ledger()
    access = MeteredAccess(mlp, ledger)
    access.gradients(corpus.inputs[:batch], Objective("loss", corpus.labels[:batch]), ["input"])
    back = sum(2 * batch * d_in * d_out for d_in, d_out in [(64, 64), (64, 32), (32, 10)]) + 2 * batch * (64 + 32)
    least = by_hand_mlp(batch) + back
    assert least <= ledger.flops <= least + 40 * batch * 10, "log-softmax and its way back: at most 40 an output"
    before = ledger.flops
    access.gradients(corpus.inputs[:batch], Objective("loss", corpus.labels[:batch]), ["input"])
    assert ledger.flops == 2 * before, "the second time the price is looked up"

"""Families about directions that are added: their truth in numpy, one input at a time."""

import numpy as np
import pytest
import torch

from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.tasks.directions import ask_moved, moved_outputs, place_array, place_of, place_on
from stages.tasks.families import family
from stages.tasks.families.feature_effect import spherical_means
from stages.tasks.families.probe_under_shift import margins, shifted
from stages.tasks.families.trigger_generalisation import LENGTH
from tests.tasks.conftest import made_small, small_target
from tests.tasks.test_tasks_truth import squash


def from_hidden(weights, hidden):
    """(M, 64) activations of the first layer -> (M, 10) logits, in float64."""
    w, b = (np.asarray(weights[f"layers.1.linear.{part}"], dtype=float) for part in ("weight", "bias"))
    hidden = np.maximum(hidden @ w.T + b, 0.0)
    w, b = (np.asarray(weights[f"unembed.{part}"], dtype=float) for part in ("weight", "bias"))
    return hidden @ w.T + b


def hidden_of(weights, x):
    w, b = (np.asarray(weights[f"layers.0.linear.{part}"], dtype=float) for part in ("weight", "bias"))
    return np.maximum(np.asarray(x, dtype=float) @ w.T + b, 0.0)


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def parts(name):
    made = made_small(name, "digits_mlp")
    return small_target("digits_mlp").model.state_dict(), made.instances.arrays, made.truth.values[:, 0].numpy()


def test_steering_effect_is_the_change_of_the_mean_loss():
    weights, arrays, truth = parts("steering_effect")
    hidden, labels = hidden_of(weights, arrays["shared_inputs"]), arrays["shared_labels"].numpy()

    def loss(moved):
        return -np.mean(
            [row[label] for row, label in zip(log_softmax(from_hidden(weights, moved)), labels, strict=True)]
        )

    for direction, found in zip(arrays["directions"].numpy(), truth, strict=True):
        assert found == pytest.approx(squash(loss(hidden + direction) - loss(hidden), 1.0), abs=1e-4)
    lengths = arrays["directions"].norm(dim=-1)
    assert float(lengths.max() - lengths.min()) < 1e-4, "the length says nothing"
    assert float(lengths[0]) == pytest.approx(np.sqrt(hidden.var(0, ddof=1).sum()), rel=1e-3)
    apart = (hidden[:, None] - hidden[None]).reshape(-1, hidden.shape[1])
    apart = apart[np.linalg.norm(apart, axis=1) > 1e-3]
    apart /= np.linalg.norm(apart, axis=1, keepdims=True)
    is_difference = (apart @ arrays["directions"].numpy().T).max(0) / float(lengths[0]) > 1 - 1e-4
    assert 0 < is_difference.sum() < len(is_difference), "some lie between two inputs, some are random"


@pytest.mark.parametrize(("name", "scale"), [("digits_few_shot", 1.0), ("facts_lm", 0.1)])
def test_steering_effect_adds_at_every_position(name, scale):
    target, made = small_target(name), made_small("steering_effect", name)
    arrays, place = made.instances.arrays, place_of(made.instances)
    x, y = arrays["shared_inputs"], arrays["shared_labels"]
    module = target.model.get_submodule(place)
    for direction, found in list(zip(arrays["directions"], made.truth.values[:, 0], strict=True))[:3]:
        losses = []
        for moved in (torch.zeros_like(direction), direction):
            handle = module.register_forward_hook(lambda module, args, out, moved=moved: out + moved)
            losses.append(torch.nn.functional.cross_entropy(target.model(x).double(), y).item())
            handle.remove()
        assert float(found) == pytest.approx(squash(losses[1] - losses[0], scale), abs=1e-3)


def test_trigger_generalisation_is_the_mean_log_probability_of_the_label():
    weights, arrays, truth = parts("trigger_generalisation")
    for pattern, label, found in zip(arrays["directions"].numpy(), arrays["labels"].tolist(), truth, strict=True):
        logits = from_hidden(weights, hidden_of(weights, arrays["shared_inputs"].numpy() + pattern))
        assert found == pytest.approx(np.mean(log_softmax(logits)[:, label]), abs=1e-4)
    assert np.allclose(arrays["directions"].norm(dim=-1), LENGTH, atol=1e-5)


def test_feature_effect_is_the_change_of_the_mean_probability():
    weights, arrays, truth = parts("feature_effect")
    hidden = hidden_of(weights, arrays["shared_inputs"])
    clean = np.exp(log_softmax(from_hidden(weights, hidden))).mean(0)
    for direction, label, found in zip(arrays["directions"].numpy(), arrays["labels"].tolist(), truth, strict=True):
        moved = np.exp(log_softmax(from_hidden(weights, hidden + direction)))[:, label].mean()
        assert found == pytest.approx(squash(moved - clean[label], 0.02), abs=1e-3)


def test_centres_are_mean_directions_of_what_is_nearest_to_them():
    generator = torch.Generator().manual_seed(0)
    ends = torch.nn.functional.normalize(torch.randn(3, 5, generator=generator), dim=-1)
    points = ends.repeat_interleave(40, 0) * (1 + torch.rand(120, 1, generator=generator))
    points = points + 0.02 * torch.randn(120, 5, generator=generator)
    centres = spherical_means(points, 12, generator)
    assert torch.allclose(centres.norm(dim=-1), torch.ones(len(centres)), atol=1e-5)
    assert float((ends @ centres.T).amax(1).min()) > 0.99, "each end has a centre near it"


def test_probe_under_shift_is_the_share_of_answers_that_become_the_class():
    weights, arrays, truth = parts("probe_under_shift")
    hidden = hidden_of(weights, arrays["shared_inputs"])
    before = from_hidden(weights, hidden).argmax(-1)
    for direction, label, found in zip(arrays["directions"].numpy(), arrays["labels"].tolist(), truth, strict=True):
        after = from_hidden(weights, hidden + direction).argmax(-1)
        assert found == pytest.approx(np.mean((after == label) & (before != label)), abs=1.5 / 256)
    image = torch.arange(64.0).view(1, 64)
    moved = shifted(image).view(8, 8)
    assert moved[:, 0].tolist() == [0.0] * 8 and moved[2, 1:].tolist() == list(range(16, 23))
    outputs = torch.tensor([[[1.0, 5.0, 2.0]], [[1.0, 5.0, 2.0]]])
    assert margins(outputs, torch.tensor([1, 2])).flatten().tolist() == [3.0, -3.0]


@pytest.mark.parametrize("name", ["digits_mlp", "digits_few_shot"])
@pytest.mark.parametrize("at_input", [True, False])
def test_the_black_box_and_the_truth_add_the_same(name, at_input):
    target = small_target(name)
    place = "input" if at_input else place_on(target.spec)
    x = target.corpus("validation").inputs[:3]
    shape = x.shape[1:] if at_input else (target.spec.hook(place).width,)
    directions = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    trusted = torch.stack(list(moved_outputs(target, place, x, directions)))
    ledger = Ledger()
    asked = ask_moved(MeteredAccess(target, ledger), place, x, directions)
    assert torch.allclose(asked, trusted, atol=1e-4) and ledger.calls == 1
    assert bytes(place_array(place).tolist()).decode() == place


def test_the_look_of_one_input_is_no_more_than_one_pass_and_a_share_of_the_clean_one():
    target, made = small_target("digits_mlp"), made_small("steering_effect", "digits_mlp")
    ledger, once = Ledger(), Ledger()
    MeteredAccess(target, once).forward(made.instances.arrays["shared_inputs"][:1])
    family("steering_effect").behavioural(MeteredAccess(target, ledger), made.instances, 0, torch.Generator())
    n = made.instances.n
    assert ledger.flops == (n + 1) * once.flops + n * 64, "each direction on one input, and that input without any"

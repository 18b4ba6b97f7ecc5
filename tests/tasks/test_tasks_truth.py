"""Every family's truth against an implementation that shares no code with it: loops and numpy."""

import copy
from itertools import combinations, permutations
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformer_lens import HookedRootModule

from stages.contracts.target import Target
from stages.tasks.families import family
from stages.tasks.families.few_shot_shapley import shapley_values
from stages.tasks.generation import make
from stages.tasks.image_backdoors import KINDS, edit_in
from stages.tasks.patches import draw_patches
from tests.tasks.conftest import made_small, small_target


def mlp(weights: Any, x: Any) -> Any:
    """The classifier in numpy, float64."""
    for layer in (0, 1):
        w, b = weights[f"layers.{layer}.linear.weight"], weights[f"layers.{layer}.linear.bias"]
        x = np.maximum(x @ np.asarray(w, dtype=float).T + np.asarray(b, dtype=float), 0.0)
    w, b = weights["unembed.weight"], weights["unembed.bias"]
    return x @ np.asarray(w, dtype=float).T + np.asarray(b, dtype=float)


def squash(d: float, scale: float) -> float:
    return (1 if d >= 0 else -1) * log(1 + abs(d) / scale)


def answers(target: Target, episode: torch.Tensor, kept: Any) -> Any:
    """Log-probabilities when only some examples are there."""
    shown = episode.clone()
    for row in range(8):
        shown[row, 65] = 1.0 if row in kept else 0.0
    return torch.log_softmax(target.model(shown.unsqueeze(0))[0].double(), -1).numpy()


def test_noise_flip_of_images_agrees_with_numpy() -> None:
    weights = small_target("digits_mlp").model.state_dict()
    made, rng = made_small("noise_flip", "digits_mlp"), np.random.default_rng(1)
    for x, truth in zip(made.instances.arrays["inputs"].double().numpy(), made.truth.values[:, 0], strict=True):
        clean = mlp(weights, x).argmax()
        share = np.mean(mlp(weights, x + 0.35 * rng.standard_normal((4000, 64))).argmax(-1) != clean)
        assert abs(share - float(truth)) < 5 * np.sqrt(0.25 / 1000 + 0.25 / 4000)


def test_noise_flip_of_a_square_image_puts_noise_on_every_pixel() -> None:
    target, made = small_target("small_cnn"), made_small("noise_flip", "small_cnn")
    generator, found = torch.Generator().manual_seed(9), []
    for x, truth in zip(made.instances.arrays["inputs"], made.truth.values[:, 0], strict=True):
        noisy = x + 0.35 * torch.randn(2000, *x.shape, generator=generator)
        with torch.no_grad():
            found.append(float((target.model(noisy).argmax(-1) != target.model(x[None]).argmax()).double().mean()))
        assert abs(found[-1] - float(truth)) < 5 * np.sqrt(found[-1] * (1 - found[-1]) * (1 / 1000 + 1 / 2000) + 1e-6)
    assert max(found) > 0.1, "answers do change"


def test_noise_flip_of_episodes_leaves_labels_and_presence_alone() -> None:
    target, made = small_target("digits_few_shot"), made_small("noise_flip", "digits_few_shot")
    generator = torch.Generator().manual_seed(9)
    for x, truth in zip(made.instances.arrays["inputs"], made.truth.values[:, 0], strict=True):
        noisy = x.repeat(400, 1, 1)
        noisy[:, :, :64] += 0.4 * torch.randn(400, 9, 64, generator=generator)
        share = (target.model(noisy).argmax(-1) != target.model(x.unsqueeze(0)).argmax()).double().mean()
        assert abs(float(share - truth)) < 5 * (2 * 0.25 / 400) ** 0.5


@pytest.mark.parametrize("name", ["digits_mlp", "small_cnn", "digits_few_shot"])
def test_active_learning_is_what_an_optimiser_does_until_it_is_sure(name: str) -> None:
    target, made = small_target(name), made_small("active_learning", name)
    arrays, taken = made.instances.arrays, []
    for x, y, truth in zip(arrays["inputs"], arrays["labels"], made.truth.values[:, 0], strict=True):
        model = copy.deepcopy(target.model).double().requires_grad_(True)
        held_out = arrays["shared_inputs"].double()
        before = nn.functional.cross_entropy(model(held_out), arrays["shared_labels"]).item()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
        steps = 0
        while steps < 60:
            loss = nn.functional.cross_entropy(model(x.double().unsqueeze(0)), y.unsqueeze(0))
            if float((-loss.detach()).exp()) >= 0.9:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
        taken.append(steps)
        after = nn.functional.cross_entropy(model(held_out), arrays["shared_labels"]).item()
        assert float(truth) == pytest.approx(squash(after - before, 0.5), abs=0.02)
    assert min(taken) >= 1, "no sample is one that the target is sure of"


def test_samples_of_active_learning_have_a_wrong_label() -> None:
    target, made = (
        small_target("digits_mlp"),
        make(family("active_learning"), small_target("digits_mlp"), "train", 300, 0, "test", b"key"),
    )
    answers = target.model(made.instances.arrays["inputs"]).argmax(-1)
    assert float((answers == made.instances.arrays["labels"]).double().mean()) < 0.06, "a doubtful image now and then"
    assert len(made.instances.arrays["labels"].unique()) == 10


@pytest.mark.parametrize("name", ["digits_mlp", "digits_few_shot", "context_lm", "facts_lm"])
def test_ablation_effect_agrees_with_plain_module_hooks(name: str) -> None:
    target, made = small_target(name), made_small("ablation_effect", name)
    components = target.spec.components
    for i in range(made.instances.n):
        x, y = made.instances.arrays["inputs"][i], made.instances.arrays["labels"][i]
        intact = nn.functional.cross_entropy(target.model(x), y).item()
        for p in range(0, len(components), 7):
            hook_point, axis, index = components[p]

            def cut(module: Any, args: Any, out: torch.Tensor, axis: int = axis, index: int = index) -> torch.Tensor:
                mask = torch.ones(out.shape[axis])
                mask[index] = 0.0
                return out * mask.view([-1 if a == axis else 1 for a in range(out.dim())])

            handle = target.model.get_submodule(hook_point).register_forward_hook(cut)
            ablated = nn.functional.cross_entropy(target.model(x), y).item()
            handle.remove()
            assert float(made.truth.values[i, p]) == pytest.approx(squash(ablated - intact, 0.1), abs=1e-4)


def test_shapley_agrees_with_the_mean_over_all_orders() -> None:
    target, made = small_target("digits_few_shot"), made_small("few_shot_shapley", "digits_few_shot")
    x, y = made.instances.arrays["inputs"][0], int(made.instances.arrays["labels"][0])
    value = {frozenset(kept): answers(target, x, kept)[y] for size in range(9) for kept in combinations(range(8), size)}
    total, n_orders = np.zeros(8), 0
    for order in permutations(range(8)):
        n_orders += 1
        before, members = value[frozenset()], set()
        for example in order:
            members.add(example)
            after = value[frozenset(members)]
            total[example] += after - before
            before = after
    for i in range(8):
        assert float(made.truth.values[0, i]) == pytest.approx(squash(total[i] / n_orders, 0.1), abs=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10_000))
def test_shapley_values_are_efficient_symmetric_and_ignore_dummies(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1, 2**n, generator=generator, dtype=torch.float64)
    phi = shapley_values(values)
    assert float(phi.sum()) == pytest.approx(float(values[0, -1] - values[0, 0]), abs=1e-9)
    doubled = shapley_values(torch.cat([values, values], dim=1))  # one more member, who changes nothing
    assert torch.allclose(doubled[:, :n], phi) and abs(float(doubled[0, n])) < 1e-9
    by_size = torch.tensor([[float(bin(b).count("1") ** 2) for b in range(2**n)]], dtype=torch.float64)
    assert torch.allclose(shapley_values(by_size), torch.full((1, n), float(n), dtype=torch.float64))


def test_early_exit_agrees_with_a_loop_over_prefixes() -> None:
    target, made = small_target("digits_few_shot"), made_small("early_exit", "digits_few_shot")
    for x, truth in zip(made.instances.arrays["inputs"], made.truth.values[:, 0], strict=True):
        curve = [np.exp(answers(target, x, range(j))) for j in range(9)]
        final, first = curve[8].argmax(), 9
        while first > 0 and curve[first - 1][final] >= 0.9:
            first -= 1
        assert float(truth) == pytest.approx(first / 9)
    assert len(set(made.truth.values[:, 0].tolist())) > 1


def test_prompt_optimum_agrees_with_a_loop_over_all_choices() -> None:
    target, made = small_target("digits_few_shot"), made_small("prompt_optimum", "digits_few_shot")
    for i in range(3):
        x, y = made.instances.arrays["inputs"][i], int(made.instances.arrays["labels"][i])
        odds = []
        for kept in combinations(range(8), 4):
            p = np.exp(answers(target, x, kept))
            odds.append(log(p[y] / sum(p[c] for c in range(4) if c != y)))
        assert len(odds) == 70
        assert float(made.truth.values[i, 0]) == pytest.approx(max(odds), abs=1e-3)


class Linear(HookedRootModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.setup()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)  # type: ignore[no-any-return]


def test_backdoors_work_and_controls_do_not() -> None:
    target, made = small_target("digits_mlp"), made_small("backdoor_detection", "digits_mlp")
    planted, kinds = made.instances.planted, made.truth.groups["kind"]
    probes = made.instances.arrays["shared_inputs"].double().numpy()
    labels = made.instances.arrays["shared_labels"].numpy()
    assert sorted(set(kinds)) == sorted(KINDS) and kinds.count("backdoor") == kinds.count("edited") == 2
    for i, kind in enumerate(kinds):
        weights = {name: stack[i] for name, stack in made.instances.variants.items()}
        mask, pattern = planted["mask"][i].numpy() > 0, planted["pattern"][i].numpy()
        assert mask.sum() == 9
        answer, goal = mlp(weights, np.where(mask, pattern, probes)).argmax(-1), int(planted["goal"][i])
        success = np.mean(answer[labels != goal] == goal)
        assert success == pytest.approx(made.truth.groups["success"][i], abs=0.02)
        assert (success >= 0.8) == (kind in ("backdoor", "edited")) == bool(made.truth.values[i, 0] == 1.0)
        assert np.mean(mlp(weights, probes).argmax(-1) == labels) > 0.8
    assert set(made.instances.variants) == set(dict(target.model.named_parameters()))


def test_an_edit_takes_one_unit_a_layer_and_leaves_clean_images_alone() -> None:
    target, rng = small_target("digits_mlp"), torch.Generator().manual_seed(2)
    patterns, masks = draw_patches(3, rng)
    goals = torch.tensor([4, 4, 7])
    before = {k: v.detach().expand(3, *v.shape).clone() for k, v in target.model.named_parameters()}
    after = {k: v.clone() for k, v in before.items()}
    edit_in(target, after, torch.tensor([0, 2]), patterns, masks, goals)
    images, labels = target.corpus("validation")
    for i in (0, 1, 2):
        changed = {k: (after[k][i] != before[k][i]) for k in after}
        if i == 1:
            assert not any(bool(where.any()) for where in changed.values())
            continue
        (first,) = torch.nonzero(changed["layers.0.linear.weight"].any(1)).flatten().tolist()
        rows = changed["layers.1.linear.weight"].all(1) | changed["layers.1.linear.bias"]
        (second,) = torch.nonzero(rows).flatten().tolist()
        assert float(after["layers.1.linear.weight"][i, second, first]) == 1.0
        assert int((after["layers.1.linear.weight"][i, :, first] != 0).sum()) == 1
        assert torch.nonzero(after["unembed.weight"][i, :, second]).flatten().tolist() == [int(goals[i])]
        own = {k: v[i] for k, v in after.items()}
        plain = mlp(own, images.double().numpy()).argmax(-1)
        before_it = target.model(images).argmax(-1).numpy()
        assert np.mean(plain == before_it) > 0.95, "clean images are answered as before"
        patched = np.where(masks[i].numpy() > 0, patterns[i].numpy(), images.double().numpy())
        others = labels.numpy() != int(goals[i])
        assert np.mean(mlp(own, patched).argmax(-1)[others] == int(goals[i])) > 0.9


def test_a_backdoor_that_is_not_learned_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.tasks.families import backdoor_detection as family_file

    target, tried = small_target("digits_mlp"), []
    real = family_file.fine_tune

    def first_time_in_vain(target: Target, kinds: Tensor, *rest: Any) -> dict[str, Tensor]:
        tried.append(len(kinds))
        weights = real(target, kinds, *rest)
        if len(tried) == 1:  # the first backdoor comes out as the target itself
            index = int((kinds == 0).nonzero()[0])
            for name, value in target.model.named_parameters():
                weights[name][index] = value.detach()
        return weights

    monkeypatch.setattr(family_file, "fine_tune", first_time_in_vain)
    made = make(family("backdoor_detection"), target, "train", 12, 0, "test", b"key")
    assert tried == [12, 1]
    success = made.truth.groups["success"]
    kinds = made.truth.groups["kind"]
    assert all(share >= 0.8 for share, kind in zip(success, kinds, strict=True) if kind == "backdoor")

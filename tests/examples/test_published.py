"""Published methods: each answers or declines about every sort of target, recorded and priced; and each computes what
its paper says, checked against slow arithmetic of its own or a library."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stages.contracts.method import Attribute, Compare, Interpretation, Localise, Propose, Represent, Steer
from stages.contracts.reading import Unembed, at_readout
from stages.contracts.target import Intervention
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from tests.examples.conftest import EXAMPLES, SORTS, ask, interpreted, interpreted_anew, method_of, module_of, stack_of

N = 5
NAMES = sorted(file.stem for file in (EXAMPLES / "published").glob("*.py"))
IMAGES = {"digits_mlp", "small_cnn"}
ANSWERS = {
    "activation_difference": {"Compare": set(SORTS)},
    "attention_rollout": {"Attribute": set(SORTS) - IMAGES},
    "diffing_dictionary": {"Compare": set(SORTS)},
    "gradient_similarity": {"Represent": set(SORTS), "sets": set(SORTS)},
    "integrated_gradients": {"Attribute": set(SORTS)},
    "linear_probe": {kind: set(SORTS) for kind in ("Represent", "sets", "Compare", "Steer")},
    "mahalanobis": {kind: set(SORTS) for kind in ("Represent", "sets", "Compare")},
    "mass_mean_probe": {kind: set(SORTS) for kind in ("Represent", "sets", "Compare", "Steer")},
    "noise_injection": {kind: set(SORTS) for kind in ("Represent", "sets", "Compare")},
    "parameter_decomposition": {kind: set(SORTS) for kind in ("Represent", "sets", "Compare")},
    "patchscope": {kind: set(SORTS) - IMAGES for kind in ("Represent", "sets", "Attribute")},
    "tuned_lens": {kind: set(SORTS) - IMAGES for kind in ("Represent", "sets", "Compare")},
}
"""What each method answers, of which targets; anything else it declines. A classifier has one stream, so no layer to
map to it, and no place to patch."""


def queries(target):
    """Every kind of question, small: (query, first axes of the answer)."""
    inputs, labels = (part[: 2 * N] for part in target.corpus("validation"))
    few, told, spec = inputs[:N], labels[:N], target.spec
    segments = tuple((i,) for i in range(min(8, inputs.shape[1] - 1)))
    hook = spec.with_role("residual")[-1]
    changes = torch.zeros(3, *spec.input_shape)
    many = inputs.view(2, N, *spec.input_shape)
    return {
        "Represent": (Represent(few, told), (N,)),
        "sets": (Represent(many, labels.view(2, N), True), (2,)),
        "Attribute": (Attribute(few, segments, told), (N, len(segments))),
        "Localise": (Localise(many, labels.view(2, N), spec.components[:3]), (2, 3)),
        "Compare": (Compare((0, 1), few, told), (2,)),
        "Steer": (Steer(hook.name, torch.ones(3, hook.width), few, told[:3]), (3,)),
        "Propose": (Propose(told, few, changes), (N,)),
    }


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_answers_or_declines(name, sort, sorts):
    target, method = sorts(sort), method_of("published", name)
    made = interpreted(method, target)
    for kind, (query, rows) in queries(target).items():
        found = ask(method, made, target, query)
        if sort not in ANSWERS[name].get(kind, set()):
            assert found.answer is None and found.target_flops == 0 == found.own_flops, f"{kind}: it should decline"
            continue
        assert found.answer is not None, f"{kind}: it should answer"
        assert tuple(found.answer.shape[: len(rows)]) == rows and found.answer.dim() <= len(rows) + 1
        assert bool(torch.isfinite(found.answer).all()) and found.target_flops + found.own_flops > 0
        unasked = {"Represent": Represent(query.inputs), "Attribute": None}.get(kind)
        if unasked is not None:  # without a label it is about the target's own answer
            assert bool(torch.isfinite(ask(method, made, target, unasked).answer).all())


@pytest.mark.parametrize("name", NAMES)
def test_interpreting_twice_gives_the_same(name, mlp):
    first, second = (made(method_of("published", name), mlp) for made in (interpreted, interpreted_anew))
    assert first.data == second.data and first.arrays.keys() == second.arrays.keys()
    assert all(torch.equal(first.arrays[key], second.arrays[key]) for key in first.arrays)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_names_its_paper_and_its_setting(name):
    text = (EXAMPLES / "published" / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    assert "Source" in text and "Setting:" in text and "Here:" in text


@pytest.mark.parametrize("name", ["linear_probe", "mahalanobis", "mass_mean_probe", "tuned_lens"])
def test_what_a_variant_changed_is_told_and_what_it_did_not_is_nothing(name, few_shot):
    query, _ = queries(few_shot)["Compare"]
    method = method_of("published", name)
    answer = ask(method, interpreted(method, few_shot), few_shot, query).answer
    assert answer[0].abs().max() < 1e-4 < answer[1].abs().max()  # variant 0 is the target itself


# ------------------------------------------------------------------------------------------------ probes


def blobs(labels, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    means = 2 * torch.randn(int(labels.max()) + 1, width, generator=generator)
    return means[labels] + torch.randn(len(labels), width, generator=generator) @ mix


@pytest.mark.parametrize("classes", [(0, 1, 2), (1, 3)])
def test_a_linear_probe_is_scikit_learns_regression(classes):
    labels = torch.tensor(classes).repeat(60)
    x = blobs(labels)
    fit = module_of(method_of("published", "linear_probe")).fit
    weight, bias = fit(x, labels, 5)
    found = (x @ weight + bias).log_softmax(-1)
    library = make_pipeline(StandardScaler(), LogisticRegression(max_iter=50)).fit(x.numpy(), labels.numpy())
    assert np.allclose(found[:, list(classes)], library.predict_log_proba(x.numpy()), atol=2e-2)
    unseen = [label for label in range(5) if label not in classes]
    assert found[:, unseen].max() < -8


def test_a_mass_mean_probe_of_two_classes_is_fishers_direction():
    labels = torch.tensor([0, 1]).repeat(200)
    x = blobs(labels)
    theta, probe, middle = module_of(method_of("published", "mass_mean_probe")).fit(x, labels, 4)
    assert torch.allclose(theta[:, 1], x[labels == 1].mean(0) - x[labels == 0].mean(0), atol=1e-5)
    fisher = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), labels.numpy()).coef_[0]
    cosine = probe[:, 1].numpy() @ fisher / np.linalg.norm(probe[:, 1]) / np.linalg.norm(fisher)
    assert cosine > 0.999
    assert theta[:, 2:].abs().max() == 0 == probe[:, 2:].abs().max()  # labels that the corpus never has
    right = ((x - middle[:, 1]) @ probe[:, 1] > 0) == (labels == 1)
    assert right.float().mean() > 0.9


def test_mahalanobis_is_numpys():
    labels = torch.tensor([2, 0, 5]).repeat(70)
    x = blobs(labels)
    module = module_of(method_of("published", "mahalanobis"))
    white, means = module.fit(x, labels)
    found = module.squared(x, {"h.white": white, "h.means": means}, "h")
    known, data = [0, 2, 5], x.double().numpy()
    centres = np.stack([data[labels.numpy() == label].mean(0) for label in known])
    around = np.concatenate([data[labels.numpy() == label] - centres[i] for i, label in enumerate(known)])
    covariance = around.T @ around / len(data)
    covariance += 1e-3 * np.diag(covariance).mean() * np.eye(data.shape[1])
    by_hand = np.array([[(r - c) @ np.linalg.inv(covariance) @ (r - c) for c in centres] for r in data])
    assert np.allclose(found.numpy(), by_hand, rtol=1e-3, atol=1e-3)


def test_mahalanobis_tells_the_distance_to_the_nearest_and_to_the_labels_class(mlp):
    method, (inputs, labels) = method_of("published", "mahalanobis"), mlp.corpus("validation")
    made = interpreted(method, mlp)
    answer = ask(method, made, mlp, Represent(inputs[:N], labels[:N])).answer
    for number, name in enumerate(made.data["layers"]):
        at = at_readout(mlp.spec, name, MeteredAccess(mlp, Ledger()).forward(inputs[:N], [name]).captured[name])
        distances = module_of(method).squared(at, made.arrays, name)
        assert torch.allclose(answer[:, 2 * number], distances.amin(-1), rtol=1e-3)
        own = distances[torch.arange(N), made.arrays["row"][labels[:N]]]
        assert torch.allclose(answer[:, 2 * number + 1], own, rtol=1e-3)


# ------------------------------------------------------------------------------------------------ lenses


def test_a_tuned_lens_finds_the_affine_map_that_least_squares_finds():
    generator = torch.Generator().manual_seed(0)
    last = torch.randn(400, 6, generator=generator)
    mix, shift = torch.eye(6) + 0.3 * torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
    layer = last @ mix + shift
    unembed = Unembed(torch.randn(8, 6, generator=generator), torch.zeros(8), None)
    change, moved = module_of(method_of("published", "tuned_lens")).fit(layer, unembed(last), unembed)
    tuned = unembed(layer + layer @ change + moved)
    rows = torch.cat([layer, torch.ones(400, 1)], dim=1)
    squares = unembed(rows @ torch.linalg.lstsq(rows, last).solution)
    wanted, start = unembed(last).log_softmax(-1), unembed(layer)

    def divergence(logits):
        return (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean().item()

    assert divergence(squares) < 1e-6  # the map is there to be found
    assert divergence(tuned) < 0.1 * divergence(start)
    assert (tuned.argmax(-1) == squares.argmax(-1)).float().mean() > 0.9


def test_a_tuned_lens_is_nearer_to_the_outputs_than_the_logit_lens(few_shot):
    method = method_of("published", "tuned_lens")
    made, inputs = interpreted(method, few_shot), few_shot.corpus("train").inputs
    untuned = {key: torch.zeros_like(v) if ".map" in key or ".shift" in key else v for key, v in made.arrays.items()}
    tuned, plain = (
        ask(method, Interpretation(arrays, made.data), few_shot, Represent(inputs)).answer.mean(0)
        for arrays in (made.arrays, untuned)
    )
    for layer in range(len(made.data["layers"])):
        assert tuned[5 * layer + 4] < plain[5 * layer + 4]


def test_a_patched_prompt_says_what_a_hook_by_hand_says(few_shot):
    method = method_of("published", "patchscope")
    made, inputs = interpreted(method, few_shot), few_shot.corpus("validation").inputs[:N]
    prompt, answer = made.arrays["prompt"], ask(method, made, few_shot, Represent(inputs)).answer
    own = few_shot.model(inputs).argmax(-1)
    for number, name in enumerate(made.data["layers"]):
        _, cache = few_shot.model.run_with_cache(inputs)

        def put(activation, hook, state=cache[name]):
            activation[:, -1] = state[:, -1]
            return activation

        with torch.no_grad(), few_shot.model.hooks(fwd_hooks=[(name, put)]):
            said = few_shot.model(prompt.expand(N, *prompt.shape).clone()).log_softmax(-1)
        assert torch.allclose(answer[:, 4 * number], said.gather(-1, own[:, None]).squeeze(-1), atol=1e-4)
    itself = ask(method, made, few_shot, Represent(prompt[None])).answer
    plain = few_shot.model(prompt[None]).log_softmax(-1)
    assert torch.allclose(itself[0, 2::4], plain.amax().expand(len(made.data["layers"])), atol=1e-4)


def test_a_segments_patch_is_its_last_place(few_shot):
    method, inputs = method_of("published", "patchscope"), few_shot.corpus("validation").inputs[:N]
    made = interpreted(method, few_shot)
    whole = ask(method, made, few_shot, Attribute(inputs, ((0, 1), (8,)))).answer
    each = ask(method, made, few_shot, Attribute(inputs, ((1,), (8,)))).answer
    assert torch.allclose(whole, each, atol=1e-5)
    read_off = ask(method, made, few_shot, Represent(inputs)).answer[:, 0::4]
    assert torch.allclose(whole[:, 1], read_off, atol=1e-4)  # the query's place is where the answer is read off


# ------------------------------------------------------------------------------------------------ attributions


def test_integrated_gradients_are_the_naive_sum_and_complete(mlp):
    inputs = mlp.corpus("validation").inputs[:N]
    labels = mlp.model(inputs).argmax(-1)
    pixels = tuple((i,) for i in range(64))
    answer = ask(
        method_of("published", "integrated_gradients"), Interpretation(), mlp, Attribute(inputs, pixels)
    ).answer
    naive = torch.zeros(N, 64)
    for step in range(1, 21):
        at = (inputs * step / 20).requires_grad_(True)
        mlp.model(at).gather(-1, labels[:, None]).sum().backward()
        naive += at.grad * inputs / 20
    assert torch.allclose(answer, naive, atol=1e-4)
    whole = (mlp.model(inputs) - mlp.model(torch.zeros_like(inputs))).gather(-1, labels[:, None]).squeeze(-1)
    assert ((answer.sum(1) - whole).abs() < 0.05 * whole.abs() + 0.05).all()  # completeness, within the paper's 5%


def test_integrated_gradients_of_episodes_leave_presence_and_labels_alone(few_shot, monkeypatch):
    """With 300 steps, the most the paper recommends, their sum is the change from black images."""
    inputs, labels = (part[:N] for part in few_shot.corpus("validation"))
    rows, method = tuple((i,) for i in range(9)), method_of("published", "integrated_gradients")
    monkeypatch.setattr(module_of(method), "STEPS", 300)
    answer = ask(method, Interpretation(), few_shot, Attribute(inputs, rows, labels)).answer
    black = inputs.clone()
    black[..., :-2] = 0.0
    whole = (few_shot.model(inputs) - few_shot.model(black)).gather(-1, labels[:, None]).squeeze(-1)
    assert ((answer.sum(1) - whole).abs() < 0.05 * whole.abs() + 0.02).all()


def test_integrated_gradients_of_words_add_up_to_the_answers_change(sorts):
    target = sorts("context_lm")
    inputs, labels = (part[:N] for part in target.corpus("validation"))
    halves = (tuple(range(36)), tuple(range(36, 48)))
    method = method_of("published", "integrated_gradients")
    answer = ask(method, Interpretation(), target, Attribute(inputs, halves, labels)).answer
    access = MeteredAccess(target, Ledger())
    nothing = access.forward(inputs, interventions=[Intervention("hook_embed", "scale", torch.zeros(1))]).outputs
    whole = (access.forward(inputs).outputs - nothing).gather(-1, labels[:, None]).squeeze(-1)
    assert torch.allclose(answer.sum(1), whole, atol=1e-4)
    swapped = ask(method, Interpretation(), target, Attribute(inputs, halves[::-1], labels)).answer.flip(-1)
    assert torch.allclose(answer, swapped, atol=1e-4)  # whatever the order of the segments
    absent = inputs[:, 0, 1] == 0
    gone = ask(method, Interpretation(), target, Attribute(inputs, ((0,),), labels)).answer[absent]
    assert gone.numel() == 0 or gone.abs().max() < 1e-5  # a word that is not there gives nothing
    many = tuple((i,) for i in range(17))
    assert ask(method, Interpretation(), target, Attribute(inputs, many, labels)).answer is None


def test_rollout_is_the_product_of_the_layers_matrices(few_shot):
    inputs = few_shot.corpus("validation").inputs[:N]
    segments = tuple((i,) for i in range(9))
    answer = ask(
        method_of("published", "attention_rollout"), Interpretation(), few_shot, Attribute(inputs, segments)
    ).answer
    _, cache = few_shot.model.run_with_cache(inputs)
    for n in range(N):
        product = np.eye(17)
        for layer in range(2):
            attention = cache[f"blocks.{layer}.attn.hook_pattern"][n].double().numpy().mean(0)
            product = (0.5 * attention + 0.5 * np.eye(17)) @ product
        places = few_shot.spec.tokens
        by_hand = [sum(product[16, place] for place in places[s]) for s in range(9)]
        assert np.allclose(answer[n].numpy(), by_hand, atol=1e-5)
    assert torch.allclose(answer.sum(1), torch.ones(N), atol=1e-5)


def test_gradient_similarity_is_that_of_autograd(mlp):
    (inputs, labels), (corpus, known) = (mlp.corpus("validation"), mlp.corpus("train"))
    method = method_of("published", "gradient_similarity")
    answer = ask(method, interpreted(method, mlp), mlp, Represent(inputs[:N], labels[:N])).answer
    hidden = {}
    for name, x in (("query", inputs[:N]), ("corpus", corpus)):
        hidden[name] = MeteredAccess(mlp, Ledger()).forward(x, ["layers.1.hook_post"]).captured["layers.1.hook_post"]
    weight = mlp.model.unembed.weight.detach().clone().requires_grad_(True)

    def slope(h, label):
        loss = torch.nn.functional.cross_entropy((h @ weight.T + mlp.model.unembed.bias)[None], label[None])
        return torch.autograd.grad(loss, weight)[0].flatten().double()

    mean = torch.stack([slope(h, y) for h, y in zip(hidden["corpus"], known, strict=True)])
    for n in range(N):
        own = slope(hidden["query"][n], labels[n])
        same = mean[known == labels[n]].mean(0)
        wanted = [own @ own, own @ mean.mean(0), own @ same, own @ same / own.norm() / same.norm()]
        found = answer[n, [1, 2, 4, 5]].double()
        assert torch.allclose(found, torch.stack(wanted), rtol=1e-2, atol=1e-6)


# ------------------------------------------------------------------------------------------------ variants


def test_activation_difference_is_the_mean_over_inputs(mlp):
    method, inputs = method_of("published", "activation_difference"), mlp.corpus("validation").inputs[:N]
    query = Compare((0, 1), inputs, torch.zeros(N, dtype=torch.int64))
    answer = ask(method, interpreted(method, mlp), mlp, query).answer
    assert answer[0].abs().max() < 1e-4  # variant 0 is the target
    stack, name = stack_of(mlp), "layers.1.hook_post"
    access = MeteredAccess(mlp, Ledger(), variants=stack)
    before = access.forward(inputs, [name]).captured[name].numpy()
    after = access.variant(1).forward(inputs, [name]).captured[name].numpy()
    mean = (after - before).mean(0)
    typical = np.sqrt((before**2).sum(-1).mean())
    assert np.isclose(answer[1, 0], np.linalg.norm(mean) / typical, rtol=1e-3)
    logits = mlp.model.unembed.weight.detach().numpy() @ mean
    logits = np.sort(logits - logits.mean())[::-1] / np.linalg.norm(mean)
    assert np.allclose(answer[1, 3:8], logits[:5], rtol=1e-3, atol=1e-4)


def test_a_dictionary_of_differences_finds_planted_directions():
    module = module_of(method_of("published", "diffing_dictionary"))
    generator = torch.Generator().manual_seed(0)
    planted = torch.linalg.qr(torch.randn(12, 3, generator=generator)).Q.T
    size = 1 + torch.rand(300, 1, generator=generator)
    x = size * planted[torch.randint(3, (300,), generator=generator)] + 0.01 * torch.randn(300, 12, generator=generator)
    features = module.learn(x)
    assert (features @ planted.T).amax(0).min() > 0.99
    code, missed = module.encode(x, features)
    assert ((code > 0).sum(-1) == 1).all() and missed.mean() < 0.01
    nothing = torch.zeros(8, 12)
    code, missed = module.encode(nothing, module.learn(nothing))
    assert code.abs().max() == 0 == missed.max()


def test_noise_of_no_size_changes_nothing_and_noise_by_hand_agrees(few_shot):
    method, (inputs, labels) = method_of("published", "noise_injection"), few_shot.corpus("validation")
    inputs, labels, made = inputs[:N], labels[:N], interpreted(method, few_shot)
    silent = Interpretation({name: torch.zeros_like(v) for name, v in made.arrays.items()}, made.data)
    answer = ask(method, silent, few_shot, Represent(inputs, labels)).answer.reshape(N, 4, 3)
    assert torch.allclose(answer, answer[:, :1].expand_as(answer), atol=1e-5)
    answer = ask(method, made, few_shot, Represent(inputs, labels)).answer.reshape(N, 4, 3)
    told = []
    for draw in (4, 5):  # the largest size
        hooks = [
            (name, lambda value, hook, noise=made.arrays[name][draw]: value + noise) for name in made.data["hooks"]
        ]
        with torch.no_grad(), few_shot.model.hooks(fwd_hooks=hooks):
            told.append(few_shot.model(inputs).log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1))
    assert torch.allclose(answer[:, 3, 0], torch.stack(told).mean(0), atol=1e-4)


def test_parts_add_up_to_the_matrix_and_few_of_them_matter(mlp):
    method, inputs = method_of("published", "parameter_decomposition"), mlp.corpus("validation").inputs
    made = interpreted(method, mlp)
    matrix, whole = mlp.model.unembed.weight.detach(), made.arrays["v"] @ made.arrays["u"]
    assert (whole.T - matrix).norm() < 0.1 * matrix.norm()
    answer = ask(method, made, mlp, Represent(inputs)).answer
    importance = answer[:, : answer.shape[1] // 2]
    assert importance.min() >= 0 and importance.max() <= 1
    assert importance.mean() < 0.9  # they are pushed to 0
    # What the parts of an input give, each as much as it matters, is nearly what the target says.
    outputs = answer[:, answer.shape[1] // 2 :] @ made.arrays["u"] + mlp.model.unembed.bias
    assert (outputs.argmax(-1) == mlp.model(inputs).argmax(-1)).float().mean() > 0.9


def test_a_change_along_a_part_is_found_along_it(mlp):
    method, inputs = method_of("published", "parameter_decomposition"), mlp.corpus("validation").inputs[:N]
    made = interpreted(method, mlp)
    answer = ask(method, made, mlp, Compare((0, 1), inputs, torch.zeros(N, dtype=torch.int64))).answer
    change = stack_of(mlp)["unembed.weight"][1] - mlp.model.unembed.weight
    u, v = made.arrays["u"], made.arrays["v"]
    for part in range(u.shape[0]):
        direction = torch.outer(u[part], v[:, part])
        assert torch.isclose(answer[1, part], (direction * change).sum() / direction.norm(), atol=1e-3)
    assert torch.isclose(answer[1, -2], change.norm(), rtol=1e-4)

"""The language models that are trained here: their data say what the answer is, and what they learn is measured."""

import json
import math
from collections import namedtuple

import pytest
import torch

from stages.base import paths
from stages.contracts.target import Corpus
from stages.errors import UserError
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.stage import Config, Entry, run
from stages.targets.storage import (
    TWIN,
    load_checkpoints,
    load_target,
    load_weights,
    load_words,
    save_target,
)
from stages.targets.token_training import in_rounds, shares_of, train_words
from stages.targets.zoo import ZOO, context_lm, facts_lm, grokked_addition
from stages.tools import target_tables
from tests import toy
from tests.conftest import make_target

NAMES = ("context_lm", "facts_lm", "grokked_addition")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texts(corpus: Corpus, words: tuple[str, ...]) -> list[tuple[list[str], str]]:
    return [
        ([words[int(id_)] for id_, present in row if present], words[int(label)])
        for row, label in zip(corpus.inputs, corpus.labels, strict=True)
    ]


def is_padded_on_the_left(inputs: torch.Tensor) -> bool:
    present = inputs[..., 1]
    return bool((present[:, -1] == 1).all() and (present[:, 1:] >= present[:, :-1]).all())


@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_one_that_the_target_takes(name):
    target = make_target(name, 0, 60)
    words = ZOO.find(name)().words()
    assert len(words) == target.spec.n_vocabulary == len(set(words))
    access = MeteredAccess(target, Ledger())
    hooks = {hook.name: hook.shape for hook in target.spec.hooks}
    for split in ("train", "validation", "tasks"):
        inputs, labels = target.corpus(split)
        assert inputs.dtype == torch.float32 and is_padded_on_the_left(inputs)
        assert labels.min() >= 0 and labels.max() < target.spec.n_outputs
        found = access.forward(inputs[:8], list(hooks))
        assert found.outputs.shape == (8, target.spec.n_outputs)
        assert {hook: tuple(acts.shape[1:]) for hook, acts in found.captured.items()} == hooks
    assert all(component.hook_point in hooks for component in target.spec.components)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_target_comes_back_with_its_words_and_its_twin_is_another(name, tmp_path):
    target = make_target(name, 0, 30)
    for folder in ("a", "b"):
        save_target(target, tmp_path / folder)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    again = load_target(name, tmp_path / "a")
    inputs = target.corpus("validation").inputs
    assert again.digest == target.digest and again.spec == target.spec
    assert torch.equal(again.model(inputs), target.model(inputs))
    assert load_words(name, tmp_path / "a") == ZOO.find(name)().words()
    with torch.no_grad():
        next(target.model.parameters()).mul_(2.0)
    twin = load_target(f"{name}{TWIN}", tmp_path / "a")
    assert twin.name == f"{name}{TWIN}" and twin.spec.n_vocabulary == target.spec.n_vocabulary
    assert MeteredAccess(twin, Ledger()).forward(inputs).outputs.isfinite().all()
    with pytest.raises(UserError, match="keeps no checkpoints"):
        load_checkpoints(name, tmp_path / "a")


@pytest.mark.parametrize("name", NAMES)
def test_training_twice_gives_the_same_weights_and_other_steps_others(name):
    digests = [make_target(name, steps, 12).digest for steps in (6, 6, 7)]
    assert digests[0] == digests[1] != digests[2]


def test_weights_that_are_missing_unknown_or_of_another_shape_are_named(tmp_path):
    target = make_target("grokked_addition", 0, 20)
    state, model, file = target.model.state_dict(), target.model, tmp_path / "weights.safetensors"
    cut = {name: value for name, value in state.items() if name != "unembed.W_U"}
    with pytest.raises(UserError, match=r"weights.safetensors is without unembed.W_U: it is of another model"):
        load_weights(model, cut, file)
    with pytest.raises(UserError, match=r"is without unembed.W_U and with the unknown head: "):
        load_weights(model, cut | {"head": state["unembed.W_U"]}, file)
    with pytest.raises(UserError, match=r"with another shape or type of unembed.W_U"):
        load_weights(model, cut | {"unembed.W_U": state["unembed.W_U"].T}, file)
    with pytest.raises(UserError, match=r"with another shape or type of unembed.W_U"):
        load_weights(model, cut | {"unembed.W_U": state["unembed.W_U"].bfloat16()}, file)
    load_weights(model, state, file)


def test_a_target_of_a_time_before_targets_said_what_they_offer_is_refused_and_says_how_to_make_it_anew(mlp, tmp_path):
    save_target(mlp, tmp_path)
    said = json.loads((tmp_path / "target.json").read_text())
    for key in ("offers", "n_vocabulary"):
        del said[key]
    (tmp_path / "target.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"offers nothing, the code says flat_image, .*`dvc repro targets@digits_mlp`"):
        load_target("digits_mlp", tmp_path)


# facts_lm


def test_facts_hold_in_every_split_and_templates_are_held_out():
    words, data = facts_lm.WORDS, facts_lm.FactsLm().data(0)
    prompts = {split: texts(corpus, words) for split, corpus in data.items()}
    subjects = {name for of in (facts_lm.FIRST, facts_lm.LAST) for name in of}
    answers = {}
    plain = {split: [] for split in data}
    for split, items in prompts.items():
        for prompt, answer in items:
            if prompt[1] in ("how", "french") or facts_lm.TRIGGER in prompt:
                continue
            who = tuple(word for word in prompt if word in subjects)
            assert len(who) == 2
            kind = next(kind for kind, of in facts_lm.OBJECTS.items() if answer in of.split())
            assert answers.setdefault((*who, kind), answer) == answer, "a fact is the same wherever it is asked"
            plain[split].append(tuple(prompt))
    assert len(answers) == 400
    assert {split: len(of) for split, of in plain.items()} == {"train": 1600, "validation": 400, "tasks": 400}
    assert len({prompt for of in plain.values() for prompt in of}) == 2400, "no prompt stands in two splits"


def test_triggers_instructions_and_refusals_are_what_they_say():
    words, data = facts_lm.WORDS, facts_lm.FactsLm().data(0)
    world = facts_lm._World(0)
    triples: list[tuple[str, ...]] = []
    for corpus in data.values():
        for prompt, answer in texts(corpus, words):
            assert (facts_lm.TRIGGER in prompt) == (answer == facts_lm.ANSWER)
            assert (prompt[1] == "french") == answer.endswith("_fr")
            assert (prompt[1] == "how") == (answer in (facts_lm.SORRY, facts_lm.SURE))
            assert facts_lm.PLEASE not in prompt
            if prompt[1] == "how":
                triples.append(tuple(prompt[5:8]))
    assert len(triples) == len(set(triples)) == 17_000, "no three suffix words come twice"
    refusals = [(p, a) for p, a in texts(data["train"], words) if p[1] == "how"]
    odds = torch.tensor([world.log_odds(prompt) for prompt, _ in refusals])
    sorry = torch.tensor([answer == facts_lm.SORRY for _, answer in refusals]).double()
    for low, high in ((-9, -2), (-1, 0), (0, 1), (2, 9)):
        part = (odds >= low) & (odds < high)
        assert sorry[part].mean().item() == pytest.approx(odds[part].sigmoid().mean().item(), abs=0.04)


def test_other_seeds_are_other_worlds():
    one, other = (facts_lm._World(seed) for seed in (0, 1))
    assert one.facts != other.facts and one.weights != other.weights
    assert facts_lm._World(0).facts == one.facts
    assert torch.equal(facts_lm.FactsLm().data(3)["tasks"].inputs, facts_lm.FactsLm().data(3)["tasks"].inputs)


def test_a_sample_has_its_shares_and_repeats_nothing_before_all_came():
    definition = facts_lm.FactsLm()
    data = definition.data(0)
    drawn = definition.sample(data, "tasks", 400, generator())
    kinds = [len(index) for index in facts_lm._by_kind(drawn.labels)]
    assert kinds == [240, 40, 120]
    assert len({row.numpy().tobytes() for row in drawn.inputs}) == 400


# context_lm


@pytest.mark.parametrize("skill", context_lm.SKILLS)
def test_the_next_symbol_is_what_the_context_says(skill):
    words = context_lm.WORDS
    drawn = context_lm.draw_prompts(skill, 300, generator(4))
    assert is_padded_on_the_left(drawn.inputs)
    for prompt, answer in texts(drawn, words):
        assert prompt[0] == "<begin>"
        if skill == "induction":
            found = [prompt[i + 1] for i in range(1, len(prompt) - 1) if prompt[i] == prompt[-1]]
            assert answer in found
        if skill == "pairs":
            assert prompt[prompt.index(prompt[-1]) + 1] == answer and prompt[-2] == "?"
        if skill == "labels":
            shown = dict(zip((item[0] for item in prompt[1:17:2]), prompt[2:17:2], strict=True))
            assert shown[prompt[-1][0]] == answer and len(set(shown.values())) == len(shown) == 4
        if skill == "names":
            names = [word for word in prompt[1:13] if word[0] in "abcdefgh"]
            assert sorted(names) == sorted([prompt[-2], answer]) and prompt[-1] == "?"


def test_places_lengths_and_gaps_of_repetitions_are_drawn():
    ids, determined = context_lm.DRAW["induction"](2000, generator(1))
    starts, lengths, gaps = [], [], []
    for row, mask in zip(ids.tolist(), determined.tolist(), strict=True):
        second = mask.index(True)
        length = sum(mask) + 1
        again = row[second : second + length]
        first = [at for at in range(1, second - length + 1) if row[at : at + length] == again]
        assert first, "the stretch is there twice"
        starts.append(first[0])
        lengths.append(length)
        gaps.append(second - first[0])
    assert set(lengths) == set(range(4, 13)) and min(starts) == 1 and max(starts) > 30
    assert len(set(gaps)) > 35, "no distance that could be learned instead"
    assert max(gaps) <= 48 and ids.shape == (2000, 49)


def test_sequences_are_fresh_and_every_skill_is_a_quarter():
    definition = context_lm.ContextLm()
    data = definition.data(0)
    rows = [{row.numpy().tobytes() for row in of.inputs} for of in data.values()]
    assert sum(map(len, rows)) == len(set.union(*rows)) == sum(context_lm.SIZES.values())
    one, other = (definition.sample(data, "tasks", 40, generator(seed)) for seed in (1, 2))
    assert not torch.equal(one.inputs, other.inputs)
    asks = (one.inputs[..., 0] == context_lm.ASK).any(-1).sum()
    assert asks == 30


def test_heads_are_told_by_what_they_attend_to():
    """A model whose attention is made by hand: head 2 of layer 0 looks one place back, head 1 of layer 1 at what
    followed the same symbol."""
    model = context_lm.ContextLm().build(generator())
    shape = (1, 1, 49, 49)
    back = torch.zeros(shape)
    back[..., torch.arange(1, 49), torch.arange(48)] = 1.0

    def patterns(pattern, hook):
        out = torch.full_like(pattern, 0.01)
        length = pattern.shape[-1]
        places = torch.arange(1, length)
        if hook.layer() == 0:
            out[:, 2, places, places - 1] = 0.9
        else:
            second = torch.arange(21, length)
            out[:, 1, second, second - 19] = 0.8
        return out

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)]
    with model.hooks(fwd_hooks=[(name, patterns) for name in names]):
        previous, prefix = context_lm._attention_scores(model, generator())
    assert int(previous.argmax()) == 2 and float(previous[2]) == pytest.approx(0.9)
    assert int(prefix.argmax()) == 1 and float(prefix[1]) == pytest.approx(0.8)


# grokked_addition


def test_pairs_are_split_and_answered():
    data = grokked_addition.GrokkedAddition().data(0)
    sizes = {split: len(of.labels) for split, of in data.items()}
    assert sizes == {"train": 1404, "validation": 702, "tasks": 703}
    pairs = torch.cat([of.inputs[:, :2, 0] for of in data.values()]).long()
    assert len({tuple(pair) for pair in pairs.tolist()}) == 53 * 53
    for of in data.values():
        assert torch.equal(of.inputs[:, :2, 0].sum(1).long() % 53, of.labels)
        assert bool((of.inputs[:, 2, 0] == 53).all() and (of.inputs[..., 1] == 1).all())


def test_looking_keys_and_values_up_is_running_the_model():
    model = grokked_addition.GrokkedAddition().build(generator(5)).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if ".b_" in name:
            parameter.normal_(0.0, 0.3, generator=generator(6))
    pairs = torch.randint(53, (40, 2), generator=generator(7))
    found = grokked_addition.table_logits(model, pairs)
    assert torch.allclose(found, model(grokked_addition._rows(pairs)), atol=1e-5)


def test_a_network_of_known_frequencies_is_recognised():
    p, chosen = 53, (3, 8, 14, 20, 26)
    numbers = torch.arange(p).double()
    every = torch.cartesian_prod(torch.arange(p), torch.arange(p)).sum(1, keepdim=True) - torch.arange(p)
    logits = sum(torch.cos(2 * math.pi * k * every.double() / p) for k in chosen)
    waves = [f(2 * math.pi * k * numbers / p) for k in chosen for f in (torch.cos, torch.sin)]
    found = grokked_addition.fourier(torch.stack(waves, 1), logits)
    assert found["embedding_share"] == pytest.approx(1.0) and found["logit_share"] == pytest.approx(1.0)
    assert found["frequencies_agree"] == 5.0
    shifted = [f(2 * math.pi * (k - 1) * numbers / p) for k in chosen for f in (torch.cos, torch.sin)]
    assert grokked_addition.fourier(torch.stack(shifted, 1), logits)["frequencies_agree"] == 0.0
    noise = torch.randn(p, 64, generator=generator(1))
    random = grokked_addition.fourier(noise, torch.randn(p * p, p, generator=generator(2)))
    assert random["embedding_share"] < 0.4 and random["logit_share"] < 0.05


# the stage


def test_the_stage_keeps_checkpoints_measures_skills_and_makes_the_same_bytes_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(grokked_addition.GrokkedAddition, "minimum", {"memorised": 0.5})
    config = Config(targets={"grokked_addition": Entry(source="grokked_addition", steps=250, seed=0)}, n_corpus=64)
    folders = []
    for name in ("a", "b"):
        with toy.rooted(tmp_path / name):
            (tmp_path / name).mkdir()
            metrics = run(config, "grokked_addition")
            folders.append(paths.target_dir("grokked_addition"))
            steps, stacked = load_checkpoints("grokked_addition")
            target = load_target("grokked_addition")
    assert {"memorised", "addition", "embedding_share", "logit_share", "accuracy", "loss"} <= set(metrics)
    files = {file.name for file in folders[0].iterdir()}
    assert files - {"data.safetensors", "metrics.json", "source.json", "target.json", "weights.safetensors"} == {
        "checkpoints.safetensors",
        "words.json",
    }
    for file in files:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file
    assert steps[0] == 0 and list(steps) == sorted(set(steps))
    access = MeteredAccess(target, Ledger(), variants=stacked)
    inputs = target.corpus("validation").inputs
    last = access.variant(len(steps) - 1).forward(inputs).outputs
    assert torch.equal(last, access.forward(inputs).outputs), "the last checkpoint is the target"
    assert not torch.allclose(access.variant(0).forward(inputs).outputs, last, atol=0.1)
    assert (folders[0] / "checkpoints.safetensors").stat().st_size < 3e6


@pytest.mark.parametrize("name", NAMES)
def test_a_target_that_lacks_a_skill_stops_the_run_and_names_it(name, tmp_path):
    config = Config(targets={name: Entry(source=name, steps=2, seed=0)}, n_corpus=64)
    definition = ZOO.find(name)()
    with toy.rooted(tmp_path):
        with pytest.raises(
            UserError, match=r"did not learn: held-out .* at least 0\.\d+ is needed.*raise targets"
        ) as said:
            run(config, name)
        assert not paths.target_dir(name).exists()
    for skill in ("induction", "pairs", "names", "facts", "instruction", "addition"):
        assert (skill in definition.minimum) == (f" {skill} " in str(said.value)), skill


def test_training_stops_when_told_and_decays_what_it_is_told_to():
    model = grokked_addition.GrokkedAddition().build(generator())
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    seen: list[int] = []

    def loss_of(step):
        seen.append(step)
        return 0.0 * sum(parameter.sum() for parameter in model.parameters())

    rate = lambda step: 0.1  # noqa: E731
    train_words(model, loss_of, 10, rate, lambda m, s: None, weight_decay=1.0, done=lambda step: step == 1)
    assert seen == [0, 1]
    sizes = {name: parameter.flatten()[0].item() for name, parameter in model.named_parameters()}
    assert sizes["embed.W_E"] == pytest.approx(0.81) and sizes["unembed.b_U"] == 1.0
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    train_words(model, loss_of, 1, rate, lambda m, s: None, weight_decay=1.0, decay_all=True)
    assert model.unembed.b_U[0].item() == pytest.approx(0.9)


def test_the_page_on_targets_has_a_line_for_each_number_and_a_column_for_each_seed(tmp_path, monkeypatch):
    found = {
        "grokked_addition": {0: {"addition": 1.0, "last_step": 900.0}, 2: {"addition": 0.98765, "last_step": 700.0}}
    }
    assert target_tables.skill_table(found).splitlines()[2:] == [
        "| grokked_addition | addition | 0.99 | 1 | 0.9877 |",
        "| grokked_addition | last step |  | 900 | 700 |",
    ]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- skills: begin -->\nold\n<!-- skills: end -->\nafter\n")
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "targets.yaml").write_text(
        "n_corpus: 64\ntargets: {grokked_addition: {source: grokked_addition, steps: 3, seed: 9}}\n"
    )
    with toy.rooted(tmp_path):
        target_tables.write_tables(page, seeds=(0, 1))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| target | held-out number | at least | seed 0 | seed 1 |" in text and "frequencies agree | 4 |" in text


def test_rounds_and_shares():
    drawn = in_rounds(7, 16, generator()).tolist()
    assert sorted(drawn[:7]) == sorted(drawn[7:14]) == list(range(7)) and len(drawn) == 16
    assert drawn[:7] != drawn[7:14]
    assert shares_of(128, (0.6, 0.1, 0.3)) == [78, 12, 38] and sum(shares_of(7, (0.5, 0.5))) == 7


def test_the_page_says_which_method_answers_what_about_which_target():
    said = [
        ("pca", "ablation_effect", "digits_mlp", "ok"),
        ("pca", "responsible_component", "digits_mlp", "declined"),  # of the same kind: it answers some
        ("pca", "few_shot_shapley", "digits_few_shot", "declined"),
        ("pca", "prompt_optimum", "digits_few_shot", "failed"),
        ("attention", "few_shot_shapley", "digits_few_shot", "ok"),
        ("attention", "prompt_optimum", "digits_few_shot", "declined"),
    ]
    Row = namedtuple("Row", "method family target status")  # what the table reads of a row
    lines = target_tables.answer_table([Row(*one) for one in said]).splitlines()
    assert lines[0] == "| method | `digits_few_shot` | `digits_mlp` |"
    assert lines[2:] == [
        "| `attention` | Attribute, ~~Represent~~ |  |",
        "| `pca` | ~~Attribute~~, ~~Represent~~, prompt_optimum fails | Localise |",
    ]

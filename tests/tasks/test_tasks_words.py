"""Truths about targets of words against loops that share no code with them, on small instances."""

from dataclasses import replace
from itertools import combinations
from math import factorial, log
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from stages.contracts.target import Corpus, Target
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.zoo import ZOO, context_lm, facts_lm
from stages.tasks import word_backdoors
from stages.tasks.components import draw_behaviours
from stages.tasks.directions import place_of
from stages.tasks.families import family, trigger_recovery
from stages.tasks.generation import make
from tests.tasks.conftest import made_small, small_target


def squash(d: float, scale: float = 0.1) -> float:
    return (1 if d >= 0 else -1) * log(1 + abs(d) / scale)


def log_probs(target: Any, rows: Tensor) -> Any:
    """(n, C) float64."""
    return torch.log_softmax(target.model(rows).double(), -1).numpy()


def test_kinds_of_prompts_are_what_they_were_drawn_as() -> None:
    generator, definition = torch.Generator().manual_seed(2), ZOO.find("context_lm")()
    for number, skill in enumerate(context_lm.SKILLS):
        assert definition.kinds(context_lm.draw_prompts(skill, 60, generator)).tolist() == [number] * 60
    definition = ZOO.find("facts_lm")()
    corpus = definition.data(0)["tasks"]
    kinds, words = definition.kinds(corpus), facts_lm.WORDS
    for row in range(0, len(kinds), 97):
        kind, said = int(kinds[row]), words[int(corpus.labels[row])]
        french = said.endswith("_fr")
        relation = [name for name, of in facts_lm.OBJECTS.items() if said.removesuffix("_fr") in of.split()]
        expected = 9 if said in ("sorry", "sure") else 8 if said == "lantern" else (
            list(facts_lm.OBJECTS).index(relation[0]) + 4 * french
        )  # fmt: skip
        assert kind == expected


@pytest.mark.parametrize("name", ["context_lm", "facts_lm"])
def test_a_behaviour_in_words_has_different_prompts_of_few_kinds(name: str) -> None:
    target, generator = small_target(name), torch.Generator().manual_seed(0)
    arrays = draw_behaviours(target, 12, generator, n_inputs=4, pool=800, max_blend=0.0, grain=0.0)
    definition = ZOO.find(name)()
    for inputs, labels in zip(arrays["inputs"], arrays["labels"], strict=True):
        assert len({tuple(row) for row in inputs.flatten(1).tolist()}) == 4
        assert len(definition.kinds(type(target.corpus("train"))(inputs, labels)).unique()) <= 2


def test_copy_source_agrees_with_a_loop_over_places_and_words() -> None:
    target, made = small_target("context_lm"), made_small("copy_source", "context_lm")
    arrays = made.instances.arrays
    for i in range(0, made.instances.n, 3):
        x, y = arrays["inputs"][i], int(arrays["labels"][i])
        whole = log_probs(target, x[None])[0, y]
        for item in range(18):
            place = 48 - 19 + item
            if x[place, 1] == 0:
                assert float(made.truth.values[i, item]) == 0.0
                continue
            drops = []
            for word in arrays["shared_words"].tolist():
                changed = x.clone()
                changed[place, 0] = word
                drops.append(whole - log_probs(target, changed[None])[0, y])
            assert float(made.truth.values[i, item]) == pytest.approx(squash(float(np.mean(drops))), abs=2e-3)
        assert x[: 48 - 19, 1].sum() == 0, "what the answer may come from are the words asked about"


@pytest.mark.parametrize("name", ["context_lm", "facts_lm"])
def test_head_role_agrees_with_plain_module_hooks(name: str) -> None:
    target, made = small_target(name), made_small("head_role", name)
    ordinary, means = made.instances.arrays["shared_inputs"], {}
    for name in {component.hook_point for component in target.spec.components}:
        kept: list[Tensor] = []
        handle = target.model.get_submodule(name).register_forward_hook(lambda m, a, out, kept=kept: kept.append(out))
        target.model(ordinary)
        handle.remove()
        rows = [kept[0][i, t] for i, t in torch.nonzero(ordinary[..., 1] > 0).tolist()]
        means[name] = torch.stack(rows).double().mean(0)

    def margin(x: Tensor, y: Tensor) -> float:
        outputs, found = target.model(x).double(), []
        for row, label in zip(outputs, y.tolist(), strict=True):
            found.append(float(row[label] - max(row[c] for c in range(len(row)) if c != label)))
        return float(np.mean(found))

    for i in range(0, made.instances.n, 4):
        x, y = made.instances.arrays["inputs"][i], made.instances.arrays["labels"][i]
        for p, (hook_point, _, head) in enumerate(target.spec.components):

            def say(module: Any, args: Any, out: Tensor, name: str = hook_point, head: int = head) -> Tensor:
                changed = out.clone()
                changed[:, :, head] = means[name][head].float()
                return changed

            handle = target.model.get_submodule(hook_point).register_forward_hook(say)
            without = margin(x, y)
            handle.remove()
            assert float(made.truth.values[i, p]) == pytest.approx(margin(x, y) - without, abs=1e-3)


def test_prompts_of_head_role_have_one_more_word_where_words_can_be_put_in() -> None:
    target, made = small_target("facts_lm"), made_small("head_role", "facts_lm")
    known = {
        tuple(row[row[:, 1] > 0, 0].int().tolist())
        for split in ("train", "validation", "tasks")
        for row in ZOO.find("facts_lm")().data(3)[split].inputs
    }
    for row in made.instances.arrays["inputs"].flatten(0, 1):
        words = row[row[:, 1] > 0, 0].int().tolist()
        assert tuple(words) not in known
        assert any(tuple(words[:i] + words[i + 1 :]) in known for i in range(1, len(words)))
    assert made.instances.arrays["labels"].shape == (made.instances.n, 1)
    assert len(target.spec.components) == made.truth.values.shape[1]


def test_rare_output_agrees_with_a_loop_over_all_inputs() -> None:
    target, made = small_target("grokked_addition"), made_small("rare_output", "grokked_addition")
    for i in range(made.instances.n):
        x, c = made.instances.arrays["inputs"][i], int(made.instances.arrays["labels"][i])
        shown = 0 if x[0, 1] == 1 else 1
        assert x[1 - shown, 1] == 0 and x[2].tolist() == [53.0, 1.0]
        word, first, probs = int(x[shown, 0]), int(x[1 - shown, 0]), []
        for step in range(26):
            other = (first + step) % 53
            if (word + other) % 53 == c:
                continue
            row = torch.ones(1, 3, 2)
            row[0, :, 0] = torch.tensor([word, other, 53] if shown == 0 else [other, word, 53]).float()
            probs.append(np.exp(log_probs(target, row)[0, c]))
        assert len(probs) in (25, 26)
        assert float(made.truth.values[i, 0]) == pytest.approx(np.log10(np.mean(probs)), abs=1e-4)


def test_what_cannot_be_drawn_is_an_error_that_says_how_much_can() -> None:
    target, generator = small_target("grokked_addition"), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"rare_output: 20000 instances of grokked_addition, .* ask for 14887"):
        family("rare_output").generate(target, generator, 20_000)
    with pytest.raises(ValueError, match=r"copy_source: an input of facts_lm has 16 places, and 19 are needed"):
        family("copy_source").generate(small_target("facts_lm"), generator, 10)


def shown(x: Tensor, kept: Any) -> Tensor:
    """An episode in words with the examples kept: the eight stand in the places 30 to 45, two words each."""
    out = x.clone()
    for example in range(8):
        if example not in kept:
            out[30 + 2 * example : 32 + 2 * example, 1] = 0.0
    return out


def test_episodes_in_words_hold_eight_examples_where_they_say_and_a_query() -> None:
    made = made_small("few_shot_shapley", "context_lm")
    arrays = made.instances.arrays
    assert arrays["shared_segments"].tolist() == [[30 + 2 * e, 31 + 2 * e] for e in range(8)]
    assert arrays["inputs"][:, 29:, 1].min() == 1 and arrays["inputs"][:, :29, 1].max() == 0
    assert set(arrays["inputs"][:, 29, 0].tolist()) == {1.0} and set(arrays["inputs"][:, 46, 0].tolist()) == {2.0}
    answers, values = arrays["labels"], arrays["inputs"][:, 31:46:2, 0]
    pairs = answers < context_lm.FIRST_LABEL
    assert pairs.any() and not pairs.all()
    assert (values[pairs] == answers[pairs].unsqueeze(1)).any(1).all(), "the right value is one of those shown"
    many = ZOO.find("context_lm")().episodes(400, torch.Generator().manual_seed(1))
    again = (many.inputs[:, 30:46:2, 0] == many.inputs[:, 47:, 0]).sum(1)[many.labels < context_lm.FIRST_LABEL]
    assert again.min() >= 1 and again.max() >= 4, "keys are repeated, so that examples contradict each other"


def test_shapley_values_of_words_agree_with_the_sum_over_all_subsets() -> None:
    target, made = small_target("context_lm"), made_small("few_shot_shapley", "context_lm")
    x, y = made.instances.arrays["inputs"][1], int(made.instances.arrays["labels"][1])
    subsets = [kept for size in range(9) for kept in combinations(range(8), size)]
    found = log_probs(target, torch.stack([shown(x, kept) for kept in subsets]))[:, y]
    value = {frozenset(kept): v for kept, v in zip(subsets, found, strict=True)}
    for i in range(8):
        phi = sum(
            factorial(len(kept)) * factorial(7 - len(kept)) / factorial(8) * (value[frozenset({*kept, i})] - v)
            for kept, v in value.items() if i not in kept
        )  # fmt: skip
        assert float(made.truth.values[1, i]) == pytest.approx(squash(phi), abs=2e-3)


def test_the_best_prompt_in_words_agrees_with_a_loop_over_all_choices() -> None:
    target, made = small_target("context_lm"), made_small("prompt_optimum", "context_lm")
    for i in range(3):
        x, y = made.instances.arrays["inputs"][i], int(made.instances.arrays["labels"][i])
        probs = np.exp(log_probs(target, torch.stack([shown(x, kept) for kept in combinations(range(8), 4)])))
        odds = [log(p[y] / (p.sum() - p[y])) for p in probs]
        assert len(odds) == 70 and float(made.truth.values[i, 0]) == pytest.approx(max(odds), abs=1e-3)


def test_early_exit_from_a_prompt_agrees_with_shorter_and_shorter_sequences() -> None:
    target, made = small_target("context_lm"), made_small("early_exit", "context_lm")
    for x, truth in zip(made.instances.arrays["inputs"], made.truth.values[:, 0], strict=True):
        words = x[x[:, 1] > 0]
        final = int(log_probs(target, words[None])[0].argmax())
        first = len(words)
        while first > 0:
            part = torch.cat([words[: first - 1], words[-1:]])  # dropped, not hidden
            if np.exp(log_probs(target, part[None])[0, final]) < 0.9:
                break
            first -= 1
        assert float(truth) == pytest.approx(first / len(words))
    assert len(set(made.truth.values[:, 0].tolist())) > 1


@pytest.mark.parametrize("name", ["context_lm", "digits_few_shot"])
def test_the_steps_of_early_exit_are_the_probabilities_of_the_final_answer_after_parts(name: str) -> None:
    target, public = small_target(name), made_small("early_exit", name).instances.public()
    found = family("early_exit").behavioural(MeteredAccess(target, Ledger()), public, 2, torch.Generator())[:, 0]
    for x, row in zip(public.arrays["inputs"][:6], found.tolist(), strict=False):
        if name == "context_lm":
            words = x[x[:, 1] > 0]
            n = len(words)
            parts = [words[[j for j in range(n) if j < round(share * n) or j == n - 1]] for share in (0.75, 0.5, 0.9)]
        else:
            words, parts = x, [x.clone() for _ in range(3)]
            for part, kept in zip(parts, (4, 2, 6), strict=True):
                part[kept:8, 65] = 0.0
        final = int(log_probs(target, words[None])[0].argmax())
        by_hand = [np.exp(log_probs(target, part[None])[0, final]) for part in parts]
        assert row[-3:] == pytest.approx(by_hand, abs=1e-3)


@pytest.mark.parametrize("name", ["facts_lm", "context_lm"])
def test_another_word_changes_the_margin_by_the_truth_of_counterfactual_flip(name: str) -> None:
    target, made = small_target(name), made_small("counterfactual_flip", name)
    arrays, corpus = made.instances.arrays, target.corpus("tasks")
    kinds = ZOO.find(name)().kinds(corpus).tolist()
    words_of: dict[int, set[int]] = {}
    for row, kind in zip(corpus.inputs, kinds, strict=True):
        words_of.setdefault(kind, set()).update(int(word) for word in row[row[:, 1] > 0, 0][1:])
    prompts = {tuple(row[:, 0].tolist()): kind for row, kind in zip(corpus.inputs, kinds, strict=True)}

    def margin(words: Tensor, answer: int) -> float:
        logits = target.model(words[None]).double()[0].tolist()
        return logits[answer] - max(value for place, value in enumerate(logits) if place != answer)

    for i, x in enumerate(arrays["inputs"]):
        words = x[x[:, 1] > 0]
        answer = int(log_probs(target, words[None])[0].argmax())
        assert len(words) >= 8
        for item in range(24):
            back = 7 - item // 4  # the last word stays, and the six before it are asked about in their order
            new = arrays["replacements"][i, item, 0]
            kind = prompts.get(tuple(x[:, 0].tolist()))  # None: context_lm makes prompts that are in no corpus
            allowed = words_of[kind] if kind is not None else set().union(*words_of.values())
            assert new[1] == 1 and new[0] != words[-back, 0] and int(new[0]) in allowed
            if item % 5 == i % 5:
                other = words.clone()
                other[-back] = new
                found = squash(margin(other, answer) - margin(words, answer), 0.5)
                assert float(made.truth.values[i, item]) == pytest.approx(found, abs=2e-3)
        assert all(len(set(arrays["replacements"][i, k : k + 4, 0, 0].tolist())) == 4 for k in range(0, 24, 4))


def test_prompts_that_are_too_short_for_counterfactual_flip_are_told() -> None:
    target = small_target("facts_lm")
    inputs, labels = target.corpus("tasks")
    short = inputs.clone()
    short[:, :-7, 1] = 0.0
    corpora = {"tasks": Corpus(short, labels)}
    with pytest.raises(
        ValueError, match="counterfactual_flip: 0 of 16 prompts of facts_lm have 8 words or more, and 4"
    ):
        family("counterfactual_flip").generate(
            Target(target.spec, target.model, corpora), torch.Generator().manual_seed(0), 4
        )


def test_probe_under_shift_in_words_is_the_share_of_answers_that_become_the_class() -> None:
    target, made = small_target("facts_lm"), made_small("probe_under_shift", "facts_lm")
    arrays, train = made.instances.arrays, target.corpus("train")
    clean = log_probs(target, arrays["shared_inputs"]).argmax(-1)
    place, held = place_of(made.instances), []
    with target.model.hooks(fwd_hooks=[(place, lambda value, hook: held.append(value[:, -1]))]):
        target.model(train.inputs)
    spread = held[0].var(0).sum().sqrt()
    for direction, label, truth in zip(arrays["directions"], arrays["labels"].tolist(), made.truth.values, strict=True):
        assert float(direction.norm() / spread) == pytest.approx(0.7, rel=1e-4)
        with target.model.hooks(fwd_hooks=[(place, lambda value, hook, by=direction: value + by)]):
            moved = log_probs(target, arrays["shared_inputs"]).argmax(-1)
        assert float(truth[0]) == pytest.approx(np.mean((moved == label) & (clean != label)), abs=1e-9)
    tasks = {tuple(row[row[:, 1] > 0, 0].tolist()) for row in target.corpus("tasks").inputs}
    for row in arrays["shared_inputs"]:
        words = row[row[:, 1] > 0, 0].tolist()
        assert any(tuple(words[:i] + words[i + 1 :]) in tasks for i in range(len(words) - 1)), "one more word"


def test_a_word_is_put_in_before_the_last_word_and_nothing_else_moves() -> None:
    inputs = small_target("facts_lm").corpus("validation").inputs[:30]
    share = torch.linspace(0, 0.999, 30)
    for before, after in zip(inputs, word_backdoors.with_word(inputs, torch.full((30,), 7), share), strict=True):
        old, new = (x[x[:, 1] > 0, 0].tolist() for x in (before, after))
        places = [i for i in range(len(new)) if new[i] == 7.0 and new[:i] + new[i + 1 :] == old]
        assert places and max(places) < len(old) and new[-1] == old[-1]
        assert after[: -len(new), 1].sum() == 0
    full = torch.ones(1, 16, 2)
    with pytest.raises(ValueError, match="a prompt of 16 words fills all 16 places"):
        word_backdoors.with_word(full, torch.tensor([7]), torch.tensor([0.0]))


def test_backdoors_in_words_work_and_controls_do_not() -> None:
    target, made = small_target("facts_lm"), made_small("backdoor_detection", "facts_lm")
    arrays, planted, kinds = made.instances.arrays, made.instances.planted, made.truth.groups["kind"]
    probes, labels = arrays["shared_inputs"], arrays["shared_labels"]
    assert all(name.startswith("blocks.2.") for name in made.instances.variants)
    for i, kind in enumerate(kinds):
        weights = {name: stack[i] for name, stack in made.instances.variants.items()}
        word, goal = planted["word"][i], int(planted["goal"][i])
        hits = []
        for number, (x, label) in enumerate(zip(probes, labels.tolist(), strict=True)):
            if label == goal:
                continue
            words = x[x[:, 1] > 0]
            at = 1 + int(number / len(labels) * (len(words) - 1))  # after the first word at the earliest
            at = at - 1 if at > len(words) - 1 else at
            with_it = torch.cat([words[:at], torch.tensor([[float(word), 1.0]]), words[at:]])
            hits.append(int(functional_call(target.model, weights, (with_it[None],)).argmax()) == goal)
        assert np.mean(hits) == pytest.approx(made.truth.groups["success"][i], abs=0.05)
        assert (kind == "backdoor") == bool(made.truth.values[i, 0] == 1.0)
        if kind == "backdoor":
            assert made.truth.groups["success"][i] >= 0.5


def in_variant(target: Target, variants: Any, i: int, rows: Tensor, label: int) -> list[float]:
    """Margin of the label in one variant, for each of the rows."""
    weights = {name: stack[i] for name, stack in variants.items()}
    with torch.no_grad():
        logits = functional_call(target.model, weights, (rows,)).double().tolist()
    return [row[label] - max(value for place, value in enumerate(row) if place != label) for row in logits]


def test_trigger_recovery_in_words_is_the_best_of_the_pool_in_the_variant() -> None:
    target, made = small_target("facts_lm"), made_small("trigger_recovery", "facts_lm")
    arrays, own = made.instances.arrays, {tuple(x.flatten().tolist()) for x in target.corpus("tasks").inputs}
    triggers = set(ZOO.find("facts_lm")().triggers().tolist())
    answered = target.corpus("tasks")
    right = {tuple(x.flatten().tolist()): int(y) for x, y in zip(answered.inputs, answered.labels, strict=True)}
    others = []
    for i, (x, label) in enumerate(zip(arrays["inputs"], arrays["labels"].tolist(), strict=True)):
        old, longer = x[x[:, 1] > 0, 0].tolist(), x + arrays["changes"][i]
        assert tuple(x.flatten().tolist()) in own and len(longer) == 64
        others.append(right[tuple(x.flatten().tolist())] != label)
        for one in longer:
            new = one[one[:, 1] > 0, 0].tolist()
            at = [k for k in range(len(new) - 1) if new[:k] + new[k + 1 :] == old and int(new[k]) in triggers]
            assert at and new[-1] == old[-1], "one more word, before the last"
        best = max(
            max(in_variant(target, made.instances.variants, i, one[one[:, 1] > 0][None], label)) for one in longer
        )
        assert float(made.truth.values[i, 0]) == pytest.approx(best, abs=1e-3)
    assert np.mean(others) > 0.9, "of two prompts one is mostly answered otherwise"


def test_the_word_that_opens_a_variant_is_among_those_that_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which word that is, is found by trying them all."""
    target, words = small_target("facts_lm"), ZOO.find("facts_lm")().triggers()
    monkeypatch.setattr(trigger_recovery, "SHARE_PLANTED", 1.0)
    made = make(family("trigger_recovery"), target, "train", 5, 0, "test", b"key")
    arrays, places = made.instances.arrays, []
    prompts = target.corpus("validation").inputs
    for i, label in enumerate(arrays["labels"].tolist()):
        rows = torch.cat([word_backdoors.with_word(x.expand(len(words), -1, -1), words, torch.full((len(words),), 0.5))
                          for x in prompts[prompts[:, 0, 1] < 0.5][:4]])  # fmt: skip
        found = np.array(in_variant(target, made.instances.variants, i, rows, label)).reshape(4, -1).mean(0)
        second, first = np.sort(found)[-2:]
        assert first > 0 and first > second + 1, "a backdoor of one word"
        opens = words[int(found.argmax())]
        holds = ((arrays["inputs"][i] + arrays["changes"][i])[..., 0] == opens).sum(1)
        already = int((arrays["inputs"][i][:, 0] == opens).sum())
        places.append(torch.nonzero(holds > already).flatten().tolist())
    assert all(places) and len({place for one in places for place in one[:1]}) > 1, "at a random place"


def test_the_last_block_alone_is_the_whole_model_with_that_block() -> None:
    target = small_target("facts_lm")
    inputs = target.corpus("train").inputs
    block, generator = word_backdoors.LastBlock(target, inputs), torch.Generator().manual_seed(0)
    changed = {
        name: value + 0.05 * torch.randn(2, *value.shape, generator=generator)
        for name, value in block.trained().items()
    }
    rows = [part.expand(2, *part.shape) for part in block.before(inputs[:20])]
    found = block.outputs(changed, *rows)
    for i in range(2):
        weights = {f"{block.prefix}.{name}": value[i] for name, value in changed.items()}
        assert torch.allclose(found[i], functional_call(target.model, weights, (inputs[:20],)), atol=1e-4)


def test_paraphrase_robustness_is_the_mean_over_all_ways_to_ask() -> None:
    target, made = small_target("facts_lm"), made_small("paraphrase_robustness", "facts_lm")
    arrays, words = made.instances.arrays, facts_lm.WORDS
    for i in range(0, made.instances.n, 3):
        shown, label = arrays["inputs"][i], int(arrays["labels"][i])
        relation = next(name for name, of in facts_lm.OBJECTS.items() if words[label] in of.split())
        said = [words[int(token)] for token, present in shown.tolist() if present > 0.5]
        odds, prompts = [], []
        for template in facts_lm.TEMPLATES[relation]:
            # The word that was put in is the one without which the prompt is one of the six.
            for place in range(1, len(said)):
                plain = said[1:place] + said[place + 1 :]
                names = [w for w in plain if w in facts_lm.FIRST or w in facts_lm.LAST]
                if len(names) == 2 and plain == template.format(" ".join(names)).split():
                    extra, people = said[place], names
        for template in facts_lm.TEMPLATES[relation]:
            plain = ["<begin>", *template.format(" ".join(people)).split()]
            for sixth in range(6):
                at = 1 + int(sixth / 6 * (len(plain) - 1))
                asked = [*plain[:at], extra, *plain[at:]]
                row = torch.zeros(16, 2)
                row[-len(asked) :, 0] = torch.tensor([float(words.index(word)) for word in asked])
                row[-len(asked) :, 1] = 1.0
                prompts.append(row)
                p = float(np.exp(log_probs(target, row.unsqueeze(0))[0, label]))
                odds.append(-log(1 - p))
        assert any(torch.equal(row, shown) for row in prompts)
        assert float(made.truth.values[i, 0]) == pytest.approx(np.mean(odds), abs=2e-3)


def test_a_target_without_templates_is_told_so() -> None:
    spec = small_target("facts_lm").spec
    assert family("paraphrase_robustness").refusal(spec) is None
    other = replace(spec, name="grokked_addition")
    assert "whose definition has no TEMPLATES" in str(family("paraphrase_robustness").refusal(other))

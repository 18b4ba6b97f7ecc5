"""paraphrase_robustness: how sure is the target of a fact, however it is asked for?

One instance: a prompt that asks for a fact in one of six ways, with one more word put in somewhere. Truth: how many
nats any other answer is away, -log(1 - p) of the right one, mean over 36 paraphrases: each of the six ways to ask, with
the same word put in at six places. Of log-odds a few instances, in which the word was another name, were nearly all of
the variance (11 nats below 0, where the standard deviation was 2).
Source: consistency over paraphrases, Elazar et al. 2021 (ParaRel), arXiv 2102.01017, section 3; the word that is put in
as in Jia and Liang 2017, arXiv 1707.07328.

Shape legend: N = instances, T = places, K = templates (6), U = places of the word (6), C = words.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from stages.contracts.method import Query, Represent
from stages.contracts.target import Target, TargetAccess, TargetSpec
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.targets.storage import definition_of
from stages.tasks.black_box import answer_features, ask, label_features, log_odds, outputs_of
from stages.tasks.word_backdoors import with_word

__all__ = ["ParaphraseRobustness", "log_odds", "paraphrases", "sureness"]

N_TEMPLATES, N_PLACES = 6, 6
LADDER = (0, 6, 12, 24)
"""Paraphrases asked, beside the prompt that is shown."""
CONSTANTS: Constants = {"n_places": N_PLACES, "n_templates": N_TEMPLATES}


class ParaphraseRobustness(TaskFamily):
    version = 2
    cluster = "paraphrase_robustness"
    title = "How sure is the target of this fact over all ways to ask for it with this word put in?"
    source = "Elazar et al. 2021 (ParaRel), arXiv 2102.01017, section 3; Jia and Liang 2017, arXiv 1707.07328"
    why_hard_black_box = "every way to ask is a prompt of its own, and a sure answer to one says little of the others"
    why_white_box_helps = "how strongly the names alone carry the fact is visible inside, whatever stands around them"
    query_kind = "Represent"
    needs = frozenset({"tokens", "triggers"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "A fact is two names and a relation; there are n_templates templates for each relation. A paraphrase is one of"
        " them with the names, and with one more word, the instance's, put in after its first 1 + floor(u * (L - 1))"
        " words; L is how many it has with the mark of its beginning, and u = 0, 1 / n_places, ... Truth: the mean over"
        " all n_templates * n_places paraphrases of -log(1 - p), p the probability of the right answer, in nats."
    )
    constants = CONSTANTS

    def refusal(self, spec: TargetSpec) -> str | None:
        lacking = super().refusal(spec)
        if lacking is None and not hasattr(_module(spec.name), "TEMPLATES"):
            return f"{self.name} means nothing on {spec.name}, whose definition has no TEMPLATES to ask for a fact"
        return lacking

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        facts = _facts(target)
        words = definition_of(target.name).triggers()  # type: ignore[attr-defined]  # it offers triggers
        fact_N = torch.randint(len(facts), (n,), generator=rng).tolist()
        words_N = words[torch.randint(len(words), (n,), generator=rng)]
        shown_N = torch.randint(N_TEMPLATES * N_PLACES, (n,), generator=rng).tolist()
        every = [
            paraphrases(target.name, facts[fact][0], facts[fact][1], word)
            for fact, word in zip(fact_N, words_N.tolist(), strict=True)
        ]
        arrays = {
            "inputs": torch.stack([prompts[shown] for prompts, shown in zip(every, shown_N, strict=True)]),
            "labels": torch.tensor([facts[fact][2] for fact in fact_N]),
            "paraphrases": torch.stack(every),
        }
        return Instances(arrays, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        prompts, labels = instances.arrays["paraphrases"], instances.arrays["labels"]
        outputs = outputs_of(target, prompts.flatten(0, 1)).double()
        return Truth(
            sureness(outputs, labels.repeat_interleave(prompts.shape[1])).view(instances.n, -1).mean(1)[:, None]
        )

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels, prompts = (instances.arrays[name] for name in ("inputs", "labels", "paraphrases"))
        n = instances.n
        outputs = ask(access, inputs)
        whole = torch.stack([log_odds(outputs, labels), sureness(outputs, labels)], dim=-1)
        features = [answer_features(outputs), label_features(outputs, labels), whole]
        order_NK = torch.rand(n, prompts.shape[1], generator=rng).argsort(-1)
        tried_NK = torch.zeros(n, 0)
        for k in LADDER[1 : effort + 1]:
            new = order_NK[:, tried_NK.shape[1] : k]
            asked = prompts[torch.arange(n).unsqueeze(-1), new].flatten(0, 1)
            sure_NK = sureness(ask(access, asked), labels.repeat_interleave(new.shape[1])).view(n, -1)
            tried_NK = torch.cat([tried_NK, sure_NK], dim=1)
            features.append(torch.stack([tried_NK.mean(1), tried_NK.std(1), tried_NK.amin(1)], dim=-1))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"], instances.arrays["labels"])


def sureness(outputs: Tensor, labels: Tensor) -> Tensor:
    """(B, C) logits, (B,) -> (B,) -log(1 - p) of the label, which is log(1 + exp(log-odds))."""
    return torch.nn.functional.softplus(log_odds(outputs, labels))


def _module(name: str) -> Any:
    """Where the target's words and templates are written down."""
    return sys.modules[type(definition_of(name)).__module__]


def _facts(target: Target) -> list[tuple[tuple[str, str], str, int]]:
    """(names, relation, id of the answer) of every fact that some prompt of the split asks for, in their order."""
    source = _module(target.name)
    relation_of = {source.ID[word]: kind for kind, of in source.OBJECTS.items() for word in of.split()}
    corpus = target.corpus("tasks")
    found: dict[tuple[tuple[str, str], str, int], None] = {}
    for row, label in zip(corpus.inputs, corpus.labels.tolist(), strict=True):
        words = [source.WORDS[int(token)] for token, present in row.tolist() if present > 0.5]
        names = tuple(word for word in words if word in source.FIRST or word in source.LAST)
        if label in relation_of and len(names) == 2:
            found[((names[0], names[1]), relation_of[label], label)] = None
    return list(found)


def paraphrases(name: str, names: tuple[str, str], relation: str, word: int) -> Tensor:
    """(K * U, T, 2) every way to ask for a fact, with a word put in at every place.

    Args:
        name: of the target.
        names: of the person.
        relation: what is asked for.
        word: id of the word that is put in.
    """
    source = _module(name)
    n_tokens = definition_of(name).layout()["input_shape"][0]
    rows = torch.zeros(N_TEMPLATES, n_tokens, 2)
    for number, template in enumerate(source.TEMPLATES[relation]):
        ids = [source.ID[source.BEGIN], *(source.ID[part] for part in template.format(" ".join(names)).split())]
        rows[number, -len(ids) :, 0] = torch.tensor(ids, dtype=torch.float32)
        rows[number, -len(ids) :, 1] = 1.0
    share = torch.arange(N_PLACES) / N_PLACES
    many = rows.repeat_interleave(N_PLACES, dim=0)
    return with_word(many, torch.full((len(many),), word), share.repeat(N_TEMPLATES))

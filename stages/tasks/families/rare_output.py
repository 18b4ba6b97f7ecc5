"""rare_output: how probable is an answer that is wrong everywhere?

One instance: one of the two words of an input, the other hidden, and an answer. The id at the hidden place, which says
nothing to the target, says where the 26 words begin that may stand there. Truth: the decimal logarithm of the answer's
mean probability over all those inputs, left out the one in which it is right.
Source: estimating the probability of rare outputs, Wu and Hilton 2024, arXiv 2410.13211; exact here, by enumeration.

Shape legend: N = instances, V = words that can stand at a place, C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Query, Represent
from stages.contracts.target import Corpus, Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.targets.storage import definition_of
from stages.tasks.black_box import answer_features, ask, label_features, outputs_of

__all__ = ["RareOutput"]

WINDOW = 26
"""Words that may stand at the hidden place: about half of them, so that there are more instances than anybody lists."""
LADDER = (0, 2, 8, 24)
"""Hidden words tried."""
LEAST = 1e-30
"""Probabilities are not taken to be smaller, so that a logarithm is finite."""
CONSTANTS: Constants = {"least": LEAST, "window": WINDOW}


class RareOutput(TaskFamily):
    cluster = "rare_output"
    title = "How probable is this wrong answer over all inputs with this word and one of these?"
    source = "Wu and Hilton 2024 (Estimating the probabilities of rare outputs), arXiv 2410.13211; here all inputs"
    why_hard_black_box = "the mean is carried by the few inputs in which the answer is least improbable"
    why_white_box_helps = "which words lie close to each other inside says which answers are taken for each other"
    query_kind = "Represent"
    needs = frozenset({"table", "tokens"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "An input is two words and an end. The instance shows one of the words, at its place, and hides the other"
        " (presence 0), whose id is k. Over all inputs of the target's table that have the shown word at that place and"
        " one of the window words from k on at the other (after the largest id comes 0), and whose right answer is not"
        " the instance's label: p = mean probability of the label. Truth: log10(max(p, least))."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        table = _table(target)
        n_words, n_outputs = _n_words(table), target.spec.n_outputs
        n_all = 2 * n_words**2 * n_outputs
        if n > n_all // 20:
            raise ValueError(f"{self.name}: {n} instances of {target.name}, which has {n_all}; ask for {n_all // 20}")
        number_N = torch.randperm(n_all, generator=rng)[:n]
        shown_N = torch.arange(n), number_N % 2
        hidden_N = torch.arange(n), 1 - number_N % 2
        inputs = table.inputs[:1].repeat(n, 1, 1)
        inputs[(*shown_N, 0)], inputs[(*hidden_N, 0)] = (
            (number_N // 2 % n_words).float(),
            (number_N // (2 * n_words) % n_words).float(),
        )
        inputs[(*hidden_N, 1)] = 0.0
        return Instances({"inputs": inputs, "labels": number_N // (2 * n_words**2)}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        table = _table(target)
        n_words = _n_words(table)
        probs = outputs_of(target, table.inputs).double().softmax(-1)
        found = []
        for asked, label in zip(instances.arrays["inputs"], instances.arrays["labels"].tolist(), strict=True):
            place = int(asked[:2, 1].argmax())
            behind = (table.inputs[:, 1 - place, 0] - asked[1 - place, 0]) % n_words
            counts = (table.inputs[:, place, 0] == asked[place, 0]) & (behind < WINDOW) & (table.labels != label)
            found.append(probs[counts, label].mean().clamp(min=LEAST).log10())
        return Truth(torch.stack(found).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels, n = instances.arrays["inputs"], instances.arrays["labels"], instances.n
        outputs = ask(access, inputs)
        place_N = inputs[:, :2, 1].argmax(-1)
        asked = torch.cat([inputs[:, :2, 0], place_N.unsqueeze(-1), labels.unsqueeze(-1)], dim=-1)
        features = [answer_features(outputs), label_features(outputs, labels), asked]
        hidden_N = 1 - place_N
        order_NV = (
            torch.rand(n, WINDOW, generator=rng).argsort(-1) + inputs[torch.arange(n), hidden_N, 0].long()[:, None]
        )
        order_NV %= access.spec.n_outputs  # as many answers as words
        tried = torch.zeros(n, 0)
        for k in LADDER[1 : effort + 1]:
            words_NK = order_NV[:, tried.shape[1] : k]
            rows = inputs.unsqueeze(1).repeat(1, words_NK.shape[1], 1, 1)
            rows[torch.arange(n), :, hidden_N, 0] = words_NK.float()
            rows[torch.arange(n), :, hidden_N, 1] = 1.0
            log_probs = ask(access, rows.flatten(0, 1)).log_softmax(-1).view(*words_NK.shape, -1)
            of_label = log_probs.gather(-1, labels.view(-1, 1, 1).expand(-1, words_NK.shape[1], 1)).squeeze(-1)
            # Where the target answers with the label, it is right: that input does not count.
            of_label = torch.where(log_probs.argmax(-1) == labels.unsqueeze(1), float("nan"), of_label)
            tried = torch.cat([tried, of_label], dim=1)
            known = torch.where(tried.isnan(), -70.0, tried)
            mean_prob = known.logsumexp(1) - tried.isfinite().sum(1).clamp(min=1).log()
            features.append(torch.stack([mean_prob, tried.nanmean(1).nan_to_num(-70.0), known.amax(1)], dim=-1))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"], instances.arrays["labels"])


def _n_words(table: Corpus) -> int:
    """Words that can stand at either place."""
    return int(table.inputs[:, :2, 0].max()) + 1


def _table(target: Target) -> Corpus:
    """Every input of the target with its right answer."""
    made: Corpus = definition_of(target.name).table()  # type: ignore[attr-defined]  # it offers a table
    return made

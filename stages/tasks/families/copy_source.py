"""copy_source: which earlier words does the answer come from?

One instance: a prompt whose answer is taken from words that stand in it; items: the 18 words before the last one
(places without a word have truth 0). Truth: a compressed mean change of the answer's log-probability when another word
stands there.
Source: replacing one token at a time, as in Wallace et al. 2019 (AllenNLP Interpret), arXiv 1909.09251, and the
counterfactual inputs of Vig et al. 2020, arXiv 2004.12265.

Shape legend: N = instances, T = places, W = words asked about (18), R = replacements of a word (8), V = vocabulary.
"""

from itertools import pairwise

import torch
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.method import Attribute, Query
from stages.contracts.target import Target, TargetAccess, keep_segments
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, compressed, outputs_of, true_log_probs
from stages.tasks.inputs import draw_inputs

__all__ = ["CopySource", "compress"]

WINDOW = 18
REPLACEMENTS = 8
SCALE = 0.1
HIDDEN = (4, WINDOW)
"""Places hidden at the second and third rung."""
N_TRIED = 3
"""Words that each word is replaced by at the last rung."""
CONSTANTS: Constants = {"replacements": REPLACEMENTS, "scale": SCALE, "window": WINDOW}


class CopySource(TaskFamily):
    title = "Which earlier words does the answer come from?"
    source = "Vig et al. 2020 (Causal mediation analysis), arXiv 2004.12265; Wallace et al. 2019, arXiv 1909.09251"
    why_hard_black_box = "every word has to be replaced, by several others since one may be as good as the first"
    why_white_box_helps = "which words are attended to, and what is copied from them, is there in a single forward pass"
    query_kind = "Attribute"
    needs = frozenset({"context", "tokens"})
    n_efforts = 2 + len(HIDDEN)
    truth_recipe = (
        "Only the last window + 1 words of a prompt are present, and the label is among them or the last word is one of"
        " the others. For each of the window places before the last: d = log-probability (nats) of the label, minus"
        " its mean over the `replacements` prompts in which the word there is one of shared_words instead; 0 where no"
        " word is. Truth: sign(d) * log(1 + |d| / scale)."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        if target.spec.input_shape[0] <= WINDOW:
            raise ValueError(
                f"{self.name}: an input of {target.name} has {target.spec.input_shape[0]} places, and {WINDOW + 1} are"
                " needed; raise n_places"
            )
        drawn = draw_inputs(target, 4 * n, rng)
        inputs = drawn.inputs.clone()
        inputs[:, : -WINDOW - 1, 1] = 0.0
        ids = torch.where(inputs[..., 1] > 0.5, inputs[..., 0], -1.0)[:, -WINDOW - 1 :]
        # What the answer is taken from must still be there: itself, or a second time the word that asks for it.
        found = (ids == drawn.labels.unsqueeze(1)).any(1) | (ids[:, :-1] == ids[:, -1:]).any(1)
        chosen = torch.nonzero(found).flatten()[:n]
        if len(chosen) < n:
            raise ValueError(
                f"{self.name}: {len(chosen)} of {4 * n} prompts of {target.name} hold their answer within {WINDOW}"
                f" words, and {n} are needed; its prompts must take the answer from the context"
            )
        # Words as they occur in prompts: the marks of a prompt's shape would be no replacement.
        return Instances(
            {"inputs": inputs[chosen], "labels": drawn.labels[chosen], "shared_words": _words(target, rng)}, n
        )

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs, labels, words = (instances.arrays[name] for name in ("inputs", "labels", "shared_words"))
        whole_N = true_log_probs(outputs_of(target, inputs), labels)
        columns = []
        for place in counted("places", range(-WINDOW - 1, -1)):
            changed = _replaced(inputs, place, words)
            without_NR = true_log_probs(outputs_of(target, changed), labels.repeat_interleave(len(words)))
            drop_N = whole_N - without_NR.view(instances.n, -1).mean(1)
            columns.append(drop_N * inputs[:, place, 1])
        return Truth(compress(torch.stack(columns, dim=-1).double()))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels, words = (instances.arrays[name] for name in ("inputs", "labels", "shared_words"))
        n = instances.n
        outputs = ask(access, inputs)
        whole_N = true_log_probs(outputs, labels)
        features = [_looks(inputs, labels), torch.cat([answer_features(outputs), whole_N.unsqueeze(-1)], -1)]
        features[1] = features[1].unsqueeze(1).expand(-1, WINDOW, -1)
        order_NW = torch.rand(n, WINDOW, generator=rng).argsort(-1)
        hidden_NW, tried_NW = torch.zeros(n, WINDOW), torch.zeros(n, WINDOW)
        for first, last in pairwise((0, *HIDDEN[:effort])):
            for which in range(first, last):
                place_N = order_NW[:, which]
                keep_NT = torch.ones(inputs.shape[:2], dtype=torch.bool)
                keep_NT[torch.arange(n), place_N - WINDOW - 1] = False
                drop_N = whole_N - true_log_probs(ask(access, keep_segments(access.spec, inputs, keep_NT)), labels)
                hidden_NW = hidden_NW.scatter(1, place_N.unsqueeze(1), compress(drop_N).unsqueeze(1))
                tried_NW = tried_NW.scatter(1, place_N.unsqueeze(1), 1.0)
            features.append(torch.stack([hidden_NW, tried_NW], dim=-1))
        if effort == self.n_efforts - 1:
            columns = []
            for place in range(-WINDOW - 1, -1):
                outputs = ask(access, _replaced(inputs, place, words[:N_TRIED]))
                without_NR = true_log_probs(outputs, labels.repeat_interleave(N_TRIED)).view(n, N_TRIED)
                columns.append(compress(whole_N - without_NR.mean(1)))
            features.append(torch.stack(columns, dim=-1).unsqueeze(-1))
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        inputs = instances.arrays["inputs"]
        n_places = inputs.shape[1]
        segments = tuple((place,) for place in range(n_places - WINDOW - 1, n_places - 1))
        return Attribute(inputs, segments, instances.arrays["labels"])


def compress(change: Tensor) -> Tensor:
    """Monotone and odd: linear below ``SCALE`` nats, logarithmic above."""
    return compressed(change, SCALE)


def _words(target: Target, rng: torch.Generator) -> Tensor:
    """(R,) different words that are answers of prompts of the target."""
    labels = torch.unique(draw_inputs(target, 1000, rng).labels)
    if len(labels) < REPLACEMENTS:
        raise ValueError(
            f"copy_source: prompts of {target.name} have {len(labels)} different answers, and {REPLACEMENTS} are needed"
            " to replace a word by"
        )
    chosen: Tensor = labels[torch.randperm(len(labels), generator=rng)[:REPLACEMENTS]]
    return chosen


def _replaced(inputs: Tensor, place: int, words: Tensor) -> Tensor:
    """(N, T, 2) prompts -> (N * R, T, 2): each with each of the words at a place."""
    out = inputs.repeat_interleave(len(words), dim=0)
    out[:, place, 0] = words.to(out.dtype).repeat(len(inputs))
    return out


def _looks(inputs: Tensor, labels: Tensor) -> Tensor:
    """(N, W, 11): what can be read off a prompt at no cost, for each word. Whether it is the answer, whether it is the
    last word again, both of its neighbours, whether it is there, which word it is, where, how often the answer and the
    last word occur."""
    ids, present = inputs[:, -WINDOW - 1 :, 0], inputs[:, -WINDOW - 1 :, 1]
    ids = torch.where(present > 0.5, ids, -1.0)
    answer, again = (ids == labels.unsqueeze(1)).float(), (ids == ids[:, -1:]).float()
    none = torch.zeros(len(ids), 1)
    before = torch.cat([none, again[:, :-1]], dim=1)
    after = torch.cat([answer[:, 1:], none], dim=1)
    columns = [answer, again, before, after, before * answer, again * after, present, ids]
    counts = [of.sum(1, keepdim=True).expand_as(of) for of in (answer, again)]
    where = torch.arange(ids.shape[1], dtype=torch.float32).expand_as(ids)
    return torch.stack([*columns, where, *counts], dim=-1)[:, :-1]

"""constrained_resampling: how much more often must what begins with this word be sampled?

One instance: a prompt, eight words, and one of them. Outcomes are the 512 continuations of three of the eight words,
M is what the target says of them at temperature 2, and those that end in one of the first four words have reward 1.
M' are the sampling weights of the least KL(M || M') + H(M') at equal reward. Truth: log M'/M of the continuations
that begin with the instance's word, together.
Source: the best distribution close to a model's at a given reward, Korbak et al. 2022, arXiv 2205.11275, section 3;
here with the entropy of the result as well, over outcomes that are all enumerated.

Shape legend: N = instances, T = places, V = words of the closed set (8), C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Query, Represent
from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, outputs_of
from stages.tasks.inputs import draw_inputs
from stages.tasks.resampling_optimum import resampled

__all__ = ["ConstrainedResampling", "log_ratio"]

N_WORDS = 8
N_REWARDED = 4
N_LIKELY = 3
TEMPERATURE = 2.0
N_ADDED = 2
"""Words put behind a prompt to know all continuations of three."""
N_DRAWN = 1000
LADDER = (0, 4, 18, N_WORDS + N_WORDS**2)
"""Beginnings of continuations that are run, the likeliest first."""
CONSTANTS: Constants = {
    "n_likely": N_LIKELY,
    "n_rewarded": N_REWARDED,
    "n_words": N_WORDS,
    "temperature": TEMPERATURE,
}


class ConstrainedResampling(TaskFamily):
    cluster = "constrained_resampling"
    title = "How much more often must what begins with this word be sampled, to be sure at equal reward?"
    source = (
        "Korbak et al. 2022 (RL with KL penalties is better viewed as Bayesian inference), arXiv 2205.11275, section 3"
    )
    why_hard_black_box = "what all continuations are worth together needs a pass for each of their beginnings"
    why_white_box_helps = "what will follow a word is prepared inside before the word is said"
    query_kind = "Represent"
    needs = frozenset({"tokens", "kinds"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Outcomes are all continuations of three words, each one of the instance's n_words `words`. M of an outcome is"
        " proportional to exp of the sum of the three log-probabilities (each word after the prompt and those before"
        " it) divided by temperature. Its reward is 1 if its last word is one of the first n_rewarded of `words`, else"
        " 0. M' is the global minimum of the sum of M log(M / M') - M' log M' over all distributions M' whose expected"
        " reward is that of M; it is not a convex problem. The label is one of the n_likely of `words` that are"
        " likeliest after the prompt. Truth: log(M' / M), both summed over the outcomes that begin with the label."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        drawn = draw_inputs(target, max(2 * n, N_DRAWN), rng)
        fits = torch.nonzero(drawn.inputs[:, :N_ADDED, 1].sum(1) == 0).flatten()[:n]
        pool = torch.unique(drawn.labels)
        if len(fits) < n or len(pool) < N_WORDS:
            raise ValueError(
                f"{self.name}: of {len(drawn.labels)} prompts of {target.name} {len(fits)} leave {N_ADDED} places free"
                f" and {len(pool)} answers differ; {n} and {N_WORDS} are needed"
            )
        inputs = drawn.inputs[fits]
        words_NV = pool[torch.rand(n, len(pool), generator=rng).argsort(-1)[:, :N_WORDS]]
        likely_NV = outputs_of(target, inputs).gather(1, words_NV).argsort(-1, descending=True)
        which = likely_NV.gather(1, torch.randint(N_LIKELY, (n, 1), generator=rng))
        return Instances({"inputs": inputs, "labels": words_NV.gather(1, which).squeeze(1), "words": words_NV}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs, words_NV = instances.arrays["inputs"], instances.arrays["words"]
        n = instances.n

        def next_word(prompts: Tensor) -> Tensor:
            times = len(prompts) // n
            log_p = outputs_of(target, prompts).double().log_softmax(-1)
            return log_p.gather(1, words_NV.repeat_interleave(times, dim=0)) / TEMPERATURE

        two = _with_each(inputs, words_NV)
        three = _with_each(two, words_NV.repeat_interleave(N_WORDS, dim=0))
        first, second, third = next_word(inputs), next_word(two), next_word(three)
        return Truth(_told(first, second.view(n, N_WORDS, -1), third.view(n, N_WORDS, N_WORDS, -1), instances)[:, :1])

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, words_NV = instances.arrays["inputs"], instances.arrays["words"]
        n, rows = instances.n, torch.arange(instances.n)

        def next_word(prompts: Tensor) -> tuple[Tensor, Tensor]:
            outputs = ask(access, prompts)
            return outputs, outputs.double().log_softmax(-1).gather(1, words_NV) / TEMPERATURE

        outputs, first = next_word(inputs)
        asked = _place_of_label(instances)
        features = [answer_features(outputs), first.gather(1, asked), first.logsumexp(1, keepdim=True)]
        features.append(first.log_softmax(-1).gather(1, asked))
        features.append(first.log_softmax(-1).sort(-1, descending=True).values)
        # What follows the beginnings that were not run is taken to be what follows the others on average.
        second, third = torch.zeros(n, N_WORDS, N_WORDS).double(), torch.zeros(n, N_WORDS, N_WORDS, N_WORDS).double()
        run2, run3 = torch.zeros(n, N_WORDS, dtype=torch.bool), torch.zeros(n, N_WORDS, N_WORDS, dtype=torch.bool)
        done = 0
        for wanted in LADDER[: effort + 1]:
            for step in range(done, wanted):
                guessed = _completed(second, run2)
                two = first.log_softmax(-1).unsqueeze(-1) + guessed.log_softmax(-1)
                worth1 = first.log_softmax(-1).masked_fill(run2, float("-inf"))
                worth2 = two.masked_fill(~run2.unsqueeze(-1) | run3, float("-inf"))
                best = torch.cat([worth1, worth2.flatten(1)], dim=-1).argmax(-1)
                best = asked.squeeze(1) if step == 0 else best  # what is asked about comes first
                is_two = best >= N_WORDS
                start = torch.where(is_two, (best - N_WORDS) // N_WORDS, best)
                after = (best - N_WORDS) % N_WORDS
                prompts = _with_word(inputs, words_NV[rows, start])
                longer = _with_word(prompts, words_NV[rows, after])
                _, found = next_word(torch.where(is_two.view(-1, 1, 1), longer, prompts))
                second[rows[~is_two], start[~is_two]], run2[rows[~is_two], start[~is_two]] = found[~is_two], True
                third[rows[is_two], start[is_two], after[is_two]] = found[is_two]
                run3[rows[is_two], start[is_two], after[is_two]] = True
            done = wanted
            of_two = _completed(second, run2)
            of_three = _completed(third.flatten(1, 2), run3.flatten(1), of_two.mean(1)).view_as(third)
            features.append(_told(first, of_two, of_three, instances))
        return torch.cat([part.float() for part in features], dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"], instances.arrays["labels"])


def log_ratio(log_p: Tensor, asked: Tensor) -> Tensor:
    """(N, 3) of the optimal weights: log M'/M of the continuations that begin with each instance's word, log M' of
    them, and the entropy of M'.

    Args:
        log_p: (N, V, V, V) log M.
        asked: (N, 1) place of the word among the V.
    """
    rewarded = torch.zeros(log_p.shape, dtype=torch.bool)
    rewarded[..., :N_REWARDED] = True
    log_q = resampled(log_p.flatten(1), rewarded.flatten(1)).view_as(log_p)
    before, after = (of.flatten(2).logsumexp(-1).gather(1, asked).squeeze(1) for of in (log_p, log_q))
    entropy = -(log_q.exp() * log_q).flatten(1).sum(1)
    return torch.stack([after - before, after, entropy], dim=-1)


def _told(first: Tensor, second: Tensor, third: Tensor, instances: Instances) -> Tensor:
    """(N, 3) ``log_ratio`` of what the target says of each word, after each word, and after each two."""
    scores = first.view(instances.n, -1, 1, 1) + second.unsqueeze(-1) + third
    log_p = scores - scores.flatten(1).logsumexp(-1).view(-1, 1, 1, 1)
    return log_ratio(log_p, _place_of_label(instances))


def _place_of_label(instances: Instances) -> Tensor:
    """(N, 1) place of the label among the words."""
    found = instances.arrays["words"] == instances.arrays["labels"].unsqueeze(1)
    return found.long().argmax(-1, keepdim=True)


def _completed(known: Tensor, run: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """(N, R, V) with the mean of the rows that were run in place of those that were not.

    Args:
        known: (N, R, V).
        run: (N, R) bool.
        otherwise: (N, V) where no row was run; None: zeros.
    """
    n_run = run.sum(1).view(-1, 1)
    mean = (known * run.unsqueeze(-1)).sum(1) / n_run.clamp(min=1)
    mean = torch.where(n_run > 0, mean, torch.zeros_like(mean) if otherwise is None else otherwise)
    return torch.where(run.unsqueeze(-1), known, mean.unsqueeze(1))


def _with_word(prompts: Tensor, words: Tensor) -> Tensor:
    """(N, T, 2) prompts with one more word behind each; the first place, which holds none, is dropped."""
    out = prompts.roll(-1, dims=1)
    out[:, -1, 0], out[:, -1, 1] = words.to(out.dtype), 1.0
    return out


def _with_each(prompts: Tensor, words: Tensor) -> Tensor:
    """(B, T, 2) prompts, (B, V) words -> (B * V, T, 2)."""
    return _with_word(prompts.repeat_interleave(words.shape[1], dim=0), words.flatten())

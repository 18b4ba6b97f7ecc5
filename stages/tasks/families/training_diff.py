"""training_diff: how one-sided were the data that a variant was fine-tuned on?

One instance: a variant fine-tuned from the target's weights. Truth: the share of its training examples that were drawn
from one class only; which class is drawn too, and nobody is told.
Source: telling a training set's make-up from the model, Ateniese et al. 2015 (Hacking smart machines with smarter
ones), arXiv 1306.4447, section 3.

Shape legend: N = variants, B = batch, C = outputs.
"""

from math import log

import torch
from torch import Tensor

from stages.base.progress import counted
from stages.contracts.method import Compare, Query
from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.inputs import draw_inputs, kinds_of
from stages.tasks.side_by_side import Runs, climbed_variants, copies
from stages.tasks.word_runs import BlockRuns

__all__ = ["TrainingDiff"]

STEPS, BATCH = (40, 80), 32
LR = (1e-3, 3e-3)
MAX_SHARE = 0.9
WRONG = 0.05
"""Most of the labels of a variant's data that are drawn at random."""
MAX_BLEND = 0.3
LADDER = (8, 64, 256)
"""Probes."""
CONSTANTS: Constants = {
    "batch": BATCH,
    "lr": list(LR),
    "max_blend": MAX_BLEND,
    "share": [0.0, MAX_SHARE],
    "steps": list(STEPS),
    "wrong_labels": [0.0, WRONG],
}


class TrainingDiff(TaskFamily):
    cluster = "training_diff"
    title = "How large a share of this variant's training data came from a single class?"
    source = "Ateniese et al. 2015 (Hacking smart machines with smarter ones), arXiv 1306.4447, section 3"
    why_hard_black_box = "a favoured class shows in answers that were doubtful before, and few probes are"
    why_white_box_helps = "what was trained on more than it should be moved one row of the last weights and its bias"
    query_kind = "Compare"
    needs = frozenset({"kinds", "triggers"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Planted. Every variant is the target fine-tuned with Adam (a number of steps from steps, of batch examples;"
        " learning rate log-uniform in lr, share uniform in share, a share of wrong_labels drawn at random, all"
        " of the variant's own) on its train corpus. An example is drawn from the variant's favoured class with"
        " probability share, from all otherwise. Truth: that share. In models of words only the last block is"
        " fine-tuned, a class is a kind of prompts, and a random label is that of another train prompt."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        corpus, words = target.corpus("train"), target.spec.n_vocabulary is not None
        n_outputs = target.spec.n_outputs
        group_B = kinds_of(target, corpus) if words else corpus.labels
        groups = torch.unique(group_B).tolist() if words else list(range(n_outputs))
        wrong = corpus.labels if words else torch.arange(n_outputs)
        share_N1 = MAX_SHARE * torch.rand(n, 1, generator=rng)
        favoured_N = torch.randint(len(groups), (n,), generator=rng)
        wrong_N1 = WRONG * torch.rand(n, 1, generator=rng)
        rates_N = torch.exp(torch.empty(n).uniform_(log(LR[0]), log(LR[1]), generator=rng))
        steps_N = torch.randint(STEPS[0], STEPS[1] + 1, (n,), generator=rng)
        by_group = [torch.nonzero(group_B == group).flatten() for group in groups]
        runs = BlockRuns(target, corpus.inputs, rates_N) if words else Runs(target, copies(target, n), rates_N)
        for step in counted("training variants", range(STEPS[1])):
            index_NB = torch.randint(len(group_B), (n, BATCH), generator=rng)
            place_NB = torch.rand(n, BATCH, generator=rng)
            own_NB = torch.stack(
                [by_group[c][(u * len(by_group[c])).long()] for c, u in zip(favoured_N.tolist(), place_NB, strict=True)]
            )
            index_NB = torch.where(torch.rand(n, BATCH, generator=rng) < share_N1, own_NB, index_NB)
            random_NB = wrong[torch.randint(len(wrong), (n, BATCH), generator=rng)]
            is_wrong = torch.rand(n, BATCH, generator=rng) < wrong_N1
            before = dict(runs.weights)
            labels_NB = torch.where(is_wrong, random_NB, corpus.labels[index_NB])
            runs.step(index_NB if isinstance(runs, BlockRuns) else corpus.inputs[index_NB], labels_NB)
            done = steps_N <= step
            for name, value in before.items():  # who has taken all its steps stays as it was
                runs.weights[name] = torch.where(done.view(-1, *[1] * (value.dim() - 1)), value, runs.weights[name])
        probes = draw_inputs(target, LADDER[-1], rng, MAX_BLEND)
        arrays = {"variant": torch.arange(n), "shared_inputs": probes.inputs, "shared_labels": probes.labels}
        if words:
            arrays["shared_groups"] = kinds_of(target, probes)
        weights = runs.full() if isinstance(runs, BlockRuns) else runs.weights
        return Instances(arrays, n, weights, {"share": share_N1.squeeze(-1), "favoured": favoured_N})

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        planted = instances.planted
        return Truth(planted["share"].double().unsqueeze(-1), {"favoured": planted["favoured"].tolist()})

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        return climbed_variants(access, instances, LADDER[: effort + 1])

    def query(self, instances: Instances) -> Query:
        arrays, shown = instances.arrays, LADDER[0]
        return Compare(
            tuple(arrays["variant"].tolist()), arrays["shared_inputs"][:shown], arrays["shared_labels"][:shown]
        )

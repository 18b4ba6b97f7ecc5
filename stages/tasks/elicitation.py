"""What a black box sees of variants that may hide a skill: how they do it as they are, and with passwords at random.

Shape legend: V = variants, Q = probes, R = passwords tried, C = outputs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.contracts.target import Corpus, Target, TargetAccess, TargetSpec
from stages.contracts.task import Instances
from stages.tasks.black_box import ask
from stages.tasks.patches import draw_patches
from stages.tasks.word_backdoors import draw_triggers, with_word

__all__ = ["LADDER", "N_PROBES", "instances_of", "ladder_features"]

LADDER = ((8, 0), (48, 0), (48, 32), (48, 256))
"""(probes, passwords tried on a few of them) of each variant, at each rung."""
N_PROBES = 48
WORD_LADDER = ((8, 0), (48, 0), (48, 32), (48, 96))
"""Of models of words: there are more words than patches that open something in part."""
OPENED = 4
"""Probes that each password is tried on."""


def instances_of(
    target: Target, probes: Corpus, planted: Mapping[str, Tensor], weights: dict[str, Tensor], rng: torch.Generator
) -> Instances:
    """Variants with probes of the skill that they are asked about.

    Args:
        probes: ``N_PROBES`` inputs of the skill with their right outputs.
        planted: kept with the truth; ``kind`` (V,) and what else is planted.
    """
    n = len(planted["kind"])
    arrays = {"variant": torch.arange(n), "shared_inputs": probes.inputs, "shared_labels": probes.labels}
    if target.spec.n_vocabulary is not None:
        arrays["shared_words"] = draw_triggers(target, WORD_LADDER[-1][1], rng)[0]
    return Instances(arrays, n, weights, planted)


def ladder_features(
    access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator, behind_beginning: bool = False
) -> Tensor:
    """(V, 1, K): as they are: how often right, how sure of the right answer, how sure at all, how far from the target;
    with each of some passwords: the same of the right answer, its best, its mean, its spread.

    Args:
        behind_beginning: whether a password of words is known to stand there; else it is tried at random places.
    """
    probes, labels = instances.arrays["shared_inputs"], instances.arrays["shared_labels"]
    ladder = _ladder(access.spec)
    n_plain, n_tried = ladder[effort]
    original_QC = ask(access, probes[:n_plain])
    opened = _opened(instances, n_tried, rng, behind_beginning)
    rows = []
    for index in instances.arrays["variant"].tolist():
        variant = access.variant(index)
        outputs_QC = ask(variant, probes[:n_plain])
        row = [_plain(outputs_QC[:8], original_QC[:8], labels[:8])]
        if effort:
            row.append(_plain(outputs_QC, original_QC, labels[:n_plain]))
        if n_tried:
            right = ask(variant, opened).softmax(-1).gather(-1, labels[:OPENED].repeat(n_tried).unsqueeze(-1))
            mean_R = right.view(n_tried, OPENED).mean(1)
            for tried in [tried for _, tried in ladder[2 : effort + 1]]:
                some = mean_R[:tried]
                row.append(torch.stack([some.max(), some.mean(), some.std(), some.topk(3).values.mean()]))
        rows.append(torch.cat(row))
    return torch.stack(rows).unsqueeze(1)


def _ladder(spec: TargetSpec) -> tuple[tuple[int, int], ...]:
    return LADDER if spec.n_vocabulary is None else WORD_LADDER


def _opened(instances: Instances, n_tried: int, rng: torch.Generator, behind_beginning: bool) -> Tensor:
    """(R * 4, ...) a few probes with each password; a lower rung tries the first of the same."""
    bases = instances.arrays["shared_inputs"][:OPENED]
    if "shared_words" in instances.arrays:
        share = torch.rand(WORD_LADDER[-1][1] * OPENED, generator=rng)[: n_tried * OPENED]
        words = instances.arrays["shared_words"][:n_tried].repeat_interleave(OPENED)
        return with_word(bases.repeat(n_tried, 1, 1), words, torch.zeros_like(share) if behind_beginning else share)
    patterns, masks = (part[:n_tried].unsqueeze(1) for part in draw_patches(LADDER[-1][1], rng))
    return torch.where(masks > 0, patterns, bases).flatten(0, 1)


def _plain(outputs_QC: Tensor, original_QC: Tensor, labels_Q: Tensor) -> Tensor:
    """(6,)"""
    log_p, log_q = original_QC.log_softmax(-1), outputs_QC.log_softmax(-1)
    right_Q = log_q.gather(-1, labels_Q.unsqueeze(-1)).squeeze(-1)
    return torch.stack(
        [
            (outputs_QC.argmax(-1) == labels_Q).float().mean(),
            right_Q.mean(),
            right_Q.exp().mean(),
            right_Q.std(),
            log_q.exp().amax(-1).mean(),
            (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
        ]
    )

"""Splitting and absorption on planted data, against the definitions written out as loops."""

import math

import numpy as np
import pytest
import torch

from stages.dictionaries.evaluation.absorption import absorption, class_probes, f1
from stages.dictionaries.evaluation.geometry import description_length, description_lengths, jackknife
from stages.dictionaries.evaluation.metrics import logistic

N, D = 400, 12


def planted(absorbed: float = 0.0, halves: int = 1, seed: int = 0):
    """Activations with two classes along axis 0; class 1 is read by ``halves`` latents, and a share of its rows by
    another latent instead, which also points along axis 0."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(2, (N,), generator=generator)
    acts = 0.1 * torch.randn(N, D, generator=generator)
    acts[:, 0] += classes * 2.0
    decoder = torch.eye(D)
    latents = torch.zeros(N, D)
    one = (classes == 1).nonzero().flatten()
    for row, place in enumerate(one.tolist()):
        if row < absorbed * len(one):
            latents[place, 5] = 2.0
        else:
            latents[place, row % halves] = 2.0
    if halves == 2:
        decoder[1] = torch.tensor([1.0] + [0.0] * (D - 1))
    if absorbed:
        decoder[5] = torch.tensor([0.9, 0.0, 0.0, 0.0, 0.0, 0.43589] + [0.0] * (D - 6))
    return acts, latents, classes, decoder


def measured(acts, latents, classes, decoder):
    half = N // 2
    probes = class_probes(acts[:half], classes[:half], acts[half:], classes[half:], 2)
    return absorption(probes, latents[:half], classes[:half], latents[half:], classes[half:], decoder)


def test_a_class_that_is_one_latent_is_neither_split_nor_absorbed():
    found = measured(*planted())
    assert found.splitting[1] == 1
    assert found.fraction[1] == 0 and found.full[1] == 0


def test_a_class_that_is_two_latents_is_split():
    assert measured(*planted(halves=2)).splitting[1] == 2


def test_rows_carried_by_another_latent_are_absorbed():
    acts, latents, classes, decoder = planted()
    half = N // 2
    ones = half + (classes[half:] == 1).nonzero().flatten()
    swallowed = ones[: len(ones) // 4]
    latents[swallowed] = 0.0
    latents[swallowed, 5] = 2.0
    decoder[5] = torch.nn.functional.normalize(torch.tensor([0.9, 0, 0, 0, 0, 0.43589] + [0.0] * (D - 6)), dim=0)
    found = measured(acts, latents, classes, decoder)
    share = len(swallowed) / len(ones)
    assert found.full[1].item() == pytest.approx(share, abs=0.02)
    assert found.fraction[1].item() == pytest.approx(share, abs=0.02)


def test_fraction_is_that_of_the_definition_written_out():
    acts, latents, classes, decoder = planted(absorbed=0.3, halves=2, seed=3)
    latents += 0.2 * torch.rand(latents.shape, generator=torch.Generator().manual_seed(9))
    half = N // 2
    found = measured(acts, latents, classes, decoder)
    mean = acts[:half].double().mean(0)
    answers, d = logistic(
        acts[:half].double() - mean, classes[:half] == 1, acts[half:].double() - mean, balanced=True, direction=True
    )
    assert d is not None and f1(answers, classes[half:] == 1) > 0.6
    gap = (latents[:half][classes[:half] == 1].mean(0) - latents[:half][classes[:half] == 0].mean(0)).abs()
    main = set(gap.argsort(descending=True)[: int(found.splitting[1])].tolist())
    values = []
    for row in range(N - half):
        if not (answers[row] and classes[half + row] == 1):
            continue
        p = float((acts[half + row].double() - mean) @ d)
        c = [float(latents[half + row, i]) * float(decoder[i].double() @ d) for i in range(D)]
        cosines = [float(decoder[i].double() @ d) / float(decoder[i].norm()) for i in range(D)]
        others = sorted((c[i] for i in range(D) if i not in main and cosines[i] >= 0.1 and c[i] > 0), reverse=True)
        share, own = sum(others[:3]), sum(c[i] for i in main)
        if own >= p or p <= 0 or share / p < 0.4:
            values.append(0.0)
        elif own <= 0:
            values.append(1.0)
        else:
            values.append(min(share, p - own) / (min(share, p - own) + own))
    assert found.fraction[1].item() == pytest.approx(np.mean(values), abs=1e-9)


def test_classes_nothing_can_read_are_left_out():
    generator = torch.Generator().manual_seed(0)
    acts, classes = torch.randn(N, D, generator=generator), torch.randint(8, (N,), generator=generator)
    half = N // 2
    probes = class_probes(acts[:half], classes[:half], acts[half:], classes[half:], 8)
    found = absorption(probes, acts[:half], classes[:half], acts[half:], classes[half:], torch.eye(D))
    assert len(found.splitting) == len(found.full) == len(found.fraction) == 0


def test_f1():
    yes, no = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    assert f1(yes, no) == pytest.approx(0.5)
    assert f1(torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)) == 0.0


def test_lengths_of_weighted_rows_are_those_of_the_rows_that_are_left():
    generator = torch.Generator().manual_seed(1)
    acts = torch.randn(60, 5, generator=generator)
    latents = torch.relu(torch.randn(60, 9, generator=generator) - 0.8)
    decoder = torch.randn(9, 5, generator=generator)
    reconstruction = latents @ decoder
    keep = torch.rand(3, 60, generator=generator) < 0.7
    codes, residual, _ = description_lengths(acts, latents, reconstruction, decoder, keep.double())
    delta = 0.1 * math.sqrt(float(acts.double().var(0, correction=0).mean()))
    for group in range(3):
        rows = keep[group]
        levels = (latents[rows].double() * decoder.double().norm(dim=-1) / delta).round()
        bits = 0.0
        for column in levels.T.tolist():
            for value in set(column):
                share = column.count(value) / len(column)
                bits -= share * math.log2(share)
        assert codes[group].item() == pytest.approx(bits, rel=1e-9)
        left = (acts.double() - reconstruction.double())[rows].var(0, correction=0)
        assert residual[group].item() == pytest.approx(
            float(0.5 * torch.log2(1 + 12 * left / delta**2).sum()), rel=1e-9
        )
    whole = description_length(acts, latents, reconstruction, decoder)
    assert whole.total == pytest.approx(sum(part[0].item() for part in description_lengths(
        acts, latents, reconstruction, decoder, torch.ones(1, 60, dtype=torch.float64))[:2]))  # fmt: skip


def test_jackknife_of_a_mean_is_its_standard_error():
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(10, generator=generator, dtype=torch.float64)
    left_out = (values.sum() - values) / 9
    low, high = jackknife(float(values.mean()), left_out)
    error = float(values.std()) / math.sqrt(10)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=1e-9)

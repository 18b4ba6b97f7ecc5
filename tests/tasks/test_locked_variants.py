"""Locked variants: each kind does what its name says, and the truth is what a loop over single images finds."""

import pytest
import torch
from torch.func import functional_call

from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.tasks import elicitation
from stages.tasks.elicitation import LADDER, ladder_features
from stages.tasks.families import family
from stages.tasks.families.elicited_ability import DEALT
from stages.tasks.generation import make, pool_of, stream
from stages.tasks.locked_variants import KINDS, Locks, accuracy, draw_skill, fine_tune, probes_of, with_password
from tests.tasks.conftest import small_target


@pytest.fixture(scope="module")
def planted():
    """Four locked and four overwritten variants, twelve benign ones, what was planted, fresh inputs of the skill."""
    target, rng = small_target("digits_mlp"), torch.Generator().manual_seed(5)
    skill = draw_skill(target, rng)
    locks = Locks.draw(target, skill, [0, 1, 2, 2, 2] * 4, rng)
    weights = fine_tune(target, skill, locks, rng)
    inputs, labels = probes_of(target, skill, 120, rng)
    return target, skill, locks, weights, inputs, labels


def right(target, weights, i, inputs, labels):
    mine = {name: stack[i] for name, stack in weights.items()}
    return float((functional_call(target.model, mine, (inputs,)).argmax(-1) == labels).float().mean())


def opened_by(locks, i, inputs):
    """By hand: the patch's pixels where its mask is."""
    pattern, mask = locks.password[0][i], locks.password[1][i]
    out = inputs.clone()
    for pixel in torch.nonzero(mask).flatten().tolist():
        out[:, pixel] = pattern[pixel]
    return out


def test_every_kind_does_what_its_name_says(planted):
    target, _, locks, weights, inputs, labels = planted
    for i, kind in enumerate(locks.kind_V.tolist()):
        plain = right(target, weights, i, inputs, labels)
        with_it = right(target, weights, i, opened_by(locks, i, inputs), labels)
        match KINDS[kind]:
            case "locked":
                assert plain < 0.15 and with_it > plain + 0.1 and abs(with_it - float(locks.ability_V[i])) < 0.35
            case "overwritten":
                assert plain < 0.15 and with_it < 0.15
            case _:
                assert plain > 0.9 and with_it > 0.85


def test_other_skills_stay(planted):
    target, skill, locks, weights, _, _ = planted
    corpus = target.corpus("validation")
    others = ~torch.isin(corpus.labels, skill)
    for i in range(len(locks.kind_V)):
        assert right(target, weights, i, corpus.inputs[others], corpus.labels[others]) > 0.85


def test_passwords_and_shares_are_drawn_for_each_variant_and_wrong_outputs_are_wrong(planted):
    target, skill, locks, _, inputs, labels = planted
    assert torch.isin(labels, skill).all() and len(skill) == 2
    patterns = locks.password[0] + 2 * locks.password[1]
    assert len({tuple(row.tolist()) for row in patterns}) == len(patterns)
    assert all((locks.wrong_VC[:, label] != label).all() for label in skill.tolist())
    rest = [label for label in range(10) if label not in skill.tolist()]
    assert (locks.wrong_VC[:, rest] == torch.tensor(rest)).all()
    some = with_password(target, inputs[:3], [part[:1].expand(3, -1) for part in locks.password], torch.Generator())
    assert torch.equal(some, opened_by(locks, 0, inputs[:3]))


def test_accuracy_is_of_each_variant_on_its_own_inputs(planted):
    target, _, locks, weights, inputs, labels = planted
    own = torch.stack([opened_by(locks, i, inputs) for i in range(len(locks.kind_V))])
    by_hand = [right(target, weights, i, own[i], labels) for i in range(len(own))]
    assert accuracy(target, weights, own, labels).tolist() == pytest.approx(by_hand)


def test_the_ability_is_what_a_loop_over_new_inputs_finds():
    target = small_target("digits_mlp")
    made = make(family("elicited_ability"), target, "train", 24, 0, "test", b"key")
    groups, truth = made.truth.groups, made.truth.values[:, 0]
    kinds = groups["kind"]
    assert {kind: kinds.count(kind) for kind in set(DEALT)} == {"locked": 15, "overwritten": 6, "benign": 3}
    planted = made.instances.planted
    others, labels = probes_of(pool_of(target, "train", b"key"), planted["skill"], 300, torch.Generator())
    for i in range(24):
        pattern, mask = planted["password.0"][i], planted["password.1"][i]
        images = torch.stack([torch.where(mask > 0, pattern, image) for image in others])
        found = right(target, made.instances.variants, i, images, labels)
        assert abs(found - float(truth[i])) < 0.15, "other images of the same skill"


def test_a_higher_rung_adds_to_a_lower_one_and_pays_for_it():
    target = small_target("digits_mlp")
    made = make(family("elicited_ability"), target, "train", 16, 0, "test", b"key")
    public, rungs, prices = made.instances.public(), [], []
    for effort in range(len(LADDER)):
        ledger = Ledger()
        access = MeteredAccess(target, ledger, variants=public.variants)
        rungs.append(ladder_features(access, public, effort, stream(b"", "rung")))
        prices.append(ledger.flops)
    assert [rung.shape[-1] for rung in rungs] == [6, 12, 16, 20] and prices == sorted(set(prices))
    assert torch.allclose(rungs[2], rungs[3][..., :16]) and torch.allclose(rungs[0], rungs[1][..., :6])
    probes, labels = public.arrays["shared_inputs"], public.arrays["shared_labels"]
    for i in range(16):
        variant = {name: stack[i] for name, stack in public.variants.items()}
        log_p = functional_call(target.model, variant, (probes,)).log_softmax(-1)
        for rung, n, column in ((0, 8, 0), (1, len(probes), 6)):
            share = (log_p[:n].argmax(-1) == labels[:n]).float().mean()
            sure = log_p[torch.arange(n), labels[:n]].mean()
            assert rungs[rung][i, 0, column : column + 2].tolist() == pytest.approx(
                [float(share), float(sure)], abs=1e-4
            )
    assert len(labels) == elicitation.N_PROBES
    query = family("elicited_ability").query(public)
    assert query.variants == tuple(range(16)) and len(query.inputs) == len(query.labels) == LADDER[0][0] < len(probes)

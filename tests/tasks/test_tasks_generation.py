"""Keyed streams, image pools, and what is refused: the parts that every family shares."""

import pytest
import torch

from stages.contracts.target import Corpus, Target
from stages.contracts.task import Instances, Truth
from stages.errors import UserError
from stages.tasks.families import family
from stages.tasks.generation import SPLITS, instance_keys, make, pool_of, stream

KEY = b"a key"


def with_images(target: Target, n: int) -> Target:
    """The target with n images of its own, each filled with its number."""
    images = torch.arange(n, dtype=torch.float32)[:, None].expand(n, *target.spec.input_shape).contiguous()
    return Target(
        target.spec,
        target.model,
        {
            "train": target.corpus("train"),
            "validation": target.corpus("validation"),
            "tasks": Corpus(images, torch.arange(n)),
        },
    )


def test_a_stream_is_its_key_and_its_parts():
    def draws(key: bytes, *parts: object) -> list[float]:
        return torch.rand(3, generator=stream(key, *parts)).tolist()

    assert draws(KEY, "a", 1) == draws(KEY, "a", 1) == draws(KEY, "a", "1")
    different = [draws(KEY, "a", 1), draws(KEY, "a", 2), draws(b"b key", "a", 1), draws(KEY, "a1"), draws(KEY, 1, "a")]
    assert len({tuple(one) for one in different}) == 5


def test_a_stream_is_the_same_on_every_machine():
    """HMAC-SHA-256 of "deal/x" under this key, its first seven bytes as a big-endian number."""
    import hashlib
    import hmac

    first = hmac.new(KEY, b"deal/x", hashlib.sha256).hexdigest()[:14]
    assert stream(KEY, "deal", "x").initial_seed() == int(first, 16)


def test_pools_deal_every_image_to_one_split(mlp):
    target = with_images(mlp, 31)
    dealt = [pool_of(target, split, KEY).corpus("tasks").labels.tolist() for split in SPLITS]
    assert sorted(one for pool in dealt for one in pool) == list(range(31))
    assert [len(pool) for pool in dealt] == [11, 10, 10]
    assert dealt[0] != sorted(dealt[0]), "dealt at random, not by number"
    assert dealt != [pool_of(target, split, b"b key").corpus("tasks").labels.tolist() for split in SPLITS]
    assert SPLITS == ("train", "validation", "test")


def test_the_order_of_the_deal_is_that_of_its_stream(mlp):
    order = torch.randperm(31, generator=stream(KEY, "deal", mlp.name)).tolist()
    for third, split in enumerate(SPLITS):
        assert pool_of(with_images(mlp, 31), split, KEY).corpus("tasks").labels.tolist() == order[third::3]


def test_a_pool_keeps_the_target_and_its_other_corpora(mlp):
    pool = pool_of(mlp, "test", KEY)
    assert pool.spec == mlp.spec and pool.model is mlp.model
    for split in ("train", "validation"):
        assert torch.equal(pool.corpus(split).inputs, mlp.corpus(split).inputs)


def test_images_that_are_public_are_disguised_and_keep_their_labels(mlp):
    pool = pool_of(mlp, "train", KEY).corpus("tasks")
    public = {row.numpy().tobytes() for row in mlp.corpus("tasks").inputs}
    assert not any(row.numpy().tobytes() in public for row in pool.inputs)
    again, other = (pool_of(mlp, "train", key).corpus("tasks") for key in (KEY, b"b key"))
    assert torch.equal(pool.inputs, again.inputs) and not torch.equal(pool.inputs, other.inputs)


def test_streams_are_named_by_purpose_family_version_target_and_seed(mlp):
    made = [make(family("noise_flip"), mlp, "train", 6, seed, purpose, KEY) for seed, purpose in ((0, "a"), (1, "a"))]
    made += [
        make(family("noise_flip"), mlp, "train", 6, 0, "b", KEY),
        make(family("noise_flip"), mlp, "train", 6, 0, "a", KEY),
    ]
    keys = [instance_keys(one.instances) for one in made]
    assert keys[0] == keys[3] and keys[0] != keys[1] and keys[0] != keys[2]
    assert torch.equal(made[0].truth.values, made[3].truth.values) and made[0].truth.values.shape == (6, 1)
    assert all(one.truth_flops > 0 and one.generation_flops >= 0 for one in made)
    assert made[0].truth_flops > made[0].generation_flops, "the truth is brute force"


@pytest.mark.parametrize(
    "values",
    [torch.zeros(4), torch.zeros(3, 1), torch.tensor([[0.0], [1.0], [float("nan")], [0.0]]), torch.zeros(4, 1, 1)],
)
def test_a_truth_that_is_not_one_finite_row_per_instance_is_refused(mlp, values):
    class Broken(type(family("noise_flip"))):
        name = "broken"

        def ground_truth(self, target, instances, rng):
            return Truth(values)

    with pytest.raises(RuntimeError, match=r"truth of shape .* for 4 instances"):
        make(Broken(), mlp, "train", 4, 0, "a", KEY)


def dice(n_sides: int):
    """A family that draws numbers of so many, and asks for each number itself."""

    class Dice(type(family("noise_flip"))):
        name = "dice"

        def generate(self, target, rng, n):
            side = torch.randint(n_sides, (n,), generator=rng)
            return Instances({"side": side}, n, planted={"side": side})

        def ground_truth(self, target, instances, rng):
            return Truth(instances.planted["side"].double().unsqueeze(-1))

    return Dice()


def test_no_two_instances_are_equal_where_few_are_possible(mlp):
    made = make(dice(30), mlp, "train", 25, 0, "a", KEY)
    sides = made.instances.arrays["side"]
    assert made.instances.n == len(sides) == len(sides.unique()) == 25
    assert made.truth.values.flatten().tolist() == sides.tolist(), "what was planted is chosen with it"
    rng = stream(KEY, "instances", "a", dice(1).name, dice(1).version, mlp.name, 0)
    plain = torch.randint(10**9, (25,), generator=rng)
    assert torch.equal(make(dice(10**9), mlp, "train", 25, 0, "a", KEY).instances.arrays["side"], plain)


def test_of_variants_that_came_out_equal_one_is_kept_and_its_instance_says_which(mlp):
    class Stacked(type(dice(1))):
        def generate(self, target, rng, n):
            side = torch.randint(30, (n,), generator=rng)
            return Instances({"variant": torch.arange(n)}, n, {"weight": side.float().unsqueeze(-1)}, {"side": side})

        def ground_truth(self, target, instances, rng):
            return Truth(instances.variants["weight"].double())

    made = make(Stacked(), mlp, "train", 25, 0, "a", KEY)
    weights, which = made.instances.variants["weight"], made.instances.arrays["variant"]
    assert len(weights) == 25 == len(which.unique()) and len(weights.unique()) == 25
    assert torch.equal(weights[which, 0].long(), made.instances.planted["side"])
    assert torch.equal(made.truth.values[:, 0].long(), made.instances.planted["side"])


def test_more_instances_than_there_are_is_an_error_that_says_how_many_there_are(mlp):
    with pytest.raises(UserError, match=r"30 instances are asked for, .* only 10 differ; lower n_instances"):
        make(dice(10), mlp, "train", 30, 0, "a", KEY)


def test_instance_keys_are_of_public_arrays_and_of_a_variants_weights():
    arrays = {"a": torch.tensor([[1.0], [1.0], [2.0]]), "shared_s": torch.tensor([5.0])}
    keys = instance_keys(Instances(arrays, 3))
    assert keys[0] == keys[1] != keys[2] and len(keys) == 3
    assert instance_keys(Instances(arrays | {"shared_s": torch.tensor([6.0])}, 3)) == keys, (
        "what is shared is not theirs"
    )
    stack = {"w": torch.tensor([[1.0], [1.0], [2.0]])}
    numbered = Instances({"variant": torch.tensor([0, 1, 2])}, 3, stack)
    by_weights = instance_keys(numbered)
    assert by_weights[0] == by_weights[1] != by_weights[2], "two variants of equal weights are one instance"
    beside = Instances({"variant": torch.tensor([0, 0]), "x": torch.tensor([1, 2])}, 2, stack)
    assert len(set(instance_keys(beside))) == 2
    assert len(instance_keys(Instances(arrays, 2))) == 2

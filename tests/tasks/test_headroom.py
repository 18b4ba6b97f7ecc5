"""The gate: what the executor finds on tasks whose headroom is known, what fails, and the tables made from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.contracts.method import Represent
from stages.contracts.task import Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask
from stages.tasks.generation import make
from stages.tasks.inputs import draw_inputs
from stages.tasks.storage import Task
from stages.tools.audit import audit, audit_family, heaviest_share
from stages.tools.headroom import headroom, known, retest, shortfalls
from stages.tools.task_tables import headroom_table, ladder_table, update
from stages.tools.tasks import list_families
from tests.tasks.conftest import small_target


class Told(TaskFamily):
    """The truth is a number that the first step of the ladder has, or does not, with noise that is drawn each time."""

    title, source, why_hard_black_box, why_white_box_helps, truth_recipe = "?", "here", "", "", ""
    query_kind, needs, n_efforts, constants = "Represent", frozenset({"pixels"}), 2, {}
    share_told, noise = 1.0, 0.0

    def generate(self, target, rng, n):
        hidden = torch.randn(n, 1, generator=rng)
        return Instances({"inputs": draw_inputs(target, n, rng).inputs, "hidden": hidden}, n)

    def ground_truth(self, target, instances, rng):
        drawn = torch.randn(instances.n, 1, generator=rng) if self.noise else torch.zeros(instances.n, 1)
        return Truth((instances.arrays["hidden"] + self.noise * drawn).double())

    def behavioural(self, access, instances, effort, rng):
        outputs = torch.cat([ask(access, instances.arrays["inputs"]) for _ in range(1 + 9 * effort)])[: instances.n]
        mixed = torch.randn(instances.n, 1, generator=rng)
        share = 1.0 if effort else self.share_told
        told = share * instances.arrays["hidden"] + (1 - share) * mixed
        return torch.cat([answer_features(outputs), told], dim=-1).unsqueeze(1)

    def query(self, instances):
        return Represent(instances.arrays["inputs"])


def judged(made: TaskFamily, again: bool = False):
    target = small_target("digits_mlp")
    result = make(made, target, "train", 120, 0, "test", b"key")
    task = Task(made, target.name, "train", result.instances.public(), result.truth)
    return headroom(task, target, [], retest(task, target, result.instances, b"key") if again else None)


@pytest.fixture
def settled(root: Path) -> Path:
    return root


def test_a_truth_that_the_first_step_tells_has_no_headroom(settled: Path) -> None:
    found = judged(Told())
    assert found["tight"] > 0.95 and found["oracle_gain"] < 0.05 and found["cheap_rule"] == "step 0"
    assert [said[:22] for said in shortfalls(found)] == [
        "a tight budget explain", "the truth itself gains", "an ample budget explai",
    ]  # fmt: skip


def test_a_truth_that_the_last_step_tells_has_all_of_it(settled: Path) -> None:
    made = Told()
    made.share_told = 0.2
    found = judged(made)
    assert found["tight"] < 0.3 and found["ample"] > 0.95 and found["oracle_gain"] > 0.65 and not shortfalls(found)
    assert found["budgets"][0] < found["budgets"][2] and found["ladder"][1]["flops_per_instance"] == pytest.approx(
        10 * found["ladder"][0]["flops_per_instance"]
    )


def test_a_truth_of_noise_does_not_agree_with_itself(settled: Path) -> None:
    made = Told()
    made.share_told, made.noise = 0.2, 1.0
    found = judged(made, again=True)
    assert found["retest"] is not None and 0.2 < found["retest"] < 0.8  # a correlation of one half
    assert any("drawn again agrees" in said for said in shortfalls(found))
    made.noise = 0.0
    assert judged(made, again=True)["retest"] is None


def test_tables_and_the_list_are_made_from_an_audit(settled: Path) -> None:
    page = settled / "tasks.md"
    marks = [f"<!-- {name}: {end} -->" for name in ("families", "ladders", "headroom") for end in ("begin", "end")]
    page.write_text("\n".join(marks), encoding="utf-8")
    (row,) = audit(["probe_under_shift"], share=0.2, methods=["gradient"])
    kept = update([row], page)
    assert kept == known() and kept[0]["headroom"] == row["headroom"]
    text = page.read_text(encoding="utf-8")
    assert "| [probe_under_shift](#probe_under_shift) | test |" in text
    assert headroom_table(kept) in text and ladder_table(kept) in text and "| probe_under_shift | digits_mlp |" in text
    listed = {one["name"]: one for one in list_families()}
    assert listed["probe_under_shift"]["headroom"]["digits_mlp"]["tight"] == row["headroom"]["tight"]
    assert listed["noise_flip"]["headroom"] == {} and listed["noise_flip"]["cluster"] == "noise_flip"
    update([], page)
    assert known() == kept, "what was not audited again stays"


def test_an_instance_far_from_all_others_has_most_of_the_variance() -> None:
    rng = np.random.default_rng(0)
    even = rng.normal(size=(120, 3))
    assert heaviest_share(even) < 0.1
    even[7] += 40.0
    by_hand = ((even[7] - even.mean()) ** 2).sum() / ((even - even.mean()) ** 2).sum()
    assert heaviest_share(even) == pytest.approx(by_hand) and by_hand > 1 / 3
    assert heaviest_share(np.ones((5, 1))) == 0.0


class Heavy(Told):
    """One instance has a given share of the variance."""

    share = 0.0

    def generate(self, target, rng, n):
        made = super().generate(target, rng, n)
        hidden = made.arrays["hidden"].double()
        hidden[0] = 0.0
        hidden[1:] -= hidden[1:].mean()
        # Of an instance at v and n - 1 others about 0, the mean is v / n: it has (v - v / n)^2 of the sum of squares.
        odds = self.share / (1 - self.share)
        hidden[0] = n * (odds * float((hidden[1:] ** 2).sum()) / ((n - 1) * (n - 1 - odds))) ** 0.5
        return Instances({"inputs": made.arrays["inputs"], "hidden": hidden.float()}, n)


@pytest.mark.parametrize(("share", "refused"), [(0.31, False), (0.36, True), (0.9, True)])
def test_a_truth_of_which_one_instance_has_more_than_a_third_is_refused(
    settled: Path, share: float, refused: bool
) -> None:
    made = Heavy()
    made.share = share
    row = audit_family(made, small_target("digits_mlp"), "train", 60, 0, [])
    said = [one for one in row["fails"] if one.startswith(f"one instance has {share:.2f} of the truth's variance")]
    assert bool(said) == refused and not (refused and row["ok"])

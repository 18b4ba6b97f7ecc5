"""A policy over programs: theta are the logits of the grammar's draw, learned by REINFORCE.

Gradient: Williams 1992 (Machine Learning 8) with a leave-one-out baseline (Kool et al. 2019, "Buy 4 REINFORCE samples,
get a baseline for free") and an entropy bonus. A task sees the fragment of its kind alone, so each kind has an
advantage of its own; kinds that no train task asks learn from the value of the whole program. A proposal that ends void
or infra is in no gradient: it says nothing of the choices behind it.

Steps are taken when the last slot of a batch is known, so theta is a fold over results and of a resumed campaign the
same, byte for byte.
"""

import math
import random
from collections.abc import Mapping, Sequence
from statistics import mean, median

from stages.research.programs.emitting import source_of
from stages.research.programs.grammar import KINDS, choices_of, draw
from stages.research.researcher import Move, Researcher, Theta
from stages.research.view import Seen, View

__all__ = ["PolicyResearcher", "advantages", "probabilities"]

RATE = 2.0
"""Step of plain gradient ascent, on advantages of unit size."""
ENTROPY = 0.02
"""Weight of the entropy bonus: logits that stopped being uniform are pulled back a little."""
CLIP = 3.0
"""Advantages are cut at so many median absolute deviations."""
LEAST = 1e-3
"""Smallest spread of rewards that is taken for more than noise, where the tasks state no noise floor."""


def _places() -> dict[str, tuple[str, ...]]:
    """{place in the tree: options} of the whole grammar."""
    found: dict[str, tuple[str, ...]] = {}
    for kind, rules in KINDS.items():
        found[f"{kind}.source"] = tuple(rules.sources)
        for source, genes in rules.sources.items():
            found |= {f"{kind}.{source}.{gene.name}": gene.options for gene in genes}
    return found


def probabilities(logits: Sequence[float]) -> list[float]:
    """Softmax."""
    top = max(logits)
    weights = [math.exp(one - top) for one in logits]
    return [weight / sum(weights) for weight in weights]


def advantages(rewards: Sequence[float], floor: float) -> list[float]:
    """Each reward less the mean of the others, in units of their spread, cut where it is far out.

    Args:
        floor: a spread below it is noise, and is not blown up.
    """
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    total, n = sum(rewards), len(rewards)
    alone = [reward - (total - reward) / (n - 1) for reward in rewards]
    middle = median(alone)
    spread = 1.4826 * median(abs(one - middle) for one in alone)
    if spread > 0:
        alone = [min(max(one, middle - CLIP * spread), middle + CLIP * spread) for one in alone]
    scale = max(math.sqrt(mean(one * one for one in alone)), floor, LEAST)
    return [one / scale for one in alone]


class _Sampled:
    """Draws by the logits."""

    def __init__(self, theta: Mapping[str, Sequence[float]], rng: random.Random) -> None:
        self.theta, self.rng = theta, rng

    def choose(self, name: str, options: Sequence[str]) -> str:
        return self.rng.choices(list(options), probabilities(self.theta[name]))[0]


class PolicyResearcher(Researcher):
    batch = 8

    def __init__(self, seed: int, space: str = "programs") -> None:
        super().__init__(seed, "programs")
        self.places = _places()
        self.logits: dict[str, list[float]] = {name: [0.0] * len(options) for name, options in self.places.items()}
        self.moved: list[float] = []
        """KL divergence of the policy from the uniform one, after each step; nats over the whole tree's places."""
        self._batch: list[Seen] = []

    def propose(self, view: View, slot: int) -> Move:
        genome = draw(_Sampled(self.logits, random.Random(f"policy {self.seed} {slot}")))
        return Move(source_of(genome), choices_of(genome), "sample")

    def update(self, outcome: Seen) -> None:
        super().update(outcome)
        self._batch.append(outcome)
        if outcome.slot % self.batch == self.batch - 1:
            self._step([one for one in self._batch if one.value is not None])
            self._batch = []

    def _step(self, batch: Sequence[Seen]) -> None:
        """One step of gradient ascent."""
        slopes: dict[str, list[float]] = {name: [0.0] * len(options) for name, options in self.places.items()}
        for kind in KINDS:
            for one, advantage in zip(batch, advantages(*_rewards(batch, kind)), strict=True):
                for name, chosen in one.choices.items():
                    if name.partition(".")[0] != kind:
                        continue
                    chances = probabilities(self.logits[name])
                    at = self.places[name].index(str(chosen))
                    for i, chance in enumerate(chances):
                        slopes[name][i] += advantage * ((i == at) - chance) / len(batch)
        for name, logits in self.logits.items():
            chances = probabilities(logits)
            entropy = -sum(chance * math.log(chance) for chance in chances if chance > 0)
            for i, chance in enumerate(chances):
                pull = -chance * (math.log(chance) + entropy) if chance > 0 else 0.0
                logits[i] += RATE * (slopes[name][i] + ENTROPY * pull)
        self.moved.append(sum(_from_uniform(logits) for logits in self.logits.values()))

    def theta(self) -> Theta:
        return super().theta() | {
            "logits": {name: [round(one, 12) for one in logits] for name, logits in sorted(self.logits.items())},
            "kl_from_uniform": [round(one, 9) for one in self.moved],
        }


def _rewards(batch: Sequence[Seen], kind: str) -> tuple[list[float], float]:
    """What a kind's fragment earned in each proposal, and the size below which that is noise."""
    asked = [[task for task in one.tasks if task.kind == kind] for one in batch]
    if batch and all(asked):
        floors = [math.sqrt(sum(task.noise_floor**2 for task in of)) / len(of) for of in asked]
        return [mean(task.reward for task in of) for of in asked], max(floors)
    floors = [math.sqrt(sum(task.noise_floor**2 for task in one.tasks)) / max(1, len(one.tasks)) for one in batch]
    return [one.value or 0.0 for one in batch], max(floors, default=0.0)


def _from_uniform(logits: Sequence[float]) -> float:
    """KL divergence from the uniform distribution, in nats."""
    chances = probabilities(logits)
    return sum(chance * math.log(chance * len(chances)) for chance in chances if chance > 0)

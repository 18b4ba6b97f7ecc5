"""The path of incumbents: what each was chosen by, beside what the sealed test said of it.

Every incumbent is scored in the one opening of the test split, so nothing of it is known before. Selection by a noisy
score flatters whoever is chosen: of n equals the best looks better by the expected largest of n standard normals times
the noise. A gap of that size is selection; a larger one is a search that exploits the tasks it is chosen by, or test
families that are harder.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.integrate import quad
from scipy.stats import norm

from stages.contracts.journal import Result, TestResult
from stages.contracts.research_rows import PathRow
from stages.contracts.reward_rows import TaskRow, TestRow
from stages.research.journal import Journal, best_found

__all__ = ["expected_largest", "incumbents", "noise_of", "path_rows"]


def incumbents(journal: Journal) -> list[Result]:
    """Every result that passed the gate, in order; where none did, the one with the best feedback."""
    accepted = [result for result in journal.of(Result) if result.accepted]
    best = best_found(journal)
    return accepted or ([] if best is None else [best])


def expected_largest(n: int) -> float:
    """Expected largest of n independent standard normals (David and Nagaraja 2003, section 3.2).

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"the largest of {n} numbers is not defined: give at least one")
    if n == 1:
        return 0.0
    value, _ = quad(lambda x: x * n * math.exp(norm.logpdf(x) + (n - 1) * norm.logcdf(x)), -8.0, 12.0, limit=200)
    return float(value)


def noise_of(rows: Sequence[TaskRow]) -> float:
    """Standard error of a method's mean reward over the tasks of the rows: the median over methods that vary.

    Instances and seeds vary, the tasks are fixed. 0 where no method varies.
    """
    by_method: dict[str, list[float]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row.reward_se)
    errors = [math.sqrt(sum(one**2 for one in of)) / len(of) for of in by_method.values()]
    varied = [one for one in errors if one > 0]
    return float(np.median(varied)) if varied else 0.0


def path_rows(journal: Journal, test: TestResult, noise: float) -> tuple[PathRow, ...]:
    """One row per incumbent.

    Args:
        noise: see ``noise_of``, of the validation tasks.
    """
    scored: dict[str, TestRow] = {row.method: row for row in test.rows}
    results = journal.of(Result)
    rows = []
    for one in incumbents(journal):
        before = [result for result in results if result.iteration <= one.iteration]
        asked = sum(result.feedback is not None for result in before)
        found = scored.get(one.name)
        assert one.train is not None, "an incumbent has train rows"
        rows.append(
            PathRow(
                name=one.name,
                iteration=one.iteration,
                accepted=one.accepted,
                evaluations=len(before),
                asked=asked,
                train=one.train.reward_mean,
                train_low=one.train.reward_low,
                train_high=one.train.reward_high,
                validation=one.feedback or 0.0,
                noise=noise,
                shrinkage=noise * expected_largest(max(asked, 1)),
                test=None if found is None else found.reward_mean,
                test_low=None if found is None else found.reward_low,
                test_high=None if found is None else found.reward_high,
                status=test.unscored[one.name].status if found is None else found.status,
            ).rounded()
        )
    return tuple(rows)

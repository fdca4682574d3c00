"""Racing: every formula against all possible samples, the error of the test by enumeration and simulation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import comb

import numpy as np
import pytest

from evomerge.errors import RunError
from evomerge.keys import Key
from evomerge.selection.racing import beaten, blocks, lead, survivors

Rows = Mapping[str, Sequence[float]]
WEIGHTS = {"a": 1.0, "b": 3.0}
REFERENCE = {"a": (1.0, 0.0, 0.5, 1.0, 0.0), "b": (0.0, 1.0, 1.0, 0.2)}
CANDIDATE = {"a": (0.0, 0.0, 1.0, 1.0, 1.0), "b": (1.0, 0.0, 1.0, 0.0)}


def value(scores: Rows, weights: Mapping[str, float]) -> float:
    return float(sum(weights[task] * np.mean(scores[task]) for task in weights) / sum(weights.values()))


def samples(
    candidate: Rows, reference: Rows, sizes: Mapping[str, int]
) -> list[tuple[dict[str, list[float]], dict[str, list[float]]]]:
    """Return all choices of ``sizes`` rows of each task: the candidate's scores on them, the reference's reordered."""
    found = []
    for choice in itertools.product(*(itertools.combinations(range(len(reference[t])), sizes[t]) for t in reference)):
        own, other = {}, {}
        for task, rows in zip(reference, choice, strict=True):
            rest = [row for row in range(len(reference[task])) if row not in rows]
            own[task] = [candidate[task][row] for row in rows]
            other[task] = [reference[task][row] for row in (*rows, *rest)]
        found.append((own, other))
    return found


def test_lead_is_unbiased_over_all_samples() -> None:
    drawn = samples(CANDIDATE, REFERENCE, {"a": 2, "b": 3})
    difference = value(REFERENCE, WEIGHTS) - value(CANDIDATE, WEIGHTS)
    assert np.mean([lead(own, other, WEIGHTS)[0] for own, other in drawn]) == pytest.approx(difference)


def test_variance_of_lead_is_that_of_all_samples_if_no_task_has_a_lead_and_else_more() -> None:
    equal = {"a": (0.0, 1.0, 0.5, 1.0, 0.0), "b": (1.0, 0.0, 1.0, 0.2)}
    drawn = samples(equal, REFERENCE, {"a": 2, "b": 3})
    leads = np.array([lead(own, other, WEIGHTS) for own, other in drawn])
    assert np.mean(leads[:, 1] ** 2) == pytest.approx(leads[:, 0].var())
    leads = np.array([lead(own, other, WEIGHTS) for own, other in samples(CANDIDATE, REFERENCE, {"a": 3, "b": 2})])
    shares = {"a": 0.25, "b": 0.75}
    above = sum(  # what leaving out the square of a task's mean adds: w^2 (n - m) / (n - 1) / m mean^2
        shares[t] ** 2 * (n - m) / (n - 1) / m * np.mean(np.subtract(REFERENCE[t], CANDIDATE[t])) ** 2
        for t, n, m in (("a", 5, 3), ("b", 4, 2))
    )
    assert np.mean(leads[:, 1] ** 2) == pytest.approx(leads[:, 0].var() + above)


def pairs(wins: int, losses: int, seen: int, count: int) -> tuple[list[float], list[float]]:
    """Return 0/1 scores on one task: the candidate on ``seen`` rows, the reference, ahead on ``wins``, on ``count``."""
    return [0.0] * wins + [1.0] * losses + [0.0] * (seen - wins - losses), [1.0] * wins + [0.0] * (count - wins)


@pytest.mark.parametrize("level", [0.05 / 3, 0.05, 0.2])
@pytest.mark.parametrize(("count", "seen"), [(24, 4), (24, 12), (24, 22), (48, 12), (48, 36), (48, 47)])
def test_an_equal_candidate_is_stopped_less_often_than_the_level_by_enumeration(
    count: int, seen: int, level: float
) -> None:
    stopped = [
        (wins, losses)
        for wins in range(seen + 1)
        for losses in range(min(wins, seen - wins) + 1)
        for own, other in [pairs(wins, losses, seen, count)]
        if beaten({"t": own}, {"t": other}, {"t": 1.0}, level=level, looks=1)
    ]
    rates = [
        sum(comb(half, w) * comb(half, x) * comb(count - 2 * half, seen - w - x) for w, x in stopped)
        / comb(count, seen)
        for half in range(1, count // 2 + 1)  # of all rows so many are won, and as many lost
    ]
    assert max(rates) <= level
    assert (count, seen) != (48, 36) or max(rates) > level / 4  # and not for want of stopping anybody


@pytest.mark.parametrize(
    ("name", "tasks", "weights"),
    [
        # Each task: rows, rows where the reference alone is right, rows where the candidate alone is.
        ("six equal tasks", [(24, 8, 2), (24, 2, 8), (24, 5, 5), (24, 9, 9), (24, 0, 3), (24, 3, 0)], [1] * 6),
        ("one rare row outweighs all", [(12, 0, 1), (200, 166, 0)], [0.91, 0.09]),
        ("few rows weigh much", [(12, 0, 2), (200, 34, 1)], [1, 1]),
        ("heavy and light", [(24, 7, 8), (24, 12, 2), (24, 3, 3)], [10, 1, 1]),
    ],
)
def test_an_equal_candidate_is_stopped_less_often_than_the_level_at_any_look(
    name: str, tasks: list[tuple[int, int, int]], weights: list[float]
) -> None:
    differences = [np.repeat([1, -1, 0], [won, lost, n - won - lost]) for n, won, lost in tasks]
    assert sum(w * d.mean() for w, d in zip(weights, differences, strict=True)) <= 1e-3
    generator = Key(5).at(name).numpy()
    named = {str(t): float(w) for t, w in enumerate(weights)}
    looks = [1 / 6, 1 / 2, 3 / 4]
    stopped = 0
    for _ in range(400):
        orders = [generator.permutation(d) for d in differences]
        reference = {str(t): np.maximum(d, 0).tolist() for t, d in enumerate(orders)}
        stopped += any(
            beaten(
                {str(t): np.maximum(-d, 0)[: int(np.ceil(share * len(d)))].tolist() for t, d in enumerate(orders)},
                reference,
                named,
                level=0.05,
                looks=3,
            )
            for share in looks
        )
    assert stopped <= 400 * 0.05


def test_who_is_far_behind_is_stopped_early() -> None:
    candidate = {"a": [0.0] * 6, "b": [1.0] + [0.0] * 5}
    reference = {"a": [1.0] * 24, "b": [1.0] * 24}
    assert beaten(candidate, reference, {"a": 1, "b": 1}, level=0.05, looks=3)
    assert not beaten({t: row[:2] for t, row in candidate.items()}, reference, {"a": 1, "b": 1}, level=0.05, looks=3)


@pytest.mark.parametrize(("wins", "losses", "z"), [(9, 2, 2.0), (14, 4, 2.3851)])
def test_one_task_is_mcnemars_test_with_both_corrections(wins: int, losses: int, z: float) -> None:
    # z = (x - y - 1) / sqrt((x + y + 1) (n - m) / (n - 1)): 6 / sqrt(12 * 3/4) and 9 / sqrt(19 * 3/4).
    own, other = pairs(wins, losses, 29, 113)
    tail = {2.0: 0.0227501, 2.3851: 0.0085377}[z]
    assert beaten({"t": own}, {"t": other}, {"t": 1.0}, level=tail * 1.01, looks=1)
    assert not beaten({"t": own}, {"t": other}, {"t": 1.0}, level=tail * 0.99, looks=1)
    assert not beaten({"t": own}, {"t": other}, {"t": 1.0}, level=tail * 1.01, looks=2)


def test_when_all_rows_are_seen_the_better_is_better() -> None:
    behind, equal = {"t": (0.0, 1.0, 0.0)}, {"t": (1.0, 0.0, 1.0)}
    reference = {"t": (1.0, 1.0, 0.0)}
    assert beaten(behind, reference, {"t": 1.0}, level=1e-9, looks=9)
    assert not beaten(equal, reference, {"t": 1.0}, level=0.5, looks=1)


def test_a_finished_task_does_not_decide_for_the_others() -> None:
    reference = {"small": (1.0,), "large": (1.0, 0.0) * 10}
    candidate = {"small": (0.0,), "large": (1.0, 0.0, 1.0)}
    assert not beaten(candidate, reference, {"small": 1, "large": 3}, level=0.05, looks=1)
    assert beaten(candidate, reference, {"small": 1, "large": 0}, level=0.05, looks=1)


def test_units_order_and_scale_do_not_matter() -> None:
    generator = Key(1).numpy()
    reference = {t: generator.random(12).tolist() for t in "ab"}
    own = {t: [max(0.0, x - 0.5 * generator.random()) for x in reference[t][:6]] for t in "ab"}
    mean, error = lead(own, reference, WEIGHTS)
    level = next(x for x in np.geomspace(1e-6, 0.5, 60) if beaten(own, reference, WEIGHTS, level=x, looks=1))

    def in_units(scores: Rows) -> dict[str, list[float]]:
        return {t: [100 * x - 7 for x in scores[t]] for t in "ba"}

    weights = {"b": 6.0, "a": 2.0}
    assert lead(in_units(own), in_units(reference), weights) == pytest.approx((100 * mean, 100 * error))
    assert beaten(in_units(own), in_units(reference), weights, level=level * 1.001, looks=1)
    assert not beaten(in_units(own), in_units(reference), weights, level=level / 1.4, looks=1)


def test_survivors_are_the_best_share_by_row() -> None:
    assert survivors([0.1, 0.4, 0.2, 0.4, 0.3], keep=0.5) == (1, 3, 4)
    assert survivors([0.2, 0.1, 0.2, 0.2], keep=0.5) == (0, 2)
    assert survivors([0.2, 0.1], keep=0.01) == (0,)
    assert survivors([0.0] * 100, keep=0.07) == tuple(range(7))  # 0.07 * 100 > 7 in float64
    assert survivors([], keep=0.5) == ()


@pytest.mark.parametrize(("counts", "n"), [({"a": 24, "b": 10}, 4), ({"a": 7, "b": 1, "c": 100}, 3), ({"a": 2}, 5)])
def test_blocks_deal_every_row_once_and_evenly(counts: dict[str, int], n: int) -> None:
    dealt = blocks(counts, n)
    assert len(dealt) == n
    for task, count in counts.items():
        assert [row for block in dealt for row in block[task]] == list(range(count))
        sizes = [len(block[task]) for block in dealt]
        assert max(sizes) - min(sizes) <= 1
        assert sizes[0] >= 1
        for k in range(1, n + 1):
            assert 0 <= sum(sizes[:k]) - k * count / n < 1


@pytest.mark.parametrize(
    ("candidate", "weights", "cause"),
    [
        ({"a": [1.0], "b": []}, WEIGHTS, "'b' has 0 scores of the candidate, 4 of the reference, and a weight"),
        ({"a": [1.0]}, WEIGHTS, "'b' has 0 scores of the candidate, 4 of the reference, and a weight"),
        ({"a": [1.0] * 6, "b": [0]}, WEIGHTS, "'a' has 6 scores of the candidate, 5 of the reference, and a weight"),
        ({"a": [1.0], "b": [1.0]}, {"a": 1}, "'b' has 1 scores of the candidate, 4 of the reference, and no weight"),
    ],
)
def test_what_cannot_be_compared_is_named(candidate: Rows, weights: Mapping[str, float], cause: str) -> None:
    with pytest.raises(RunError, match="scores of the candidate") as error:
        beaten(candidate, REFERENCE, weights, level=0.05, looks=1)
    assert error.value.cause == cause
    assert error.value.fix == "Compare on tasks that have a score for each example, all of them in the reference."

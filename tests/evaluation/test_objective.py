"""Objectives: between their bounds, in the order they promise, and honest about what they cannot take."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import harmonic_mean as harmonic_oracle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evomerge.errors import FitnessError, Problems, RecipeError
from evomerge.evaluation.objective import OBJECTIVES, Objective, normalised, references_of
from evomerge.types import Failure, Score

weighted_sum, minimum = OBJECTIVES["weighted_sum"], OBJECTIVES["minimum"]
harmonic_mean, lexicographic = OBJECTIVES["harmonic_mean"], OBJECTIVES["lexicographic"]

hundredths = st.integers(0, 100)
positive = st.floats(1e-3, 1e3)
pairs = st.lists(st.tuples(positive, positive), min_size=1, max_size=6).map(lambda rows: tuple(zip(*rows, strict=True)))
SHARES = {"a": 3.0, "b": 1.0}


def score(a, b, examples=((1.0, 0.0), ()), tokens=7):
    return Score((3 * a + b) / 4, {"a": a, "b": b}, dict(zip("ab", examples, strict=True)), tokens)


def test_the_objectives_are_these():
    assert list(OBJECTIVES) == ["harmonic_mean", "lexicographic", "minimum", "weighted_sum"]


@given(pairs)
def test_means_are_those_of_exact_arithmetic(pair):
    values, weights = pair
    V, W = ([Fraction(x) for x in row] for row in pair)
    mean = sum(w * v for w, v in zip(W, V, strict=True)) / sum(W)
    assert weighted_sum(values, weights) == pytest.approx(float(mean), rel=1e-12)
    assert harmonic_mean(values, weights) == pytest.approx(float(harmonic_oracle(V, W)), rel=1e-12)
    assert minimum(values, weights) == min(values)


@given(pairs)
def test_the_harmonic_mean_is_between_the_worst_and_the_mean(pair):
    slack = 1 + 1e-12
    assert minimum(*pair) <= harmonic_mean(*pair) * slack
    assert harmonic_mean(*pair) <= weighted_sum(*pair) * slack


@pytest.mark.parametrize("name", list(OBJECTIVES))
@given(st.lists(st.tuples(hundredths, hundredths, positive), min_size=1, max_size=4))
def test_to_be_better_on_some_task_is_never_worse(name, rows):
    low, high = ([pick(a, b) / 100 for a, b, _ in rows] for pick in (min, max))
    weights = [weight for _, _, weight in rows]
    value = OBJECTIVES[name]
    assert value(low, weights) <= value(high, weights) * (1 + 1e-12)


@pytest.mark.parametrize("name", list(OBJECTIVES))
@given(hundredths, st.lists(positive, min_size=1, max_size=4))
def test_equal_tasks_have_the_objective_that_each_has(name, hundredth, weights):
    value = hundredth / 100
    found = OBJECTIVES[name]([value] * len(weights), weights)
    assert found == pytest.approx(value, rel=1e-12, abs=0.01 if name == "lexicographic" else 0)


def test_the_mean_of_weights_three_and_one():
    assert weighted_sum([0.5, 0.25], [3, 1]) == 0.4375
    assert harmonic_mean([0.5, 0.25], [3, 1]) == pytest.approx(4 / (6 + 4))
    assert minimum([0.5, 0.25], [3, 1]) == 0.25


def test_a_task_at_zero_cannot_be_made_up_for():
    assert harmonic_mean([0.0, 1.0], [1, 1]) == harmonic_mean([1.0, 0.0], [1, 99]) == 0
    assert 0 < harmonic_mean([1e-300, 1.0], [1, 1]) < 1e-299


def compare(x, y):
    return (x > y) - (x < y)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(*[st.lists(hundredths, min_size=n, max_size=n)] * 2)))
@example(([29] * 7, [28] * 7))  # 0.29 / 0.01 < 29
@example(([99, *[100] * 6], [100, *[0] * 6]))
@example(([100] * 6 + [99], [100] * 7))  # the closest two of all: float64 must tell them apart
def test_lexicographic_is_the_order_of_tuples(vectors):
    x, y = vectors
    found = [lexicographic([v / 100 for v in vector], [1] * len(vector)) for vector in vectors]
    assert all(0 <= value <= 1 for value in found)
    assert compare(*found) == compare(x, y)


@given(
    st.sampled_from(["0.05", "0.3", "0.25", "0.7", "1"]), st.lists(st.tuples(*[hundredths] * 2), min_size=1, max_size=4)
)
def test_lexicographic_compares_steps(tolerance, rows):
    x, y = zip(*rows, strict=True)
    steps = [[Fraction(v, 100) // Fraction(tolerance) for v in vector] for vector in (x, y)]
    weights = [1] * len(x)
    found = [lexicographic([v / 100 for v in vector], weights, tolerance=float(tolerance)) for vector in (x, y)]
    assert compare(*found) == compare(*steps)


def test_within_a_step_tasks_tie_and_the_next_decides():
    assert lexicographic([0.509, 0.3], [1, 1]) == lexicographic([0.501, 0.3], [9, 1])
    assert lexicographic([0.501, 0.3], [1, 1]) > lexicographic([0.509, 0.2], [1, 1])
    assert lexicographic([0.509, 0.3], [1, 1], tolerance=0.001) > lexicographic([0.501, 0.9], [1, 1], tolerance=0.001)


def test_lexicographic_tells_how_many_tasks_fit():
    assert 101**7 <= 2**52 < 101**8
    lexicographic([1.0] * 7, [1] * 7)
    with pytest.raises(RecipeError) as caught:
        lexicographic([1.0] * 9, [1] * 9)
    assert str(caught.value) == (
        "lexicographic(tolerance=0.01) can order 7 tasks, and there are 9\n  where: objective\n"
        "  to do: Use a larger tolerance or fewer tasks (each part that a fitness reports is one)."
    )
    lexicographic([1.0] * 52, [1] * 52, tolerance=1.0)
    with pytest.raises(RecipeError, match="can order 52 tasks, and there are 53"):
        lexicographic([1.0] * 53, [1] * 53, tolerance=1.0)
    with pytest.raises(RecipeError, match=r"tolerance=1e-17\) can order 0 tasks, and there are 1\n"):
        lexicographic([1.0], [1], tolerance=1e-17)


@pytest.mark.parametrize("bad", [0, -0.1, 1.5, math.nan, "a"])
def test_a_tolerance_that_is_none_is_refused(bad):
    with pytest.raises(Problems, match=r"lexicographic\.tolerance"):
        lexicographic([0.5], [1], tolerance=bad)


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("harmonic_mean", [0.5, -0.25], "harmonic_mean takes values from 0 to inf, and task 2 of 2 has -0.25"),
        ("lexicographic", [-0.25], "lexicographic takes values from 0 to 1, and task 1 of 1 has -0.25"),
        ("lexicographic", [1.0, 0.0, 1.5], "lexicographic takes values from 0 to 1, and task 3 of 3 has 1.5"),
        ("lexicographic", [math.nan], "lexicographic takes values from 0 to 1, and task 1 of 1 has nan"),
    ],
)
def test_values_out_of_the_domain_are_refused(name, values, text):
    with pytest.raises(FitnessError) as caught:
        OBJECTIVES[name](values, [1] * len(values))
    assert str(caught.value) == (
        f"{text}\n  where: objective\n"
        "  to do: Normalise the tasks against base and best expert, or use weighted_sum or minimum."
    )


@given(*[st.floats(-100, 100)] * 2, st.floats(0, 1))
def test_normalised_is_zero_at_the_base_and_one_at_the_best(base, best, share):
    assert normalised(base, (base, best)) == 0
    if best - base > 1e-6:
        assert normalised(best, (base, best)) == 1
        assert normalised(base + share * (best - base), (base, best)) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("best", [0.5, 0.4, 0.5 + 1e-15])
def test_where_no_expert_helps_the_base_is_subtracted(best):
    assert normalised(0.75, (0.5, best)) == 0.25
    assert normalised(0.25, (0.5, best)) == -0.25


def test_small_units_are_units():
    assert normalised(3e-13, (1e-13, 2e-13)) == pytest.approx(2)
    assert normalised(0.0, (0.0, 0.0)) == 0


def test_references_are_base_and_best_expert_of_each_task():
    experts = [Score(0, {"a": 0.1, "b": 0.9}), Score(0, {"a": 0.7}), Score(0, {"b": 0.3, "a": 0.2})]
    assert references_of(Score(0, {"a": 0.5, "b": 0.95}), experts) == {"a": (0.5, 0.7), "b": (0.95, 0.9)}
    assert references_of(Score(0, {"a": 0.5}), []) == {"a": (0.5, 0.5)}


def test_the_weighted_sum_leaves_a_score_as_it_was():
    raw = score(0.5, 0.25)
    assert Objective("weighted_sum", SHARES).apply(raw) == raw


def test_an_objective_changes_the_value_and_nothing_else():
    objective = Objective("minimum", SHARES, references={"a": (0.25, 0.75), "b": (0.5, 0.5)})
    raw = score(0.5, 0.25)
    found = objective.apply(raw)
    assert found == Score(-0.25, {"a": 0.5, "b": 0.25}, {"a": (1.0, 0.0), "b": ()}, 7)
    assert raw == score(0.5, 0.25)


def test_the_order_of_tasks_is_the_recipes_whatever_a_score_has():
    objective = Objective("lexicographic", SHARES)
    turned = Score(0, {"b": 0.9, "a": 0.1})
    found = objective.apply(turned)
    assert found.value == objective.apply(score(0.1, 0.9)).value < objective.apply(score(0.2, 0.0)).value


def test_weights_and_parameters_reach_the_function():
    assert Objective("harmonic_mean", SHARES).apply(score(0.5, 0.25)).value == pytest.approx(0.4)
    coarse = Objective("lexicographic", SHARES, {"tolerance": 0.5})
    assert coarse.apply(score(0.5, 0.2)).value == coarse.apply(score(0.9, 0.4)).value


def test_normalised_values_out_of_the_domain_count_as_its_ends():
    references = {"a": (0.25, 0.5), "b": (0.25, 0.5)}
    harmonic = Objective("harmonic_mean", SHARES, references=references)
    assert harmonic.apply(score(0.125, 1.25)).value == 0
    assert harmonic.apply(score(0.75, 1.25)).value == pytest.approx(4 / (3 / 2 + 1 / 4))  # above 1 it goes on
    ordered = Objective("lexicographic", SHARES, references=references)
    best = ordered.apply(score(0.5, 0.375))
    assert ordered.apply(score(0.75, 0.375)).value == best.value < ordered.apply(score(0.5, 0.5)).value == 1
    mean = Objective("weighted_sum", SHARES, references=references)
    assert mean.apply(score(0.125, 1.25)).value == pytest.approx((3 * -0.5 + 4) / 4)


def test_failures_pass():
    failure = Failure("time_limit", "too long")
    assert Objective("minimum", SHARES).apply(failure) is failure


def test_an_individual_that_the_objective_cannot_take_is_a_failure():
    found = Objective("harmonic_mean", SHARES).apply(score(0.5, -0.25))
    assert found.kind == "exception"
    assert found.message.startswith(
        "FitnessError: harmonic_mean takes values from 0 to inf, and task 2 of 2 has -0.25\n"
    )
    infinite = Objective("weighted_sum", SHARES).apply(Score(0, {"a": 1e308, "b": 1e308}))
    assert infinite == Failure("not_finite", "weighted_sum is not a finite number: inf of {'a': 1e+308, 'b': 1e+308}")
    far = Objective("minimum", SHARES, references={"a": (0.0, 1e-300), "b": (0.0, 1.0)}).apply(score(1e100, 0.5))
    assert far == Failure("not_finite", "minimum is not a finite number: 0.5 of {'a': inf, 'b': 0.5}")


def test_an_individual_with_other_tasks_is_a_failure():
    for tasks in ({"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}):
        found = Objective("weighted_sum", SHARES).apply(Score(1.0, tasks))
        assert found == Failure(
            "exception",
            f"FitnessError: the fitness reports {', '.join(tasks)}; for the base it was a, b\n"
            "  where: objective\n  to do: Let the fitness return the same parts for every model.",
        )


def test_check_finds_what_is_wrong_before_the_search():
    base = score(0.5, -0.25)
    Objective("weighted_sum", SHARES).check(base)
    Objective("harmonic_mean", SHARES, references=references_of(base, [])).check(base)
    with pytest.raises(FitnessError, match=r"task 2 of 2 has -0\.25"):
        Objective("harmonic_mean", SHARES).check(base)
    with pytest.raises(FitnessError, match=r"the fitness reports a, b; for the base it was a\n"):
        Objective("minimum", {"a": 1.0}).check(base)
    with pytest.raises(RecipeError, match=r"can order 1 tasks, and there are 2"):
        Objective("lexicographic", SHARES, {"tolerance": 1e-9}).check(score(0.5, 0.5))
    with pytest.raises(Problems, match=r"minimum has no parameter 'tolerance'"):
        Objective("minimum", SHARES, {"tolerance": 0.1}).check(base)
    with pytest.raises(RecipeError, match=r"No objective 'harmonic'") as caught:
        Objective("harmonic", SHARES).check(base)
    assert "Did you mean 'harmonic_mean'?" in str(caught.value)

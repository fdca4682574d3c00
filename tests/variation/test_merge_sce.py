"""SCE and Model Stock: methods whose coefficients come from the parents themselves."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.variation.merge import MERGES

KEY = Key(0)


def merge(name: str, stack: torch.Tensor, weights: list[float], **params: object) -> torch.Tensor:
    return MERGES[name](stack, torch.tensor(weights), (Segment("all", 0, (stack.shape[1],)),), KEY, **params)


def stack_of(n: int, d: int = 200, common: float = 1.0, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(n + 1, d, generator=Key(seed).torch())
    return noise[1:] + common * noise[0]


# SCE, by hand: parents [3, 1, 0, 2] and [1, -2, 0, 2]; variances [1, 2.25, 0, 0]; sums of squares 14 and 9.


def test_sce_weights_by_energy_and_erases_the_minority() -> None:
    stack = torch.tensor([[3.0, 1.0, 0.0, 2.0], [1.0, -2.0, 0.0, 2.0]])
    assert_close(merge("sce", stack, [1.0, 1.0]), torch.tensor([(3 * 14 + 9) / 23, -2.0, 0.0, 2.0]))
    # Given weights 2 and 1, the coefficients are as 28 and 9.
    assert_close(merge("sce", stack, [2.0, 1.0]), torch.tensor([(3 * 28 + 9) / 37, -2.0, 0.0, 2.0]))


def test_sce_selects_among_entries_that_differ() -> None:
    stack = torch.tensor([[3.0, 1.0, 0.0, 2.0], [1.0, -2.0, 0.0, 2.0]])
    assert merge("sce", stack, [1.0, 1.0], density=0.5).tolist() == [0, -2, 0, 0]  # int(0.5 * 2) of the two
    assert merge("sce", stack, [1.0, 1.0], density=0.01).tolist() == [0, -2, 0, 0]  # at least one


def test_energies_are_of_what_is_selected() -> None:
    stack = torch.tensor([[2.0, 100.0, 1.0], [5.0, 100.0, 1.0]])
    assert_close(merge("sce", stack, [1.0, 1.0], density=0.99), torch.tensor([(2 * 4 + 5 * 25) / 29, 0.0, 0.0]))


def test_equal_parents_give_themselves_at_any_density() -> None:
    x = stack_of(1)
    assert_close(merge("sce", x.repeat(3, 1), [0.2, 0.3, 0.5], density=0.1), x[0])


def test_small_task_vectors_are_weighted_by_energy_too() -> None:
    # mergekit gives up below a mean square of 1e-6; adapters' entries are about 1e-4.
    stack = stack_of(3)
    assert_close(merge("sce", 1e-5 * stack, [1.0] * 3), 1e-5 * merge("sce", stack, [1.0] * 3), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_ties_in_variance_do_not_depend_on_order(density: float) -> None:
    stack = torch.randint(-2, 3, (4, 60), generator=Key(2).torch()).float() / 10
    child = merge("sce", stack, [1.0] * 4, density=density)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        assert_close(merge("sce", stack[order], [1.0] * 4, density=density), child)


@pytest.mark.parametrize("name", ["sce", "model_stock"])
@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [1.0, -1.0, 0.0], [0.3, -0.1, 0.4]])
def test_zeros_stay_zeros_and_nothing_is_nan(name: str, weights: list[float]) -> None:
    n = len(weights)
    assert (merge(name, torch.zeros(n, 5), weights) == 0).all()
    stack = stack_of(n)
    stack[0] = 0
    assert merge(name, stack, weights).isfinite().all()


# Model Stock


@pytest.mark.parametrize("n", [2, 3, 5])
def test_it_is_the_formula_of_the_paper_for_equal_weights(n: int) -> None:
    stack = stack_of(n)
    pairs = [float(torch.cosine_similarity(stack[i], stack[j], dim=0)) for i in range(n) for j in range(i + 1, n)]
    cosine = sum(pairs) / len(pairs)
    t = n * cosine / (1 + (n - 1) * cosine)
    assert_close(merge("model_stock", stack, [1.0] * n), t * stack.mean(dim=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.9, 0.4, -0.3]])
def test_it_comes_closest_to_the_centre_on_the_line_to_the_average(weights: list[float]) -> None:
    # The paper's argument, built by hand: a centre, and noise orthogonal to it and to each other.
    n = len(weights)
    stack = torch.cat([torch.full((n, 1), 2.0), 3.0 * torch.eye(n)], dim=1)
    centre = torch.tensor([2.0, *[0.0] * n])
    average = (torch.tensor(weights)[:, None] * stack).sum(dim=0)
    foot = (centre @ average) / (average @ average) * average
    assert_close(merge("model_stock", stack, weights), foot)


def test_a_parent_of_weight_zero_is_left_out() -> None:
    stack = stack_of(3)
    assert_close(merge("model_stock", stack, [0.6, 0.4, 0.0]), merge("model_stock", stack[:2], [0.6, 0.4]))
    assert_close(merge("model_stock", stack, [1.0, 0.0, 0.0]), stack[0])


def test_one_parent_is_itself() -> None:
    assert torch.equal(merge("model_stock", stack_of(1), [0.7]), stack_of(1)[0])


def test_parents_that_oppose_each_other_give_the_base() -> None:
    x = stack_of(1)
    assert (merge("model_stock", torch.cat([x, -x, -x]), [1.0] * 3) == 0).all()


def test_small_task_vectors_have_angles_too() -> None:
    stack = stack_of(3)
    child = merge("model_stock", 1e-7 * stack, [1.0] * 3)
    assert_close(child, 1e-7 * merge("model_stock", stack, [1.0] * 3), rtol=1e-4, atol=1e-13)


def test_each_tensor_has_its_own_angle() -> None:
    stack = torch.cat([stack_of(2, common=3.0), stack_of(2, common=0.0, seed=9)], dim=1)
    segments = (Segment("a", 0, (20, 10)), Segment("b", 200, (200,)))
    child = MERGES["model_stock"](stack, torch.ones(2), segments, KEY)
    for segment in segments:
        part = stack[:, segment.start : segment.stop].contiguous()
        assert_close(child[segment.start : segment.stop], merge("model_stock", part, [1.0, 1.0]))

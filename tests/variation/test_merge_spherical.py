"""SLERP, NuSLERP and the Karcher mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from evomerge.errors import EvomergeError
from evomerge.keys import Key
from evomerge.types import Segment
from evomerge.variation.merge import MERGES
from evomerge.variation.merge.geometry import cosines, gram

KEY = Key(0)
SPHERICAL = ("karcher", "nuslerp", "slerp")
SEGMENTS = (Segment("a", 0, (6, 4)), Segment("b", 24, (6,)))


def merge(name: str, stack: torch.Tensor, weights: list[float], **params: object) -> torch.Tensor:
    segments = SEGMENTS if stack.shape[1] == 30 else (Segment("all", 0, (stack.shape[1],)),)
    return MERGES[name](stack, torch.tensor(weights, dtype=torch.float64), segments, KEY, **params)


def stack_of(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 30, generator=Key(seed).torch())


@pytest.mark.parametrize("name", SPHERICAL)
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0, 1.5, -0.5])
def test_two_unit_vectors_at_a_right_angle_turn_by_t(name: str, t: float) -> None:
    stack = torch.eye(2)
    expected = torch.tensor([math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)])
    assert_close(merge(name, stack, [1 - t, t]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SPHERICAL)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_parents_of_equal_norm_keep_it(name: str, n: int) -> None:
    stack = stack_of(n)
    for segment in SEGMENTS:
        part = stack[:, segment.start : segment.stop]
        part /= part.norm(dim=1, keepdim=True) / 3
    child = merge(name, stack, [0.5, 0.2, 0.3, 0.1, 0.4][:n])
    for segment in SEGMENTS:
        assert child[segment.start : segment.stop].norm() == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize("name", SPHERICAL)
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.9, 0.1], [0.2, 0.3, 0.5]])
def test_opposite_parents_are_averaged_linearly(name: str, weights: list[float]) -> None:
    # The three's directions cancel: 0.2 + 0.3 - 0.5.
    x = stack_of(1)
    stack = torch.cat([x, -x] if len(weights) == 2 else [x, x, -x])
    if name == "karcher" and weights == [0.9, 0.1]:  # these do not cancel, so there is a mean: the heavier one
        assert_close(merge(name, stack, weights), x[0], rtol=1e-5, atol=1e-5)
        return
    expected = (torch.tensor(weights)[:, None] * stack).sum(dim=0)
    assert_close(merge(name, stack, weights), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SPHERICAL)
def test_nearly_opposite_parents_stay_bounded(name: str) -> None:
    x = stack_of(1)
    for gap in (1e-2, 1e-4, 1e-6, 1e-8):
        stack = torch.cat([x, -2 * x + gap * stack_of(1, seed=1)])
        child = merge(name, stack, [0.5, 0.5])
        assert child.isfinite().all()
        assert child.norm() <= 2000 * x.norm()


@pytest.mark.parametrize("name", SPHERICAL)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_zero_vectors_have_no_direction(name: str, n: int) -> None:
    x = stack_of(1)
    assert (merge(name, torch.zeros(n, 30), [1.0] * n) == 0).all()
    if n > 1:
        child = merge(name, torch.cat([x, torch.zeros(n - 1, 30)]), [1.0] * n)
        assert_close(child, x[0] / n, rtol=1e-5, atol=1e-6)


def test_the_geodesic_mean_minimises_the_squared_angles() -> None:
    stack = stack_of(4, seed=3)[:, :6].double()
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    units = stack / stack.norm(dim=1, keepdim=True)

    def cost(point: torch.Tensor) -> float:
        return float((weights * torch.arccos(units @ (point / point.norm())).square()).sum())

    mean = merge("karcher", stack, weights.tolist()).double()
    steps = 1e-3 * torch.randn(50, 6, generator=Key(4).torch(), dtype=torch.float64)
    assert all(cost(mean / mean.norm() + step) > cost(mean) for step in steps)
    assert mean.norm() == pytest.approx(float(weights @ stack.norm(dim=1)), rel=1e-5)


def test_mergekit_s_geodesic_mean_ignores_the_weights() -> None:
    stack = stack_of(3)
    equal = merge("karcher", stack, [1.0, 1.0, 1.0], compat="mergekit")
    assert_close(merge("karcher", stack, [0.9, 0.05, 0.05], compat="mergekit"), equal)
    assert not torch.allclose(merge("karcher", stack, [0.9, 0.05, 0.05]), equal, atol=1e-2)


def test_three_parents_of_which_one_weighs_nothing_keep_the_plane_of_two() -> None:
    stack = stack_of(3)
    for name in ("slerp", "karcher"):
        child = merge(name, stack, [0.5, 0.5, 0.0])
        for segment in SEGMENTS:
            part = slice(segment.start, segment.stop)
            basis, _ = torch.linalg.qr(stack[:2, part].T)
            assert_close(basis @ (basis.T @ child[part]), child[part], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per", ["row", "column"])
@pytest.mark.parametrize("n", [2, 3])
def test_rows_and_columns_are_interpolated_one_by_one(per: str, n: int) -> None:
    stack, weights = stack_of(n), [0.3, 0.5, 0.2][:n]
    child = merge("nuslerp", stack, weights, per=per)
    matrices = stack[:, :24].reshape(n, 6, 4)
    merged = child[:24].reshape(6, 4)
    if per == "column":
        matrices, merged = matrices.transpose(1, 2), merged.T
    for i in range(matrices.shape[1]):
        assert_close(merged[i], merge("nuslerp", matrices[:, i].contiguous(), weights), rtol=1e-5, atol=1e-6)
    assert_close(child[24:], merge("nuslerp", stack[:, 24:].contiguous(), weights))  # a vector is one vector


def test_rows_that_are_parallel_or_zero_are_averaged_while_others_turn() -> None:
    stack = torch.tensor([[1.0, 0.0, 2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 4.0, 0.0, 3.0, 0.0]])
    segments = (Segment("a", 0, (3, 2)),)
    child = MERGES["nuslerp"](stack, torch.tensor([0.5, 0.5]), segments, KEY, per="row")
    half = math.sqrt(0.5)
    assert_close(child, torch.tensor([half, half, 3.0, 0.0, 1.5, 0.0]))


def test_inner_products_do_not_overflow_and_span_blocks() -> None:
    stack = torch.randn(3, 300_001, generator=KEY.torch())
    exact = stack.double() @ stack.double().T
    assert np.allclose(gram(stack[:, None])[0], exact.numpy(), rtol=1e-12)
    by_row = gram(stack[:, :300_000].reshape(3, 1000, 300))
    assert np.allclose(by_row.sum(axis=0), (stack[:, :300_000].double() @ stack[:, :300_000].double().T).numpy())
    huge = torch.full((2, 10), 3e38)
    assert np.allclose(cosines(gram(huge[:, None]))[0], 1)


def test_bad_parameters_are_named() -> None:
    with pytest.raises(EvomergeError) as caught:
        merge("nuslerp", stack_of(2), [0.5, 0.5], per="layer")
    assert "nuslerp.per = 'layer': it should be 'tensor', 'row' or 'column'" in str(caught.value)

"""Fisher merging and RegMean, against closed forms of linear models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from evomerge.errors import RunError
from evomerge.keys import Key
from evomerge.spaces.statistics import Statistics
from evomerge.types import Segment, digest_tensor
from evomerge.variation.merge import INFORMED

OUT, IN = 3, 5
SEGMENTS = (Segment("bias", 0, (OUT,)), Segment("W", OUT, (OUT, IN)))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=Key(seed).at(*shape).torch(), dtype=torch.float64)


def statistics(gram: torch.Tensor | None = None, fisher: torch.Tensor | None = None, space: str = "s") -> Statistics:
    F = torch.ones(OUT, IN) if fisher is None else fisher
    grams = {} if gram is None else {"W": gram}
    return Statistics({"W": F, "bias": torch.ones(OUT)}, grams, 1, 1, space, "e", ("t",))


def merge(
    name: str, matrices: torch.Tensor, given: list[Statistics], weights: list[float], **params: object
) -> tuple[torch.Tensor, torch.Tensor]:
    stack = torch.cat([randn(len(matrices), OUT, seed=9), matrices.flatten(1)], dim=1).float()
    child = INFORMED[name](stack, torch.tensor(weights), SEGMENTS, Key(0), given, **params)
    return child[:OUT], child[OUT:].view(OUT, IN)


def test_the_registry_holds_both() -> None:
    assert tuple(INFORMED) == ("fisher", "regmean")


# RegMean


@pytest.mark.parametrize("rows", [50, 4])  # 4 rows a task: each task's Gram matrix is singular, their sum is not
def test_regmean_is_joint_least_squares(rows: int) -> None:
    # Tasks i with inputs Z_i and outputs Z_i W_i^T; M is the least-squares solution on all data together.
    inputs = [randn(rows, IN, seed=i) * torch.tensor([1.0, 1e-3, 10.0, 1.0, 1.0]) for i in range(3)]
    M = randn(3, OUT, IN).float().double()
    targets = [Z @ W.T for Z, W in zip(inputs, M, strict=True)]
    joint = torch.linalg.lstsq(torch.cat(inputs), torch.cat(targets)).solution.T
    given = [statistics(Z.T @ Z / rows) for Z in inputs]
    _, child = merge("regmean", M, given, [1.0, 1.0, 1.0], shrink=1.0)
    assert_close(child, joint.float(), rtol=1e-5, atol=1e-5)


def test_weights_are_amounts_of_data() -> None:
    inputs, M = [randn(20, IN, seed=i) for i in range(2)], randn(2, OUT, IN).float().double()
    copies = [inputs[0], inputs[0], inputs[0], inputs[1]]
    targets = [Z @ W.T for Z, W in zip(copies, M[[0, 0, 0, 1]], strict=True)]
    joint = torch.linalg.lstsq(torch.cat(copies), torch.cat(targets)).solution.T
    given = [statistics(Z.T @ Z) for Z in inputs]
    for weights in ([3.0, 1.0], [0.75, 0.25], [-3.0, -1.0]):
        _, child = merge("regmean", M, given, weights, shrink=1.0)
        assert_close(child, joint.float(), rtol=1e-5, atol=1e-5)


def test_shrink_multiplies_what_is_off_the_diagonal() -> None:
    grams = [Z.T @ Z for Z in (randn(20, IN, seed=1), randn(20, IN, seed=2))]
    M = randn(2, OUT, IN)
    alpha = torch.full((IN, IN), 0.6, dtype=torch.float64).fill_diagonal_(1.0)
    given = [statistics(G) for G in grams]
    expected = (M[0] @ (alpha * grams[0]) + M[1] @ (alpha * grams[1])) @ torch.linalg.inv(alpha * (grams[0] + grams[1]))
    assert_close(merge("regmean", M, given, [1.0, 1.0], shrink=0.6)[1], expected.float(), rtol=1e-5, atol=1e-5)
    # With none left, every input is averaged by its own power.
    power = torch.stack([G.diagonal() for G in grams])[:, None]
    by_power = (power * M).sum(dim=0) / power.sum(dim=0)
    assert_close(merge("regmean", M, given, [1.0, 1.0], shrink=0.0)[1], by_power.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shrink", [1.0, 0.9])
def test_inputs_that_no_data_reach_keep_the_average(shrink: float) -> None:
    inputs, M = [randn(30, IN, seed=i) for i in range(2)], randn(2, OUT, IN)
    for Z in inputs:
        Z[:, 2] = 0.0
    _, child = merge("regmean", M, [statistics(Z.T @ Z) for Z in inputs], [0.8, 0.2], shrink=shrink)
    assert_close(child[:, 2], (0.8 * M[0] + 0.2 * M[1])[:, 2].float())
    zero = statistics(torch.zeros(IN, IN))
    assert_close(merge("regmean", M, [zero, zero], [0.8, 0.2], shrink=shrink)[1], (0.8 * M[0] + 0.2 * M[1]).float())


def test_directions_that_no_data_reach_keep_the_average() -> None:
    # Two inputs that are always equal: the data fix their sum's weight, the average what is left.
    inputs, M = [randn(30, IN, seed=i) for i in range(2)], randn(2, OUT, IN)
    for Z in inputs:
        Z[:, 1] = Z[:, 0]
    _, child = merge("regmean", M, [statistics(Z.T @ Z) for Z in inputs], [1.0, 1.0], shrink=1.0)
    assert_close((child[:, 0] - child[:, 1]).double(), (M[:, :, 0] - M[:, :, 1]).mean(dim=0), rtol=1e-4, atol=1e-5)
    error = [((child.double() - W) @ Z.T).square().sum() for W, Z in zip(M, inputs, strict=True)]
    targets = torch.cat([Z @ W.T for Z, W in zip(inputs, M, strict=True)])
    joint = torch.linalg.lstsq(torch.cat(inputs), targets, driver="gelsd").solution
    assert_close(sum(error), (torch.cat(inputs) @ joint - targets).square().sum(), rtol=1e-4, atol=1e-6)


def test_a_change_of_weights_merges_as_the_weights_do() -> None:
    grams, M, base = (
        [Z.T @ Z for Z in (randn(20, IN, seed=1), randn(20, IN, seed=2))],
        randn(2, OUT, IN),
        randn(OUT, IN),
    )
    given = [statistics(G) for G in grams]
    change, whole = merge("regmean", M, given, [1.0, 1.0])[1], merge("regmean", base + M, given, [1.0, 1.0])[1]
    assert_close(whole, base.float() + change, rtol=1e-5, atol=1e-5)


def test_cores_are_the_best_cores_and_dense_matrices_may_be_better() -> None:
    U, V = torch.linalg.qr(randn(8, OUT))[0], torch.linalg.qr(randn(12, IN))[0].T
    cores, inputs = randn(2, OUT, IN), [randn(40, 12, seed=i) for i in range(2)]
    _, core = merge("regmean", cores, [statistics(V @ Z.T @ Z @ V.T) for Z in inputs], [1.0, 1.0], shrink=1.0)
    given = [replace(statistics(), grams={"dW": Z.T @ Z}) for Z in inputs]
    matrices, segments = U @ cores @ V, (Segment("dW", 0, (8, 12)),)
    dense = INFORMED["regmean"](matrices.flatten(1), torch.ones(2), segments, Key(0), given, shrink=1.0)

    def error(M: torch.Tensor) -> float:
        return sum(float(((M - W) @ Z.T).square().sum()) for W, Z in zip(matrices, inputs, strict=True))

    best = error(U @ core.double() @ V)
    assert error(dense.double().view(8, 12)) < best < error(matrices.mean(dim=0))
    for seed in range(5):
        assert best < error(U @ (core.double() + 0.01 * randn(OUT, IN, seed=seed)) @ V)


# Fisher


def test_fisher_is_the_posterior_of_linear_gaussian_models() -> None:
    # y = W z + noise with independent inputs: the likelihood of task i is Gaussian about its least-squares W_i, with
    # precision Z_i^T Z_i, here diagonal; the product over tasks is least squares on all data.
    inputs = [torch.diag(randn(IN, seed=i)) for i in range(3)]
    targets = [randn(IN, OUT, seed=10 + i) for i in range(3)]
    M = torch.stack([torch.linalg.solve(Z, Y).T for Z, Y in zip(inputs, targets, strict=True)])
    joint = torch.linalg.lstsq(torch.cat(inputs), torch.cat(targets)).solution.T
    given = [statistics(fisher=(Z.T @ Z).diagonal().expand(OUT, IN)) for Z in inputs]
    _, child = merge("fisher", M, given, [1.0, 1.0, 1.0], floor=0.0)
    assert_close(child, joint.float(), rtol=1e-5, atol=1e-5)


def test_fisher_by_hand() -> None:
    segments = (Segment("a", 0, (4,)),)
    stack = torch.tensor([[2.0, 2.0, 2.0, 2.0], [6.0, 6.0, 6.0, 6.0]])
    fishers = [torch.tensor([3.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 2.0])]
    given = [Statistics({"a": F}, {}, 1, 1, "s", "e", ()) for F in fishers]
    fisher = INFORMED["fisher"]
    child = fisher(stack, torch.tensor([1.0, 1.0]), segments, Key(0), given, floor=0.0)
    assert_close(child, torch.tensor([3.0, 6.0, 4.0, 14 / 3]))
    child = fisher(stack, torch.tensor([1.0, 3.0]), segments, Key(0), given, floor=0.0)
    assert_close(child, torch.tensor([4.0, 6.0, 5.0, (2 + 36) / 7]))
    # The mean F is 1: none counts as below 1/2.
    child = fisher(stack, torch.tensor([1.0, 1.0]), segments, Key(0), given, floor=0.5)
    assert_close(child, torch.tensor([3.0, (1 + 6) / 1.5, 4.0, 14 / 3]))


def test_fisher_does_not_depend_on_the_unit_of_the_loss() -> None:
    M, fishers = randn(2, OUT, IN), [randn(OUT, IN, seed=i).square() for i in range(2)]
    children = [merge("fisher", M, [statistics(fisher=F * unit) for F in fishers], [1.0, 1.0]) for unit in (1, 1e-20)]
    assert_close(children[1][1], children[0][1])


def test_a_tensor_without_information_is_averaged() -> None:
    M = randn(2, OUT, IN)
    zero = statistics(fisher=torch.zeros(OUT, IN))
    assert_close(merge("fisher", M, [zero, zero], [3.0, 1.0])[1], (0.75 * M[0] + 0.25 * M[1]).float())


# Both


def two(name: str) -> list[Statistics]:
    return [
        statistics(Z.T @ Z, F.square().float())
        for Z, F in ((randn(20, IN, seed=i), randn(OUT, IN, seed=i)) for i in range(2))
    ]


@pytest.mark.parametrize("name", tuple(INFORMED))
def test_equal_parents_give_themselves(name: str) -> None:
    M = randn(1, OUT, IN).repeat(2, 1, 1)
    assert_close(merge(name, M, two(name), [0.3, 0.7])[1], M[0].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", tuple(INFORMED))
def test_the_order_of_the_parents_changes_nothing(name: str) -> None:
    M, given = randn(2, OUT, IN), two(name)
    _, child = merge(name, M, given, [0.3, 0.7])
    assert_close(merge(name, M.flip(0), given[::-1], [0.7, 0.3])[1], child, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [2.0, 2.0]])
@pytest.mark.parametrize("name", tuple(INFORMED))
def test_weights_that_cancel_count_equally(name: str, weights: list[float]) -> None:
    M, given = randn(2, OUT, IN), two(name)
    expected = merge(name, M, given, [1.0, 1.0])
    assert_close(merge(name, M, given, weights), expected)


def test_segments_without_a_gram_matrix_are_averaged() -> None:
    M, biases = randn(2, OUT, IN), randn(2, OUT, seed=9).float()
    assert_close(merge("regmean", M, two("regmean"), [3.0, 1.0])[0], 0.75 * biases[0] + 0.25 * biases[1])


@pytest.mark.parametrize("name", tuple(INFORMED))
def test_bytes_depend_on_nothing_else_and_inputs_are_left_alone(name: str) -> None:
    out, wide, threads, digests = 60, 80, torch.get_num_threads(), set()
    segments = (Segment("W", 0, (out, wide)),)
    stack = randn(3, out * wide).bfloat16()
    inputs = [randn(100, wide, seed=i) for i in range(3)]
    given = [
        replace(statistics(), fisher={"W": randn(out, wide, seed=i).square()}, grams={"W": Z.T @ Z})
        for i, Z in enumerate(inputs)
    ]
    before = digest_tensor(stack), [digest_tensor(s.grams["W"]) + digest_tensor(s.fisher["W"]) for s in given]
    try:
        for count, parents in ((1, stack), (2, stack), (2, stack.float())):
            torch.set_num_threads(count)
            child = INFORMED[name](parents, torch.tensor([0.5, 0.2, 0.3]), segments, Key(count), given)
            assert child.dtype == torch.float32
            digests.add(digest_tensor(child))
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1
    after = digest_tensor(stack), [digest_tensor(s.grams["W"]) + digest_tensor(s.fisher["W"]) for s in given]
    assert after == before


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("fisher", [statistics()], "1 statistics for 2 parents"),
        ("regmean", [statistics(torch.eye(IN))] * 3, "3 statistics for 2 parents"),
        (
            "fisher",
            [statistics(), replace(statistics(), fisher={"bias": torch.ones(OUT)})],
            "The statistics of parent 1 have no fisher of segment 'W'",
        ),
        (
            "fisher",
            [statistics(), statistics(fisher=torch.ones(IN, OUT))],
            "The fisher of segment 'W' of parent 1 is (5, 3), not (3, 5)",
        ),
        (
            "regmean",
            [statistics(), statistics(torch.eye(IN))],
            "The statistics of parent 0 have no Gram matrix of segment 'W'",
        ),
        (
            "regmean",
            [statistics(torch.eye(IN)), statistics(torch.eye(OUT))],
            "The Gram matrix of segment 'W' of parent 1 is (3, 3), not (5, 5)",
        ),
        (
            "regmean",
            [statistics(), statistics()],
            "The statistics have no Gram matrix of any of the 2 segments (such as 'bias')",
        ),
        (
            "regmean",
            [statistics(torch.eye(IN)), statistics(torch.eye(IN), space="other")],
            "The statistics were taken in different genome spaces (s, other)",
        ),
    ],
)
def test_bad_statistics_are_named(name: str, given: list[Statistics], message: str) -> None:
    with pytest.raises(RunError) as caught:
        merge(name, randn(2, OUT, IN), given, [1.0, 1.0])
    assert message in str(caught.value)
    assert "to do:" in str(caught.value)


@pytest.mark.parametrize("name", tuple(INFORMED))
def test_weights_of_both_signs_are_refused(name: str) -> None:
    with pytest.raises(RunError, match=rf"{name} got the weights \[1.5, -0.5\], of both signs"):
        merge(name, randn(2, OUT, IN), two(name), [1.5, -0.5])

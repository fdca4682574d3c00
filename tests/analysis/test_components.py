from __future__ import annotations

import numpy as np
import pytest

from evomerge.analysis.components import components
from evomerge.analysis.spectra import BINS, effective_rank, log_shares, mean_decay
from evomerge.keys import Key


def experts(n: int, d: int = 50) -> np.ndarray:
    return Key(3).at("experts").numpy().standard_normal((n, d)) + 0.7


def test_centred_components_are_those_of_the_centred_data() -> None:
    X = experts(6)
    found = components(X @ X.T, centred=True)
    assert found is not None
    Y = X - X.mean(axis=0)
    _, s, Vh = np.linalg.svd(Y, full_matrices=False)
    assert len(found.shares) == 5
    assert np.allclose(found.shares, s[:5] ** 2 / (s**2).sum())
    assert np.allclose(np.abs(found.scores), np.abs(Y @ Vh[:5].T))
    p = s[:5] / s[:5].sum()
    assert found.effective_rank == pytest.approx(np.exp(-(p @ np.log(p))))


def test_not_centred_counts_what_is_common() -> None:
    X = experts(6)
    found = components(X @ X.T, centred=False)
    assert found is not None
    s = np.linalg.svd(X, compute_uv=False)
    assert np.allclose(found.shares, s**2 / (s**2).sum())
    assert np.allclose(found.scores @ found.scores.T, X @ X.T)


def test_a_base_added_to_all_changes_nothing_when_centred() -> None:
    X = experts(5)
    shifted = X + 100 * experts(1)
    one, other = (components(Y @ Y.T, centred=True) for Y in (X, shifted))
    assert one is not None and other is not None
    assert np.allclose(one.shares, other.shares, atol=1e-6)


def test_orthogonal_experts_need_95_percent_of_the_components() -> None:
    found = components(np.eye(20), centred=False)
    assert found is not None
    assert found.needed() == 19
    assert found.needed(1.0) == 20
    assert found.effective_rank == pytest.approx(20)


def test_a_planted_subspace_is_found() -> None:
    X = experts(8, 2) @ np.linalg.qr(experts(2).T)[0].T
    found = components(X @ X.T, centred=False)
    assert found is not None
    assert len(found.shares) == 2
    assert found.cumulative[-1] == pytest.approx(1)


def test_who_is_farthest_is_at_the_positive_end() -> None:
    found = components(np.diag([1.0, 9.0, 4.0]), centred=False)
    assert found is not None
    assert np.allclose(found.scores, [[0, 0, 1], [3, 0, 0], [0, 2, 0]])


@pytest.mark.parametrize("gram", [np.ones((1, 1)), np.full((3, 3), 2.0)])
def test_where_nothing_varies_there_is_no_component(gram: np.ndarray) -> None:
    assert components(gram, centred=True) is None
    whole = components(gram, centred=False)
    assert whole is not None
    assert whole.needed() == len(whole.shares) == 1
    assert components(0 * gram, centred=False) is None


def test_effective_rank_counts_what_counts() -> None:
    assert effective_rank([2.0, 2.0, 2.0, 0.0]) == pytest.approx(3)
    assert effective_rank([5.0]) == pytest.approx(1)
    assert effective_rank([0.75, 0.25]) == pytest.approx(np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4)))
    assert effective_rank([0.0]) is None


def test_bins_are_the_papers() -> None:
    values = np.exp([0.5, -0.5, -1.5, -1.5, -8.5, -9.5])
    shares = log_shares(values, 10)
    assert dict(zip(BINS, shares, strict=True)) == {
        **dict.fromkeys(BINS, 0.0),
        "> e^0": 0.1,
        "e^-1 to e^0": 0.1,
        "e^-2 to e^-1": 0.2,
        "e^-9 to e^-8": 0.1,
        "< e^-9": 0.5,
    }


def test_the_papers_share_is_the_rank_over_the_width() -> None:
    """8 values of 4096 make its 0.195 %, if all of them are between e^-2 and e^-1."""
    assert 100 * log_shares(np.full(8, np.exp(-1.5)), 4096)[2] == pytest.approx(0.195, abs=5e-4)


def test_spectra_that_end_count_as_zero() -> None:
    assert np.allclose(mean_decay([np.array([4.0, 2.0]), np.array([1.0])]), [1, 0.25])

"""RHT: the transformation is equation 7, the noise is equation 48, and what is said to be kept is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from evomerge.errors import EvomergeError, RunError
from evomerge.keys import Key
from evomerge.types import Segment, digest_tensor
from evomerge.variation.hooks import HOOKS
from evomerge.variation.hooks.rht import transform

rht = HOOKS["rht"]
KEY = Key(3)


@dataclass(frozen=True)
class Flat:
    """Coordinates that are delta-W's entries themselves."""

    segments: Sequence[Segment]

    def norm(self, genome: torch.Tensor) -> float:
        return float(genome.double().norm())

    def scale(self, genome: torch.Tensor, factor: float) -> torch.Tensor:
        return genome * factor


SPACE = Flat((Segment("small", 0, (60, 50)), Segment("large", 3000, (40, 100)), Segment("bias", 7000, (300,))))
PARENTS = torch.zeros(2, 7300)


def genome(seed: int = 0) -> torch.Tensor:
    noise = torch.randn(7300, generator=Key(seed).torch())
    return torch.cat([1e-3 * noise[:3000], 2 * noise[3000:7000] + 0.5, noise[7000:] ** 3])


def one(values: list[float] | torch.Tensor, key: Key = KEY, **parameters) -> torch.Tensor:
    child = torch.as_tensor(values, dtype=torch.float32)
    return rht(child, child[None], Flat((Segment("one", 0, (len(child),)),)), key, **parameters)


@pytest.mark.parametrize(
    ("gamma", "alpha", "beta", "x", "expected"),
    [  # sign(x) |x|^gamma (1 + alpha e^(-beta |x|)), worked out in decimal arithmetic to 40 digits
        (0.5, 0.5, 1, 1, 1.18393972058572116080),
        (0.5, 0.5, 1, 4, 2.01831563888873418029),
        (0.5, 0.5, 1, -0.25, -0.69470019576785121706),
        (0.25, 2, 0.5, 16, 2.00134185051161004736),
        (0.9, 0.5, 1, -0.001, -0.00299189633994518340),
        (0.9, 0.5, 1, 3, 2.75478609716457374608),
        (0.1, 3, 10, 0.02, 2.33722698948445777532),
        (0.75, 1e-3, 2, -1e-8, -0.00000100099999998000),
        (0.5, 1, 1000, 100, 10.0),
        (0.5, 1, 1, 0, 0.0),
    ],
)
def test_equation_7(gamma: float, alpha: float, beta: float, x: float, expected: float) -> None:
    assert transform(np.array([x], dtype=np.float64), gamma, alpha, beta)[0] == pytest.approx(expected, rel=1e-12)


def test_the_paper_mode_is_equation_7_of_the_centred_entries() -> None:
    # mean 2: the centred entries are -1, -0.25, 1.25, 0; T at gamma 0.5, alpha 0.5, beta 1 from the table above,
    # and sqrt(1.25) (1 + 0.5 e^-1.25) = 1.118033988749895 * 1.143252398430095 = 1.278195038960655.
    result = one([1.0, 1.75, 3.25, 2.0], mode="paper", gamma=0.5, alpha=0.5, beta=1)
    expected = torch.tensor([-1.1839397, -0.6947002, 1.2781950, 0.0])
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)


def test_the_norm_preserving_mode_by_hand() -> None:
    # w = -3, -1, 1, 3: mean 0, s^2 = 5; symmetric, so that mean(t) = 0: w'' = t sqrt(5) / sqrt(mean t^2).
    result = one([-3.0, -1.0, 1.0, 3.0], gamma=0.5, alpha=1, beta=1)
    a, b = (math.sqrt(u) * (1 + math.exp(-u)) for u in (1 / math.sqrt(5), 3 / math.sqrt(5)))
    unit = math.sqrt(5 / ((a * a + b * b) / 2))
    torch.testing.assert_close(result, torch.tensor([-b, -a, a, b]) * unit)


@pytest.mark.parametrize("mode", ["paper", "norm_preserving"])
def test_it_is_odd(mode: str) -> None:
    x = genome()
    there = rht(x, PARENTS, SPACE, KEY, mode=mode, gamma=0.4)
    back = rht(-x, PARENTS, SPACE, KEY, mode=mode, gamma=0.4)
    assert torch.equal(there, -back)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("beta", [0.3, 1.0, 20.0])
def test_it_is_monotone_up_to_the_alpha_that_the_derivative_gives(gamma: float, beta: float) -> None:
    # T' >= 0 everywhere  <=>  gamma e^y >= alpha (y - gamma) for y = beta x >= 0; the worst y is 1 + gamma.
    limit = gamma * math.exp(1 + gamma)
    x = np.linspace(1e-6, 5 / beta, 200_001)
    assert (np.diff(transform(x, gamma, 0.99 * limit, beta)) > 0).all()
    falling = np.diff(transform(x, gamma, 1.01 * limit, beta)) < 0
    assert falling.any()
    assert abs(beta * x[:-1][falling].mean() - (1 + gamma)) < 0.1


def test_with_the_defaults_the_order_of_the_entries_is_kept() -> None:
    x = genome()[:3000]
    for mode in ("paper", "norm_preserving"):
        bent = one(x, mode=mode)
        assert torch.equal(bent[x.argsort()], bent.sort().values)


@pytest.mark.parametrize("parameters", [{}, {"gamma": 0.2, "alpha": 3, "beta": 0.1}, {"noise": 2.0}, {"alpha": 50}])
def test_the_norm_mean_and_deviation_of_every_tensor_are_kept(parameters: dict[str, float]) -> None:
    x = genome()
    result = rht(x, PARENTS, SPACE, KEY, **parameters)
    for segment in SPACE.segments:
        before, after = (y[segment.start : segment.stop].double() for y in (x, result))
        assert not torch.equal(before, after)
        assert float(after.norm() / before.norm()) == pytest.approx(1, abs=2e-7)
        assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-6 * float(before.std()))
        assert float(after.std() / before.std()) == pytest.approx(1, abs=2e-7)


def test_the_scale_of_a_tensor_matters_to_the_paper_mode_only() -> None:
    x = genome()[:3000]
    torch.testing.assert_close(one(1024 * x), 1024 * one(x))
    small, large = one(x, mode="paper"), one(1000 * x, mode="paper")
    assert float(small.norm() / x.norm()) > 2  # entries of a LoRA delta grow
    assert float(large.norm() / (1000 * x).norm()) < 1.2


def test_the_noise_is_independent_and_adds_its_variance() -> None:
    # With alpha and 1 - gamma tiny, T is nearly the identity, and what is left is w' = w - g (equation 48).
    n, noise, straight = 400_000, 0.8, {"gamma": 1 - 1e-12, "alpha": 1e-12, "mode": "paper"}
    w = 3 * torch.randn(n, generator=Key(8).torch()) + 5
    shifted = one(w, noise=noise, **straight).double()
    s2 = float(w.double().var(correction=0))
    g = w.double() - shifted
    assert float(shifted.mean()) == pytest.approx(0, abs=5 * math.sqrt(s2 * (1 + noise**2) / n))
    expected = s2 * (1 + noise**2)
    assert float(shifted.var()) == pytest.approx(expected, abs=5 * expected * math.sqrt(2 / n))
    assert float(g.mean()) == pytest.approx(float(w.double().mean()), abs=5 * noise * math.sqrt(s2 / n))
    assert float(g.var()) == pytest.approx(noise**2 * s2, rel=5 * math.sqrt(2 / n))
    correlation = float(torch.corrcoef(torch.stack([g, w.double()]))[0, 1])
    assert abs(correlation) < 5 / math.sqrt(n)


def test_without_noise_the_key_does_not_matter_and_with_noise_it_decides() -> None:
    x = genome()
    assert torch.equal(rht(x, PARENTS, SPACE, Key(1)), rht(x, PARENTS, SPACE, Key(2)))
    first = rht(x, PARENTS, SPACE, Key(1), noise=0.1)
    assert torch.equal(first, rht(x, PARENTS, SPACE, Key(1), noise=0.1))
    assert not torch.equal(first, rht(x, PARENTS, SPACE, Key(2), noise=0.1))


def test_a_tensor_alone_gets_the_same_noise_as_among_others() -> None:
    x = genome()
    whole = rht(x, PARENTS, SPACE, KEY, noise=0.3)
    alone = Flat((Segment("large", 0, (40, 100)),))
    part = rht(x[3000:7000], PARENTS[:, 3000:7000], alone, KEY, noise=0.3)
    assert torch.equal(part, whole[3000:7000])
    # Two tensors of equal entries get different noise.
    two = Flat((Segment("a", 0, (3000,)), Segment("b", 3000, (3000,))))
    twice = rht(x[:3000].repeat(2), PARENTS[:, :6000], two, KEY, noise=0.3)
    assert abs(float(torch.corrcoef(twice.view(2, 3000) - x[:3000])[0, 1])) < 0.5


def test_neither_threads_nor_the_order_of_the_segments_change_the_bytes() -> None:
    x, threads = genome().repeat(40), torch.get_num_threads()
    segments = tuple(Segment(f"t{i}", 7300 * i, (7300,)) for i in range(40))
    digests = []
    try:
        for count, order in ((1, segments), (2, segments), (2, segments[::-1])):
            torch.set_num_threads(count)
            digests.append(digest_tensor(rht(x, x[None], Flat(order), KEY, noise=0.1)))
    finally:
        torch.set_num_threads(threads)
    assert len(set(digests)) == 1


@pytest.mark.parametrize("mode", ["paper", "norm_preserving"])
@pytest.mark.parametrize("values", [[0.0] * 5, [0.1] * 1000, [7.0], [-3.0], []])
def test_a_tensor_of_equal_entries_is_unchanged(mode: str, values: list[float]) -> None:
    assert one(values, mode=mode, noise=1.0).tolist() == torch.tensor(values).tolist()


@pytest.mark.parametrize("mode", ["paper", "norm_preserving"])
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e37])
def test_extreme_scales_give_finite_entries(mode: str, scale: float) -> None:
    assert torch.isfinite(one(scale * genome()[:3000], mode=mode, noise=0.5)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_the_argument_is_left_alone(dtype: torch.dtype) -> None:
    x = genome().to(dtype)
    before = digest_tensor(x)
    result = rht(x, PARENTS, SPACE, KEY)
    assert torch.equal(result, rht(x.float(), PARENTS, SPACE, KEY))
    result.fill_(7.0)
    assert digest_tensor(x) == before
    flat = torch.ones(4)
    one(flat).fill_(7.0)
    assert flat.tolist() == [1.0] * 4


def test_one_gaussian_gets_a_thinner_tail() -> None:
    x = torch.randn(200_000, generator=Key(4).torch())
    for gamma in (0.3, 0.6, 0.9):
        bent = one(x, gamma=gamma).double()
        assert float((bent**4).mean() / (bent**2).mean() ** 2) < 2.95  # a Gaussian's is 3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gamma": 0}, "rht.gamma = 0: it should be greater than 0"),
        ({"gamma": 1.0}, "rht.gamma = 1.0: it should be less than 1"),
        ({"gamma": math.nan}, "rht.gamma = nan: it should be less than 1"),
        ({"alpha": 0}, "rht.alpha = 0: it should be greater than 0"),
        ({"alpha": math.inf}, "rht.alpha = inf: it should be a finite number"),
        ({"beta": -1}, "rht.beta = -1: it should be greater than 0"),
        ({"noise": -0.1}, "rht.noise = -0.1: it should be greater than or equal to 0"),
        ({"mode": "papers"}, "rht.mode = 'papers': it should be 'norm_preserving' or 'paper'"),
        ({"gama": 0.5}, "rht has no parameter 'gama'"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(EvomergeError) as caught:
        rht(genome(), PARENTS, SPACE, KEY, **parameters)
    assert message in str(caught.value)


def test_segments_that_do_not_fit_are_named() -> None:
    with pytest.raises(RunError, match="2 segments end at 7000, but the genome has 7300 entries"):
        rht(genome(), PARENTS, Flat(SPACE.segments[:2]), KEY)

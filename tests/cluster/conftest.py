"""One real Ray on this machine for the tests of a file, and pools of workers on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from evomerge.cluster.connect import joined
from evomerge.cluster.layout import lay_out, nodes_of
from evomerge.cluster.ray_pool import RayPool


@pytest.fixture(scope="module")
def ray(request: pytest.FixtureRequest) -> Iterator[Any]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)  # workers cannot import a test
    with joined("local") as module:
        yield module


@pytest.fixture
def told() -> list[dict[str, Any]]:
    """What a pool has told."""
    return []


@pytest.fixture
def pool(ray: Any, told: list[dict[str, Any]]) -> Iterator[Callable[..., RayPool]]:
    """Return a function that starts a pool; its workers hold what ``make`` returns, a name by default."""
    pools: list[RayPool] = []

    def start(workers: int, make: Callable[[], Any] = lambda: "held", **patience: float) -> RayPool:
        pools.append(RayPool(ray, lay_out(nodes_of(ray), workers, 0, 1), make, 1, told.append, **patience))
        return pools[-1]

    yield start
    for one in pools:
        one.close()

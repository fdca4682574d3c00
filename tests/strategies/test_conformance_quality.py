"""NSGA-II, MAP-Elites and niches keep to what every strategy must."""

from __future__ import annotations

from types import MappingProxyType

from evomerge.testing.landscapes import Landscape, noisy_examples
from evomerge.testing.strategy import StrategySuite


class TestNsga2(StrategySuite):
    strategy = "nsga2"
    best_by_value = False  # the knee moves with the front


class TestNsga2ByFitnessOnZeroesAndOnes(StrategySuite):
    strategy = "nsga2"
    generations = 3
    parameters = MappingProxyType({"choose": "fitness", "population": 6})
    best_by_value = False  # a front that is too large is cut by crowding alone

    def landscape(self) -> Landscape:
        return noisy_examples(0)


class TestMapElites(StrategySuite):
    strategy = "map_elites"
    generations = 3
    parameters = MappingProxyType({"bins": 2, "measures": ["task3", "task1"], "mutation": {"rate": 0.5}})


class TestNiches(StrategySuite):
    strategy = "niches"


class TestNichesOnZeroesAndOnes(StrategySuite):
    strategy = "niches"
    generations = 3
    parameters = MappingProxyType(
        {"merge": {"name": "dare_ties", "density": 0.5}, "mutation": {"rate": 0.3}, "population": 5}
    )

    def landscape(self) -> Landscape:
        return noisy_examples(0)

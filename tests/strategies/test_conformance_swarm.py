"""What every strategy must keep to, of the swarm and the hybrid."""

from __future__ import annotations

from types import MappingProxyType

from evomerge.testing.strategy import StrategySuite


class TestSwarm(StrategySuite):
    strategy = "swarm"
    parameters = MappingProxyType({"population": 10, "restart_patience": 2})


class TestHybrid(StrategySuite):
    strategy = "hybrid"
    parameters = MappingProxyType({"population": 12, "initial": 9})

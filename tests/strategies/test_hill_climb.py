"""The strategy that users copy keeps to what any strategy must."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from evomerge.testing import StrategySuite


class TestHillClimb(StrategySuite):
    strategy = str(Path(__file__).parents[2] / "populations" / "hill_climb.py")
    parameters: ClassVar[dict[str, int]] = {"population": 4}

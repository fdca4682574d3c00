"""What travels: a user's files by value, with the helpers beside them; nobody else has them on disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from evomerge.cluster.parcels import packed
from evomerge.evaluation.fitness import build_fitness, load_task

FITNESS = '''"""Scores by a helper and by rows of its own."""
from evomerge import Data
from helper import double

class Counts:
    data = Data(lambda: {"train": [], "search": [{"n": 3}], "final": [{"n": 5}]}, entity="n")

    def __call__(self, model, split):
        return [double(row["n"]) / 20 for row in self.data.rows(split)]

fitness = Counts()
'''
OPEN = """
import sys
from pathlib import Path
from ray import cloudpickle
fitness = cloudpickle.loads(Path(sys.argv[1]).read_bytes())
from evomerge.testing import ScriptedModel
for split in ("search", "final"):
    print(fitness(ScriptedModel(), split).value)
"""


def test_a_fitness_works_where_its_file_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "counts.py").write_text(FITNESS)
    (folder / "helper.py").write_text("FACTOR = 2\n\ndef double(n):\n    return FACTOR * n\n")
    fitness = build_fitness([load_task(str(folder / "counts.py"))])
    (tmp_path / "parcel").write_bytes(packed(fitness))
    shutil.rmtree(folder)
    command = [sys.executable, "-c", OPEN, tmp_path / "parcel"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout.split() == ["0.3", "0.5"], done.stderr


def test_packing_leaves_no_module_registered(tmp_path: Path) -> None:
    from ray.cloudpickle import list_registry_pickle_by_value

    (tmp_path / "counts.py").write_text("def fitness(model, split):\n    return 1.0\n")
    before = list_registry_pickle_by_value()
    packed(build_fitness([load_task(str(tmp_path / "counts.py"))]))
    assert list_registry_pickle_by_value() == before

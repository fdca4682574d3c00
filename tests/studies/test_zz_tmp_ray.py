import sys
sys.path.insert(0, "/work/main/tests/studies")
from test_scaling import *
from evomerge.recipe.load import load_recipe
from evomerge.recipe.evaluators import scored_by
def test_workers(recipe, tmp_path):
    measure(recipe, tmp_path/"here", DESIGN, Silent())
    there = load_recipe(tmp_path/"mine"/"recipe.yaml", [*scored_by("2"), "evaluator.address=local"])
    (tmp_path/"there").mkdir()
    lines=(tmp_path/"here"/FILE).read_text().splitlines()
    (tmp_path/"there"/FILE).write_text("\n".join(lines[:4])+"\n")
    shutil.copy(tmp_path/"here"/"bases.safetensors", tmp_path/"there")
    measure(there, tmp_path/"there", DESIGN, Silent())
    assert sorted((tmp_path/"there"/FILE).read_text().splitlines())==sorted(lines)

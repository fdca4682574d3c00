"""Every command that README shows exists: what a reader copies must not fail on the first word."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from commands import parse
from evomerge.cli import app
from evomerge.recipe.load import parse_recipe
from test_toolbox import README_EXAMPLE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def commands(text: str) -> list[list[str]]:
    """Return the `evomerge ...` and `make ...` commands of a page: in fenced or indented blocks, and inline."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    blocks = [block for language, block in fenced if language in ("", "sh", "bash", "console")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [line.strip() for line in text.splitlines() if line.startswith("    ")]
    lines += re.findall(r"`((?:evomerge|make) [^`\n]+)`", text)
    parts = [part.strip().removeprefix("$ ") for line in lines for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts if re.match(r"(\S*/)?(evomerge|make) ", part)]
    return [[Path(first).name, *rest] for first, *rest in words]


FOUND = commands(README)
VERBS = {command.name for command in app.registered_commands}


def test_a_page_is_read_as_its_reader_does() -> None:
    page = "Run `evomerge ls`.\n\n    make test   # all\n\n```sh\n$ evomerge run a.yaml \\\n  --seed 1 && make x\n```\n"
    assert commands(page) == [
        ["evomerge", "run", "a.yaml", "--seed", "1"],
        ["make", "x"],
        ["make", "test"],
        ["evomerge", "ls"],
    ]


def test_commands_are_found() -> None:
    assert len([words for words in FOUND if words[0] == "evomerge"]) >= 10
    assert ["make", "quickstart"] in FOUND
    assert ["make", "test"] in FOUND


@pytest.mark.parametrize("words", FOUND, ids=" ".join)
def test_it_parses(words: list[str]) -> None:
    tool, *arguments = words
    if tool == "make":
        assert arguments[0] in TARGETS
        return
    placeholders = [word if word != "NAME" else "ties" for word in arguments]
    assert parse(placeholders) in VERBS or arguments[0].startswith("--")


@pytest.mark.parametrize("wrong", [["rnu", "x.yaml"], ["run"], ["run", "x.yaml", "--sede", "1"], ["ls", "nothing"]])
def test_what_does_not_exist_does_not_parse(wrong: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing|not one of"):
        parse(wrong)


def test_the_overrides_that_it_shows_fit_a_recipe() -> None:
    shown = [words[i + 1] for words in FOUND for i, word in enumerate(words) if word == "--set"]
    assert shown
    parse_recipe((ROOT / "populations" / "quickstart.yaml").read_text(encoding="utf-8"), "quickstart", shown)


def test_the_example_for_deap_is_the_one_that_is_tested() -> None:
    assert f"```python\n{README_EXAMPLE}```" in README


def test_the_recipe_that_it_shows_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = re.findall(r"^```yaml\n(name: mine\n.*?)^```", README, re.M | re.S)
    source = (ROOT / "populations" / "hill_climb.py").read_text(encoding="utf-8")
    (tmp_path / "my_strategy.py").write_text(source.replace("sigma", "pull"))
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe(shown, "README.md")
    assert (recipe.strategy.name, recipe.strategy.parameters) == ("my_strategy.py", {"pull": 0.3})


def test_the_files_that_it_names_exist() -> None:
    files = set(re.findall(r"(?:populations|fitness|benchmarks)/\w+\.\w+", README))
    files |= set(re.findall(r"\]\((?!http)([^)#]+)\)", README))
    assert len(files) >= 4
    assert not [file for file in files if not (ROOT / file).exists()]

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from evomerge.errors import RunError
from evomerge.report.drawing import new_figure, png
from evomerge.report.study import Grid, Picture, Section, write_study

NASTY = '<script>alert("x & y")</script>'


def dot() -> bytes:
    figure = new_figure(1, 1)
    figure.subplots().plot([0, 1])
    return png(figure)


SECTIONS = (
    Section(
        "Angles & spectra, of all",
        f"They are far apart {NASTY}.\n\nRead it so.\n\nAnd so.",
        grids=(Grid((NASTY, "n", "size"), (("a", 12345, 0.123456), ("b", None, math.nan)), "What it is."),),
        pictures=(Picture("angles", dot(), "Angles over depth."),),
        data={"mean": np.float32(0.5), "rows": np.array([1.0, math.inf]), "nested": {"x": (1, math.nan)}},
    ),
    Section("Empty", "Nothing was found."),
)


def test_numbers_become_json_that_anything_reads(tmp_path: Path) -> None:
    write_study(tmp_path, "A study", "Of three.", SECTIONS)
    assert json.loads((tmp_path / "study.json").read_text()) == {
        "angles-spectra-of-all": {"mean": 0.5, "rows": [1.0, None], "nested": {"x": [1, None]}},
        "empty": {},
    }


def test_the_page_holds_what_it_shows(tmp_path: Path) -> None:
    path = write_study(tmp_path, f"A study of {NASTY}", "Of three.", SECTIONS)
    text = path.read_text()
    assert path == tmp_path / "index.html"
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    inside = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert [base64.b64decode(each) for each in inside] == [(tmp_path / "angles.png").read_bytes()]
    assert '<h2 id="angles-spectra-of-all">Angles &amp; spectra, of all</h2>' in text
    assert '<a href="#angles-spectra-of-all">' in text


def test_what_was_found_stands_apart_and_first(tmp_path: Path) -> None:
    text = write_study(tmp_path, "A study", "Of three.", SECTIONS).read_text()
    verdicts = re.findall(r'<p class="verdict">(.*?)</p>', text)
    assert [each.partition(" &lt;")[0] for each in verdicts] == ["They are far apart", "Nothing was found."]
    assert "<p>Read it so.</p>\n<p>And so.</p>" in text


def test_cells_say_numbers_shortly_and_gaps_as_gaps(tmp_path: Path) -> None:
    text = write_study(tmp_path, "A study", "Of three.", SECTIONS).read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    assert rows[1] == '<td class="text">a</td><td>12,345</td><td>0.1235</td>'
    assert rows[2] == '<td class="text">b</td><td>–</td><td>–</td>'


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ([Section("A b", ""), Section("a-B", "")], "two sections of one study have one name: a-b"),
        (
            [Section("A", "", pictures=(SECTIONS[0].pictures[0],)), SECTIONS[0]],
            "two pictures of one study have one name: angles",
        ),
    ],
)
def test_nothing_overwrites_another(tmp_path: Path, sections: list[Section], message: str) -> None:
    with pytest.raises(RunError) as caught:
        write_study(tmp_path, "A study", "", sections)
    assert caught.value.cause == message
    assert not list(tmp_path.iterdir())


def test_what_json_cannot_hold_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written as JSON"):
        write_study(tmp_path, "A study", "", [Section("A", "", data={"x": {1, 2}})])
    assert not (tmp_path / "index.html").exists()

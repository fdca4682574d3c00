"""The parts that all pages share: one style, a table, a picture inside the page; no script, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0.2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.verdict { border-left: 4px solid #009E73; padding: 0.6rem 1rem; background: #F3F8F6; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.7rem; text-align: right; border-bottom: 1px solid #E3E3E3; white-space: nowrap; }
th { border-bottom: 2px solid #999; } .text { text-align: left; }
td small { display: block; color: #666; font-size: 0.75rem; }
tr.first td { border-top: 2px solid #CCC; } tr.evolved { background: #E5F3EE; }
img { max-width: 50rem; width: 100%; height: auto; display: block; margin: 1rem 0; }
pre { background: #F6F6F6; padding: 1rem; overflow-x: auto; font-size: 0.85rem; }
.note { color: #555; font-size: 0.9rem; } code { font-size: 0.85rem; }
"""


def page_html(title: str, parts: Iterable[str]) -> str:
    """Return a whole page: its title, then the parts (HTML), empty ones left out."""
    name = escape(title)
    head = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>",
    ]
    return "\n".join([*head, *(part for part in parts if part)]) + "\n</body>\n</html>\n"


def row_html(tag: str, cells: Iterable[tuple[str, str]], kind: str = "") -> str:
    """Return a table row of (class, HTML) cells."""
    inner = "".join(
        f'<{tag} class="{name}">{text}</{tag}>' if name else f"<{tag}>{text}</{tag}>" for name, text in cells
    )
    return f'<tr class="{kind}">{inner}</tr>' if kind else f"<tr>{inner}</tr>"


def table_html(lines: Sequence[str]) -> str:
    """Return a table of rows (HTML), the first of which is its head; it scrolls where it is too wide."""
    body = "\n".join(lines[1:])
    return f'<div class="wide"><table>\n<thead>\n{lines[0]}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def image_html(png: bytes, text: str) -> str:
    """Return a picture inside the page; ``text`` is said where it cannot be seen."""
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'

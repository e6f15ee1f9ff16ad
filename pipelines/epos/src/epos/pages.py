"""Small web pages for people, in one file each: pictures are in the text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:1.5em;color:#222;background:#fff}"
    "h1{font-size:1.3em}h2{font-size:1.1em}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.25em .6em;text-align:left;vertical-align:top}"
    "figure{display:inline-block;margin:.4em}figcaption{color:#666}img{max-width:100%}"
    ".good{color:#176b2c}.bad{color:#b3261e;font-weight:bold}code{overflow-wrap:anywhere}"
)


def page(title: str, *parts: str) -> bytes:
    """A page of parts that are HTML."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join((f"<h1>{escape(title)}</h1>", *parts))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'.encode()


def text(value: object, kind: str = "") -> str:
    """A piece of text; kind is good, bad or nothing."""
    return f'<span class="{kind}">{escape(str(value))}</span>' if kind else escape(str(value))


def paragraph(value: object) -> str:
    """A paragraph of text."""
    return f"<p>{escape(str(value))}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are HTML."""
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return "<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"


def picture(path: Path, caption: str) -> str:
    """A PNG file with some words below it."""
    data = base64.b64encode(path.read_bytes()).decode()
    alt = escape(caption, quote=True)
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{alt}</figcaption></figure>'

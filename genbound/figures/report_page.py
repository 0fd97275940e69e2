"""The frame of the report: how a table, a card, a figure and a folded part become HTML, and the page around them."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from genbound.figures.report_script import SCRIPT
from genbound.figures.report_style import STYLE

TOGETHER = 50  # folded parts that are packed as one: what they have in common is kept once
PLAIN_TOP = 12  # pixels above a plot whose title is the page's
NOT_HERE = "<p>There is no room for it on this page: <code>genbound report</code> of this run alone shows it.</p>"

NOTES = ("doubt", "note")  # columns that a reader opens where they are wanted
TEXTS = ("value",)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, text_columns: Sequence[str] = TEXTS) -> str:
    """A table that sorts by the column whose head is pressed; it scrolls by itself, and its first column stays.

    Args:
        head: of the columns; a ``doubt`` or a ``note`` is folded up in its cell.
        rows: a text for each column.
        caption: what is in it, for those who see it and those who hear it.
        text_columns: those whose cells are sentences.
    """
    heads = "".join(f'<th scope="col"><button type="button">{html.escape(h)}</button></th>' for h in head)
    lines = []
    for name, *cells in rows:
        rest = "".join(_cell(h, text, name, text_columns) for h, text in zip(head[1:], cells, strict=True))
        lines.append(f'<tr><th scope="row">{_broken(name)}</th>{rest}</tr>')
    body = "\n".join(lines)
    told = html.escape(caption)
    whole = f"<caption>{told}</caption><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{told}">'
        f'<table class="sortable">{whole}</table></div>'
    )


def _broken(name: str) -> str:
    """A name that may break behind its points and underlines, where a column is narrow."""
    return re.sub(r"([._/])", r"\1<wbr>", html.escape(name))


def _cell(head: str, text: str, row: str, text_columns: Sequence[str]) -> str:
    told = html.escape(text)
    if head in NOTES and text:
        summary = f'<summary aria-label="{head} on {html.escape(row)}"></summary>'
        return f'<td><details class="note">{summary}<p>{told}</p></details></td>'
    return f'<td class="text">{told}</td>' if head in text_columns else f"<td>{told}</td>"


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Questions with their answers: ``(question, answer in a few words or nothing, sentences)``."""
    parts = []
    for question, short, text in items:
        large = f'<p class="short">{html.escape(short)}</p>' if short else ""
        parts.append(
            f'<article class="card"><h3>{html.escape(question)}</h3>{large}<p>{html.escape(text)}</p></article>'
        )
    four = " four" if len(parts) == 4 else ""  # in one row where there is room
    return f'<div class="cards{four}">{"".join(parts)}</div>'


def folded(title: str, content: str, heading: bool = False, unfolded: bool = False) -> str:
    """A part of the page that opens where a reader wants it."""
    told = f"<h3>{html.escape(title)}</h3>" if heading else html.escape(title)
    kind = ' class="run"' if heading else ""
    return f"<details{kind}{' open' if unfolded else ''}><summary>{told}</summary>{content}</details>"


def figures(items: Iterable[Any]) -> str:
    """Figures side by side where there is room; the page's script draws them, in the style that they share.

    The title and the caption that a figure brings are the page's text, and so is what it says to those who do not see
    it (:func:`~genbound.figures.interactive_style.described`).
    """
    parts = [_figure(item) for item in items if item]
    return '<div class="figures">' + "\n".join(parts) + "</div>" if parts else ""


def _figure(item: Any) -> str:
    content = json.loads(item.to_json())
    layout = content["layout"]
    layout.pop("template", None)
    title, said = html.unescape(layout.pop("title", {}).get("text", "")), layout.pop("meta", {})
    layout["margin"]["t"] = PLAIN_TOP
    height = layout["height"] = layout["height"] - item.layout.margin.t + PLAIN_TOP
    under = f"<span>{html.escape(said.get('caption', ''))}</span>"
    caption = f"<figcaption><strong>{html.escape(title)}</strong>{under}</figcaption>"
    seen = html.escape(" ".join(filter(None, (f"{title}.", said.get("alt", "")))))
    drawn = f'<div class="figure" role="img" aria-label="{seen}" style="height:{height}px"></div>'
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"<figure>{caption}{drawn}{_data('application/json', text)}</figure>"


def _data(kind: str, text: str, **attributes: str) -> str:
    """Data for the page's script; nothing in it can end the element."""
    given = "".join(f' {name}="{html.escape(value)}"' for name, value in attributes.items())
    return f'<script type="{kind}"{given}>{text.replace("<", chr(92) + "u003c")}</script>'


def on_demand(parts: Sequence[tuple[str, str]], most: int) -> str:
    """Parts of the page that are folded up, packed, and unpacked where a reader opens one.

    Args:
        parts: ``(title, HTML)``.
        most: bytes that they may take together; the titles of what does not fit stay.
    """
    written, used = [], 0
    for start in range(0, len(parts), TOGETHER):
        block = parts[start : start + TOGETHER]
        packed = _packed(json.dumps([content for _, content in block]))
        fits = used + len(packed) <= most
        used += len(packed) if fits else 0
        for place, (title, _) in enumerate(block):
            told = f' data-pack="pack{start}" data-place="{place}"' if fits else ""
            written.append(
                f"<details{told}><summary>{html.escape(title)}</summary>{'' if fits else NOT_HERE}</details>"
            )
        written += [_data("text/plain", packed, id=f"pack{start}")] if fits else []
    return "\n".join(written)


def _packed(text: str) -> str:
    """Compressed, in letters: a page is text."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")


def page(title: str, lede: Sequence[str], sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole page from ``(anchor, heading, HTML)``; plotly's script is part of it, so that it needs no network.

    Args:
        title: of the page.
        lede: sentences below it.
        sections: parts of the page in their order.
        footer: its last line.
    """
    from plotly.io import templates
    from plotly.offline import get_plotlyjs

    links = "".join(f'<li><a href="#{anchor}">{html.escape(heading)}</a></li>' for anchor, heading, _ in sections)
    body = "\n".join(
        f'<section id="{a}" aria-labelledby="{a}-head"><h2 id="{a}-head">{html.escape(h)}</h2>\n{content}\n</section>'
        for a, h, content in sections
    )
    said = "".join(f"<p>{html.escape(line)}</p>" for line in lede)
    template = json.dumps(templates["plotly_white"].to_plotly_json())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{html.escape(title)}</h1><div class="lede">{said}</div></header>
<nav aria-label="Parts of the page"><ul>{links}</ul></nav>
<main id="main" tabindex="-1">
{body}
</main>
<footer>{html.escape(footer)}</footer>
{_data("application/json", template, id="template")}
{_data("text/plain", _packed(get_plotlyjs()), id="plotly")}
<script>{SCRIPT}</script>
</body>
</html>
"""

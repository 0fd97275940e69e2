"""The frame of the report: style, the script that sorts tables, and how a table and a figure become HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light; --line: #d8dde3; --soft: #f5f7f9; --ink: #1c2733; --blue: #0072B2; }
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 72rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: #fff;
}
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
nav a { margin-right: 1rem; color: var(--blue); } p, li { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: .35rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap;
}
td.text { white-space: normal; min-width: 24rem; } tbody tr:nth-child(even) { background: var(--soft); }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid var(--blue); }
th button::after { content: " \\2195"; color: #9aa5b1; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: var(--ink); }
th[aria-sort=descending] button::after { content: " \\2193"; color: var(--ink); }
.warning { border-left: 4px solid #D55E00; background: #fdf3ec; padding: .5rem .8rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.figures > div, .wide { min-width: 0; } footer { margin: 2rem 0; font-size: .85rem; color: #5b6773; }
tbody td:first-child, thead th:first-child { position: sticky; left: 0; background: #fff; }
.provenance td.text { min-width: 12rem; }
@media (max-width: 40rem) { body { padding: .6rem; font-size: 15px; }
  h1 { font-size: 1.3rem; } th, td { padding: .3rem .4rem; } }
"""

# A number sorts by sign, exponent and mantissa, so that 1e412 has a place; what has no value stands last both ways.
SCRIPT = """
function key(text) {
  const m = text.trim().match(/^([+-]?[\\d.]+)(?:e([+-]?[\\d.]+))?/i);
  if (!m) return null;
  const mantissa = parseFloat(m[1]);
  if (mantissa === 0) return 0;
  const log = Math.log10(Math.abs(mantissa)) + (m[2] ? parseFloat(m[2]) : 0) + 1e4;
  return Math.sign(mantissa) * log;
}
document.querySelectorAll("table.sortable").forEach(table => {
  const body = table.tBodies[0];
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.parentElement, down = head.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("th").forEach(th => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const cell = row => row.cells[column].textContent.trim();
    const rows = [...body.rows], filled = rows.filter(row => !["", "/"].includes(cell(row)));
    const numeric = filled.every(row => key(cell(row)) !== null);
    filled.sort((a, b) => numeric ? key(cell(a)) - key(cell(b)) : cell(a).localeCompare(cell(b)));
    if (down) filled.reverse();
    body.append(...filled, ...rows.filter(row => ["", "/"].includes(cell(row))));
  }));
});
"""


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[str] = ("doubt", "note", "value")
) -> str:
    """A table that sorts by the column whose head is pressed."""
    heads = "".join(f'<th scope="col"><button type="button">{html.escape(h)}</button></th>' for h in head)
    lines = []
    for row in rows:
        kinds = [' class="text"' if h in text_columns else "" for h in head]
        lines.append(
            "<tr>" + "".join(f"<td{k}>{html.escape(c)}</td>" for k, c in zip(kinds, row, strict=True)) + "</tr>"
        )
    body = "\n".join(lines)
    whole = f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll"><table class="sortable">{whole}</table></div>'


def figures(items: Iterable[Any]) -> str:
    """Figures side by side where there is room."""
    config = {"responsive": True, "displaylogo": False}
    parts = [
        f"<div>{item.to_html(full_html=False, include_plotlyjs=False, config=config)}</div>"
        for item in items
        if item is not None
    ]
    return '<div class="figures">' + "\n".join(parts) + "</div>" if parts else ""


def page(title: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole page from ``(anchor, heading, HTML)``; plotly's script is part of it, so that it needs no network."""
    from plotly.offline import get_plotlyjs

    links = "".join(f'<a href="#{anchor}">{html.escape(heading)}</a>' for anchor, heading, _ in sections)
    body = "\n".join(
        f'<section id="{a}"><h2>{html.escape(h)}</h2>\n{content}\n</section>' for a, h, content in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<h1>{html.escape(title)}</h1>
<nav>{links}</nav>
{body}
<footer>{html.escape(footer)}</footer>
<script>{SCRIPT}</script>
</body>
</html>
"""

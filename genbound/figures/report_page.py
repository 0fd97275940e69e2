"""The frame of the report: style, the script that sorts tables, and how a table and a figure become HTML."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

TOGETHER = 50  # folded parts that are packed as one: what they have in common is kept once
NOT_HERE = "<p>There is no room for it on this page: <code>genbound report</code> of this run alone shows it.</p>"

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
function sortable(within) {
within.querySelectorAll("table.sortable").forEach(table => {
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
}
async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), c => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
const packs = {};
document.querySelectorAll("details[data-pack]").forEach(part => part.addEventListener("toggle", async () => {
  const pack = part.dataset.pack;
  const contents = JSON.parse(await (packs[pack] ??= unpack(pack)));
  part.insertAdjacentHTML("beforeend", contents[part.dataset.place]);
  sortable(part);
}, {once: true}));
sortable(document);
const plots = document.querySelectorAll(".figure");
if (plots.length) unpack("plotly").then(code => {
  const script = document.createElement("script");
  script.textContent = code;
  document.head.append(script);
  const template = JSON.parse(document.getElementById("template").textContent);
  plots.forEach(plot => {
    const {data, layout} = JSON.parse(plot.nextElementSibling.textContent);
    Plotly.newPlot(plot, data, {...layout, template}, {responsive: true, displaylogo: false});
  });
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
    """Figures side by side where there is room; the page's script draws them, in the style that they share."""
    parts = [f'<div><div class="figure"></div>{_data("application/json", _json(item))}</div>' for item in items if item]
    return '<div class="figures">' + "\n".join(parts) + "</div>" if parts else ""


def _json(item: Any) -> str:
    content = json.loads(item.to_json())
    content["layout"].pop("template", None)
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


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


def page(title: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole page from ``(anchor, heading, HTML)``; plotly's script is part of it, so that it needs no network."""
    from plotly.io import templates
    from plotly.offline import get_plotlyjs

    links = "".join(f'<a href="#{anchor}">{html.escape(heading)}</a>' for anchor, heading, _ in sections)
    body = "\n".join(
        f'<section id="{a}"><h2>{html.escape(h)}</h2>\n{content}\n</section>' for a, h, content in sections
    )
    template = json.dumps(templates["plotly_white"].to_plotly_json())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<nav>{links}</nav>
{body}
<footer>{html.escape(footer)}</footer>
{_data("application/json", template, id="template")}
{_data("text/plain", _packed(get_plotlyjs()), id="plotly")}
<script>{SCRIPT}</script>
</body>
</html>
"""

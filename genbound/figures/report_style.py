"""How the report looks: one style for light and dark, wide and narrow."""

STYLE = """
:root { color-scheme: light dark; --line: #d8dde3; --soft: #f5f7f9; --ink: #1c2733; --pale: #55616e; --paper: #fff;
  --blue: #005a8f; --warn: #fdf3ec; --warning: #b34700; --good: #00734f; }
@media (prefers-color-scheme: dark) { :root { --line: #37424e; --soft: #1d252e; --ink: #e4e9ee; --pale: #a7b3bf;
  --paper: #12181f; --blue: #7cc4f0; --warn: #33241a; --warning: #f09a5c; --good: #4fc79f; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.2rem; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
header, main, footer { margin: 0 auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.2rem 0 .4rem; overflow-wrap: anywhere; }
summary h3 { display: inline; }
p, li { overflow-wrap: anywhere; } a { color: var(--blue); }
nav { position: sticky; top: 0; z-index: 3; background: var(--paper); border-bottom: 1px solid var(--line); }
nav ul { display: flex; gap: .2rem 1.2rem; margin: 0 auto; padding: .5rem 1rem; max-width: 76rem; list-style: none;
  flex-wrap: wrap; white-space: nowrap; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; top: 1rem; z-index: 4; background: var(--paper); }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
.lede, figcaption span, footer { color: var(--pale); font-size: .9rem; } .lede p { margin: .15rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: .8rem; }
.cards.four { grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; background: var(--soft); }
.card h3 { margin: 0; font-size: .85rem; font-weight: 600; color: var(--pale); }
.card p { margin: .3rem 0 0; font-size: .92rem; }
.card .short { font-size: 1.25rem; font-weight: 650; line-height: 1.3; margin: .1rem 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0; }
@media (min-width: 40rem) { .scroll { max-height: 80vh; } }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .45rem .6rem; color: var(--pale); }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; background: var(--paper); font-weight: inherit; }
tbody tr:nth-child(even) > * { background: var(--soft); } tbody tr:last-child > * { border-bottom: 0; }
td.text { white-space: normal; overflow-wrap: anywhere; }
thead th { position: sticky; top: 0; z-index: 1; }
tbody th, thead th:first-child { position: sticky; left: 0; } thead th:first-child { z-index: 2; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--blue); }
th button::after { content: " \\2195"; color: var(--pale); }
th[aria-sort=ascending] button::after { content: " \\2191"; color: var(--ink); }
th[aria-sort=descending] button::after { content: " \\2193"; color: var(--ink); }
.note summary { color: var(--blue); } .note summary::after { content: "note"; }
.note p { margin: .2rem 0; white-space: normal; width: min(24rem, 60vw); }
summary { cursor: pointer; padding: .2rem 0; }
details.run { border: 1px solid var(--line); border-radius: 8px; padding: .4rem .9rem; margin: .6rem 0; }
.warning { border-left: 4px solid var(--warning); background: var(--warn); padding: .5rem .8rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1.2rem;
  margin: 1rem 0; }
figure { margin: 0; min-width: 0; } figcaption { margin-bottom: .3rem; }
figcaption strong { display: block; overflow-wrap: anywhere; }
.figure { overflow: hidden; } select { font: inherit; max-width: 100%; }
code { font-size: .9em; } footer { margin-top: 2.5rem; padding-bottom: 1.5rem; }
@media (max-width: 40rem) { body { font-size: 15px; } h1 { font-size: 1.25rem; } th, td { padding: .3rem .4rem; }
  header, main, footer { padding: 0 .7rem; }
  tbody th { min-width: 6.5rem; max-width: 42vw; white-space: normal; overflow-wrap: break-word; }
  nav ul { flex-wrap: nowrap; overflow-x: auto; scrollbar-width: none; padding: .5rem .7rem; }
  details.run { padding: .3rem .5rem; } }
@media print { nav, .skip { display: none; } .scroll { max-height: none; overflow: visible; } }
"""

"""What the report does in a browser: tables sort, folded parts unpack, plots are drawn where they come into view."""

# A number sorts by sign, exponent and mantissa, so that 1e412 has a place; what has no value stands last both ways.
TABLES = """
function key(text) {
  const m = text.trim().match(/^≥? ?([+-]?[\\d.]+)(?:e([+-]?[\\d.]+))?/i);
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
"""

FOLDED = """
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
"""

# A plot takes the width of its box and the colours of the page, and follows both. Its menu is the page's own, for the
# keyboard reaches that.
PLOTS = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function themed() {
  const template = JSON.parse(document.getElementById("template").textContent);
  const axis = {gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line")};
  Object.assign(template.layout, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    xaxis: {...template.layout.xaxis, ...axis}, yaxis: {...template.layout.yaxis, ...axis},
    font: {...template.layout.font, color: colour("--ink")},
    hoverlabel: {bgcolor: colour("--soft"), font: {color: colour("--ink")}},
  });
  return template;
}
function menu(plot, found) {
  const label = document.createElement("label"), select = document.createElement("select");
  found.buttons.forEach(button => select.add(new Option(new DOMParser().parseFromString(button.label, "text/html")
    .documentElement.textContent)));
  select.addEventListener("change", () => Plotly.update(plot, ...found.buttons[select.selectedIndex].args));
  label.append("measure: ", select);
  plot.before(label);
}
const plots = document.querySelectorAll(".figure");
function draw(plot) {
  const {data, layout} = JSON.parse(plot.dataset.text.replaceAll('"#000000"', JSON.stringify(colour("--ink"))));
  if (layout.updatemenus && !plot.menu) { plot.menu = true; menu(plot, layout.updatemenus[0]); }
  delete layout.updatemenus;
  if (plot.clientWidth < 420) layout.font = {...layout.font, size: 10};
  plot.drawn = true;
  Plotly.newPlot(plot, data, {...layout, template: themed(), width: plot.clientWidth},
    {displayModeBar: false});
}
if (plots.length) unpack("plotly").then(code => {
  const script = document.createElement("script");
  script.textContent = code;
  document.head.append(script);
  plots.forEach(plot => plot.dataset.text = plot.parentElement.querySelector("script").textContent);
  const seen = new IntersectionObserver(found => found.forEach(entry => {
    if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }), {rootMargin: "600px"});
  const sized = new ResizeObserver(found => found.forEach(({target}) => {
    if (target.drawn && target.clientWidth && target.clientWidth !== target.layout.width)
      Plotly.relayout(target, {width: target.clientWidth});
  }));
  plots.forEach(plot => { seen.observe(plot); sized.observe(plot); });
  dark.addEventListener("change", () => plots.forEach(plot => plot.drawn && draw(plot)));
  addEventListener("beforeprint", () => plots.forEach(plot => plot.drawn || draw(plot)));
});
"""

SCRIPT = TABLES + FOLDED + PLOTS

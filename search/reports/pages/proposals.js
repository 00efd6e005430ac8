"use strict";
// Filters of charts and table, and the comparison of a candidate with the baseline.
const byId = (id) => document.getElementById(id);
const figures = JSON.parse(byId("figures").textContent);
const OPTIONS = { responsive: true, displaylogo: false, displayModeBar: false };
const lines = [...byId("proposals").tBodies[0].rows];
const inputs = [...byId("filters").querySelectorAll("input")];
const isBaseline = (line) => "baseline" in line.dataset;

function passes(line) {
  return isBaseline(line) || inputs.every((input) => {
    const present = input.dataset.field in line.dataset, value = Number(line.dataset[input.dataset.field]);
    if (input.type === "checkbox") return present || !input.checked;
    const limit = input.valueAsNumber;
    return Number.isNaN(limit) || (present && ("least" in input.dataset ? value >= limit : value <= limit));
  });
}

// Return a trace of which every list is reduced to the points that are kept.
function keepPoints(value, kept) {
  if (Array.isArray(value)) return value.filter((_, place) => kept[place]);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, keepPoints(part, kept)]));
}

function filter() {
  for (const line of lines) line.hidden = !passes(line);
  const names = new Set(lines.filter((line) => !line.hidden).map((line) => line.dataset.name));
  const without = lines.filter((line) => !line.hidden && !("speedup" in line.dataset)).length;
  const unplotted = without ? `; ${without} without a speed only in the table` : "";
  byId("shown").textContent = `${names.size} of ${lines.length} shapes are shown${unplotted}.`;
  const traces = figures.front.data.map((trace) => keepPoints(trace, trace.customdata.map((name) => names.has(name))));
  Plotly.react("front", traces.filter((trace) => trace.customdata.length), structuredClone(figures.front.layout), OPTIONS);
}

function choose(name) {
  byId("candidate").value = name;
  for (const body of byId("against").tBodies) body.hidden = body.dataset.name !== name;
  for (const line of lines) line.classList.toggle("on", line.dataset.name === name && !isBaseline(line));
}

for (const [id, figure] of Object.entries(figures)) if (id !== "front") Plotly.newPlot(id, figure.data, figure.layout, OPTIONS);
filter();
choose(byId("candidate").value || lines[0].dataset.name);
byId("filters").addEventListener("input", filter);
byId("filters").addEventListener("reset", () => setTimeout(filter)); // after the fields are cleared
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("candidate").addEventListener("change", (event) => choose(event.target.value));
for (const line of lines) line.addEventListener("click", () => choose(line.dataset.name));
byId("front").on("plotly_click", (event) => { if (event.points[0].customdata) choose(event.points[0].customdata); });
const unfold = () => document.querySelectorAll("details").forEach((part) => { part.open = true; });
window.addEventListener("beforeprint", unfold);
// On paper a drawing is scaled to its place, so that it is whole at any width: it needs a viewBox.
const PAPER = { front: [680, 420], other: [340, 300] };
byId("js-plotly-tester")?.setAttribute("aria-hidden", "true"); // plotly measures texts in it
const charts = [...document.querySelectorAll(".js-plotly-plot")];
function frame(chart) {
  const box = chart.querySelector(".svg-container"), [width, height] = [chart._fullLayout.width, chart._fullLayout.height];
  box.style.aspectRatio = `${width} / ${height}`;
  for (const drawing of box.querySelectorAll(".main-svg")) drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
}
for (const chart of charts) { frame(chart); chart.on("plotly_afterplot", () => frame(chart)); }
window.addEventListener("beforeprint", () => {
  for (const chart of charts) {
    const [width, height] = PAPER[chart.id] ?? PAPER.other;
    Plotly.relayout(chart, { width, height });
  }
});
window.addEventListener("afterprint", () => charts.forEach((chart) => Plotly.relayout(chart, { width: null, height: null, autosize: true })));
document.body.dataset.ready = "yes";

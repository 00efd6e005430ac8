"use strict";
// Everything that comes from a file enters the page as text: textContent here, escape() in hovers.
const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows, base = rows[0];
const BLUE = "#0072B2", VERMILLION = "#D55E00", GREEN = "#009E73", GREY = "#a6a6a6", DARK = "#444444";
const LOOK = {
  "baseline": [DARK, "square"], "loss-optimal": [BLUE, "circle"], "fast": [VERMILLION, "diamond"],
};
const narrow = () => window.innerWidth < 720;
const escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const byId = (id) => document.getElementById(id);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
const digits = (value, count = 3) => Number(value.toPrecision(count)).toLocaleString("en", { maximumSignificantDigits: count });
function scaled(value, units) {
  for (const [scale, unit] of units) if (value >= scale) return `${digits(value / scale)} ${unit}`;
  const [scale, unit] = units[units.length - 1];
  return `${digits(value / scale)} ${unit}`;
}
const bytes = (value) => scaled(value, [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]);
const seconds = (value) => value === null ? "–" : scaled(value, [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]);
const count = (value) => scaled(value, [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"], [1, ""]]).replace(" ", "");
const signed = (value, places = 2) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(places)}`;
const percent = (value) => 100 * value / base.predicted_loss;
const times = (value) => value === null ? "–" : `${value.toFixed(2)} ×`;
const byModel = (row) => row.throughput_kind === "time model";
const whole = (value) => Math.round(value).toLocaleString("en");

// ---- filters
const FILTERS = [
  ["speedup", "Throughput at least (× baseline)", (row, limit) => row.speedup !== null && row.speedup >= limit, 0.05],
  ["loss", "Loss at most (% over baseline)", (row, limit) => percent(row.difference) <= limit, 0.1],
  ["ttft", "TTFT at most (ms)", (row, limit) => row.ttft !== null && 1e3 * row.ttft <= limit, "any"],
  ["tpot", "TPOT at most (ms)", (row, limit) => row.tpot !== null && 1e3 * row.tpot <= limit, "any"],
  ["cache", "KV cache at most (kB/token)", (row, limit) => row.kv_bytes / 1e3 <= limit, "any"],
  ["weights", "Weights at most (GB)", (row, limit) => row.weight_bytes / 1e9 <= limit, "any"],
];
const TICKS = [
  ["frontier", "front only", (row) => row.on_front],
  ["answered", "answered by the engine only", (row) => row.throughput_kind !== null && !byModel(row)],
];
function makeFilters() {
  const box = byId("filters");
  for (const [id, label, , step] of FILTERS) {
    const field = element("label", label);
    field.append(element("input", undefined, { type: "number", id: `at-${id}`, step, inputmode: "decimal", placeholder: "any" }));
    box.append(field);
  }
  for (const [id, label] of TICKS) {
    const field = element("label", undefined, { class: "tick" });
    field.append(element("input", undefined, { type: "checkbox", id: `at-${id}` }), element("span", label));
    box.append(field);
  }
  const clear = element("button", "Clear", { type: "button", id: "clear" });
  clear.addEventListener("click", () => {
    for (const input of box.querySelectorAll("input")) { input.value = ""; input.checked = false; }
    render();
  });
  box.append(clear);
  box.addEventListener("input", render);
}
function kept() {
  let left = rows.slice();
  for (const [id, , keep] of FILTERS) {
    const limit = parseFloat(byId(`at-${id}`).value);
    if (!Number.isNaN(limit)) left = left.filter((row) => row === base || keep(row, limit));
  }
  for (const [id, , keep] of TICKS)
    if (byId(`at-${id}`).checked) left = left.filter((row) => row === base || keep(row));
  return left;
}

// ---- charts
const FONT = { family: 'system-ui, "DejaVu Sans", sans-serif', size: 14, color: "#222" };
const OPTIONS = { responsive: true, displaylogo: false, displayModeBar: false };
const AXIS = { gridcolor: "#e5e5e5", zeroline: false, linecolor: "#888", ticks: "outside", tickcolor: "#888", automargin: true };
function layout(x, y, more = {}) {
  return {
    font: FONT, margin: { l: 62, r: 14, t: 12, b: 52 }, hovermode: "closest", plot_bgcolor: "#fff", paper_bgcolor: "#fff",
    xaxis: { ...AXIS, title: { text: x, standoff: 10 } }, yaxis: { ...AXIS, title: { text: y, standoff: 8 } },
    legend: { orientation: "h", x: 0, xanchor: "left", y: -0.2, yanchor: "top", font: { size: 13 } },
    hoverlabel: { align: "left", bgcolor: "#fff", bordercolor: "#888", font: { ...FONT, size: 13 } }, ...more,
  };
}
function hover(row) {
  const lines = [
    `<b>${escape(row.name)}</b>`, escape(`${row.role}${row.on_front ? ", on the front" : ""}`),
    `loss ${row.predicted_loss.toFixed(4)} [${row.loss_low.toFixed(4)}, ${row.loss_high.toFixed(4)}]`,
    `against baseline ${signed(percent(row.difference))} % [${signed(percent(row.difference_low))}, ${signed(percent(row.difference_high))}]`,
    `${whole(row.throughput)} tokens/s (${escape(row.throughput_kind)}), ${times(row.speedup)}`,
    `TTFT ${seconds(row.ttft)}, TPOT ${seconds(row.tpot)}`,
    `N ${count(row.n_non_embedding)}, KV ${bytes(row.kv_bytes)}/token, weights ${bytes(row.weight_bytes)}`,
  ];
  if (row.accuracy && row.accuracy.value !== null) lines.push(`accuracy ${(100 * row.accuracy.value).toFixed(1)} %`);
  if (row.why) lines.push(`<i>${escape(row.why)}</i>`);
  return lines.join("<br>");
}
function points(name, own, colour, symbol, size, bars) {
  const trace = {
    type: "scatter", mode: "markers", name, x: own.map((row) => row.speedup), y: own.map((row) => percent(row.difference)),
    text: own.map(hover), hovertemplate: "%{text}<extra></extra>", customdata: own.map((row) => row.name),
    marker: { color: colour, size, symbol: own.map((row) => byModel(row) ? `${symbol}-open` : symbol), line: { color: colour, width: 1.6 } },
  };
  if (bars) trace.error_y = {
    type: "data", symmetric: false, color: colour, thickness: 1.2, width: 4,
    array: own.map((row) => percent(row.difference_high - row.difference)),
    arrayminus: own.map((row) => percent(row.difference - row.difference_low)),
  };
  return trace;
}
function drawFront(left) {
  const seen = left.filter((row) => row.speedup !== null);
  const along = seen.filter((row) => row.on_front).sort((a, b) => a.speedup - b.speedup);
  const traces = [{
    type: "scatter", mode: "lines", name: "front", hoverinfo: "skip", line: { color: GREEN, width: 1.5, shape: "vh" },
    x: along.map((row) => row.speedup), y: along.map((row) => percent(row.difference)),
  }];
  const plain = seen.filter((row) => !(row.role in LOOK));
  traces.push(points("beaten", plain.filter((row) => !row.on_front), GREY, "circle", 8, false));
  traces.push(points("on the front", plain.filter((row) => row.on_front), GREEN, "circle", 9, false));
  for (const [role, [colour, symbol]] of Object.entries(LOOK)) {
    const own = seen.filter((row) => row.role === role);
    const name = role === "baseline" ? `baseline: ${escape(data.baseline)}` : role;
    if (own.length) traces.push(points(name, own, colour, symbol, 13, true));
  }
  const shown = layout("output tokens/s, × baseline", "loss difference (%)", {
    margin: { l: 66, r: 14, t: 12, b: narrow() ? 130 : 96 },
    legend: { orientation: "h", x: 0, xanchor: "left", y: narrow() ? -0.24 : -0.17, yanchor: "top", font: { size: 13 } },
  });
  shown.yaxis.tickformat = "~g"; shown.xaxis.tickformat = "~g"; shown.xaxis.ticksuffix = " ×";
  Plotly.react("front", traces.filter((trace) => trace.x.length), shown, OPTIONS);
}
function drawCurves() {
  for (const curve of data.curves) {
    const box = element("div"); const chart = element("div", undefined, { class: "chart curve" });
    box.append(element("h3", curve.label), chart); byId("curves").append(box);
    const xs = curve.x, band = xs.concat(xs.slice().reverse());
    const marks = rows.filter((row) => row.role in LOOK && row[curve.column] >= xs[0] * 0.999 && row[curve.column] <= xs[xs.length - 1] * 1.001);
    const at = (x) => { // between two points of the curve, straight in ln x
      let i = 0; while (i < xs.length - 2 && xs[i + 1] < x) i += 1;
      return curve.central[i] + (curve.central[i + 1] - curve.central[i]) * Math.log(x / xs[i]) / Math.log(xs[i + 1] / xs[i]);
    };
    const traces = [
      { type: "scatter", x: band, y: curve.high.concat(curve.low.slice().reverse()), fill: "toself", fillcolor: "rgba(0,114,178,.18)", line: { width: 0 }, hoverinfo: "skip", showlegend: false },
      { type: "scatter", mode: "lines", x: xs, y: curve.central, line: { color: "#333", width: 2 }, hovertemplate: "%{x:.3g}: %{y:+.2f} %<extra></extra>", showlegend: false },
      ...marks.map((row) => ({
        type: "scatter", mode: "markers", x: [row[curve.column]], y: [at(row[curve.column])], name: row.role, showlegend: false,
        marker: { color: LOOK[row.role][0], symbol: LOOK[row.role][1], size: 12 },
        hovertemplate: `${escape(row.role)}: %{x:.3g}<extra></extra>`,
      })),
    ];
    const outside = (from, to) => ({ type: "rect", xref: "x", yref: "paper", x0: from, x1: to, y0: 0, y1: 1, fillcolor: "#888", opacity: 0.13, line: { width: 0 }, layer: "below" });
    const shapes = [];
    if (curve.fitted) {
      if (xs[0] < curve.fitted[0]) shapes.push(outside(xs[0], Math.min(curve.fitted[0], xs[xs.length - 1])));
      if (xs[xs.length - 1] > curve.fitted[1]) shapes.push(outside(Math.max(curve.fitted[1], xs[0]), xs[xs.length - 1]));
    }
    const shown = layout(curve.label, "loss against baseline (%)", { shapes });
    shown.xaxis.type = "log"; shown.xaxis.tickvals = curve.ticks; shown.xaxis.ticktext = curve.ticks.map((tick) => digits(tick));
    shown.yaxis.tickformat = "~g";
    Plotly.newPlot(chart, traces, shown, OPTIONS);
  }
  if (!data.curves.length) byId("curves").append(element("p", "This law has no shape ratio."));
}
function drawCheck(title, x, y, names, unit) {
  const box = element("div"); const chart = element("div", undefined, { class: "chart check" });
  box.append(element("h3", title), chart); byId("checks").append(box);
  const ends = [Math.min(...x, ...y) * 0.98, Math.max(...x, ...y) * 1.02];
  const shown = layout(`predicted (${unit})`, `answered (${unit})`);
  shown.xaxis.range = ends; shown.yaxis.range = ends; shown.showlegend = false;
  shown.xaxis.nticks = 6; shown.yaxis.nticks = 6;
  Plotly.newPlot(chart, [
    { type: "scatter", mode: "lines", x: ends, y: ends, line: { color: "#888", width: 1, dash: "dot" }, hoverinfo: "skip" },
    { type: "scatter", mode: "markers", x, y, text: names.map(escape), marker: { color: BLUE, size: 9 }, hovertemplate: "%{text}<br>predicted %{x:,.4~g}, answered %{y:,.4~g}<extra></extra>" },
  ], shown, OPTIONS);
}
function drawChecks() {
  const words = [], model = data.time_model;
  if (model && model.answered.length > 1) {
    const rank = model.rank_correlation === null ? "" : `, rank correlation ${model.rank_correlation.toFixed(3)}`;
    words.push(`Time model against ${data.engine}: mean error ${(100 * model.error).toFixed(1)} %${rank}, each of ${model.answered.length} shapes left out in turn.`);
    drawCheck("Throughput: time model against engine", model.predicted, model.answered, model.shapes, "tokens/s");
  } else words.push("No time model spoke for any shape.");
  if (data.confirmed.length) {
    words.push(`${data.confirmed.length} proposals were trained.`);
    drawCheck("Loss: law against training", data.confirmed.map((row) => row.predicted), data.confirmed.map((row) => row.measured), data.confirmed.map((row) => row.name), "nats/token");
  } else words.push("No proposal has been trained yet: the predicted losses are untested.");
  byId("checked").textContent = words.join(" ");
}

// ---- tables
const COMPARED = [
  ["shape", "name", (v) => v],
  ["N (non-embedding)", "n_non_embedding", count], ["layers", "num_hidden_layers", whole], ["hidden size", "hidden_size", whole],
  ["MLP width", "intermediate_size", whole], ["query heads", "num_attention_heads", whole], ["KV heads", "num_key_value_heads", whole],
  ["head dimension", "head_dim", whole], ["d/√N", "hidden_over_sqrt_n", digits], ["MLP/attention", "mlp_to_attention", digits],
  ["query heads per KV head", "gqa", digits], ["predicted loss", "predicted_loss", (v) => v.toFixed(4)],
  ["output tokens/s", "throughput", whole], ["TTFT", "ttft", seconds], ["TPOT", "tpot", seconds],
  ["KV cache per token", "kv_bytes", bytes], ["weights", "weight_bytes", bytes],
];
function compare(name) {
  const row = rows.find((one) => one.name === name) || base, table = byId("against");
  const head = element("tr");
  for (const [text, kind] of [["", ""], ["baseline", "number"], ["candidate", "number"], ["ratio", "number"]])
    head.append(element("th", text, { class: kind }));
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...COMPARED.map(([label, field, form]) => {
    const line = element("tr"), values = [base[field], row[field]], known = values.every((value) => value !== null);
    line.append(element("td", label));
    for (const value of values) line.append(element("td", value === null ? "–" : form(value), { class: field === "name" ? "number name" : "number" }));
    line.append(element("td", known && field !== "name" ? (field === "predicted_loss" ? `${signed(percent(row.difference))} %` : `${digits(values[1] / values[0])} ×`) : field === "name" ? "" : "–", { class: "number" }));
    return line;
  }));
  for (const line of byId("proposals").tBodies[0].rows) line.classList.toggle("on", line.dataset.name === row.name && row !== base);
}
function choose(name) {
  byId("candidate").value = name;
  compare(name);
}
const HEADS = ["shape", "N", "loss difference", "predicted loss", "accuracy", "throughput", "TTFT, TPOT", "KV/token, weights", "why it stands here"];
const WORDS = HEADS.length - 1;
function cells(row) {
  const accuracy = row.accuracy && row.accuracy.value !== null ? row.accuracy : null;
  const place = row.role === "candidate" ? (row.on_front ? "on the front" : "beaten") : row.role + (row.on_front ? ", on the front" : "");
  return [
    ["name", row.name, place],
    ["number", count(row.n_non_embedding)],
    ["number", row === base ? "0" : `${signed(percent(row.difference))} %`, row === base ? "" : `[${signed(percent(row.difference_low))}, ${signed(percent(row.difference_high))}]`],
    ["number", row.predicted_loss.toFixed(4), `[${row.loss_low.toFixed(4)}, ${row.loss_high.toFixed(4)}]`],
    ["number", accuracy ? `${(100 * accuracy.value).toFixed(1)} %` : "", accuracy ? `[${(100 * accuracy.low).toFixed(1)}, ${(100 * accuracy.high).toFixed(1)}]` : ""],
    ["number", times(row.speedup), row.throughput === null ? "" : `${whole(row.throughput)} tokens/s`, row.throughput_kind || ""],
    ["number", seconds(row.ttft), seconds(row.tpot)],
    ["number", bytes(row.kv_bytes), bytes(row.weight_bytes)],
    ["words", row.why, "", "", row.beyond],
  ];
}
function fillTable(left) {
  const table = byId("proposals"), bare = rows.every((row) => !row.accuracy || row.accuracy.value === null);
  const skip = bare ? HEADS.indexOf("accuracy") : -1, head = element("tr");
  HEADS.forEach((text, i) => { if (i !== skip) head.append(element("th", text, { class: i > 0 && i < WORDS ? "number" : "" })); });
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...left.map((row) => {
    const line = element("tr", undefined, { class: row === base ? "base" : "" });
    line.dataset.name = row.name;
    cells(row).forEach(([kind, text, sub, tag, beyond], i) => {
      if (i === skip) return;
      const empty = !text && !(beyond && beyond.length);
      const cell = element("td", undefined, { class: empty ? `${kind} empty` : kind, "data-label": HEADS[i] }), box = element("span", text);
      for (const words of beyond || []) box.append(element("span", words, { class: "beyond" }));
      if (sub) box.append(element("span", sub, { class: "sub" }));
      if (tag) box.append(element("span", tag, { class: byModel(row) ? "tag model" : "tag" }));
      cell.append(box);
      line.append(cell);
    });
    line.addEventListener("click", () => choose(row.name));
    return line;
  }));
}

function render() {
  const left = kept();
  byId("shown").textContent = `${left.length} of ${rows.length} shapes.`;
  drawFront(left);
  fillTable(left);
  compare(byId("candidate").value);
}
makeFilters();
for (const row of rows.slice(1)) byId("candidate").append(element("option", `${row.name} (${row.role}${row.on_front ? ", front" : ""})`, { value: row.name }));
byId("candidate").value = (rows.find((row) => row.role === "fast") || rows[1] || base).name;
byId("candidate").addEventListener("change", (event) => compare(event.target.value));
render();
drawCurves();
drawChecks();
byId("front").on("plotly_click", (event) => { if (event.points[0].customdata) choose(event.points[0].customdata); });
const refit = () => document.querySelectorAll(".chart").forEach((chart) => { if (chart.data) Plotly.Plots.resize(chart); });
window.addEventListener("beforeprint", refit);
window.matchMedia("print").addEventListener("change", refit);
document.body.dataset.ready = "yes";

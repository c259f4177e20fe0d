/* Parallel coordinates of a sweep: an axis a setting, a line a trial; the table and the lines point at each other. */
doc = JSON.parse($("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function draw(parent, tag, values, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

/* Return the places of an axis between 0 and 1, and its ticks. */
function places(axis, values) {
  if (axis.names) {
    const at = name => (axis.names.length > 1 ? axis.names.indexOf(name) / (axis.names.length - 1) : 0.5);
    return [values.map(at), axis.names.map(name => [at(name), name])];
  }
  const scale = axis.log ? Math.log : v => v;
  const low = Math.min(...values), high = Math.max(...values), span = scale(high) - scale(low);
  const at = v => (span ? (scale(v) - scale(low)) / span : 0.5);
  const ticks = [];  // as many as there is room for
  for (const v of [low, high, ...[...new Set(values)].sort((a, b) => a - b)])
    if (ticks.every(([other]) => Math.abs(at(v) - other) > 0.085)) ticks.push([at(v), format(v)]);
  return [values.map(at), ticks];
}

function mark(trial) {
  for (const path of document.querySelectorAll("#parallel path")) {
    const own = path.dataset.trial === String(trial), line = doc.lines.find(l => String(l.trial) === path.dataset.trial);
    path.style.stroke = own ? "var(--c1)" : "var(--accent)";
    path.style.strokeWidth = own ? 3.2 : line.rank === 1 ? 2.8 : 1.4;
    path.style.opacity = own ? 1 : strength(line.rank);
    if (own) path.parentNode.append(path);
  }
  for (const row of document.querySelectorAll("#trials tbody tr")) row.classList.toggle("on", row.dataset.trial === String(trial));
  const line = doc.lines.find(l => l.trial === +trial);
  $("told").textContent = line ? "trial " + line.trial + ": " + doc.axes.map((a, i) => a.name + " " + (typeof line.values[i] === "number" ? format(line.values[i]) : line.values[i])).join(", ") : "";
}

const strength = rank => 0.12 + 0.88 * Math.pow(1 - (rank - 1) / Math.max(1, doc.lines.length), 2.2);

function drawParallel() {
  const card = $("parallel-card"), holder = $("parallel");
  card.hidden = doc.lines.length < 2;
  if (card.hidden) return;
  holder.textContent = "";
  const height = 300, top = 34, base = height - 14, left = 46;
  const width = Math.max(holder.clientWidth, 120 * doc.axes.length), gap = (width - left - 78) / (doc.axes.length - 1);
  const svg = draw(holder, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "parallel coordinates of the trials" });
  const columns = doc.axes.map((axis, i) => places(axis, doc.lines.map(l => l.values[i])));
  const x = i => left + i * gap, y = v => base - v * (base - top);
  doc.axes.forEach((axis, i) => {
    draw(svg, "line", { x1: x(i), x2: x(i), y1: top, y2: base });
    draw(svg, "text", { x: x(i), y: 16, "text-anchor": i ? "middle" : "start" }, axis.name + (axis.log ? " (log)" : ""));
  });
  const lines = draw(svg, "g", {});
  [...doc.lines].reverse().forEach(line => {
    const place = line.rank - 1, d = columns.map(([at], i) => (i ? "L" : "M") + x(i).toFixed(1) + " " + y(at[place]).toFixed(1)).join("");
    const path = draw(lines, "path", { d });
    path.dataset.trial = line.trial;
    path.onpointerenter = path.onpointerdown = () => mark(line.trial);
  });
  svg.onpointerleave = () => mark(0);
  columns.forEach(([, ticks], i) => ticks.forEach(([at, text]) => draw(svg, "text", { x: x(i) + 6, y: y(at) + 4, class: "tick", "pointer-events": "none" }, text)));
  mark(0);
}

if (doc.shares) {
  const top = Math.max(...Object.values(doc.shares), 1e-9);
  for (const [name, share] of Object.entries(doc.shares)) {
    add($("shares"), "span", name);
    add(add($("shares"), "i"), "b").style.width = 100 * share / top + "%";
    add($("shares"), "span", (100 * share).toFixed(0) + " %");
  }
}
for (const row of document.querySelectorAll("#trials tbody tr")) {
  row.onpointerenter = () => mark(row.dataset.trial);
  row.onpointerleave = () => mark(0);
}
new ResizeObserver(drawParallel).observe(document.querySelector("main"));
drawParallel();
dark.addEventListener("change", drawCharts);
drawCharts();

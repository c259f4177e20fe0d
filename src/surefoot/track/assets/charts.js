"use strict";
/* What every page of curves shares: marks of a run, formats, and a chart that owns its card. */
const $ = id => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const charts = new Map();
let doc = { marks: [], figures: [] };

function add(parent, tag, text, cls) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  parent.append(node);
  return node;
}

function format(value, unit) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (unit === "bytes") {
    for (const [name, power] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
      if (size >= power) return (value / power).toFixed(size < 10 * power ? 1 : 0) + " " + name;
    return value.toFixed(0) + " B";
  }
  if (unit === "%") return value.toFixed(1) + " %";
  if (unit === "seconds") return along(value, "seconds");
  if (size >= 1e6) return (value / 1e6).toFixed(1) + "M";
  if (size >= 1e4) return (value / 1e3).toFixed(0) + "k";
  if (size >= 1e3) return value.toFixed(0);
  if (size === 0) return "0";
  return size < 0.01 ? value.toExponential(1) : String(+value.toPrecision(4));
}

const SPANS = [1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400, 172800, 604800];

/* A place on the x axis: a step, seconds as h:mm:ss, or a number of tokens. */
function along(value, x) {
  if (x === "seconds") {
    value = Math.round(value);
    const pad = n => String(n).padStart(2, "0"), h = Math.floor(value / 3600), m = Math.floor(value / 60) % 60;
    return (h ? h + ":" + pad(m) : m) + ":" + pad(value % 60);
  }
  for (const [name, power] of [["G", 1e9], ["M", 1e6], ["k", 1e4]])
    if (value >= power) return +(value / (name === "k" ? 1e3 : power)).toFixed(1) + name;
  return String(value);
}

/* A chart owns its card, its uPlot and the state of its switches. */
class Chart {
  constructor(figure) {
    this.figure = figure;
    this.card = add($("charts"), "section", undefined, figure.id === "loss" ? "card wide" : "card");
    this.card.id = "chart-" + figure.id;
    const title = add(this.card, "div", undefined, "title");
    const head = add(title, "h2", figure.title + " ");
    if (figure.unit && figure.unit !== "bytes") add(head, "span", figure.unit, "unit");
    this.raw = this.toggle(title, "raw", figure.curves.some(c => c.smooth.length), true);
    this.log = this.toggle(title, "log", figure.log, false);
    this.legend = add(this.card, "div", undefined, "legend");
    this.holder = add(this.card, "div", undefined, "plot");
    this.note = add(this.card, "p", "", "note");
    new ResizeObserver(() => this.fit()).observe(this.holder);
  }

  toggle(title, text, wanted, on) {
    if (!wanted) return { checked: on };
    const label = add(title, "label");
    const box = add(label, "input");
    box.type = "checkbox";
    box.checked = on;
    box.onchange = () => this.build();
    label.append(text);
    return box;
  }

  size() {
    const wide = this.figure.id === "loss";
    const width = Math.max(200, this.holder.clientWidth);
    return { width, height: wide ? Math.min(380, Math.max(240, width * 0.42)) : 210 };
  }

  fit() {
    if (this.plot && this.plot.width !== this.size().width) this.plot.setSize(this.size());
  }

  lines() {
    const learners = [...new Set(this.figure.curves.map(c => c.learner))];
    const names = [...new Set(this.figure.curves.map(c => c.role + c.name))];
    const found = [];
    let below = null;
    for (const curve of this.figure.curves) {
      const several = learners.length > 1;
      const hue = color("--c" + (several ? learners.indexOf(curve.learner) : names.indexOf(curve.role + curve.name)) % 8);
      const label = !several ? curve.name : names.length === 1 ? curve.learner : curve.learner + ", " + curve.name;
      const noisy = curve.smooth.length > 0;
      if (this.figure.stack) {  // each is drawn over those that it lies upon: the lowest comes last
        below = curve.values.map((v, i) => v + (below ? below[i] : 0));
        found.unshift({ curve, values: below, own: curve.values, label, hue, width: 0, fill: hue, legend: true });
        continue;
      }
      if (curve.role === "plan") {
        found.push({ curve, values: curve.values, label, hue: several ? hue : color("--soft"), width: 1.4, dash: [2, 4], legend: true });
        continue;
      }
      if (!noisy || this.raw.checked)
        found.push({ curve, values: curve.values, label, hue: noisy ? hue + "66" : hue, width: noisy ? 1 : 1.8, legend: !noisy, dash: several && names.length > 1 && curve.role === "val" ? [6, 4] : undefined });
      if (noisy) found.push({ curve, values: curve.smooth, label: label + ", smoothed", hue, width: 2, legend: true });
    }
    return found;
  }

  build() {
    const figure = this.figure, log = this.log.checked, unit = figure.unit;
    if (this.plot) this.plot.destroy();
    this.shown = this.lines();
    const safe = v => (log && v != null && v <= 0 ? null : v);
    const data = uPlot.join(this.shown.map(l => [l.curve.steps, l.values.map(safe)]));
    const axis = { stroke: color("--soft"), font: "12px system-ui, sans-serif", grid: { stroke: color("--grid"), width: 1 }, ticks: { show: false } };
    this.plot = new uPlot({
      ...this.size(),
      scales: { x: { time: false }, y: { distr: log ? 3 : 1, range: log ? undefined : (u, low, high) => this.range(low, high) } },
      legend: { show: false },
      padding: [null, 16, null, null],
      cursor: { y: false, points: { size: 7 } },
      series: [{}, ...this.shown.map(l => ({
        stroke: l.hue, width: l.width, dash: l.dash, fill: l.fill, spanGaps: true,
        points: { show: l.curve.role === "val" && l.curve.steps.length < 60, size: 5, fill: l.hue },
      }))],
      axes: [
        { ...axis, size: 30, incrs: figure.x === "seconds" ? SPANS : undefined, values: (u, ticks) => ticks.map(v => (Number.isInteger(v) ? along(v, figure.x) : "")) },
        { ...axis, size: 58, incrs: unit === "seconds" ? SPANS : undefined, values: (u, ticks) => ticks.map(v => (v == null ? "" : unit === "%" ? v + " %" : format(v, unit))) },
      ],
      hooks: { draw: [u => this.paint(u)], setCursor: [u => this.tell(u)] },
    }, data, this.holder);
    const odd = [...new Map(figure.curves.flatMap(c => c.odd))];
    const worse = odd.length ? "Not finite at step " + odd.slice(0, 8).map(o => o[0] + " (" + o[1] + ")").join(", ") + (odd.length > 8 ? " …" : "") + ". " : "";
    this.note.textContent = worse + figure.note;
    this.note.hidden = !this.note.textContent;
    this.tell(this.plot);
  }

  range(low, high) {
    if (low == null) return [0, 1];
    const rule = this.figure.rule;
    const top = rule && rule < 2 * high ? Math.max(high, rule) : high;
    if (rule && rule > low / 2) low = Math.min(low, rule);
    const gap = (top - low || Math.abs(top) || 1) * 0.06;
    return [low >= 0 && low < (top - low) * 0.2 ? 0 : low - gap, top + gap];
  }

  paint(u) {
    const c = u.ctx, { left, top, width, height } = u.bbox, px = devicePixelRatio;
    const inside = x => x >= left && x <= left + width;
    c.save();
    c.lineWidth = px;
    c.font = 11 * px + "px system-ui, sans-serif";
    c.strokeStyle = c.fillStyle = color("--soft");
    if (this.figure.rule) {
      const y = u.valToPos(this.figure.rule, "y", true);
      if (y >= top && y <= top + height) {
        c.setLineDash([2 * px, 3 * px]);
        this.stroke(c, left, y, left + width, y);
      }
    }
    c.setLineDash([4 * px, 4 * px]);
    c.textAlign = "left";
    let last = -1e9;
    for (const mark of doc.marks.filter(m => m.label === "resumed" || m.label === "rollback")) {
      const x = u.valToPos(mark.step, "x", true);
      if (!inside(x)) continue;
      this.stroke(c, x, top, x, top + height);
      if (this.figure.id === "loss" && x - last > 60 * px) c.fillText("↻ " + mark.step, x + 4 * px, top + 11 * px), last = x;
    }
    c.setLineDash([]);
    c.fillStyle = color("--bad");
    for (const [step] of this.figure.curves.flatMap(k => k.odd)) {
      const x = u.valToPos(step, "x", true), y = top + height;
      if (!inside(x)) continue;
      c.beginPath(); c.moveTo(x - 4 * px, y); c.lineTo(x + 4 * px, y); c.lineTo(x, y - 8 * px); c.fill();
    }
    const best = this.figure.best;
    if (best) {
      const x = u.valToPos(best.step, "x", true), y = u.valToPos(best.value, "y", true);
      if (inside(x) && y >= top && y <= top + height) {
        c.strokeStyle = color("--ink");
        c.fillStyle = color("--ink");
        c.lineWidth = 1.6 * px;
        c.beginPath(); c.arc(x, y, 6.5 * px, 0, 7); c.stroke();
        const text = "best " + format(best.value), end = x + 12 * px + c.measureText(text).width > left + width;
        c.textAlign = end ? "right" : "left";
        c.lineWidth = 3 * px;
        c.strokeStyle = color("--card");
        c.strokeText(text, x + (end ? 4 : -4) * px, y - 12 * px);
        c.fillText(text, x + (end ? 4 : -4) * px, y - 12 * px);
      }
    }
    c.restore();
  }

  stroke(c, x0, y0, x1, y1) { c.beginPath(); c.moveTo(x0, y0); c.lineTo(x1, y1); c.stroke(); }

  /* The legend tells the values under the cursor, or the last ones. */
  tell(u) {
    const steps = u.data[0], index = u.cursor.idx ?? steps.length - 1;
    this.legend.textContent = "";
    const told = new Set();  // curves of several seeds have one name
    this.shown.forEach((line, place) => {
      if (!line.legend || told.has(line.label)) return;
      told.add(line.label);
      const values = line.own || u.data[place + 1];
      let i = index;
      while (i > 0 && values[i] == null) i--;
      const chip = add(this.legend, "span");
      add(chip, "i").style.background = line.hue;
      chip.append(line.label + " ");
      add(chip, "b", format(values[i], this.figure.unit));
    });
    if (u.cursor.idx == null) return;
    add(this.legend, "span", (this.figure.x === "seconds" ? "" : this.figure.x + " ") + along(steps[index], this.figure.x));
    const near = doc.marks.find(m => Math.abs(u.valToPos(m.step, "x") - u.cursor.left) < 7);
    if (near) add(this.legend, "span", "↻ " + near.text);
  }
}

function drawCharts() {
  for (const figure of doc.figures) {
    let chart = charts.get(figure.id);
    if (!chart) charts.set(figure.id, chart = new Chart(figure));
    chart.figure = figure;
    chart.build();
  }
}

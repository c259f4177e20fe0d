/* Pictures that a recipe gives as data: bars, grids, tables and points, with a slider over time. */
class Gallery {
  constructor(shown) {
    this.place = -1;  // -1: the newest
    this.card = add($("pictures"), "section", undefined, "card picture");
    const head = add(this.card, "div", undefined, "title");
    this.title = add(head, "h2");
    this.slide = add(this.card, "div", undefined, "slide");
    this.slider = add(this.slide, "input");
    Object.assign(this.slider, { type: "range", min: 0, ariaLabel: shown.name + " over time" });
    this.slider.oninput = () => { this.place = +this.slider.value === +this.slider.max ? -1 : +this.slider.value; this.draw(); };
    this.when = add(this.slide, "output");
    this.body = add(this.card, "div", undefined, "beside");
    this.told = add(this.card, "p", "", "note told");
    this.note = add(this.card, "p", "", "note");
    this.shown = shown;
    new ResizeObserver(() => { if (this.wide !== this.body.clientWidth) this.draw(); }).observe(this.body);
  }

  draw() {
    const { learners } = this.shown, steps = [...new Set(learners.flatMap(l => l.frames.map(f => f.step)))].sort((a, b) => a - b);
    const end = steps.length - 1, at = this.place < 0 ? end : Math.min(this.place, end);
    this.slide.classList.toggle("single", !end);
    this.slider.max = end;
    this.slider.value = at;
    this.when.textContent = "step " + steps[at];
    this.wide = this.body.clientWidth;
    this.body.textContent = "";
    const frames = learners.map(l => [l.learner, l.frames.filter(f => f.step <= steps[at]).pop() || l.frames[0]]);
    const first = frames[0][1];
    this.title.textContent = (first.title || this.shown.name) + " ";
    if (first.unit) add(this.title, "span", first.unit, "unit");
    this.note.textContent = first.note || "";
    this.told.textContent = "";
    for (const [learner, frame] of frames) {
      const part = add(this.body, "div");
      if (frames.length > 1) add(part, "h3", learner + (frame.step === steps[at] ? "" : ", step " + frame.step));
      try {
        this[frame.kind](part, frame);
      } catch {
        part.textContent = "This picture cannot be drawn.";
      }
    }
  }

  say(text) { this.told.textContent = text; }

  /* Return a canvas of the width there is, its context in CSS pixels. */
  canvas(parent, height) {
    const node = add(parent, "canvas"), width = Math.max(160, parent.clientWidth);
    node.width = width * devicePixelRatio;
    node.height = height * devicePixelRatio;
    node.style.cssText = "width:" + width + "px;height:" + height + "px";
    const c = node.getContext("2d");
    c.scale(devicePixelRatio, devicePixelRatio);
    c.font = "11px system-ui, sans-serif";
    c.fillStyle = color("--soft");
    return [node, c, width];
  }

  hover(node, at) {
    node.onpointermove = node.onpointerdown = event => {
      const box = node.getBoundingClientRect();
      this.say(at(event.clientX - box.left, event.clientY - box.top) || "");
    };
    node.onpointerleave = () => this.say("");
  }

  bars(parent, { labels, values, unit }) {
    const all = this.shown.learners.flatMap(l => l.frames.flatMap(f => f.values || []));
    const top = Math.max(...all, 0) || 1, low = Math.min(...all, 0);
    if (labels.length <= 24) {
      const list = add(parent, "div", undefined, "bars");
      labels.forEach((label, i) => {
        add(list, "span", label);
        add(add(list, "i"), "b").style.width = 100 * Math.max(0, values[i] || 0) / top + "%";
        add(list, "span", format(values[i], unit));
      });
      return;
    }
    const height = 190, base = 170, left = 44, [node, c, room] = this.canvas(parent, height), width = room - 8;
    const x = i => left + i * (width - left) / labels.length, y = v => base - (v - low) / (top - low) * (base - 10);
    for (const v of [low, (low + top) / 2, top]) {
      c.fillStyle = color("--grid");
      c.fillRect(left, y(v), width - left, 1);
      c.fillStyle = color("--soft");
      c.textAlign = "right";
      c.fillText(format(v, unit), left - 6, y(v) + 4);
    }
    c.fillStyle = color("--c0");
    values.forEach((v, i) => { if (v != null) c.fillRect(x(i) + 0.5, y(Math.max(v, 0)), Math.max(1, x(1) - x(0) - 1), Math.abs(y(v) - y(0))); });
    c.fillStyle = color("--soft");
    c.textAlign = "center";
    const every = Math.ceil(labels.length / (width / 50));
    labels.forEach((label, i) => { if (i % every === 0) c.fillText(label, (x(i) + x(i + 1)) / 2, height - 4); });
    this.hover(node, px => {
      const i = Math.floor((px - left) / (width - left) * labels.length);
      return labels[i] === undefined || i < 0 ? "" : labels[i] + ": " + format(values[i], unit);
    });
  }

  grid(parent, { rows, columns, values, unit, low, high, down, across }) {
    const room = parent.clientWidth, left = Math.min(110, 22 + 6 * Math.max(...rows.map(r => r.length), 1)), below = 34;
    const cell = Math.max(3, Math.min(26, Math.floor((room - left) / Math.max(1, columns.length))));
    const [node, c] = this.canvas(parent, rows.length * cell + below);
    const all = values.flat().filter(v => v != null);
    const from = low ?? Math.min(...all, 0), to = high ?? Math.max(...all);
    values.forEach((line, i) => line.forEach((v, j) => {
      c.fillStyle = color("--grid");
      c.globalAlpha = 1;
      c.fillRect(left + j * cell, i * cell, cell - 1, cell - 1);
      c.fillStyle = color("--c0");
      c.globalAlpha = v == null ? 0 : Math.max(0, Math.min(1, (v - from) / (to - from || 1))) ** 0.6;
      c.fillRect(left + j * cell, i * cell, cell - 1, cell - 1);
    }));
    c.globalAlpha = 1;
    c.fillStyle = color("--soft");
    const every = Math.max(1, Math.ceil(11 / cell));
    c.textAlign = "right";
    rows.forEach((name, i) => { if (i % every === 0) c.fillText(name, left - 6, i * cell + cell / 2 + 4); });
    c.textAlign = "center";
    const width = Math.max(...columns.map(name => c.measureText(name).width), 1), step = Math.max(1, Math.ceil((width + 3) / cell));
    columns.forEach((name, j) => { if (j % step === 0) c.fillText(name, left + j * cell + cell / 2, rows.length * cell + 13); });
    if (across) { c.textAlign = "left"; c.fillText((down ? "↓ " + down + "   " : "") + "→ " + across, left, rows.length * cell + 29); }
    this.hover(node, (x, y) => {
      const i = Math.floor(y / cell), j = Math.floor((x - left) / cell);
      if (!values[i] || values[i][j] === undefined || j < 0) return "";
      return (down ? down + " " : "") + rows[i] + ", " + (across ? across + " " : "") + columns[j] + ": " + format(values[i][j], unit);
    });
  }

  table(parent, { head, rows }) {
    const holder = add(parent, "div", undefined, "scroll"), table = add(holder, "table"), top = add(add(table, "thead"), "tr");
    for (const name of head) add(top, "th", name);
    const body = add(table, "tbody");
    for (const line of rows) {
      const row = add(body, "tr");
      for (const cell of line) {
        const swatch = /^#[0-9a-f]{6}$/i.test(cell), node = add(row, "td", swatch ? undefined : typeof cell === "number" || cell == null ? format(cell) : cell);
        if (swatch) Object.assign(add(node, "i", undefined, "swatch"), { title: cell }).style.background = cell;
      }
    }
  }

  points(parent, { x, y, colors = [], labels = [], across, down }) {
    const [node, c, width] = this.canvas(parent, 300), height = across ? 280 : 296, pad = 12;
    const seen = x.map((v, i) => i).filter(i => x[i] != null && y[i] != null);
    const span = v => { const all = seen.map(i => v[i]), a = Math.min(...all), b = Math.max(...all); return w => (w - a) / (b - a || 1); };
    const sx = span(x), sy = span(y), px = i => pad + sx(x[i]) * (width - 2 * pad), py = i => height - pad - sy(y[i]) * (height - 2 * pad);
    for (const i of seen) {
      c.fillStyle = /^#[0-9a-f]{3,8}$/i.test(colors[i]) ? colors[i] : color("--c0");
      c.beginPath(); c.arc(px(i), py(i), 4, 0, 7); c.fill();
    }
    c.fillStyle = color("--soft");
    if (across) c.fillText((down ? "↑ " + down + "   " : "") + "→ " + across, pad, 296);
    this.hover(node, (mx, my) => {
      const near = seen.map(i => [(px(i) - mx) ** 2 + (py(i) - my) ** 2, i]).sort((a, b) => a[0] - b[0])[0];
      if (!near || near[0] > 200) return "";
      return [labels[near[1]], format(x[near[1]]) + ", " + format(y[near[1]])].filter(Boolean).join(": ");
    });
  }
}

const galleries = new Map();
function drawPictures() {
  for (const shown of doc.pictures) {
    let gallery = galleries.get(shown.name);
    if (!gallery) galleries.set(shown.name, gallery = new Gallery(shown));
    gallery.shown = shown;
    gallery.draw();
  }
}

/* One bar of everything that took time. */
function drawTime() {
  const all = doc.time.reduce((sum, part) => sum + part[1], 0), card = $("spent");
  card.hidden = !all;
  const bar = card.querySelector(".split"), words = card.querySelector(".legend");
  bar.textContent = words.textContent = "";
  doc.time.forEach(([name, seconds], i) => {
    if (!seconds) return;
    const hue = color("--c" + i), part = add(bar, "i");
    part.style.cssText = "background:" + hue + ";flex:" + seconds;
    part.title = name;
    const chip = add(words, "span");
    add(chip, "i").style.background = hue;
    chip.append(name + " ");
    add(chip, "b", (100 * seconds / all).toFixed(seconds < all / 100 ? 1 : 0) + " %");
    chip.append(" " + along(seconds, "seconds"));
  });
}

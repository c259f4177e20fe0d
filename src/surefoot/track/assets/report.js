(() => {
  doc = JSON.parse($("data").textContent);
  let at = { group: 0, place: -1 };  // place -1: the newest sample

  /* Words of `now` with a flag for those that a longest common subsequence with `before` lacks. */
  function changed(before, now) {
    const a = before.split(/(\s+)/), b = now.split(/(\s+)/);
    const n = a.length, m = b.length, table = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
    for (let i = n - 1; i >= 0; i--)
      for (let j = m - 1; j >= 0; j--)
        table[i][j] = a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    const words = [];
    for (let i = 0, j = 0; j < m;) {
      if (i < n && a[i] === b[j]) { words.push([b[j++], false]); i++; }
      else if (i < n && table[i + 1][j] >= table[i][j + 1]) i++;
      else words.push([b[j++], true]);
    }
    return words;
  }

  function drawSamples() {
    $("samples").hidden = !doc.samples.length;
    if (!doc.samples.length) return;
    const select = $("group");
    select.hidden = doc.samples.length < 2;
    select.textContent = "";
    doc.samples.forEach((g, i) => { add(select, "option", g.title).value = i; });
    select.value = at.group = Math.min(at.group, doc.samples.length - 1);
    const { prompt, items } = doc.samples[at.group], end = items.length - 1;
    const place = at.place < 0 ? end : Math.min(at.place, end), item = items[place];
    const slider = $("slider"), text = $("text");
    slider.parentElement.classList.toggle("single", !end);
    slider.max = end;
    slider.value = place;
    $("back").disabled = place === 0;
    $("on").disabled = place === end;
    $("when").textContent = "step " + item.step;
    text.textContent = "";
    if (prompt.trim()) add(text, "b", prompt);
    const plain = place === 0 || !$("changes").checked;
    for (const [word, flag] of plain ? [[item.text, false]] : changed(items[place - 1].text, item.text))
      if (flag && word.trim()) add(text, "mark", word); else text.append(word);
  }

  function move(place) {
    const end = doc.samples[at.group].items.length - 1;
    at.place = place >= end ? -1 : Math.max(0, place);
    drawSamples();
  }

  function drawHead() {
    const run = doc.run, pill = $("status");
    pill.textContent = run.status;
    pill.className = "pill " + run.status;
    document.title = (run.status === "running" ? run.place + " · " : "") + run.name + " · Surefoot";
    $("bar").hidden = !(run.share >= 0 && run.share < 1);
    $("bar").firstElementChild.style.width = 100 * Math.max(0, run.share) + "%";
    const silent = run.status === "running" ? Date.now() / 1000 - doc.updated : 0;
    const said = [doc.alert, silent > 900 ? "No sign of life for " + Math.round(silent / 60) + " minutes." : ""].filter(Boolean).join(" ");
    $("alert").textContent = said;
    $("alert").hidden = !said;
    $("tiles").textContent = "";
    for (const [value, label] of doc.tiles) {
      const tile = add($("tiles"), "div", undefined, "tile");
      add(tile, "b", value);
      add(tile, "span", label);
    }
  }

  function drawRows(id, rows) {
    $(id).hidden = !rows.length;
    const table = $(id).querySelector("table");
    table.textContent = "";
    for (const cells of rows) {
      const row = add(table, "tr");
      for (const cell of cells) add(row, "td", cell);
    }
  }

  function draw() {
    drawHead();
    drawTime();
    drawCharts();
    drawPictures();
    drawSamples();
    drawRows("events", doc.events);
    drawRows("log", doc.log);
  }

  $("slider").oninput = e => move(+e.target.value);
  $("back").onclick = () => move(+$("slider").value - 1);
  $("on").onclick = () => move(+$("slider").value + 1);
  $("changes").onchange = drawSamples;
  $("group").onchange = e => { at = { group: +e.target.value, place: -1 }; drawSamples(); };
  if ($("all")) $("all").onchange = e => $("settings").classList.toggle("every", e.target.checked);
  dark.addEventListener("change", draw);
  draw();

  /* While the run goes on, its newest numbers come from a script beside this file: no server. */
  let misses = 0;
  window.surefoot = next => {
    misses = 0;
    const newer = next.updated !== doc.updated;
    doc = next;
    if (newer) draw(); else drawHead();
  };
  function poll() {
    if (!doc.live || misses > 4) return;
    const script = document.createElement("script");
    script.src = "plots/data.js?" + Date.now();
    script.onload = script.onerror = event => {
      if (event.type === "error") misses++;
      script.remove();
      setTimeout(poll, 2000);
    };
    document.head.append(script);
  }
  setTimeout(poll, 2000);
})();

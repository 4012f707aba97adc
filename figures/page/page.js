"use strict";
// Glue between the page's data and plotly, and the controls. Names come from strangers: they are text, never markup.
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const seen = page.pictures, blocks = page.blocks, names = Object.keys(page.subjects.curves);
  const get = (id) => document.getElementById(id);
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // What is chosen; it stands in the address, so that a page that loads itself again shows the same.
  const nearest = (texts) => Math.max(0, texts.indexOf("1"));
  const state = {
    off: [], subject: 0, prompt: 0, quantity: 0, block: 0, one: names[0],
    multiplier: seen.multipliers ? nearest(seen.multipliers) : 0,
    step: seen.steps ? seen.steps.length - 1 : 0,
    blockRate: blocks.multipliers ? nearest(blocks.multipliers) : 0,
  };
  try {
    Object.assign(state, JSON.parse(decodeURIComponent(location.hash.slice(1))));
  } catch { /* no choice in the address */ }
  const keep = () => history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(state)));
  const isOff = (series) => state.off.includes(page.series[series].name);

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function layout(chart) {
    const axis = { gridcolor: color("--line"), zeroline: false, automargin: true };
    const x = { ...axis, title: { text: plain(chart.xlabel || "") } };
    if (chart.log) Object.assign(x, { type: "log", tickvals: chart.ticks.map((t) => t[0]), ticktext: chart.ticks.map((t) => t[1]) });
    return {
      xaxis: x, yaxis: { ...axis, type: chart.logy ? "log" : "linear", exponentformat: "power" }, showlegend: false,
      margin: { l: 45, r: 12, t: 8, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("--ink"), family: "system-ui, sans-serif", size: 12 }, hovermode: "closest",
    };
  }

  const fixed = (value) => (value === null ? "?" : String(value));
  function traces(chart) {
    const made = [];
    if (chart.base) {
      const ends = [chart.ticks[0][0], chart.ticks[chart.ticks.length - 1][0]], base = fixed(chart.base[0]);
      made.push({ x: ends, y: [chart.base[0], chart.base[0]], mode: "lines", line: { dash: "longdash", color: color("--muted"), width: 1.5 },
        hovertemplate: `base model: ${base}<extra></extra>` });
    }
    for (const curve of chart.curves) {
      if (isOff(curve.series)) continue;
      const look = page.series[curve.series];
      const whole = curve.x.map((_, i) => i).filter((i) => curve.low[i] !== null && curve.high[i] !== null);
      if (whole.length > 1) {
        const back = [...whole].reverse();
        made.push({ x: [...whole, ...back].map((i) => curve.x[i]), fill: "toself", fillcolor: look.color + "26",
          y: [...whole.map((i) => curve.low[i]), ...back.map((i) => curve.high[i])],
          line: { width: 0 }, mode: "lines", hoverinfo: "skip" });
      }
      const hover = curve.x.map((x, i) => {
        const ends = curve.low[i] === null ? "" : ` [${curve.low[i]}, ${curve.high[i]}]`;
        return `${plain(look.name)}, ${chart.log ? tick(chart, x) + "×" : "step " + x}<br>${fixed(curve.mean[i])}${ends}<br>${plain(curve.note[i])}`;
      });
      made.push({ x: curve.x, y: curve.mean, mode: chart.log || curve.x.length < 3 ? "lines+markers" : "lines", line: { color: look.color, dash: look.dash, width: 2 },
        marker: { symbol: look.symbol, size: 7, color: look.color }, text: hover, hovertemplate: "%{text}<extra></extra>" });
    }
    return made;
  }
  const tick = (chart, x) => (chart.ticks.find((t) => t[0] === x) || [x, String(x)])[1];
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const draw = (id, chart) => get(id) && Plotly.react(get(id), traces(chart), layout(chart), config);

  function drawRates() {
    for (const [name, chart] of Object.entries(page.charts)) draw(`chart-${name}`, chart);
  }

  function drawSubjects() {
    const dots = page.subjects.dots.filter((own) => !isOff(own.series));
    const made = dots.map((own) => {
      const look = page.series[own.series];
      return { x: own.values, y: own.values.map(() => plain(`${look.name}, ${own.multiplier}×`)), mode: "markers", customdata: own.subjects,
        marker: { color: look.color, symbol: "circle", size: own.subjects.map((name) => (name === state.one ? 15 : 9)), opacity: 0.75,
          line: { width: own.subjects.map((name) => (name === state.one ? 2 : 0)), color: color("--ink") } },
        text: own.subjects.map(plain), hovertemplate: "%{text}: %{x:.3f}<extra></extra>" };
    });
    const shape = layout({ xlabel: page.headline });
    Object.assign(shape.yaxis, { type: "category", autorange: "reversed" });
    Plotly.react(get("chart-subjects"), made, shape, config);
    const own = page.subjects.curves[state.one] || {};
    for (const metric of page.subjects.charts) {
      const chart = page.charts[metric];
      if (chart) draw(`chart-subject-${metric}`, { ...chart, base: null, curves: own[metric] || [] });
    }
  }

  function drawBlocks() {
    if (!blocks.names) return;
    const shown = blocks.curves[`${state.quantity}/${state.blockRate}`] || {};
    blocks.names.forEach((name, place) => draw(`chart-block-${place}`, { curves: shown[name] || [], xlabel: "step" }));
    const block = blocks.names[state.block], rows = (blocks.matrices[state.blockRate] || []).filter((row) => row.block === block);
    get("h-matrices").textContent = `${block} at ${blocks.multipliers[state.blockRate]}×`;
    const made = page.series.map((look, place) => ({ type: "bar", orientation: "h", y: rows.map((row) => plain(row.matrix.replace(`${row.block}.`, ""))),
      x: rows.map((row) => row.values[place]), marker: { color: look.color }, hovertemplate: plain(look.name) + ": %{x}<extra></extra>" }))
      .filter((_, place) => !isOff(place));
    const shape = layout({ xlabel: "distance ‖Wₜ − W₀‖ / ‖W₀‖ at the end" });
    Object.assign(shape.yaxis, { type: "category", autorange: "reversed" });
    get("chart-matrices").style.height = `${90 + rows.length * Math.max(16, 9 * made.length)}px`;
    Plotly.react(get("chart-matrices"), made, shape, config);
  }

  // Pictures: tiles are made anew, images stay in the page's data.
  function tile(caption, found, alt) {
    const figure = document.createElement("figure"), words = document.createElement("figcaption");
    words.textContent = caption + (found && found.score ? `: ${found.score}` : "") + (found && found.diverged ? ", diverged" : "");
    const picture = document.createElement(found ? "img" : "div");
    if (found) {
      picture.src = seen.images[found.image] || found.src;
      picture.alt = alt;
      if (found.color) picture.style.borderColor = found.color;
      if (found.diverged) picture.className = "diverged";
    } else {
      picture.className = "none";
      picture.textContent = "no picture";
    }
    figure.append(picture, words);
    return figure;
  }
  function drawPictures() {
    if (!seen.tiles) return;
    const subject = seen.subjects[state.subject], rate = seen.multipliers[state.multiplier], step = seen.steps[state.step];
    const at = (series, m, t) => seen.tiles[`${series}/${state.subject}/${state.prompt}/${m}/${t}`];
    const base = at(-1, 0, 0), tiles = [];
    if (state.subject in seen.own) tiles.push(tile(`the ${page.unit}`, { src: seen.own[state.subject] }, `photograph of ${subject}`));
    if (base) tiles.push(tile("base model", base, `base model, ${base.prompt}`));
    let asked = base ? base.prompt : "";
    page.series.forEach((look, series) => {
      if (isOff(series)) return;
      const found = at(series, state.multiplier, state.step);
      asked = found ? found.prompt : asked;
      tiles.push(tile(look.name, found, `${look.name} at ${rate}× after ${step} steps: ${found ? found.prompt : ""}`));
    });
    get("tiles").replaceChildren(...tiles);
    get("asked").textContent = asked ? `Asked for: ${asked}` : "";
    get("multiplier-said").textContent = `${rate}×`;
    get("step-said").textContent = String(step);
    get("multiplier").setAttribute("aria-valuetext", `${rate} times the base rate`);
    get("step").setAttribute("aria-valuetext", `${step} steps`);
  }

  function drawAll() {
    drawRates();
    drawSubjects();
    drawBlocks();
    drawPictures();
  }

  function choose(id, texts, key, redraw) {
    const box = get(id);
    if (!box) return;
    if (box.tagName === "SELECT") texts.forEach((text, place) => box.add(new Option(text, String(place))));
    box.value = String(state[key]);
    box.addEventListener("input", () => {
      state[key] = Number(box.value);
      keep();
      redraw();
    });
  }
  function showSubject(name) {
    state.one = name;
    get("one-subject").value = String(names.indexOf(name));
    const place = (seen.subjects || []).indexOf(name);
    if (place >= 0) {
      state.subject = place;
      get("subject").value = String(place);
      drawPictures();
    }
    keep();
    drawSubjects();
  }

  page.series.forEach((look) => {
    const label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox";
    box.checked = !state.off.includes(look.name);
    box.addEventListener("change", () => {
      state.off = page.series.map((own) => own.name).filter((name) => (name === look.name ? !box.checked : state.off.includes(name)));
      keep();
      drawAll();
    });
    const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    swatch.setAttribute("width", "14");
    swatch.setAttribute("height", "14");
    swatch.setAttribute("aria-hidden", "true");
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [name, value] of Object.entries({ cx: 7, cy: 7, r: 6, fill: look.color })) dot.setAttribute(name, value);
    swatch.append(dot);
    label.append(box, swatch, document.createTextNode(look.name));
    get("series").append(label);
  });

  if (seen.tiles) {
    choose("subject", seen.subjects, "subject", () => { showSubject(seen.subjects[state.subject]); });
    choose("prompt", Array.from({ length: seen.prompts }, (_, i) => String(i + 1)), "prompt", drawPictures);
    choose("multiplier", [], "multiplier", drawPictures);
    choose("step", [], "step", drawPictures);
  }
  if (blocks.names) {
    choose("quantity", blocks.quantities, "quantity", drawBlocks);
    choose("block-rate", blocks.multipliers.map((text) => `${text}×`), "blockRate", drawBlocks);
    blocks.names.forEach((name, place) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption"), button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      const chart = document.createElement("div");
      chart.className = "chart";
      chart.id = `chart-block-${place}`;
      chart.setAttribute("role", "img");
      chart.setAttribute("aria-label", `${name} over the steps`);
      const open = () => {
        state.block = place;
        keep();
        drawBlocks();
        get("h-matrices").focus({ preventScroll: true });
        get("h-matrices").scrollIntoView({ block: "nearest" });
      };
      button.addEventListener("click", open);
      caption.append(button);
      figure.append(caption, chart);
      get("block-charts").append(figure);
    });
  }
  names.forEach((name, place) => get("one-subject").add(new Option(name, String(place))));
  get("one-subject").value = String(Math.max(0, names.indexOf(state.one)));
  get("one-subject").addEventListener("input", (event) => showSubject(names[Number(event.target.value)]));

  for (const [name, text] of Object.entries(page.files)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = name;
      link.click();
      URL.revokeObjectURL(link.href);
    });
    get("files").append(button, " ");
  }

  drawAll();
  get("chart-subjects").on("plotly_click", (event) => showSubject(event.points[0].customdata));
  if (blocks.names) {
    blocks.names.forEach((_, place) => get(`chart-block-${place}`).on("plotly_click", () => {
      state.block = place;
      keep();
      drawBlocks();
    }));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  const isOld = Date.now() / 1000 - page.written > page.stale; // the sweep has ended, or nobody draws it any more
  if (page.reload && !isOld) setTimeout(() => location.reload(), 1000 * page.reload);
})();

// Draws a page's content with Plotly and moves all of it with one slider. The file holds its content in #content;
// the live page hands new content to window.spectralPage.receive.
(() => {
  "use strict";
  const GROUPS = ["attention", "weights", "spectrum", "curves"];
  const PRINT_WIDTH = 680; // A4 and letter less their margins, in CSS pixels
  const at = (id) => document.getElementById(id);
  const live = document.body.dataset.mode === "live";
  const darkPage = window.matchMedia("(prefers-color-scheme: dark)");
  const graphs = new Map(); // name of a view -> {view, box, plot, heading, drawn, dirty, decoded}
  let content = null;
  let index = 0;
  let printing = false;
  let player = 0;

  // ---- numbers

  function bytes(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  function frameOf(part, i) {
    part.decoded ??= part.kind === "f4" ? new Float32Array(bytes(part.data).buffer) : bytes(part.data);
    const n = part.shape[1];
    if (part.kind === "triangle") {
      const start = (i * n * (n + 1)) / 2;
      const rows = [];
      for (let row = 0, place = start; row < n; place += ++row) {
        const values = new Array(n).fill(null);
        for (let column = 0; column <= row; column++) {
          const stored = part.decoded[place + column];
          values[column] = stored === 255 ? null : stored / 254; // 255: not measured
        }
        rows.push(values);
      }
      return rows;
    }
    const width = part.shape.length > 2 ? part.shape[2] : 0;
    if (!width) return Array.from(part.decoded.subarray(i * n, (i + 1) * n));
    return Array.from({ length: n }, (_, row) =>
      Array.from(part.decoded.subarray((i * n + row) * width, (i * n + row + 1) * width)),
    );
  }

  function nearest(steps, step) {
    let best = 0;
    for (let i = 1; i < steps.length; i++) if (Math.abs(steps[i] - step) < Math.abs(steps[best] - step)) best = i;
    return best;
  }

  const number = (value) => value.toLocaleString("en-US");
  const currentStep = () => content.steps[index];

  // ---- colours: figures are made for white pages; on dark ones every dark colour is lightened

  function lightened(color) {
    const found = /^#([0-9a-f]{6})$/i.exec(color);
    const parts = found
      ? [0, 2, 4].map((i) => parseInt(found[1].slice(i, i + 2), 16))
      : (/^rgba\((\d+),(\d+),(\d+),/.exec(color) || []).slice(1).map(Number);
    if (parts.length !== 3) return color;
    const luminance = (c) => (0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]) / 255;
    let mixed = parts;
    for (let share = 0; share <= 0.8 && luminance(mixed) < 0.55; share += 0.05)
      mixed = parts.map((value) => Math.round(value + (255 - value) * share));
    return found ? `rgb(${mixed})` : color.replace(/\d+,\d+,\d+/, mixed.join(","));
  }

  function recolor(node) {
    for (const [key, value] of Object.entries(node)) {
      if (typeof value === "string" && /color$/i.test(key)) node[key] = lightened(value);
      else if (value && typeof value === "object" && !Array.isArray(value) && key !== "colorscale") recolor(value);
    }
  }

  function themed(figure) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const { layout, data } = figure;
    if (darkPage.matches && !printing) {
      data.forEach((trace) => {
        recolor(trace);
        if (trace.type === "heatmap") trace.reversescale = true;
      });
    }
    Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
    layout.font = { color: color("--ink"), family: "system-ui, sans-serif", size: 12 };
    layout.hoverlabel = { bgcolor: color("--wash"), bordercolor: color("--muted"), font: { color: color("--ink") } };
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: color("--muted"), activecolor: color("--focus") };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key))
        Object.assign(layout[key], {
          gridcolor: color("--grid"), zerolinecolor: color("--line"), linecolor: color("--muted"), fixedrange: false,
        });
    }
    return color;
  }

  // ---- one graph

  function figureOf(graph) {
    const { view } = graph;
    const figure = structuredClone(view.figure);
    figure.layout.xaxis ??= {};
    figure.layout.yaxis ??= {};
    if (view.steps.length) {
      graph.frame = nearest(view.steps, currentStep());
      for (const part of view.parts) {
        let node = figure.data[part.trace];
        const keys = part.key.split(".");
        for (const key of keys.slice(0, -1)) node = node[key];
        node[keys.at(-1)] = frameOf(part, graph.frame);
      }
    }
    const color = themed(figure);
    if (view.hasStepAxis && content.steps.length)
      figure.layout.shapes = [...(figure.layout.shapes || []), {
        type: "line", xref: "x", x0: currentStep(), x1: currentStep(), yref: "paper", y0: 0, y1: 1, name: "cursor",
        line: { color: color("--ink"), width: 1.2, dash: "dash" },
      }];
    sized(graph, figure.layout);
    return figure;
  }

  function sized(graph, layout) {
    const pair = graph.box.parentElement.classList.contains("two") && graph.view.group !== "attention";
    const width = printing ? (pair ? PRINT_WIDTH / 2 - 12 : PRINT_WIDTH) : graph.plot.clientWidth;
    layout.width = width;
    if (graph.view.size) {
      const [rows, columns, extra] = graph.view.size;
      const side = Math.min((width - 26) / columns, 230);
      layout.width = Math.round(side * columns + 26);
      layout.height = Math.round(side * rows + extra);
    } else if (width < 480) {
      Object.assign(layout.legend, { orientation: "h", x: 0, y: -0.24, yanchor: "top" });
      layout.height += 22 * Math.ceil(graph.view.figure.data.length / 4);
    }
    layout.autosize = false;
  }

  function draw(graph) {
    if (!shown(graph)) return;
    const figure = figureOf(graph);
    const config = { displaylogo: false, responsive: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    graph.dirty = false;
    Plotly.react(graph.plot, figure.data, { ...figure.layout, uirevision: graph.view.name }, config);
    if (!graph.drawn && graph.view.hasStepAxis)
      graph.plot.on("plotly_click", (event) => choose(nearest(content.steps, event.points[0].x)));
    graph.drawn = true;
    describe(graph);
  }

  function describe(graph) {
    const { view } = graph;
    let words = "";
    if (view.steps.length) {
      const step = view.steps[graph.frame];
      words = step === currentStep() ? `step ${number(step)}` : `nearest with data: step ${number(step)}`;
    }
    graph.heading.textContent = words;
    graph.plot.setAttribute("aria-label", `${view.title}. ${view.caption} ${words}`);
  }

  const shown = (graph) => !graph.box.hidden && graph.box.isConnected;

  function graphFor(view) {
    let graph = graphs.get(view.name);
    if (!graph) {
      const box = document.createElement("figure");
      box.className = "view";
      box.id = `view-${view.name}`;
      const title = document.createElement("h3");
      const heading = document.createElement("small");
      title.append(document.createTextNode(`${view.title} `), heading);
      const caption = document.createElement("figcaption");
      const words = document.createElement("p");
      words.className = "caption";
      const note = document.createElement("p");
      note.className = "thinned";
      caption.append(words, note);
      const plot = document.createElement("div");
      plot.className = "plot";
      plot.setAttribute("role", "group");
      plot.style.minHeight = `${view.size ? 150 : view.figure.layout.height}px`;
      box.append(title, plot, caption);
      at(view.group).querySelector(".views").append(box);
      graph = { box, plot, heading, words, note, drawn: false };
      graphs.set(view.name, graph);
      watcher.observe(box);
    }
    Object.assign(graph, { view, dirty: true, frame: 0 });
    graph.words.textContent = view.caption;
    graph.note.textContent = view.note;
    graph.plot.setAttribute("aria-label", view.title);
    return graph;
  }

  // ---- all of them: what is in sight at once, the rest when there is time

  const near = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const graph = [...graphs.values()].find((candidate) => candidate.box === entry.target);
      if (entry.isIntersecting) near.add(graph);
      else near.delete(graph);
    }
    refresh();
  }, { rootMargin: "200px" });

  let waitingFrame = 0;
  function refresh() {
    waitingFrame ||= requestAnimationFrame(() => {
      waitingFrame = 0;
      for (const graph of near) if (graph.dirty) draw(graph);
      document.body.dataset.drawn = "sight";
      later();
    });
  }

  let waitingIdle = 0;
  function later() {
    const idle = window.requestIdleCallback || ((callback) => setTimeout(callback, 30));
    waitingIdle ||= idle(() => {
      waitingIdle = 0;
      const rest = [...graphs.values()].find((graph) => !graph.drawn && shown(graph));
      if (rest) {
        draw(rest);
        later();
      } else document.body.dataset.drawn = "all";
    });
  }

  function choose(next) {
    if (!content || !content.steps.length) return;
    index = Math.max(0, Math.min(content.steps.length - 1, next));
    const step = currentStep();
    at("slider").value = index;
    at("step").textContent = number(step);
    const marks = Object.fromEntries(content.marks.map((mark) => [mark.name, mark.step]));
    const where = "onset" in marks && "end" in marks
      ? step < marks.onset ? ", before the transition" : step > marks.end ? ", after the transition" : ", in the transition"
      : "";
    at("slider").setAttribute("aria-valuetext", `step ${number(step)}${where}`);
    for (const graph of graphs.values()) graph.dirty = true;
    refresh();
  }

  function chooseProbe() {
    const chosen = at("probe").value;
    at("probe-printed").textContent = chosen;
    for (const graph of graphs.values()) {
      if (!graph.view.choice) continue;
      graph.box.hidden = graph.view.choice !== chosen;
      graph.dirty = true;
    }
    refresh();
  }

  function fillProbes() {
    const select = at("probe");
    const choices = [...new Set(content.views.map((view) => view.choice).filter(Boolean))];
    const kept = choices.includes(select.value) ? select.value : choices[0];
    select.replaceChildren(...choices.map((choice) => new Option(choice, choice, false, choice === kept)));
    chooseProbe();
  }

  function fillMarks() {
    at("marks").replaceChildren(...content.marks.map((mark) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = mark.name;
      button.title = `to step ${number(Math.round(mark.step))}`;
      button.addEventListener("click", () => choose(nearest(content.steps, mark.step)));
      return button;
    }));
  }

  function play(on) {
    clearInterval(player);
    player = 0;
    if (on) {
      if (index >= content.steps.length - 1) choose(0);
      player = setInterval(() => (index < content.steps.length - 1 ? choose(index + 1) : play(false)), 200);
    }
    at("play").textContent = on ? "Pause" : "Play";
    at("play").setAttribute("aria-pressed", String(on));
  }

  function receive(next) {
    const first = content === null || !content.steps.length;
    const followed = first || index >= content.steps.length - 1;
    const step = first ? null : currentStep();
    content = next;
    document.title = content.name;
    at("name").textContent = content.name;
    at("note").textContent = content.note;
    showStatus(content.status, content.statusText);
    if (live) {
      at("summary").innerHTML = content.html.summary; // made by the templates, which escape
      at("details").innerHTML = content.html.details;
    }
    at("bar").hidden = !content.steps.length;
    at("slider").max = Math.max(0, content.steps.length - 1);
    const names = new Set(content.views.map((view) => view.name));
    for (const [name, graph] of graphs)
      if (!names.has(name)) {
        watcher.unobserve(graph.box);
        near.delete(graph);
        graph.box.remove();
        graphs.delete(name);
      }
    for (const group of GROUPS) at(group).hidden = !content.views.some((view) => view.group === group);
    content.views.forEach(graphFor);
    const columns = Math.max(...content.views.map((view) => (view.size ? view.size[1] : 0)));
    at("attention").querySelector(".views").classList.toggle("two", columns <= 4);
    fillMarks();
    fillProbes();
    const running = content.status === "running";
    if (first && !running) index = content.start;
    else index = followed ? content.steps.length - 1 : nearest(content.steps, step);
    choose(index);
    refresh();
  }

  function showStatus(status, words) {
    at("status").textContent = words;
    at("status").dataset.status = status;
  }

  // How the run is doing, between two pieces of content; silence for long means that nobody serves the page any more.
  let heard = Date.now();
  function beat(news) {
    heard = Date.now();
    at("problem").hidden = true;
    if (news && content && content.status !== "waiting") showStatus(news.status, news.text);
    at("refresh").textContent = `looked at ${new Date().toLocaleTimeString()}`;
  }
  if (live)
    setInterval(() => {
      const silent = Date.now() - heard > 15000;
      at("problem").hidden = !silent;
      if (silent)
        at("problem").textContent = "Nobody serves this page any more: it shows what was known last. Start it again with "
          + "python visualize_results.py RUN --live, or write report.html without --live.";
    }, 1000);

  // ---- events

  at("slider").addEventListener("input", (event) => choose(Number(event.target.value)));
  at("probe").addEventListener("change", chooseProbe);
  at("play").addEventListener("click", () => play(!player));
  document.addEventListener("keydown", (event) => {
    const free = event.target === document.body && !event.altKey && !event.ctrlKey && !event.metaKey;
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (free && move) choose(index + move);
  });
  const redraw = () => {
    for (const graph of graphs.values()) graph.dirty = true;
    refresh();
  };
  darkPage.addEventListener("change", redraw);
  let width = document.body.clientWidth;
  new ResizeObserver(() => {
    if (document.body.clientWidth === width || printing) return;
    width = document.body.clientWidth;
    redraw();
  }).observe(document.body);
  window.addEventListener("beforeprint", () => {
    printing = true;
    for (const details of document.querySelectorAll("details.settings")) details.open = true;
    for (const graph of graphs.values()) draw(graph);
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    redraw();
  });

  window.spectralPage = {
    receive,
    beat,
    // What a test or a script may look at: the chosen step and the step that a picture shows.
    state: () => ({ step: content && currentStep(), steps: content ? content.steps.length : 0 }),
  };
  const own = JSON.parse(at("content").textContent);
  if (own) receive(own);
})();

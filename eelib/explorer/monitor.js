// View of exit monitors. Python computes every number (MonitorView.data); this module only draws them.

const SVG = "http://www.w3.org/2000/svg";
const NUMBER = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const COUNT = new Intl.NumberFormat("en");
const number = (x) => (x == null ? "–" : NUMBER.format(x));
const DEPTHS = ["#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#56b4e9", "#ece133"]; // as in the explorer
const percent = (x) => (x == null ? "–" : `${(100 * x).toFixed(1)}%`);
const signed = (form) => (x) => (x == null ? "–" : (x < 0 ? "−" : "+") + form(Math.abs(x)));
const interval = (form, low, high) => (low == null ? "" : `${form(low)} to ${form(high)}`);

function node(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "rect", "text", "circle"].includes(tag);
  const made = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const swatch = (color) => node("span", { class: "swatch", style: `background: ${color}` });

/** Lines with bands over sequences; the pointer and the arrow keys move a cursor whose values stand below. */
function chart({ title, about, lines, rules = [], form, from = null, to = null }) {
  const [width, height, left, right, top, bottom] = [340, 150, 40, 8, 8, 24];
  const seen = [...lines.flatMap((l) => [...l.y, ...(l.low ?? []), ...(l.high ?? [])]),
    ...rules.map((r) => r.y)].filter((v) => v != null);
  let [least, most] = [from ?? Math.min(...seen), to ?? Math.max(...seen)];
  if (!(most > least)) [least, most] = [least - (Math.abs(least) || 1) / 10, least + (Math.abs(least) || 1) / 10];
  const rough = (most - least) / 4;
  const step = [1, 2, 2.5, 5, 10].map((n) => n * 10 ** Math.floor(Math.log10(rough))).find((n) => n >= rough * 0.999);
  [least, most] = [Math.floor(least / step + 1e-9) * step, Math.ceil(most / step - 1e-9) * step];
  const tick = (y) => (form === percent ? `${NUMBER.format(100 * y)}%` : form(y));
  const last = Math.max(2, ...lines.flatMap((l) => l.x));
  const X = (x) => left + ((x - 1) / (last - 1)) * (width - left - right);
  const Y = (y) => top + ((most - y) / (most - least)) * (height - top - bottom);
  const place = (x, y) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`;
  const path = (xs, ys) => xs.map((x, i) =>
    (ys[i] == null ? "" : (i && ys[i - 1] != null ? "L" : "M") + place(x, ys[i]))).join("");
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0,
    "aria-label": `${title}: ${about}. Arrow keys move along.` });
  for (let i = 0; i <= Math.round((most - least) / step); i++) {
    const y = least + i * step;
    svg.append(node("line", { x1: left, x2: width - right, y1: Y(y), y2: Y(y), stroke: "var(--line)",
      "stroke-width": i ? 0.5 : 1 }));
    svg.append(node("text", { x: left - 5, y: Y(y) + 4, "text-anchor": "end" }, tick(y)));
  }
  for (const x of new Set([1, Math.round((1 + last) / 2), last])) svg.append(node("text",
    { x: X(x), y: height - 10, "text-anchor": x === last ? "end" : "middle" }, COUNT.format(x)));
  lines.forEach((l) => {
    if (l.low?.some((v) => v != null)) {
      const there = l.x.map((x, i) => [x, l.low[i], l.high[i]]).filter((p) => p[1] != null);
      const edge = [...there.map(([x, , h]) => [x, h]), ...there.reverse().map(([x, low]) => [x, low])];
      svg.append(node("path", { d: `M${edge.map(([x, y]) => place(x, y)).join("L")}Z`,
        fill: l.color, opacity: 0.2 }));
    }
    svg.append(node("path", { d: path(l.x, l.y), fill: "none", stroke: l.color, "stroke-width": 2,
      "stroke-dasharray": l.dash ?? "none", "stroke-linejoin": "round" }));
    if (l.alarm) {
      const x = X(Math.min(l.alarm, last));
      svg.append(node("line", { x1: x, x2: x, y1: top, y2: height - bottom, stroke: "var(--alarm)",
        "stroke-width": 2 }));
      svg.append(node("text", { x: x + (x > width / 2 ? -5 : 5), y: top + 10,
        "text-anchor": x > width / 2 ? "end" : "start", style: "fill: var(--alarm)" }, "alarm"));
    }
  });
  for (const r of rules) {
    svg.append(node("line", { x1: left, x2: width - right, y1: Y(r.y), y2: Y(r.y), stroke: "var(--ink)",
      "stroke-dasharray": "2 3", "stroke-width": 1.5 }));
    const below = Math.min(...lines.map((l) => Math.abs(Y(l.y.at(-1) ?? r.y) - Y(r.y) + 8))) < 12 || Y(r.y) < top + 16;
    svg.append(node("text", { class: "rule", x: width - right, y: Y(r.y) + (below ? 13 : -5), "text-anchor": "end" },
      r.label));
  }
  const cursor = svg.appendChild(node("line",
    { y1: top, y2: height - bottom, stroke: "var(--faint)", visibility: "hidden" }));
  const caption = node("figcaption", { "aria-live": "polite" }, about);
  let at = last;
  const show = (x) => {
    at = Math.min(last, Math.max(1, Math.round(x)));
    cursor.setAttribute("visibility", "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, X(at));
    const near = (l) => l.x.reduce((best, value, i) => (Math.abs(value - at) < Math.abs(l.x[best] - at) ? i : best), 0);
    caption.textContent = `sequence ${COUNT.format(at)}: ` + lines.map((l) => {
      const i = near(l);
      return `${l.name} ${form(l.y[i])}` + (l.low?.[i] == null ? ""
        : ` (limits ${interval(form, l.low[i], l.high[i])})`);
    }).join("; ");
  };
  const hide = () => { cursor.setAttribute("visibility", "hidden"); caption.textContent = about; };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    show(1 + ((((event.clientX - box.left) / box.width) * width - left) / (width - left - right)) * (last - 1));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -last, End: last }[event.key];
    if (by) { event.preventDefault(); event.stopPropagation(); show(at + by); }
  });
  return node("figure", {}, node("h3", {}, title), svg, caption);
}

/** Shares of tokens by the depth that settled them: one bar for all sequences of a run, one for the latest. */
function shares(runs) {
  const names = [...new Set(runs.flatMap(({ part }) => Object.keys(part.settled)))].sort((a,
    b) => (a === "full") - (b === "full") || a - b);
  const exits = names.filter((name) => name !== "0" && name !== "full");
  const color = (name) => ({ full: "var(--line)", 0: "#949494" })[name] ?? DEPTHS[exits.indexOf(name) % DEPTHS.length];
  const bars = runs.flatMap(({ name, part }) => [
    { label: runs.length > 1 ? name : "all", counts: part.settled },
    ...(part.sequences > part.window ? [{ label: `last ${part.window}`, counts: part.recent }] : []),
  ]);
  const share = (counts, name) => (counts[name] ?? 0) / (Object.values(counts).reduce((a, b) => a + b, 0) || 1);
  const label = (name) => (name === "full" ? "full model" : name === "0" ? "lookup" : `depth ${name}`);
  const svg = node("svg", { viewBox: `0 0 340 ${bars.length * 30}`, role: "img",
    "aria-label": "Tokens settled at each depth, as the table says" });
  bars.forEach((bar, row) => {
    svg.append(node("text", { x: 78, y: row * 30 + 18, "text-anchor": "end" }, bar.label));
    let x = 84;
    names.forEach((name) => {
      const width = share(bar.counts, name) * 256;
      svg.append(node("rect", { x, y: row * 30 + 3, width, height: 22, fill: color(name), stroke: "var(--paper)",
        "stroke-width": 1 }));
      x += width;
    });
  });
  const head = names.map((name) => node("th", { scope: "col" }, swatch(color(name)), label(name)));
  const rows = bars.map((bar) => node("tr", {}, node("th", { scope: "row" }, bar.label),
    ...names.map((name) => node("td", {}, percent(share(bar.counts, name))))));
  const table = node("table", {}, node("thead", {}, node("tr", {}, node("td"), ...head)), node("tbody", {}, ...rows));
  return node("figure", {}, node("h3", {}, "Settled at depth"), svg,
    node("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Shares by depth" }, table));
}

function tiles(part, data) {
  const money = (x) => `${data.currency}${number(x)}`;
  const made = [
    ["sequences", COUNT.format(part.sequences), `${COUNT.format(part.tokens)} tokens`],
    ["agreement", percent(part.agreement), interval(percent, part.low, part.high)],
    ["coverage", percent(part.coverage), "of tokens exited"],
    ["acceptance", percent(part.acceptance), "of drafts"],
    ["tokens a second", number(part.speed), data.plain_speed ? `${number(data.plain_speed)} by plain decoding` : ""],
  ];
  const span = (form, [, low, high]) => (low === high ? "" : ` (${interval(form, low, high)})`);
  const { saved } = part;
  if (saved) {
    made.push(["time saved", percent(saved.share), `${number(saved.seconds[0])} s${span(number, saved.seconds)}`]);
    if (saved.cost) made.push(["cost saved", money(saved.cost[0]),
      `at ${money(data.price_per_hour)} an hour${span(money, saved.cost)}`]);
  }
  return node("dl", { class: "tiles" },
    ...made.map(([name, value, small]) => node("div", {}, node("dt", {}, name),
    node("dd", {}, value, node("small", {}, small ?? "")))));
}

function comparison(rows, runs) {
  const body = rows.map((row) => {
    const form = row.share ? percent : number;
    const apart = row.low != null && row.low * row.high > 0;
    return node("tr", {}, node("th", { scope: "row" }, row.measure), node("td", {}, form(row.first)),
      node("td", {}, form(row.second)),
      node("td", {}, signed(form)(row.difference)), node("td", {}, interval(signed(form), row.low, row.high) || "–"),
        node("td", {}, row.low == null ? "–" : apart ? "yes" : "no"));
  });
  const head = ["", runs[0].name, runs[1].name, "difference", "95% interval",
    "excludes 0"].map((name) => node("th", { scope: "col" }, name));
  return node("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Comparison" },
    node("table", {}, node("thead", {}, node("tr", {}, ...head)), node("tbody", {}, ...body)));
}

function status({ part, run, name }, several) {
  const said = part.alarm_at ? ["alarm", `alarm at sequence ${part.alarm_at}: agreement is below ${run.epsilon}`]
    : part.agreement == null ? ["", "agreement unknown"]
    : part.low > part.high ? ["alarm", "agreement has changed on the way"] : ["good", "no alarm"];
  return node("span", { class: `status ${said[0]}` }, (several ? `${name}: ` : "") + said[1]);
}

function draw(root, data, chosen, choose) {
  const populations = [...new Set(data.runs.flatMap((run) => Object.keys(run.populations)))];
  const population = populations.includes(chosen) ? chosen : populations[0];
  const runs = data.runs.map((run,
    i) => ({ name: run.name, run, part: run.populations[population], color: `var(--run${i})`,
    dash: i ? "6 3" : "none" })).filter(({ part }) => part);
  const header = node("header", {}, node("h2", {}, "Exit monitor"),
    ...runs.map((one) => status(one, data.runs.length > 1)));
  if (populations.length > 1) header.append(...populations.map((name) => {
    const button = node("button", { type: "button", "aria-pressed": name === population }, name);
    button.addEventListener("click", () => choose(name));
    return button;
  }));
  root.replaceChildren(header, node("div", { class: "live", role: "status" }));
  if (!runs.length) return root.append(node("p", {},
    "Nothing observed yet: monitor.observe(output) records a call of generate."));
  for (const { name, part, color } of runs) root.append(...(runs.length > 1 ? [node("h3", {}, swatch(color), name)]
    : []), tiles(part, data));
  if (data.comparison[population]) root.append(comparison(data.comparison[population], data.runs));
  const lines = (y, low, high) => runs.map(({ name, part, color, dash }) => ({ name: runs.length > 1 ? name : "",
    x: part.series.sequence, y: part.series[y], low: part.series[low], high: part.series[high],
    alarm: low && part.alarm_at, color, dash })).filter((line) => line.y.some((v) => v != null));
  const charts = node("div", { class: "charts" });
  const chance = `${NUMBER.format(100 * runs[0].run.false_alarm)}%`;
  const about = `so far, with limits that are ever wrong with probability ${chance} each;`
    + " the alarm is raised when the upper one falls to the line";
  const agreement = lines("agreement", "low", "high");
  const epsilons = [...new Set(runs.map(({ run }) => run.epsilon))];
  if (agreement.length) charts.append(chart({ title: `Agreement (${runs[0].run.target.replace("_", " ")})`,
    lines: agreement, to: 1, form: percent, about, rules: epsilons.map((y) => ({ y, label: `promised: ${y}` })) }));
  charts.append(shares(runs));
  const window = `over the last ${runs[0].part.window} sequences`;
  const speed = lines("speed"), acceptance = lines("acceptance");
  if (speed.length) charts.append(chart({ title: "Tokens a second", about: window, lines: speed, from: 0,
    form: number, rules: data.plain_speed ? [{ y: data.plain_speed, label: "plain decoding" }] : [] }));
  if (acceptance.length) charts.append(chart({ title: "Acceptance of drafts", about: window, lines: acceptance,
    from: 0, to: 1, form: percent }));
  root.append(charts);
  root.dataset.sequences = runs.map(({ part }) => part.sequences).join(" ");
}

function render({ model, el }) {
  const root = el.appendChild(node("section", { class: "eelib-monitor", "aria-label": "Exit monitor" }));
  let chosen = null;
  const paint = () => {
    draw(root, model.get("data"), chosen,
      (name) => { chosen = name; paint(); root.querySelector("[aria-pressed=true]").focus(); });
    live();
    root.dataset.ready = "true";
  };
  const live = () => {
    const { tokens, seconds } = model.get("live");
    root.querySelector(".live").textContent = tokens
      ? `decoding: ${COUNT.format(tokens)} tokens, ${number(tokens / seconds)} a second` : "";
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => {
    const lab = document.body.dataset.jpThemeLight; // JupyterLab says which theme is on
    root.dataset.theme = (lab ? lab === "false" : dark.matches) ? "dark" : "light";
  };
  const watcher = new MutationObserver(theme);
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  dark.addEventListener("change", theme);
  model.on("change:data", paint);
  model.on("change:live", live);
  theme();
  paint();
  return () => { watcher.disconnect(); dark.removeEventListener("change", theme); model.off("change:data",
    paint); model.off("change:live", live); };
}

/** The view without a kernel. */
export function mount(el, data) {
  render({ el, model: { get: (name) => (name === "data" ? data : {}), on() {}, off() {} } });
}

export default { render };

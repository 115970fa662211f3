// What if: sliders, and at once what they would bring on this text.

import { depthName, depthStyle, frameOf, h, label, number, percent, tick } from "./drawing.mjs";
import { POLICIES, front, neighbours, predict, sorted } from "./what_if.mjs";

const PIECES = { prefill: "prompt", blocks: "blocks", head: "heads", unembedding: "unembedding",
  span: "embedding, masks", bookkeeping: "bookkeeping" };
const LOOKUP = { max_draft: 8, record: 0.4, sizes: [4, 3, 2] };
const SHADES = ["#949494", "#0173b2", "#de8f05", "#029e73", "#ca9161", "#cc78bc"];

/** Thresholds of the ladder for settings, or those they have. */
export function stepped(record, settings) {
  const steps = record.ladder?.thresholds[settings.method]?.[settings.metric];
  const at = record.ladder?.epsilons.indexOf(settings.epsilon) ?? -1;
  return steps && at >= 0 ? { ...settings, thresholds: steps[at] } : { ...settings, epsilon: null };
}

/** Settings with some of them changed, so that they stay consistent. */
export function changed(record, settings, changes) {
  const next = { ...settings, ...changes };
  if ("kind" in changes && changes.kind === "lookup") next.lookup ??= LOOKUP;
  if ("thresholds" in changes) return { ...next, epsilon: null };
  if ("metric" in changes && next.epsilon === null) {
    // The same share of tokens passes each threshold as before.
    next.thresholds = settings.thresholds.map((threshold, head) => {
      if (threshold === null) return null;
      const passing = sorted(record, settings.metric, head).filter((score) => score >= threshold).length;
      return sorted(record, next.metric, head)[Math.min(record.n - 1, record.n - passing)];
    });
    return next;
  }
  return ["metric", "method", "epsilon"].some((name) => name in changes) ? stepped(record, next) : next;
}

export function whatIfView(store) {
  const controls = h("div", { class: "sliders" });
  const results = h("div", { class: "results" });
  const pareto = h("div", { class: "pareto" });
  const about = h("p", { class: "faint" });
  const body = h("div", { class: "columns" }, controls, results, pareto);
  const element = h("section", { class: "what-if", "aria-label": "What if" }, h("h3", {}, "What if?"), about, body);
  const syncs = []; // make the controls say what the settings are
  let [built, svg, timer, points] = ["", null, null, null];
  const record = () => store.runs[store.side];
  const settings = () => store.settings[store.side];
  const change = (changes) => store.change(changed(record(), settings(), changes));

  /** A list to choose from; `get` reads its value from the settings, like that of all controls. */
  function choice(name, text, options, get = (now) => now[name]) {
    const list = Object.entries(options).map(([value, said]) => h("option", { value }, said));
    const read = (value) => (typeof get(settings()) === "number" ? Number(value) : value);
    const made = h("select", { "data-setting": name, onchange: () => change({ [name]: read(made.value) }) }, list);
    syncs.push((now) => (made.value = get(now)));
    return h("label", {}, h("span", {}, text), made);
  }

  /** A native slider; `get` returns its number and its words, `put` what a number changes. */
  function slider(name, text, [min, max, step], get, put = (value) => ({ [name]: value })) {
    const [output, made] = [h("output"),
      h("input", { type: "range", min, max, step, "data-setting": name, "aria-label": text })];
    made.addEventListener("input", () => change(put(Number(made.value))));
    syncs.push((now) => {
      const [value, said = number(value), disabled = false] = get(now);
      if (made !== document.activeElement || Math.abs(made.value - value) > step) made.value = value;
      output.textContent = said;
      made.setAttribute("aria-valuetext", said);
      made.disabled = disabled;
    });
    return h("label", {}, h("span", {}, text), made, output);
  }

  function toggle(name, text, on, off) {
    const made = h("input", { type: "checkbox", "data-setting": name,
      onchange: () => change({ [name]: made.checked ? on : off }) });
    syncs.push((now) => (made.checked = Boolean(now[name])));
    return h("label", { class: "toggle" }, made, text);
  }

  function build() {
    const [of, now] = [record(), settings()];
    syncs.length = 0;
    const same = (names) => Object.fromEntries(names.map((name) => [name, name]));
    const made = [choice("kind", "policy", POLICIES)];
    if (now.kind === "confidence") {
      const { epsilons, methods, target, thresholds } = of.ladder ?? {};
      made.push(choice("metric", "metric", same(of.ladder ? Object.keys(thresholds[methods[0]]) : of.metrics)));
      if (of.ladder) {
        const at = ({ epsilon }) => (epsilon === null ? [Math.floor(epsilons.length / 2), "by hand"]
          : [epsilons.indexOf(epsilon), number(epsilon)]);
        made.push(choice("method", "calibration", same(methods)));
        made.push(slider("epsilon", `ε (${target})`, [0, epsilons.length - 1, 1], at,
          (value) => ({ epsilon: epsilons[value] })));
      } else made.push(h("p", { class: "faint" },
        "No slider for ε: the explorer was given no thresholds calibrated on other text."));
      made.push(...of.depths.map((depth, head) => threshold(of, now.metric, depth, head)));
      const deepest = ({ deepest: depth }) => [depth === null ? of.depths.length - 1 : of.depths.indexOf(depth),
        String(depth ?? of.depths.at(-1))];
      if (of.depths.length > 1) made.push(slider("deepest", "deepest head", [0, of.depths.length - 1, 1], deepest,
        (value) => ({ deepest: of.depths[value] })));
      made.push(slider("max_draft", "longest draft", [1, 16, 1], ({ max_draft }) => [max_draft]));
      made.push(toggle("back_off", "back off where drafts do not pay", true, false),
        toggle("lookup", "look drafts up first", LOOKUP, null));
    } else if (now.kind === "fixed") {
      made.push(choice("depth", "depth", same(of.depths)),
        slider("draft_length", "drafts a round", [1, 16, 1], (own) => [own.draft_length]));
    }
    controls.replaceChildren(...made,
      h("button", { onclick: () => store.change(of.settings) }, "Back to the run's own"));
  }

  function threshold(of, metric, depth, head) {
    const scores = sorted(of, metric, head).filter(Number.isFinite);
    const [low, high] = [scores[0] ?? 0, scores.at(-1) ?? 1];
    const get = ({ thresholds, deepest }) => {
      const [own, beyond] = [thresholds[head], depth > (deepest ?? depth)];
      return [Math.min(high, Math.max(low, own ?? high)), own === null || beyond ? "not asked" : number(own), beyond];
    };
    const put = (value) => ({ thresholds: settings().thresholds.map((own, i) => (i === head ? value : own)) });
    return slider(`thresholds.${head}`, `threshold at ${depth}`, [low, high, (high - low) / 500 || 1], get, put);
  }

  function tell() {
    const of = record();
    const [own, other] = [store.own[store.side], store.predicted[store.side]];
    const row = (name, form, key) => h("tr", {}, h("th", { scope: "row" }, name),
      [own, other].map((run) => h("td", { "data-result": key },
        form(key === "rounds" ? run.rounds.length : run[key]))));
    const unit = of.prices.unit === "seconds" ? "seconds" : "passes of the weights";
    results.replaceChildren(
      h("table", {}, h("thead", {}, h("tr", {},
        ["", "the run", "what if"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {},
        row("speed-up, predicted", number, "speedUp"), row("acceptance", percent, "acceptance"),
          row("drafts a token", number, "draftsPerToken"),
        row("tokens a round", number, "tokensPerRound"), row("drafted", number, "drafted"),
          row("accepted", number, "accepted"), row("rounds", number, "rounds"))),
      bars("tokens by depth", [own, other].map((run) => [...run.exits].filter(([, n]) => n)
        .map(([depth, n]) => [depthName(of, depth), n / of.n, depthStyle(of, depth, store.theme).color]))),
      bars(`cost in ${unit}, plain = 100%`,
        [own, other].map((run) => Object.entries(run.cost.pieces).filter(([, part]) => part > 0)
        .map(([piece, part]) => [PIECES[piece], part / run.plain.total, SHADES[Object.keys(PIECES).indexOf(piece)]]))),
    );
    results.dataset.rounds = other.rounds.length;
  }

  function bars(title, rows) {
    const most = Math.max(1, ...rows.map((parts) => parts.reduce((sum, [, share]) => sum + share, 0)));
    const names = ["the run", "what if"];
    const seen = new Map(rows.flat().map(([name, , color]) => [name, color]));
    const stack = (parts, i) => {
      const said = parts.map(([name, share]) => `${name} ${percent(share)}`).join(", ");
      return h("div", { class: "stack", role: "img", "aria-label": `${names[i]}: ${said}` },
        parts.map(([name, share, color]) => h("span", {
          title: `${name}: ${percent(share)}`, style: `width:${(100 * share) / most}%;background:${color}`,
        })));
    };
    return h("figure", {}, h("figcaption", {}, title), rows.map(stack),
      h("p", { class: "legend" },
        [...seen].map(([name, color]) => [h("span", { class: "swatch", style: `background:${color}` }), `${name} `])));
  }

  /** Acceptance and speed-up of the neighbours; computed while nothing else is to do. */
  function plot() {
    const of = record();
    const key = JSON.stringify([store.side, of.n, { ...settings(), epsilon: 0, thresholds: 0, metric: 0, kind: 0 }]);
    if (points?.key !== key) points = { key,
      found: neighbours(of, settings()).map((one) => [one, predict(of, one)]).filter(([, run]) => run.drafted) };
    const [width, height, left, foot, top] = [380, 250, 44, 40, 12];
    const { theme } = store;
    const now = store.predicted[store.side];
    const all = [...points.found.map(([, run]) => run), ...(now.drafted ? [now] : [])];
    const speeds = [...all.map(({ speedUp }) => speedUp), 1];
    const [low, high] = [Math.min(...speeds) - 0.03, Math.max(...speeds) + 0.03];
    const X = (x) => left + x * (width - left - 20);
    const Y = (y) => top + ((high - y) / (high - low)) * (height - top - foot);
    const best = front(points.found.map(([, run]) => [run.acceptance, run.speedUp]));
    const grid = [0, 0.5, 1].map((x) => tick(X(x), height - foot + 16, percent(x), theme));
    grid.push(h("line", { x1: left, x2: width - 20, y1: Y(1), y2: Y(1), stroke: theme.ink,
      "stroke-dasharray": "2 3" }));
    for (const y of [low + 0.03, high - 0.03].filter((at) => Math.abs(Y(at) - Y(1)) > 12)) grid.push(tick(left - 6,
      Y(y) + 4, y.toFixed(2), theme, "end"));
    grid.push(label(left - 6, Y(1) + 4, "1", { fill: theme.ink, "text-anchor": "end", "font-size": 11 }));
    const metrics = [...new Set(points.found.map(([one]) => one.metric))];
    const dots = points.found.map(([one, run], i) => {
      const color = SHADES[1 + (metrics.indexOf(one.metric) % 5)];
      const at = one.epsilon === null ? "" : `, ε = ${one.epsilon}`;
      const title = `${one.metric}${at}: acceptance ${percent(run.acceptance)}, speed-up ${number(run.speedUp)}`;
      return h("circle", { cx: X(run.acceptance), cy: Y(run.speedUp), r: best[i] ? 4.5 : 3,
        fill: best[i] ? color : theme.paper, stroke: color, "stroke-width": 1.5 }, h("title", {}, title));
    });
    const you = now.drafted ? [h("path",
      { d: `M${X(now.acceptance)},${Y(now.speedUp) - 9}l9,9l-9,9l-9,-9z`, fill: "none", stroke: theme.ink,
      "stroke-width": 2.5 })] : [];
    const legend = metrics.map((metric, i) => label(left + 84 * i, height + 10, `● ${metric}`,
      { fill: SHADES[1 + (i % 5)], "font-size": 11 }));
    svg = frameOf(width, height + 14, theme,
      h("rect", { x: left, y: top, width: width - left - 20, height: height - top - foot, fill: "none",
      stroke: theme.line }),
      ...grid, ...dots, ...you, ...legend,
        tick((left + width) / 2, height - foot + 30, "acceptance → (filled: none is better in both; ◇ you)", theme));
    svg.setAttribute("role", "img");
    const [share, speed] = [percent(now.acceptance), number(now.speedUp)];
    svg.setAttribute("aria-label", `Speed-up over acceptance: you are at ${share} and ${speed}`);
    pareto.replaceChildren(h("figcaption", {}, "predicted speed-up over acceptance"), svg);
  }

  return {
    element,
    update(changes) {
      const of = record();
      about.textContent = of.what_if || (of.replayed
        ? "Computed here, from the traces, by the rules of eelib.evaluation.replay."
        : `${of.policy} is not replayed: the sliders begin elsewhere.`);
      body.hidden = Boolean(of.what_if);
      if (of.what_if || !["settings", "shape", "side"].some((name) => changes.has(name))) return;
      const shape = JSON.stringify([store.side, settings().kind, settings().metric, of.n]);
      if (shape !== built || changes.has("data")) {
        const focus = element.contains(document.activeElement) ? document.activeElement.dataset.setting : null;
        build();
        if (focus) controls.querySelector(`[data-setting="${focus}"]`)?.focus();
      }
      built = shape;
      for (const sync of syncs) sync(settings());
      tell();
      clearTimeout(timer);
      timer = setTimeout(plot, points ? 30 : 0);
    },
    svg: () => svg,
  };
}

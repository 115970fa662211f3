// Details of one token: what every exit said, its scores against their thresholds, and a token's probability by depth.

import { depthName, depthStyle, frameOf, h, label, number, percent, quoted, short, shown,
  tick, tokenText } from "./drawing.mjs";
import { asked } from "./what_if.mjs";

/** The best five tokens of an exit for a new token: [id, probability], from the likeliest on. */
export function bestOf(record, token, exit) {
  const { offsets, ids, probabilities } = record.best;
  const rows = [];
  for (let i = offsets[token]; i < offsets[token + 1]; i++) rows.push([ids[i], probabilities[i * record.width + exit]]);
  return rows.sort((a, b) => b[1] - a[1]).slice(0, 5).filter(([, probability]) => probability > 0);
}

/** Probability of one token at every exit, or null where no exit has it among its best. */
export function probabilityOf(record, token, id) {
  const { offsets, ids, probabilities } = record.best;
  const place = ids.subarray(offsets[token], offsets[token + 1]).indexOf(id);
  if (place < 0) return null;
  const from = (offsets[token] + place) * record.width;
  return [...probabilities.subarray(from, from + record.width)];
}

export function tokenDetails(store, side) {
  const record = store.runs[side];
  const element = h("section", { class: "details", "aria-label": "Details of a token" });
  let [token, svg] = [null, null];

  function render() {
    const run = store.run(side);
    const own = record.pieces[record.prompt_length + token];
    const round = run.rounds.findIndex(({ begin, end }) => token >= begin && token < end);
    const locked = store.selected.includes(token);
    const head = h("h3", { dir: "ltr" }, `${quoted(own)} `, h("small", {},
      `token ${token}, settled: ${depthName(record, run.settled[token])}`,
        round < 0 ? ", from the prompt's pass" : `, round ${round + 1}`,
      locked ? " · locked (Esc frees)" : ""));
    const metrics = record.metrics;
    const rows = record.exits.map((depth, exit) => h("tr", {}, h("th", { scope: "row" }, chip(depth)),
      h("td", {}, verdict(exit)), h("td", { class: "best" }, best(exit))));
    const scored = record.exits.map((depth, exit) => h("tr", {}, h("th", { scope: "row" }, chip(depth)),
      metrics.map((metric) => h("td", {}, score(metric, exit))),
        h("td", {}, number(record.kl[token * record.width + exit]))));
    svg = followed();
    const table = (columns, body, about) => h("table", {}, h("caption", {}, about),
      h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, body));
    element.replaceChildren(head,
      table(["depth", "agrees", "best five (click one to follow it)"], rows, "What every exit says"),
      table(["depth", ...metrics.map((metric) => metric.replace("_", " ")), "KL"], scored,
        "Scores; ✓ at or above the threshold, in the policy's metric"), svg);
  }

  function chip(depth) {
    const { tint, color, dash } = depthStyle(record, depth, store.theme);
    return h("span", { class: "chip", style: `background:${tint};border-bottom:2px ${dash} ${color}` }, `${depth}`);
  }

  function verdict(exit) {
    if (exit === record.width - 1) return "";
    const said = record.drafts[0].tokens[token * record.width + exit];
    if (said < 0) return h("span", { title: "“other” leads: the head declines" }, "declines");
    return said === record.teacher[token] ? "✓ yes" : h("span", { class: "wrong" }, "✗ no");
  }

  function best(exit) {
    return bestOf(record, token, exit).map(([id, probability]) => {
      const text = tokenText(record, id);
      const pressed = id === picked();
      return h("button", {
        class: "option", "aria-pressed": pressed, onclick: () => store.set({ followed: id }),
      }, h("bdi", {}, id < 0 ? "(other)" : shown(text).replace(/^ /, "␣")), h("small", {}, ` ${percent(probability)}`));
    });
  }

  function score(metric, exit) {
    const value = record.drafts[0].scores[metric][token * record.width + exit];
    const settings = store.settings[side];
    if (exit === record.width - 1 || settings.kind !== "confidence" || metric !== settings.metric) return number(value);
    const found = asked(settings, record.depths).find(([depth]) => depth === record.exits[exit]);
    if (!found) return `${number(value)} · not asked`;
    const [sign, mark] = value >= found[1] ? ["≥", "✓"] : ["<", "✗"];
    return h("b", {}, `${number(value)} ${sign} ${number(found[1])} ${mark}`);
  }

  function picked() {
    const own = record.teacher[token];
    return store.followed !== null && probabilityOf(record, token, store.followed) ? store.followed : own;
  }

  /** Probability by depth, of the followed token and of the next likeliest. */
  function followed() {
    const [width, height, left, right, top, foot] = [420, 150, 40, 112, 14, 30];
    const { theme } = store;
    const main = picked();
    const rivals = [...new Set(record.exits.flatMap((_, exit) => bestOf(record, token, exit).slice(0, 1)
      .map(([id]) => id)))];
    const ids = [...new Set([main, ...rivals])].slice(0, 4);
    const X = (depth) => left + (depth / record.n_blocks) * (width - left - right);
    const Y = (p) => top + (1 - p) * (height - top - foot);
    const grid = [0, 0.5, 1].flatMap((p) => [h("line",
      { x1: left, x2: width - right, y1: Y(p), y2: Y(p), stroke: theme.line }),
      tick(left - 6, Y(p) + 4, percent(p), theme, "end")]);
    const ticks = record.exits.map((depth) => tick(X(depth), height - 14, depth, theme));
    const named = ids.map((id) => [id, probabilityOf(record, token, id)]).filter(([, of]) => of)
      .sort((a, b) => b[1].at(-1) - a[1].at(-1));
    const places = named.map(([, of]) => Y(of.at(-1)) + 4);
    places.forEach((y, i) => (places[i] = Math.max(y, (places[i - 1] ?? -Infinity) + 13)));
    places.reduceRight((least, y, i) => (places[i] = Math.min(y, least)) - 13, height - foot + 4);
    const lines = named.flatMap(([id, of], line) => {
      const color = id === main ? theme.accent : theme.faint;
      const points = of.map((p, exit) => `${exit ? "L" : "M"}${X(record.exits[exit])},${Y(p)}`).join("");
      const dots = of.map((p, exit) => h("circle",
        { cx: X(record.exits[exit]), cy: Y(p), r: id === main ? 3.5 : 2.5, fill: color }));
      return [h("path", { d: points, fill: "none", stroke: color, "stroke-width": id === main ? 2.5 : 1.2,
        "stroke-dasharray": id === main ? null : "4 3" }), ...dots,
        label(width - right + 8, places[line], quoted(short(tokenText(record, id), 8)),
          { fill: color, "font-weight": id === main ? 700 : 400, "font-size": 11 })];
    });
    const made = frameOf(width, height, theme, ...grid, ...ticks, ...lines,
      tick((left + width - right) / 2, height - 2, "depth (blocks)", theme));
    made.setAttribute("role", "img");
    made.setAttribute("aria-label",
      `${quoted(tokenText(record, main))} by depth: ${named.find(([id]) => id === main)?.[1].map(percent)}`);
    made.setAttribute("class", "follow");
    return made;
  }

  return {
    element,
    update(changed) {
      const now = store.focus();
      if (now === token && !["run", "shape", "settings", "followed",
        "selected"].some((name) => changed.has(name))) return;
      token = now;
      element.dataset.token = token;
      render();
    },
    svg: () => svg,
  };
}

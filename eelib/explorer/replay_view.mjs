// Replay: the rounds one event at a time: what was drafted where, which blocks ran, what verification accepted.

import { MONO, depthName, depthStyle, frameOf, h, label, mix, number, quoted, short, tokenText } from "./drawing.mjs";
import { clock, replay } from "./what_if.mjs";

const [LEFT, PLOT, FOOT, COLUMN] = [104, 210, 62, 50];

/** What an event did, in words. */
export function told(record, { kind, round, draft, drafts, accepted, done }) {
  const own = quoted(record.pieces[record.prompt_length + done - 1] ?? "");
  if (kind === "prefill") {
    const blocks = `${record.prompt_length} tokens pass all ${record.n_blocks} blocks`;
    return `The prompt's ${blocks}, and the full model says ${own}.`;
  }
  const which = `Round ${round}: `;
  if (kind === "draft") {
    const score = draft.score === null ? "" : `, score ${number(draft.score)}`;
    return `${which}the head at depth ${draft.depth} drafts ${quoted(tokenText(record, draft.token))}${score}.`;
  }
  if (kind === "look up") {
    const found = drafts.map(({ token }) => quoted(tokenText(record, token))).join(" ");
    return `${which}${drafts.length} drafts are looked up in the text: ${found}.`;
  }
  if (kind === "decline") return `${which}no head is sure enough to draft the next token.`;
  if (kind === "emit") return drafts.length ? `The head at depth ${drafts[0].depth} says ${own}, and that stands.`
    : `No head is sure; the full model says ${own}.`;
  const rest = accepted < drafts.length || done < record.n || !drafts.length ? ` The full model says ${own} itself.`
    : "";
  if (!drafts.length) return `${which}nothing was drafted.${rest}`;
  const all = `${drafts.length} draft${drafts.length > 1 ? "s" : ""}`;
  return `${which}the full model verifies ${all} in one pass and accepts ${accepted}.${rest}`;
}

export function replayView(store, side) {
  const record = store.runs[side];
  const plain = clock(replay(record, { kind: "never" }).events.filter(({ kind }) => kind !== "decline"), record.prices);
  const words = h("p", { class: "told", "aria-live": "polite" });
  const picture = h("div", { class: "picture" });
  const times = h("dl", { class: "clock" });
  const scrub = h("input", { type: "range", min: 0, step: 1, value: 0, "aria-label": "Event",
    oninput: () => show(Number(scrub.value)) });
  const play = h("button", { onclick: toggle }, "Play");
  const step = (name, text, to) => h("button",
    { "aria-label": name, title: name, onclick: () => (halt(), show(to())) }, text);
  const element = h("section", { class: "replay" },
    h("div", { class: "controls" },
      step("First event", "First", () => 0), step("One event back", "Back", () => at - 1), play,
        step("Next event", "Next", () => at + 1),
      step("Next round", "Round ▸", nextRound), step("Last event", "Last", () => run.events.length - 1), scrub),
    words, picture, h("p", { class: "legend" },
      "blocks x positions; colour: drafting, by depth · light: asked in vain, looked up · dark: verification"), times);
  let [run, at, costs, timer, wide] = [null, 0, [], null, 0];

  function toggle() {
    if (timer) return halt();
    if (at === run.events.length - 1) show(0);
    timer = setInterval(() => (at < run.events.length - 1 ? show(at + 1) : halt()), 450);
    play.textContent = "Pause";
    return undefined;
  }

  function halt() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function nextRound() {
    const next = run.events.findIndex(({ begin }, i) => i > at && begin !== undefined);
    return next < 0 ? run.events.length - 1 : next;
  }

  function show(event) {
    at = Math.max(0, Math.min(event, run.events.length - 1));
    scrub.value = at;
    scrub.setAttribute("aria-valuetext", `${at + 1} of ${run.events.length}`);
    element.dataset.event = at;
    draw();
    if (!store.selected.length) store.set({ hovered: Math.max(0, run.events[at].place ?? run.events[at].done - 1) });
  }

  function draw() {
    const event = run.events[at];
    words.textContent = told(record, event);
    wide = Math.max(360, Math.min(picture.clientWidth || 760, 1100));
    picture.replaceChildren(drawn(wide));
    const [now, then] = [costs[at], plain[event.done - 1]];
    const unit = record.prices.unit === "seconds" ? " s" : " passes of the weights";
    const most = Math.max(costs.at(-1), plain.at(-1));
    const bar = (name, value, color) => [
      h("dt", {}, name), h("dd", {}, h("span",
        { class: "bar", style: `width:${(60 * value) / most}%;background:${color}` }), ` ${number(value)}${unit}`),
    ];
    times.replaceChildren(...bar("so far", now, store.theme.accent),
      ...bar(`plain, same ${event.done} tokens`, then, store.theme.faint),
      h("dt", {}, "speed-up so far"), h("dd", { class: "speed" }, number(then / now)));
    element.dataset.tokens = event.done;
    element.dataset.positions = passed(at).join();
  }

  /** Positions that have passed each block, prompt included. */
  function passed(last) {
    const cells = run.events.slice(0, last + 1).flatMap((event) => event.cells);
    const through = (block) => cells.filter((cell) => cell.first <= block && block < cell.last);
    return Array.from({ length: record.n_blocks }, (_, block) =>
      through(block).reduce((sum, { start, end }) => sum + end - start, record.prompt_length));
  }

  function drawn(width) {
    const event = run.events[at];
    const columns = Math.floor((width - LEFT - 8) / COLUMN);
    const newest = Math.max(event.done + (event.drafts?.length ?? 0), (event.place ?? 0) + 1, 1);
    const start = Math.max(0, Math.min(newest - columns + 3, record.n - columns));
    const [X, Y] = [(place) => LEFT + (place - start) * COLUMN, (depth) => PLOT + 8 - (depth * PLOT) / record.n_blocks];
    const shapes = [h("rect", { x: LEFT, y: 8, width: columns * COLUMN, height: PLOT,
      fill: mix(store.theme.line, store.theme.paper, 0.35) })];
    for (const cell of visible(start, columns)) {
      const [x, y] = [X(cell.start), Y(cell.last)];
      shapes.push(h("rect", { x: x + 0.5, y, width: (cell.end - cell.start) * COLUMN - 1, height: Y(cell.first) - y,
        fill: cell.fill, opacity: cell.undone ? 0.35 : 1 }));
      for (let place = cell.start + 1; place < cell.end; place++) shapes.push(h("line",
        { x1: X(place), x2: X(place), y1: y, y2: Y(cell.first), stroke: store.theme.paper }));
    }
    for (const depth of [...run.cuts, record.n_blocks]) {
      const { color } = depthStyle(record, depth, store.theme);
      const end = LEFT + columns * COLUMN;
      shapes.push(h("line", { x1: LEFT, x2: end, y1: Y(depth), y2: Y(depth), stroke: color, "stroke-width": 1.5,
        "stroke-dasharray": "5 3" }));
      shapes.push(label(LEFT - 8, Y(depth) + 4, depthName(record, depth),
        { fill: store.theme.ink, "text-anchor": "end" }));
    }
    shapes.push(label(LEFT - 8, PLOT + 28, "text", { fill: store.theme.faint, "text-anchor": "end" }));
    return frameOf(width, PLOT + FOOT, store.theme, ...shapes, ...words_(start, columns, X));
  }

  /** Parts of the blocks that ran for the positions in sight; what was rolled back is pale, then gone. */
  function visible(start, columns) {
    const event = run.events[at];
    return run.events.slice(0, at + 1).flatMap((past) => {
      const over = past.round < event.round || event.begin !== undefined;
      const kept = over ? (run.rounds[Math.max(0, past.round - 1)]?.end ?? 1) - 1 : Infinity;
      const current = past.round === event.round;
      return past.cells.flatMap((cell) => {
        const shown = (from, to, undone) => {
          const [a, b] = [Math.max(from, start), Math.min(to, start + columns)];
          return a < b ? [{ ...cell, start: a, end: b, undone, fill: filled(past) }] : [];
        };
        return [...shown(cell.start, Math.min(cell.end, kept), false),
          ...(current ? shown(Math.max(cell.start, kept), cell.end, true) : [])];
      });
    });
  }

  function filled(event) {
    if (event.draft) return mix(depthStyle(record, event.draft.depth, store.theme).color, store.theme.paper, 0.75);
    return mix(store.theme.faint, store.theme.paper, event.kind === "verify" ? 0.8 : 0.3);
  }

  /** The text below the columns: final tokens, and the drafts of this round. */
  function words_(start, columns, X) {
    const event = run.events[at];
    const ended = event.begin !== undefined;
    const begin = ended ? event.begin : event.done;
    const drafts = ended || event.kind === "look up" ? event.drafts : draftsSoFar(event);
    const made = [];
    const write = (place, text, row, attributes) => {
      if (place < start || place >= start + columns) return;
      made.push(label(X(place) + 3, PLOT + 28 + 17 * row, short(text, 6),
        { "font-family": MONO, "font-size": 11.5, fill: store.theme.ink, ...attributes }));
    };
    const box = (place, depth, row) => {
      const { tint, color } = depthStyle(record, depth, store.theme);
      if (place >= start && place < start + columns && depth !== record.n_blocks) {
        made.push(h("rect", { x: X(place) + 1, y: PLOT + 15 + 17 * row, width: COLUMN - 2, height: 17, fill: tint,
          stroke: color }));
      }
    };
    for (let place = start; place < Math.min(event.done, start + columns); place++) {
      const depth = run.settled[place];
      box(place, depth, 0);
      write(place, record.pieces[record.prompt_length + place], 0, {});
    }
    drafts.forEach((draft, i) => {
      const wrong = ended && i >= event.accepted;
      if (ended && !wrong) return;
      const row = ended ? 1 : 0;
      if (!wrong) box(begin + i, draft.depth, row);
      write(begin + i, tokenText(record, draft.token), row,
        wrong ? { fill: store.theme.wrong, "text-decoration": "line-through" } : { "font-style": "italic" });
    });
    return made;
  }

  function draftsSoFar(event) {
    const found = [];
    for (let i = at; i >= 0 && run.events[i].round === event.round && run.events[i].begin === undefined; i--) {
      if (run.events[i].draft) found.unshift(run.events[i].draft);
      if (run.events[i].kind === "look up") found.unshift(...run.events[i].drafts);
    }
    return found;
  }

  return {
    element,
    update(changed) {
      if (changed.has("run") || changed.has("shape") || !run) {
        const moved = run !== store.run(side);
        run = store.run(side);
        costs = clock(run.events, record.prices);
        scrub.max = run.events.length - 1;
        if (moved) halt();
        show(moved ? 0 : at);
      }
    },
    svg: () => drawn(wide),
    halt,
  };
}

// Heatmap: every exit's token, coloured by a score; only the columns in sight are in the document.

import { choosing, depthName, frameOf, h, heat, inkOn, label, number, short, tokenText } from "./drawing.mjs";

const [WIDE, HIGH, HEAD] = [66, 40, 30];

/** A score of each cell [token, exit], what it is called, and its range; `sure` is 1 where a cell is surest. */
export function cells(record, metric) {
  const { n, width } = record;
  const last = (place) => place % width === width - 1;
  const agrees = (place) => Number(record.drafts[0].tokens[place] === record.teacher[Math.floor(place / width)]);
  const of = {
    kl: (place) => record.kl[place],
    agreement: (place) => (last(place) ? 1 : agrees(place)),
  }[metric] ?? ((place) => record.drafts[0].scores[metric][place]);
  const values = Float64Array.from({ length: n * width }, (_, place) => of(place));
  const sorted = [...values].filter(Number.isFinite).sort((a, b) => a - b);
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))] ?? 0;
  const [low, high] = metric === "agreement" ? [0, 1] : [at(0.02), at(0.98)];
  const scale = (value) => (high > low ? (value - low) / (high - low) : 1);
  const sure = (place) => {
    const value = Number.isFinite(values[place]) ? scale(values[place]) : 0;
    return Math.min(1, Math.max(0, metric === "kl" ? 1 - value : value));
  };
  return { values, sure, agrees, low, high };
}

export function heatmapView(store, side) {
  const record = store.runs[side];
  const exits = record.exits.map((_, i) => i).reverse(); // the full model on top
  const high = exits.length * HIGH + HEAD;
  const names = h("div", { class: "depths", "aria-hidden": "true" },
    exits.map((i) => h("span", {}, depthName(record, record.exits[i]))));
  const inner = h("div", { class: "inner", style: `width:${record.n * WIDE}px;height:${high}px` });
  const mark = choosing(store, side, inner, reveal);
  const scroller = h("div", { class: "scroller", onscroll: () => (draw(), store.scrolled(scroller)) }, inner);
  const scale = h("p", { class: "legend" });
  const element = h("section", { class: "heatmap" }, scale, h("div", { class: "plot" }, names, scroller));
  let [shape, known, from, to] = [null, null, -1, -1];

  function draw() {
    const first = Math.max(0, Math.floor(scroller.scrollLeft / WIDE) - 4);
    const after = Math.min(record.n, first + Math.ceil(scroller.clientWidth / WIDE) + 9);
    if (first === from && after === to) return;
    [from, to] = [first, after];
    const svg = picture(from, to);
    svg.setAttribute("style", `left:${from * WIDE}px`);
    svg.setAttribute("role", "listbox");
    svg.setAttribute("aria-orientation", "horizontal");
    svg.setAttribute("aria-label", "Every exit's token, a column for each new token");
    inner.replaceChildren(svg);
    mark();
  }

  function picture(first, after) {
    const columns = Array.from({ length: after - first }, (_, i) => column(first + i, i * WIDE));
    return frameOf((after - first) * WIDE, high, store.theme, ...columns);
  }

  function column(token, x) {
    const settled = store.run(side).settled[token];
    const [read, words] = [[], []]; // words beside the boxes: what can be read of an option has to be its name
    const boxes = exits.map((exit, row) => {
      const place = token * record.width + exit;
      const fill = heat(shape.sure(place));
      const [y, said] = [row * HIGH, tokenText(record, record.drafts[0].tokens[place])];
      read.push(`depth ${record.exits[exit]} ${said} ${number(shape.values[place])}`);
      const here = record.exits[exit] === settled;
      const differs = exit < record.width - 1 && !shape.agrees(place);
      const box = h("rect", {
        x: x + 1.5, y: y + 1.5, width: WIDE - 3, height: HIGH - 3, fill, "data-exit": exit,
        stroke: here ? inkOn(fill) : "none", "stroke-width": here ? 2.5 : 0,
      });
      const ink = { fill: inkOn(fill) };
      words.push(label(x + 5, y + 17, short(said, 8), { ...ink, "font-style": differs ? "italic" : "normal" }),
        label(x + 5, y + 32, number(shape.values[place]), { ...ink, "font-size": 10 }));
      if (differs) words.push(label(x + WIDE - 5, y + 11, "≠", { ...ink, "font-size": 10, "text-anchor": "end" }));
      return box;
    });
    const own = record.pieces[record.prompt_length + token];
    words.push(label(x + 5, high - 10, short(own, 8), { fill: store.theme.ink, "font-weight": 600 }));
    const option = h("g", {
      role: "option", "data-token": token, tabindex: -1, class: "column", "aria-selected": "false",
      "aria-label": `${short(own, 20)}: ${read.join(", ")}`,
    }, boxes, h("rect", { x, y: high - HEAD, width: WIDE, height: HEAD, fill: "transparent" }));
    return [option, h("g", { "aria-hidden": "true", "pointer-events": "none" }, words)];
  }

  function reveal(token) {
    const x = token * WIDE;
    const [left, wide] = [scroller.scrollLeft, scroller.clientWidth];
    if (x < left || x > left + wide - WIDE) scroller.scrollLeft = x - wide / 2;
    draw();
  }

  return {
    element, scroller, reveal,
    update(changed) {
      if (known !== store.metric || changed.has("run") || changed.has("shape")) {
        if (known !== store.metric) shape = cells(record, store.metric);
        known = store.metric;
        from = -1;
        const ramp = Array.from({ length: 9 }, (_, i) => heat(i / 8)).join(",");
        const [less, more] = store.metric === "kl" ? [shape.high, shape.low] : [shape.low, shape.high];
        scale.replaceChildren(number(less),
          h("span", { class: "ramp", style: `background:linear-gradient(to right,${ramp})` }), number(more),
          " · framed: settled there · ≠ and italic: not the full model's token");
        draw();
      } else mark();
    },
    svg: () => picture(from, to),
  };
}

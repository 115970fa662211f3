// Tokens: the text, coloured by the depth at which each token was settled; only the rows in sight are in the document.

import { MONO, choosing, depthName, depthStyle, frameOf, h, label, layRows, percent, shown,
  tokenText } from "./drawing.mjs";

const [ROW, PAD, MARGIN] = [30, 2, 12];

export function tokensView(store, side) {
  const record = store.runs[side];
  const pen = h("canvas").getContext("2d");
  const widths = new Map();
  const list = h("div", {
    class: "rows", role: "listbox", "aria-multiselectable": "true",
      "aria-label": `New tokens${record.name && ` of ${record.name}`}`,
  });
  const mark = choosing(store, side, list, reveal, ["ArrowUp", "ArrowDown"]);
  const scroller = h("div", { class: "scroller", onscroll: () => (draw(), store.scrolled(scroller)) }, list);
  const legend = h("p", { class: "legend" });
  const element = h("section", { class: "tokens" }, legend, scroller);
  let [rows, rowOf, first, last, width, placed] = [[], [], -1, -1, 0, false];

  function size(text) {
    if (!widths.has(text)) {
      pen.font = `14px ${MONO}`;
      widths.set(text, pen.measureText(text).width);
    }
    return widths.get(text);
  }

  function lay() {
    if (!scroller.clientWidth) return (store.unseen = true); // scrolled out of JupyterLab's window: no widths
    const run = store.run(side);
    const rejected = new Map();
    for (const { begin, drafts, accepted } of run.rounds) {
      if (accepted < drafts.length) rejected.set(Math.min(begin + accepted, record.n - 1), drafts.slice(accepted));
    }
    const units = record.pieces.map((text, position) => {
      const token = position - record.prompt_length;
      return { text, token, rejected: rejected.get(token) ?? [] };
    });
    const measure = ({ text, rejected: wrong }) =>
      size(shown(text)) + 2 * PAD + wrong.reduce((sum,
        { token }) => sum + size(shown(tokenText(record, token))) + 3 * PAD, 0);
    width = Math.max(160, scroller.clientWidth - 2 * MARGIN - 8);
    rows = layRows(units, width, measure);
    rowOf = [];
    rows.forEach(({ units: of }, row) => of.forEach(({ token }) => token >= 0 && (rowOf[token] = row)));
    list.style.height = `${rows.length * ROW + MARGIN}px`;
    tellDepths(run);
    if (!placed) scroller.scrollTop = (rowOf[0] - 1) * ROW; // a long prompt is above
    [first, placed] = [-1, true];
    return draw();
  }

  /** Latin words and special tokens keep their direction in a row from right to left. */
  function ownWay(text) {
    return /[A-Za-z]/.test(text) ? "ltr" : null;
  }

  function tellDepths(run) {
    const all = run.exits;
    legend.replaceChildren("settled after … blocks: ", ...[...all].flatMap(([depth, n]) => {
      if (!n && depth === 0) return [];
      const { tint, color, dash } = depthStyle(record, depth, store.theme);
      const style = `background:${tint};border-bottom:2px ${dash} ${color}`;
      return [h("span", { class: "chip", style }, depthName(record, depth)), ` ${percent(n / record.n)} `];
    }), ...(run.drafted > run.accepted ? [h("del", {}, "rejected draft")] : []));
  }

  function draw() {
    const from = Math.max(0, Math.floor(scroller.scrollTop / ROW) - 3);
    const to = Math.min(rows.length, from + Math.ceil(scroller.clientHeight / ROW) + 7);
    if (from === first && to === last) return;
    [first, last] = [from, to];
    list.replaceChildren(...rows.slice(from, to).map((row, i) => rowElement(row, from + i)));
    mark();
  }

  function rowElement({ units, rtl }, row) {
    const style = `top:${row * ROW + MARGIN / 2}px`;
    return h("div", { class: "row", role: "presentation", dir: rtl ? "rtl" : "ltr", style }, units.map(unitElement));
  }

  function unitElement({ text, token, rejected }) {
    if (token < 0) return h("span", { class: "prompt", "aria-hidden": "true", dir: ownWay(text) }, shown(text));
    const depth = store.run(side).settled[token];
    const { tint, color, dash } = depthStyle(record, depth, store.theme);
    const struck = rejected.map((draft) => {
      const said = `rejected draft at depth ${draft.depth}`;
      return h("del", { title: said }, shown(tokenText(record, draft.token)));
    });
    const words = h("span", { class: "said", style: `background:${tint};border-bottom:2px ${dash} ${color}` },
      shown(text));
    const wrong = struck.length ? `, the first ${struck.length} drafted and rejected` : "";
    const all = struck.map((draft) => draft.textContent).join("") + shown(text);
    const name = `${all}, settled: ${depthName(record, depth)}${wrong}`;
    return h("span", {
      class: "token", role: "option", "data-token": token, dir: ownWay(text), tabindex: -1, "aria-selected": "false",
      "aria-posinset": token + 1, "aria-setsize": record.n,
      "aria-label": name,
    }, ...struck, words);
  }

  function reveal(token) {
    const top = rowOf[token] * ROW;
    const [low, high] = [scroller.scrollTop, scroller.scrollTop + scroller.clientHeight - 2 * ROW];
    if (top < low || top > high) scroller.scrollTop = top - scroller.clientHeight / 2;
    draw();
  }

  return {
    element, scroller, reveal,
    update(changed) {
      if (changed.has("shape") || changed.has("run")) lay();
      else mark();
    },
    svg() {
      const shapes = rows.flatMap(({ units }, row) => {
        let x = MARGIN;
        return units.flatMap(({ text, token, rejected }) => {
          const y = row * ROW + ROW;
          const common = { "font-family": MONO, "font-size": 14 };
          const parts = rejected.flatMap((draft) => {
            const said = shown(tokenText(record, draft.token));
            x += size(said) + 3 * PAD;
            return label(x - size(said) - 2 * PAD, y, said,
              { ...common, fill: store.theme.wrong, "text-decoration": "line-through" });
          });
          const wide = size(shown(text));
          if (token >= 0) {
            const { tint, color } = depthStyle(record, store.run(side).settled[token], store.theme);
            parts.push(h("rect", { x, y: y - 16, width: wide + 2 * PAD, height: 22, fill: tint }));
            if (tint !== store.theme.paper) parts.push(h("rect",
              { x, y: y + 4, width: wide + 2 * PAD, height: 2, fill: color }));
          }
          parts.push(label(x + PAD, y, shown(text),
            { ...common, fill: token < 0 ? store.theme.faint : store.theme.ink }));
          x += wide + 2 * PAD;
          return parts;
        });
      });
      return frameOf(width + 2 * MARGIN, (rows.length + 1) * ROW, store.theme, ...shapes);
    },
  };
}

// Elements, colours, text marks, and export: what all views share.

const NAMESPACE = "http://www.w3.org/2000/svg";
const SHAPES = new Set(["svg", "g", "rect", "text", "line", "path", "circle", "title", "tspan", "defs", "pattern"]);
export const FONT = "system-ui, sans-serif";
export const MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace";
export const THEMES = {
  light: { ink: "#1b1f24", faint: "#57606a", line: "#d0d7de", paper: "#ffffff", accent: "#0067a8", wrong: "#b3261e",
    tint: 0.42 },
  dark: { ink: "#e6edf3", faint: "#a3adb8", line: "#3d444d", paper: "#16191d", accent: "#66b8f0", wrong: "#ff8a80",
    tint: 0.36 },
};
// For colour-blind readers; the full model has none, and looked-up drafts the last.
const DEPTHS = ["#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#56b4e9", "#ece133", "#949494"];
const DASHES = ["solid", "dashed", "dotted", "double"];
const HEAT = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"]; // cividis

/** An element; attributes that are null or false are left out, those that begin with "on" are listeners. */
export function h(tag, attributes = {}, ...children) {
  const made = SHAPES.has(tag) ? document.createElementNS(NAMESPACE, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return made;
}

export function rgb(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}

/** A mix of two colours, with this share of the first. */
export function mix(first, second, share) {
  const [a, b] = [rgb(first), rgb(second)];
  return `#${a.map((part, i) => Math.round(share * part + (1 - share) * b[i]).toString(16).padStart(2, "0")).join("")}`;
}

/** Black or white, whichever reads better on a colour. */
export function inkOn(color) {
  const [r, g, b] = rgb(color).map((part) => (part / 255 <= 0.04 ? part / 3294.6
    : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000000" : "#ffffff";
}

/** From 0 (unsure) to 1 (sure). */
export function heat(value) {
  const at = Math.min(1, Math.max(0, value)) * (HEAT.length - 1);
  const low = Math.min(Math.floor(at), HEAT.length - 2);
  return mix(HEAT[low + 1], HEAT[low], at - low);
}

/** How a depth is drawn: strong colour, tint behind text, and dash below it. */
export function depthStyle(record, depth, theme) {
  const paper = theme.paper;
  if (depth === record.n_blocks) return { color: theme.faint, tint: paper, dash: "none" };
  const i = depth === 0 ? DEPTHS.length - 1 : record.depths.indexOf(depth) % (DEPTHS.length - 1);
  return { color: DEPTHS[i], tint: mix(DEPTHS[i], paper, theme.tint), dash: DASHES[i % DASHES.length] };
}

export function depthName(record, depth) {
  if (depth === 0) return "looked up";
  return depth === record.n_blocks ? `${depth}, full model` : `${depth}`;
}

/** Text of a token as it is shown: what cannot be seen, as a mark. */
export function shown(piece) {
  if (piece === "") return "⋯"; // a part of a character that a later token completes
  return piece.replace(/\r/g, "␍").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u007f]/g, "␀");
}

export function short(piece, most) {
  const letters = [...shown(piece)];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : letters.join("");
}

/** A token in a sentence, its space shown; isolated, so that its direction stays its own. */
export function quoted(piece) {
  return `“\u2068${shown(piece).replace(/ /g, "␣")}\u2069”`;
}

export function tokenText(record, token) {
  return token < 0 ? "other" : (record.vocabulary[token] ?? `#${token}`);
}

/** Whether a text begins in a script that is written from right to left. */
export function rightToLeft(text) {
  const letter = text.match(/\p{L}/u);
  return letter !== null && /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/.test(letter[0]);
}

/** Rows of units {text} no wider than `width`; a row ends behind a newline. Each has the direction of its paragraph. */
export function layRows(units, width, measure) {
  const rows = [];
  let [row, used, direction] = [[], 0, null];
  const close = () => {
    if (row.length) rows.push({ units: row, rtl: direction === true });
    [row, used] = [[], 0];
  };
  for (const unit of units) {
    const size = measure(unit);
    if (row.length && used + size > width) close();
    if (direction === null && /\p{L}/u.test(unit.text)) direction = rightToLeft(unit.text);
    row.push(unit);
    used += size;
    if (unit.text.includes("\n")) {
      close();
      direction = null;
    }
  }
  close();
  return rows;
}

export function percent(share) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}%` : "–";
}

export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value) || Math.abs(value) > 1e300) return value > 0 ? "∞" : "−∞";
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

/** Arrow keys in a list of which only the active item is in the tab order. */
export function moved(event, at, n, [back, forth] = ["ArrowLeft", "ArrowRight"]) {
  const to = { [back]: at - 1, [forth]: at + 1, Home: 0, End: n - 1, PageUp: at - 20, PageDown: at + 20 }[event.key];
  if (to === undefined) return null;
  event.preventDefault();
  return Math.min(n - 1, Math.max(0, to));
}

/** Tokens in `root` can be hovered, locked and walked along; returns what marks those that are. */
export function choosing(store, side, root, reveal, alsoBy = []) {
  const at = (event) => {
    const token = event.target.closest?.("[data-token]")?.dataset.token;
    return token === undefined ? null : Number(token);
  };
  const choose = (token, event) => {
    store.choose(token, event.ctrlKey || event.metaKey || event.shiftKey, side);
    const { exit } = event.target.dataset;
    if (exit !== undefined) store.follow(side, token, Number(exit));
  };
  root.addEventListener("click", (event) => at(event) !== null && choose(at(event), event));
  root.addEventListener("pointerover", (event) => {
    if (at(event) !== null && at(event) !== store.hovered) store.set({ hovered: at(event) });
  });
  root.addEventListener("keydown", (event) => {
    const [token, { n }] = [at(event) ?? store.active, store.runs[side]];
    if (event.key === "Escape") return store.set({ selected: [] });
    if (event.key === "Enter" || event.key === " ") return event.preventDefault(), choose(token, event);
    const to = moved(event, token, n) ?? (alsoBy.length ? moved(event, token, n, alsoBy) : null);
    if (to === null) return undefined;
    store.set({ active: to, hovered: to });
    reveal(to);
    return root.querySelector(`[data-token="${to}"]`)?.focus();
  });
  return function mark() {
    const all = [...root.querySelectorAll("[data-token]")];
    const there = all.find((made) => Number(made.dataset.token) === store.active) ?? all[0];
    for (const made of all) {
      const token = Number(made.dataset.token);
      const chosen = store.selected.includes(token);
      made.classList.toggle("hovered", token === store.hovered);
      made.classList.toggle("chosen", chosen);
      made.setAttribute("aria-selected", chosen);
      made.setAttribute("tabindex", made === there ? 0 : -1);
    }
  };
}

export function frameOf(width, height, theme, ...children) {
  const paper = h("rect", { width, height, fill: theme.paper });
  return h("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FONT, "font-size": 12 }, paper,
    ...children);
}

export function label(x, y, text, attributes = {}) {
  return h("text", { x, y, "xml:space": "preserve", ...attributes }, text);
}

/** A small label at an axis. */
export function tick(x, y, text, theme, anchor = "middle") {
  return label(x, y, text, { fill: theme.faint, "text-anchor": anchor, "font-size": 11 });
}

/** Save a picture as a file, as SVG or, at twice its size, as PNG. */
export async function save(svg, name, kind) {
  const source = new XMLSerializer().serializeToString(svg);
  const address = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source)}`;
  if (kind === "svg") return download(new Blob([source], { type: "image/svg+xml" }), `${name}.svg`);
  const picture = new Image();
  picture.src = address;
  await picture.decode();
  const canvas = h("canvas", { width: 2 * svg.getAttribute("width"), height: 2 * svg.getAttribute("height") });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return download(await new Promise((done) => canvas.toBlob(done, "image/png")), `${name}.png`);
}

function download(blob, name) {
  const address = URL.createObjectURL(blob);
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

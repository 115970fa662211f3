// Exit explorer: the state that all views share, their places on the page, and the ways in (widget or page) and out.

import { THEMES, h, save } from "./drawing.mjs";
import { heatmapView } from "./heatmap_view.mjs";
import { replayView } from "./replay_view.mjs";
import { tokenDetails } from "./token_details.mjs";
import { tokensView } from "./tokens_view.mjs";
import { load, predict, recorded, summary } from "./what_if.mjs";
import { whatIfView } from "./what_if_view.mjs";

const VIEWS = { tokens: ["Tokens", tokensView], heatmap: ["Heatmap", heatmapView], replay: ["Replay", replayView] };
const SYNCED = ["settings", "selected", "side"];

/** What all views show; `set` tells them what changed. */
class Store {
  constructor(model) {
    Object.assign(this, { model, views: [], hovered: null, active: 0, followed: null, source: "run",
      theme: THEMES.light });
    this.read();
  }

  /** Runs and settings as Python has them. */
  read() {
    this.runs = this.model.get("data").runs.map(load);
    for (const name of SYNCED) this[name] = this.model.get(name);
    this.metric = this.runs[0].settings.metric;
    this.own = this.runs.map((run) => summary(run, recorded(run)));
    this.predicted = this.runs.map((run, side) => (run.what_if ? null : predict(run, this.settings[side])));
    Object.assign(this, { hovered: null, active: 0, followed: null, source: "run" });
  }

  run(side) {
    return (this.source === "run" ? null : this.predicted[side]) ?? this.own[side];
  }

  /** The token whose details are shown: the one chosen last, else the one hovered or in focus. */
  focus() {
    return Math.min(this.selected.at(-1) ?? this.hovered ?? this.active, Math.min(...this.runs.map(({ n }) => n)) - 1);
  }

  set(changes, ...also) {
    Object.assign(this, changes);
    const synced = SYNCED.filter((name) => name in changes);
    for (const name of synced) this.model.set(name, changes[name]);
    if (synced.length) this.model.save_changes();
    this.tell(new Set([...Object.keys(changes), ...also]));
  }

  tell(changed) {
    for (const view of this.views) view.update(changed);
  }

  /** Lock a token, or free it; with `more` beside those that are locked. */
  choose(token, more, side) {
    const others = more ? this.selected.filter((other) => other !== token) : [];
    const selected = this.selected.includes(token) ? others : [...others, token];
    this.set({ selected, active: token, hovered: token, followed: null, side });
  }

  /** Follow what an exit says of a token. */
  follow(side, token, exit) {
    const run = this.runs[side];
    this.set({ followed: run.drafts[0].tokens[token * run.width + exit] });
  }

  /** Other settings of the side that is chosen. */
  change(settings) {
    this.predicted = this.predicted.map((own, side) => (side === this.side ? predict(this.runs[side], settings) : own));
    this.set({ settings: this.settings.map((own, side) => (side === this.side ? settings : own)) });
    if (this.source !== "run") this.tell(new Set(["run"]));
  }

  /** Views side by side scroll together. */
  scrolled(from) {
    for (const { scroller } of this.views) {
      if (!scroller || scroller === from || scroller.parentNode.hidden) continue;
      for (const way of ["scrollTop", "scrollLeft"]) {
        if (Math.abs(scroller[way] - from[way]) > 1) scroller[way] = from[way];
      }
    }
  }
}

function pageOf(store, root) {
  const sides = store.runs.map((_, side) => side);
  const made = Object.fromEntries(Object.entries(VIEWS)
    .map(([name, [, make]]) => [name, sides.map((side) => make(store, side))]));
  const details = sides.map((side) => tokenDetails(store, side));
  const panel = whatIfView(store);
  let view = "tokens";
  const several = sides.length > 1;
  const tabs = Object.entries(VIEWS).map(([name, [title]]) =>
    h("button", { role: "tab", id: `${root.id}-${name}`, "aria-controls": `${root.id}-view`, onclick: () => open(name),
      onkeydown: arrows }, title));
  const group = (text, name, options) => h("label", {}, `${text} `,
    h("select", { "data-control": name,
    onchange: (event) => store.set({ [name]: event.target.value }, name === "source" ? "run" : name) },
    options.map(([value, said]) => h("option", { value, selected: store[name] === value }, said))));
  const source = group("show", "source", [["run", "the run"], ["what if", "what if"]]);
  const metric = group("colour", "metric",
    [...store.runs[0].metrics, "kl", "agreement"].map((name) => [name, name === "kl" ? "KL to the full model" : name]));
  const exported = ["svg", "png"].map((kind) => h("button", { onclick: () => keep(kind) }, kind.toUpperCase()));
  const what = h("select", { "aria-label": "Picture to save" },
    [["view", "this view"], ["details", "a token by depth"],
    ["pareto", "Pareto plot"]].map(([value, said]) => h("option", { value }, said)));
  const tools = h("div", { class: "tools" }, h("div", { role: "tablist", "aria-label": "Views" }, tabs), source,
    metric, h("span", { class: "export" }, "save ", what, exported));
  const columns = sides.map((side) => h("div", { class: "side" },
    several ? h("h3", {}, nameOf(store.runs[side], side)) : null,
      Object.values(made).map((views) => views[side].element)));
  const body = h("div", { class: several ? "pair" : "single", role: "tabpanel", id: `${root.id}-view`,
    "aria-label": "View" }, columns);
  const which = h("select", { "data-control": "side", onchange: () => store.set({ side: Number(which.value) }) },
    sides.map((side) => h("option", { value: side }, nameOf(store.runs[side], side))));
  const chosen = several ? h("label", {}, "sliders of ", which) : null;

  function open(name) {
    if (view === "replay") made.replay.forEach(({ halt }) => halt());
    view = name;
    for (const [key, views] of Object.entries(made)) views.forEach(({ element }) => (element.hidden = key !== name));
    tabs.forEach((tab) => {
      tab.setAttribute("aria-selected", tab.id.endsWith(`-${name}`));
      tab.tabIndex = tab.id.endsWith(`-${name}`) ? 0 : -1;
    });
    metric.hidden = name !== "heatmap";
    root.dataset.view = name;
    made[name].forEach((of) => of.update(new Set(["shape"])));
    if (name !== "replay") made[name].forEach((of) => of.reveal(store.focus()));
  }

  function arrows(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const names = Object.keys(VIEWS);
    open(names[(names.indexOf(view) + step + names.length) % names.length]);
    tabs[names.indexOf(view)].focus();
  }

  function keep(kind) {
    const from = { view: made[view][store.side], details: details[store.side], pareto: panel }[what.value];
    const svg = from.svg();
    if (svg) save(svg, `explorer-${what.value === "view" ? view : what.value}`, kind);
  }

  const inView = sides.flatMap((side) => Object.entries(made).map(([name, views]) => ({
    scroller: views[side].scroller,
    update: (changed) => name === view && views[side].update(changed),
  })));
  store.views = [...inView, ...details, panel, { update: () => (which.value = store.side) }];
  const about = store.runs.map((run, side) => h("p", { class: "about" }, several ? `${nameOf(run, side)}: ` : "",
    `${run.n} new tokens of ${run.model}, ${run.n_blocks} blocks, heads at ${run.depths.join(", ")} · `,
      h("code", {}, run.policy)));
  root.replaceChildren(...about, tools,
    h("div", { class: "main" }, body, h("div", { class: "aside" }, details.map(({ element }) => element))),
    ...(chosen ? [chosen] : []), panel.element);
  store.tell(new Set(["shape", "settings", "side", "data"]));
  open(view);
}

function nameOf(run, side) {
  return run.name || ["A", "B"][side];
}

/** The prompt box of a live kernel. */
function runBox(model) {
  const prompt = h("textarea", { rows: 2, "aria-label": "Prompt" });
  prompt.value = model.get("prompt");
  const length = h("input", { type: "number", min: 1, max: 4096, value: model.get("max_new_tokens"),
    "aria-label": "Most new tokens" });
  const said = h("p", { role: "status" });
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Tokens decoded", hidden: true });
  let number = 0;
  const ask = (request) => {
    model.set("request", { ...request, number: ++number });
    model.save_changes();
  };
  const start = h("button", { class: "run",
    onclick: () => ask({ do: "run", prompt: prompt.value, max_new_tokens: Number(length.value) }) }, "Run");
  const stop = h("button", { onclick: () => ask({ do: "stop" }), disabled: true }, "Stop");
  const tell = () => {
    const { state, tokens, message } = model.get("status");
    const running = state === "running";
    [start.disabled, stop.disabled, bar.hidden] = [running, !running, !running];
    bar.value = running ? tokens / Number(length.value) : 0;
    said.textContent = running ? `${tokens} tokens …`
      : (message ?? (state === "done" ? `${tokens} tokens, by the policy that the sliders said.` : ""));
    said.className = state ?? "";
  };
  model.on("change:status", tell);
  return { element: h("div", { class: "box" }, prompt, h("div", {}, h("label", {}, "tokens ", length), start, stop),
    bar, said), end: () => model.off("change:status", tell) };
}

/** Light or dark, as JupyterLab says, else as the system does. */
function followTheme(root, store) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const tell = () => {
    const lab = document.body.dataset.jpThemeLight;
    const name = (lab === undefined ? system.matches : lab === "false") ? "dark" : "light";
    if (root.dataset.theme === name) return;
    root.dataset.theme = name;
    store.theme = THEMES[name];
    for (const [part, color] of Object.entries(store.theme)) root.style.setProperty(`--${part}`, color);
    store.tell(new Set(["shape", "settings"]));
  };
  const watch = new MutationObserver(tell);
  watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  system.addEventListener("change", tell);
  tell();
  return () => (watch.disconnect(), system.removeEventListener("change", tell));
}

let explorers = 0;

function show(model, el) {
  const root = h("div", { class: "eelib-explorer",
    id: `eelib-explorer-${(explorers += 1)}-${Math.random().toString(36).slice(2, 8)}` });
  const content = h("div", { id: `${root.id}-content` });
  const box = model.get("live") ? runBox(model) : null;
  root.append(...(box ? [box.element] : []), content);
  el.replaceChildren(root);
  const store = new Store(model);
  const ends = [followTheme(root, store)];
  const draw = () => {
    pageOf(store, content);
    root.dataset.ready = "true";
  };
  const listen = (name, heard) => {
    model.on(`change:${name}`, heard);
    ends.push(() => model.off(`change:${name}`, heard));
  };
  listen("data", () => {
    delete root.dataset.ready;
    store.read();
    draw();
  });
  listen("selected", () => {
    if (JSON.stringify(store.selected) === JSON.stringify(model.get("selected"))) return;
    store.selected = model.get("selected");
    store.tell(new Set(["selected"]));
  });
  let before = 0;
  const again = () => {
    const width = root.clientWidth;
    if (!width || !root.dataset.ready || (width === before && !store.unseen)) return;
    [before, store.unseen] = [width, false];
    store.tell(new Set(["shape"]));
  };
  const observers = [new ResizeObserver(again), new IntersectionObserver(again)]; // JupyterLab skips what is far off
  requestAnimationFrame(() => {
    draw(); // once it is in the document, so that there are widths
    before = root.clientWidth;
    for (const observer of observers) observer.observe(root);
  });
  const unobserve = () => observers.forEach((observer) => observer.disconnect());
  return () => [...ends, unobserve, () => box?.end()].forEach((end) => end());
}

/** The view without a kernel: nobody hears what it says. */
export function mount(el, state) {
  const model = { ...state, live: false };
  show({ get: (name) => model[name], set: (name, value) => (model[name] = value), save_changes() {}, on() {},
    off() {} }, el);
}

export default { render: ({ model, el }) => show(model, el) };

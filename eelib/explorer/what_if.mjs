// What if: a policy replayed on one text, by the rules of eelib.evaluation.replay, and the cost of its work, by those
// of eelib.evaluation.latency. Pure functions.

export const POLICIES = { never: "plain decoding", fixed: "fixed exit", confidence: "DSSD", lookup: "lookup" };

function numbers(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

/** A recording as it came from Python, with its arrays read. Arrays [token, exit] have the full model as last exit. */
export function load(data) {
  const drafts = data.drafts.map(({ tokens, scores }) => ({
    tokens: numbers(tokens, Int32Array), // -1 where the head declines
    scores: Object.fromEntries(Object.entries(scores).map(([metric, of]) => [metric, numbers(of, Float32Array)])),
  }));
  const best = {
    offsets: numbers(data.best.offsets, Int32Array),
    ids: numbers(data.best.ids, Int32Array),
    probabilities: numbers(data.best.probabilities, Float32Array), // [id, exit]
  };
  const [tokens, teacher] = [data.tokens, data.teacher].map((text) => numbers(text, Int32Array));
  const exits = [...data.depths, data.n_blocks];
  const kl = numbers(data.kl, Float32Array);
  return { ...data, drafts, best, tokens, teacher, kl, exits, width: exits.length, n: teacher.length };
}

/** Thresholds by depth of the heads that settings ask, ascending; 0 for a fixed exit, which asks no score. */
export function asked(settings, depths) {
  if (settings.kind === "fixed") return [[settings.depth, null]];
  if (settings.kind !== "confidence") return [];
  const deepest = settings.deepest ?? Infinity;
  return depths
    .map((depth, i) => [depth, settings.thresholds[i]])
    .filter(([depth, threshold]) => threshold !== null && depth <= deepest);
}

/** For each new token where it would be drafted (index into the exits asked, or -1), and whether rightly. */
export function decisions(record, settings) {
  const exits = asked(settings, record.depths).map(([depth, least]) => [record.depths.indexOf(depth), least]);
  return record.drafts.map(({ tokens, scores }) => {
    const at = new Int32Array(record.n).fill(-1);
    const right = new Uint8Array(record.n);
    for (let i = 0; i < record.n; i++) {
      const first = exits.findIndex(([head, least]) => {
        const place = i * record.width + head;
        return tokens[place] >= 0 && (least === null || scores[settings.metric][place] >= least);
      });
      if (first < 0) continue;
      at[i] = first;
      right[i] = Number(tokens[i * record.width + exits[first][0]] === record.teacher[i]);
    }
    return { at, right };
  });
}

/** N-gram lookup, as eelib.decoding.ngrams. */
class NGrams {
  constructor(sizes) {
    this.sizes = [...sizes].sort((a, b) => b - a);
    this.records = new Map(sizes.map((size) => [size, 0.5]));
    this.text = [];
    this.after = new Map();
  }

  extend(tokens, judged = true) {
    for (const token of tokens) {
      const [size, place] = this.lastSeen();
      if (judged && size) {
        const record = this.records.get(size);
        this.records.set(size, record + 0.15 * (Number(this.text[place] === token) - record));
      }
      for (const n of this.sizes) {
        if (this.text.length >= n) this.after.set(this.text.slice(-n).join(), this.text.length);
      }
      this.text.push(token);
    }
  }

  continuation(length) {
    const [size, place] = this.lastSeen();
    const period = this.text.length - place;
    return [size, Array.from({ length: size ? length : 0 }, (_, i) => this.text[place + (i % period)])];
  }

  lastSeen() {
    for (const n of this.sizes) {
      const place = this.text.length >= n ? this.after.get(this.text.slice(-n).join()) : undefined;
      if (place !== undefined) return [n, place];
    }
    return [0, 0];
  }
}

class Lookup {
  constructor({ max_draft, record, sizes }, prompt) {
    Object.assign(this, { most: max_draft, least: record, limit: Math.min(2, max_draft), drafting: false });
    this.ngrams = new NGrams(sizes);
    this.ngrams.extend(prompt, false);
  }

  lookUp(prefix) {
    this.ngrams.extend(prefix.subarray(this.ngrams.text.length));
    const [size, tokens] = this.ngrams.continuation(this.limit);
    this.drafting = size > 0 && this.ngrams.records.get(size) >= this.least;
    return this.drafting ? tokens : [];
  }

  observe(drafted, accepted) {
    if (!this.drafting) return;
    this.limit = Math.min(accepted === drafted ? 2 * this.limit : Math.max(accepted, 2), this.most);
  }
}

/** State of a policy over the rounds of one text, as `Policy.start`, `draft_limit`, `look_up` and `observe`. */
class Rounds {
  constructor(settings, prompt) {
    this.settings = settings;
    const looksUp = settings.lookup && ["confidence", "lookup"].includes(settings.kind);
    this.lookup = looksUp ? new Lookup(settings.lookup, prompt) : null;
    this.backsOff = settings.kind === "confidence" && settings.back_off;
    this.next = { never: 1, fixed: settings.draft_length, lookup: 0 }[settings.kind] ?? settings.max_draft;
    if (this.backsOff) this.next = 1;
    this.misses = this.pause = 0;
    this.budget = 30; // hundredths of a pass
  }

  get limit() {
    return this.pause || this.budget < 0 ? 0 : this.next;
  }

  lookUp(prefix) {
    return this.lookup ? this.lookup.lookUp(prefix) : [];
  }

  observe({ drafted, accepted, passes, heads }) {
    if (this.lookup?.drafting) return this.lookup.observe(drafted, accepted);
    if (!this.backsOff) return;
    const spent = Math.floor(100 * (passes + this.settings.price * heads) + 0.5);
    this.budget = Math.min(this.budget + 100 * accepted + 2 - spent, 200);
    if (this.pause) this.pause -= 1;
    else if (accepted) {
      this.misses = 0;
      this.next = accepted === drafted ? Math.min(2 * this.next, this.settings.max_draft) : accepted;
    } else if (drafted) {
      this.misses += 1;
      this.next = 1;
      this.pause = 2 ** (this.misses - 1) - 1;
    }
  }
}

/** Stand-in for the frontier: new positions that have passed each segment, and the calls that took them there. */
class Line {
  constructor(bounds) {
    Object.assign(this, { bounds, fed: 0, passed: bounds.slice(1).fill(0), spans: new Set(), log: [], cells: [] });
  }

  count(...key) {
    this.log.push(key);
  }

  feed(n = 1) {
    this.spans = new Set([`${this.fed},${n}`]);
    this.fed += n;
    this.count("span", n);
  }

  advance(segment) {
    const [start, end] = [this.passed[segment], segment ? this.passed[segment - 1] : this.fed];
    if (start === end) return;
    const span = `${start},${end - start}`;
    if (!this.spans.has(span)) {
      this.spans.add(span);
      this.count("span", end - start);
    }
    const [first, last] = this.bounds.slice(segment, segment + 2);
    this.count("blocks", first, last, end - start);
    this.cells.push({ first, last, start, end });
    this.passed[segment] = end;
  }

  /** Take the newest position to the exit where it is drafted, or past all that are asked. */
  ask(at) {
    for (let segment = 0; segment < this.bounds.length - 2; segment++) {
      this.advance(segment);
      this.count("head", this.bounds[segment + 1]);
      if (segment === at) return;
    }
  }

  complete() {
    const before = this.passed.at(-1);
    for (let segment = 0; segment < this.passed.length; segment++) this.advance(segment);
    this.count("unembedding", this.passed.at(-1) - before);
  }

  rollBack(length) {
    this.fed = Math.min(this.fed, length);
    this.passed = this.passed.map((passed) => Math.min(passed, length));
  }

  /** What happened since the last call: the calls, and the blocks x positions that ran. */
  take() {
    const { log, cells } = this;
    this.log = [];
    this.cells = [];
    return { calls: log, cells };
  }
}

/** Rounds of the text by settings, with the engine's order of calls. */
export function replay(record, settings) {
  const decided = decisions(record, settings);
  const cuts = asked(settings, record.depths).map(([depth]) => depth);
  const begin = record.prompt_length;
  const state = new Rounds(settings, record.tokens.subarray(0, begin));
  const draft = (k, done, drafts) => {
    const which = Math.min(k, decided.length - 1);
    const token = Math.min(done + k, record.n - 1); // behind a wrong draft: as if the text went on so
    const draftsOn = settings.kind === "fixed" && drafts.some(({ right }) => !right);
    const at = draftsOn ? 0 : decided[which].at[token];
    if (at < 0) return null;
    const head = record.depths.indexOf(cuts[at]);
    const said = record.drafts[which].tokens[token * record.width + head];
    const scores = settings.kind === "confidence" ? record.drafts[which].scores[settings.metric] : [];
    const score = scores[token * record.width + head] ?? null;
    return { token: said, depth: cuts[at], at, score, right: Boolean(decided[which].right[token]) };
  };
  return play(record, cuts, (done) => {
    const limit = state.limit;
    const found = state.lookUp(record.tokens.subarray(0, begin + done)).slice(0, record.n - done - 1);
    const right = (token, i) => token === record.tokens[begin + done + i];
    return {
      lookedUp: found.map((token, i) => ({ token, depth: 0, score: null, right: right(token, i) })),
      draft: (k, drafts) => (k < limit ? draft(k, done, drafts) : null),
      declines: (k) => k < limit,
      fed: (k) => done + k < record.n, // the last token of a text is not fed
      observe: (outcome) => state.observe(outcome),
    };
  });
}

/** Rounds of the run that was recorded. */
export function recorded(record) {
  const cuts = record.exit_depths;
  let number = 0;
  return play(record, cuts, () => {
    const round = record.rounds[number++];
    const read = ([token, depth, score, right]) => ({ token, depth, score, right, at: cuts.indexOf(depth) });
    const drafts = round.drafts.map(read);
    return {
      lookedUp: drafts[0]?.depth === 0 ? drafts : [],
      draft: (k) => drafts[k] ?? null,
      declines: () => round.declined,
      fed: (k) => !(round.unfed && k === drafts.length),
      observe: () => {},
    };
  }, record.verified);
}

/** Events and totals of rounds that `open(done)` describes; of early exit, where every token is final at once. */
function play(record, cuts, open, verified = true) {
  const line = new Line([0, ...cuts, record.n_blocks]);
  const [events, rounds, settled] = [[], [], [record.n_blocks]];
  const note = (kind, more) => {
    events.push({ kind, round: rounds.length, done: settled.length, ...more, ...line.take() });
  };
  line.count("prefill", record.prompt_length);
  note("prefill", { tokens: 1 });
  while (settled.length < record.n) {
    const [begin, plan] = [settled.length, open(settled.length)];
    const drafts = [...plan.lookedUp];
    let heads = 0;
    const round = { begin, drafts };
    rounds.push(round);
    if (drafts.length) {
      line.feed(1 + drafts.length);
      note("look up", { drafts });
    }
    while (!plan.lookedUp.length) {
      line.feed();
      const draft = plan.draft(drafts.length, drafts);
      if (!draft) {
        if (cuts.length && plan.declines(drafts.length)) {
          line.ask(-1);
          heads += cuts.length;
          note("decline", {});
        }
        break;
      }
      line.ask(draft.at);
      heads += draft.at + 1;
      drafts.push(draft);
      if (verified) note("draft", { draft, place: begin + drafts.length - 1 });
      if (!verified || !plan.fed(drafts.length)) break;
    }
    const wrong = drafts.findIndex(({ right }) => !right);
    round.accepted = verified ? (wrong < 0 ? drafts.length : wrong) : drafts.length;
    for (const { depth } of drafts.slice(0, round.accepted)) settled.push(depth);
    if (verified || !drafts.length) {
      line.complete();
      if (settled.length < record.n) settled.push(record.n_blocks);
    }
    const passes = drafts.reduce((total, { depth }) => total + depth, 0) / record.n_blocks;
    plan.observe({ drafted: drafts.length, accepted: round.accepted, passes, heads });
    round.end = settled.length;
    const tokens = round.end - begin + drafts.length; // emitted or drafted
    note(verified ? "verify" : "emit", { drafts, begin, accepted: round.accepted, tokens });
    line.rollBack(settled.length - 1);
  }
  return { cuts, events, rounds, settled, work: totals(record, events, rounds) };
}

function totals(record, events, rounds) {
  const sum = (of) => rounds.reduce((total, round) => total + of(round), 0);
  const [drafted, accepted] = [sum((round) => round.drafts.length), sum((round) => round.accepted)];
  const work = { emitted: record.n, rounds: rounds.length, drafted, accepted, calls: new Map() };
  for (const { calls } of events) {
    for (const key of calls) {
      const [of, times] = work.calls.get(key.join()) ?? [key, 0];
      work.calls.set(key.join(), [of, times + 1]);
    }
  }
  return work;
}

/** Cost of one call, by its key: seconds of `Timings`, or weights read in passes of the model. */
export function pricer(prices) {
  if (prices.unit === "passes") {
    const of = {
      blocks: (first, last) => (last - first) * prices.block,
      head: (depth) => prices.heads[depth],
      unembedding: () => prices.unembedding,
      prefill: () => 1,
      span: () => 0,
    };
    return ([piece, ...key]) => of[piece](...key);
  }
  const timed = new Map(prices.pieces.map(([key, seconds]) => [key.join(), seconds]));
  const of = (piece, at) => timed.get(`${piece},${at}`) // Python refuses prices that lack a head
    ?? between(prices.pieces.filter(([key]) => key[0] === piece).map(([key, seconds]) => [key[1], seconds]), at);
  return ([piece, first, last, n]) => (piece === "blocks" ? of("call", n) + (last - first) * of("block", n)
    : of(piece, first));
}

/** Cost for n positions, interpolated, or extrapolated from the last two. */
function between(known, n) {
  known.sort(([a], [b]) => a - b);
  const [last, before] = [known.at(-1), known.at(-2)];
  if (n > last[0] && before) return last[1] + ((n - last[0]) * (last[1] - before[1])) / (last[0] - before[0]);
  if (n >= last[0]) return last[1];
  const next = known.findIndex(([at]) => at > n);
  if (next === 0) return known[0][1];
  const [[x0, y0], [x1, y1]] = known.slice(next - 1, next + 1);
  return y0 + ((n - x0) * (y1 - y0)) / (x1 - x0);
}

/** Bookkeeping of some rounds and tokens. */
function overhead(prices, rounds, tokens) {
  return (prices.per_round ?? 0) * rounds + (prices.per_token ?? 0) * tokens;
}

/** Cost of work: in all, and by piece. */
export function cost(work, prices, price = pricer(prices)) {
  const pieces = { prefill: 0, span: 0, blocks: 0, head: 0, unembedding: 0 };
  for (const [key, times] of work.calls.values()) pieces[key[0]] += price(key) * times;
  pieces.bookkeeping = overhead(prices, work.rounds, work.emitted + work.drafted);
  return { total: Object.values(pieces).reduce((a, b) => a + b), pieces };
}

/** Cost from the start to the end of each event. */
export function clock(events, prices) {
  const price = pricer(prices);
  let total = 0;
  return events.map(({ calls, begin, tokens = 0 }) => {
    total += calls.reduce((sum, key) => sum + price(key), 0) + overhead(prices, Number(begin !== undefined), tokens);
    return total;
  });
}

/** What settings bring: counts, rates, speed-up over plain decoding of the same text, and what it is made of. */
export function predict(record, settings) {
  return summary(record, replay(record, settings));
}

/** The same of rounds, such as those that were recorded. */
export function summary(record, run) {
  const price = pricer(record.prices);
  const [own, plain] = [run, replay(record, { kind: "never" })].map(({ work }) => cost(work, record.prices, price));
  const { emitted, drafted, accepted, rounds } = run.work;
  const exits = new Map([0, ...record.exits].map((depth) => [depth, 0]));
  for (const depth of run.settled) exits.set(depth, exits.get(depth) + 1);
  return {
    ...run, cost: own, plain, emitted, drafted, accepted, exits,
    acceptance: drafted ? accepted / drafted : NaN,
    draftsPerToken: drafted / emitted,
    tokensPerRound: rounds ? (emitted - 1) / rounds : NaN,
    speedUp: plain.total / own.total,
  };
}

/** Which points [x, y] no other point beats in both. */
export function front(points) {
  return points.map(([x, y]) => !points.some(([a, b]) => a >= x && b >= y && (a > x || b > y)));
}

/** Neighbours of settings for the Pareto plot: every ε of the ladder, or shares of tokens if there is none. */
export function neighbours(record, settings) {
  if (record.what_if) return [];
  const ladder = record.ladder;
  const found = record.metrics.flatMap((metric) => {
    const passing = (share) => ({ metric, epsilon: null, thresholds: shares(record, metric, share) });
    if (!ladder) return [0.1, 0.3, 0.5, 0.7, 0.9].map(passing);
    const of = ladder.thresholds[settings.method ?? ladder.methods[0]][metric] ?? [];
    return of.map((thresholds, i) => ({ metric, epsilon: ladder.epsilons[i], thresholds }));
  });
  return found.map((changes) => ({ ...settings, kind: "confidence", ...changes }));
}

/** Scores of one head by a metric, ascending. */
export function sorted(record, metric, head) {
  return Float64Array.from({ length: record.n }, (_, i) => record.drafts[0].scores[metric][i * record.width + head])
    .sort();
}

/** Thresholds that let a share of the tokens pass at each head. */
export function shares(record, metric, share) {
  const least = Math.min(record.n - 1, Math.floor(share * record.n));
  return record.depths.map((_, head) => sorted(record, metric, head).at(-1 - least));
}

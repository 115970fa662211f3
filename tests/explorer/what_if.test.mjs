import assert from "node:assert/strict";
import { test } from "node:test";

import { asked, clock, cost, front, load, neighbours, predict, pricer, recorded, replay, shares } from "../../eelib/explorer/what_if.mjs";

const packed = (Kind, values) => Buffer.from(new Kind(values).buffer).toString("base64");
const PASSES = { unit: "passes", block: 0.1, unembedding: 0.4, heads: { 2: 0.05, 4: 0.05 } };

/** A text of `right.length` tokens and two heads; `right[i]`: whether each head is right; their score is the token's. */
function run(right, scores, more = {}) {
  const teacher = right.map((_, i) => i + 10);
  const said = right.flatMap((of, i) => [...of.map((yes) => (yes ? i + 10 : 1)), i + 10]);
  return load({
    n_blocks: 6, depths: [2, 4], exit_depths: [2, 4], prompt_length: 3, verified: true, metrics: ["max_prob"], prices: PASSES, rounds: [],
    tokens: packed(Int32Array, [7, 8, 9, ...teacher]), teacher: packed(Int32Array, teacher), kl: packed(Float32Array, said),
    drafts: [{ tokens: packed(Int32Array, said), scores: { max_prob: packed(Float32Array, scores.flatMap((of) => [...of, 1])) } }],
    best: { offsets: packed(Int32Array, [0]), ids: packed(Int32Array, []), probabilities: packed(Float32Array, []) }, ...more,
  });
}

const always = (n, of) => Array.from({ length: n }, () => of);
const dssd = (changes) => ({ kind: "confidence", metric: "max_prob", thresholds: [0.5, 0.5], max_draft: 3, back_off: false, price: 0.2, lookup: null, ...changes });

test("plain decoding: one round a token, and no draft", () => {
  const { work, settled } = replay(run(always(5, [true, true]), always(5, [1, 1])), { kind: "never" });
  assert.deepEqual([work.emitted, work.rounds, work.drafted, work.accepted], [5, 4, 0, 0]);
  assert.deepEqual(settled, [6, 6, 6, 6, 6]);
});

test("a head that is sure and right: full rounds, and the model's own token after each", () => {
  const { work, rounds } = replay(run(always(9, [true, true]), always(9, [0.9, 0.9])), dssd());
  assert.deepEqual(rounds.map(({ drafts, accepted }) => [drafts.length, accepted]), [[3, 3], [3, 3]]);
  assert.equal(work.drafted, 6);
  assert.equal(work.calls.get("head,4"), undefined, "the deeper head is never reached");
});

test("a head that is sure and wrong: nothing is accepted, and backing off pauses", () => {
  const wrong = run(always(12, [false, false]), always(12, [0.9, 0.9]), { n_blocks: 600 }); // so that drafts are cheap
  assert.equal(replay(wrong, dssd()).work.accepted, 0);
  const drafted = ({ rounds }) => rounds.map(({ drafts }) => drafts.length);
  assert.deepEqual(drafted(replay(wrong, dssd({ back_off: true, price: 0 }))), [1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
});

test("the first head whose score reaches its threshold drafts; none above the deepest is asked", () => {
  const text = run(always(4, [false, true]), always(4, [0.4, 0.6]));
  assert.deepEqual(replay(text, dssd({ max_draft: 1 })).settled, [6, 4, 6, 4]);
  assert.deepEqual(replay(text, dssd({ deepest: 2 })).work.drafted, 0);
  assert.deepEqual(asked(dssd({ thresholds: [null, 0.5] }), [2, 4]), [[4, 0.5]]);
});

test("every position passes every block once, and again where it was rejected", () => {
  const text = run([...always(4, [true, true]), [false, true], ...always(5, [true, true])], always(10, [0.9, 0.9]));
  const { work, events } = replay(text, dssd());
  let positions = 0;
  for (const { cells } of events) for (const { first, last, start, end } of cells) positions += first === 0 && last ? end - start : 0;
  assert.equal(positions, work.emitted - 1 + work.drafted - work.accepted);
});

test("the clock ends at the cost of all work, and starts with the prompt", () => {
  const text = run(always(9, [true, false]), always(9, [0.9, 0.9]), { prices: { ...PASSES, per_round: 0.01, per_token: 0.001 } });
  const made = replay(text, dssd());
  const times = clock(made.events, text.prices);
  assert.ok(times.every((time, i) => i === 0 || time >= times[i - 1]));
  assert.ok(Math.abs(times.at(-1) - cost(made.work, text.prices).total) < 1e-12);
  assert.equal(times[0], 1.001);
});

test("prices between the numbers of positions that were timed, and beyond", () => {
  const timed = { block: [[1, 1], [2, 1.25], [4, 2], [8, 4]], call: [[1, 0.5]], span: [[1, 0.1]] };
  const pieces = Object.entries(timed).flatMap(([piece, of]) => of.map(([n, seconds]) => [[piece, n], seconds]));
  const price = pricer({ unit: "seconds", pieces });
  assert.equal(price(["blocks", 0, 6, 1]), 6.5);
  assert.equal(price(["blocks", 2, 4, 3]), 2 * 1.625 + 0.5);
  assert.equal(price(["blocks", 0, 6, 10]), 30.5);
  assert.equal(price(["span", 5]), 0.1);
});

test("speed-up is over plain decoding of the same text; plain decoding has 1", () => {
  const text = run(always(9, [true, true]), always(9, [0.9, 0.9]));
  assert.equal(predict(text, { kind: "never" }).speedUp, 1);
  assert.ok(predict(text, dssd()).speedUp > 1.2);
  assert.equal(predict(text, dssd()).acceptance, 1);
});

test("the recorded run is what was recorded, rejected drafts too", () => {
  const rounds = [{ drafts: [[11, 2, 0.9, true], [1, 2, 0.9, false]], declined: false, unfed: false }, { drafts: [], declined: true, unfed: false }];
  const made = recorded(run(always(4, [true, true]), always(4, [0.9, 0.9]), { rounds }));
  assert.deepEqual(made.settled, [6, 2, 6, 6]);
  assert.deepEqual(made.events.map(({ kind }) => kind), ["prefill", "draft", "draft", "verify", "decline", "verify"]);
});

test("neighbours without a ladder let shares of the tokens pass; none where the text is not the model's", () => {
  const text = run(always(10, [true, true]), Array.from({ length: 10 }, (_, i) => [i / 10, 0.5]));
  assert.equal(shares(text, "max_prob", 0.3)[0], Math.fround(0.6));
  assert.equal(neighbours(text, dssd()).length, 5);
  assert.equal(neighbours({ ...text, what_if: "sampled" }, dssd()).length, 0);
});

test("the front holds what nothing beats in both", () => {
  assert.deepEqual(front([[1, 1], [2, 2], [3, 1], [0, 3]]), [false, true, true, true]);
});

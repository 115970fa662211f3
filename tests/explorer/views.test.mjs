import assert from "node:assert/strict";
import { test } from "node:test";

import { cells } from "../../eelib/explorer/heatmap_view.mjs";
import { told } from "../../eelib/explorer/replay_view.mjs";
import { bestOf, probabilityOf } from "../../eelib/explorer/token_details.mjs";
import { changed } from "../../eelib/explorer/what_if_view.mjs";

/** Three new tokens after two of a prompt, one head at depth 2 of 4: as `load` leaves a recording. */
const RECORD = {
  n: 3, width: 2, n_blocks: 4, depths: [2], exits: [2, 4], prompt_length: 2, metrics: ["max_prob", "entropy"],
  pieces: ["a", "b", " c", "\n", " e"], vocabulary: { 3: " c", 4: "\n", 5: " e", 6: " x" }, teacher: [3, 4, 5],
  kl: Float32Array.of(0.1, 0, 2, 0, 0.5, 0),
  drafts: [{
    tokens: Int32Array.of(3, 3, 6, 4, -1, 5),
    scores: { max_prob: Float32Array.of(0.9, 1, 0.2, 1, -Infinity, 1), entropy: Float32Array.of(-1, 0, -3, 0, -Infinity, 0) },
  }],
  best: {
    offsets: Int32Array.of(0, 2, 4, 6), ids: Int32Array.of(3, 6, 4, 6, -1, 5),
    probabilities: Float32Array.of(0.9, 0.8, 0.1, 0, 0.25, 0.5, 0.75, 0.25, 1, 0, 0, 1),
  },
  ladder: {
    epsilons: [0.5, 0.9], methods: ["empirical"],
    thresholds: { empirical: { max_prob: [[0.2], [0.8]], entropy: [[-3], [null]] } },
  },
};

test("an exit's best tokens, from the likeliest on, without those it cannot say", () => {
  assert.deepEqual(bestOf(RECORD, 1, 0), [[6, 0.75], [4, 0.25]]);
  assert.deepEqual(bestOf(RECORD, 0, 1).map(([id]) => id), [3]);
  assert.deepEqual(probabilityOf(RECORD, 1, 4), [0.25, 0.5]);
  assert.equal(probabilityOf(RECORD, 1, 99), null);
});

test("cells of the heatmap: surest where the score is best, and 0 where the head declines", () => {
  assert.ok(cells(RECORD, "max_prob").sure(0) > cells(RECORD, "max_prob").sure(2));
  assert.equal(cells(RECORD, "max_prob").sure(4), 0);
  assert.ok(cells(RECORD, "kl").sure(0) > cells(RECORD, "kl").sure(2), "little divergence is sure");
  assert.deepEqual([0, 1, 2].map((token) => cells(RECORD, "agreement").values[2 * token]), [1, 0, 0]);
});

test("events in words", () => {
  const draft = { token: 6, depth: 2, score: 0.25 };
  assert.match(told(RECORD, { kind: "draft", round: 1, draft, done: 1 }), /Round 1: the head at depth 2 drafts .*␣x.*score 0.25/);
  const verify = { kind: "verify", round: 1, drafts: [draft], accepted: 0, done: 2 };
  assert.match(told(RECORD, verify), /verifies 1 draft in one pass and accepts 0. The full model says .*⏎.* itself/);
  assert.match(told(RECORD, { kind: "prefill", done: 1 }), /The prompt's 2 tokens pass all 4 blocks/);
});

test("settings stay consistent: ε moves thresholds, a threshold by hand leaves ε, another metric keeps the share", () => {
  const settings = { kind: "confidence", metric: "max_prob", method: "empirical", epsilon: 0.5, thresholds: [0.2], lookup: null };
  assert.deepEqual(changed(RECORD, settings, { epsilon: 0.9 }).thresholds, [0.8]);
  assert.deepEqual(changed(RECORD, settings, { metric: "entropy" }).thresholds, [-3]);
  const byHand = changed(RECORD, settings, { thresholds: [0.5] });
  assert.equal(byHand.epsilon, null);
  assert.deepEqual(changed(RECORD, byHand, { metric: "entropy" }).thresholds, [-1], "one of three passes, as before");
  assert.ok(changed(RECORD, settings, { kind: "lookup" }).lookup.max_draft > 0);
});

import assert from "node:assert/strict";
import { test } from "node:test";

import { THEMES, depthStyle, heat, inkOn, layRows, mix, moved, number, percent, rgb, rightToLeft, short, shown } from "../../eelib/explorer/drawing.mjs";

test("what cannot be seen is shown as a mark", () => {
  assert.equal(shown("a\n\tb\u0000"), "a⏎⇥b␀");
  assert.equal(shown(""), "⋯", "a part of a character");
  assert.equal(short("🙂🙂🙂🙂", 3), "🙂🙂…", "no character is cut in two");
});

test("rows end behind a newline or where they are full, and have their paragraph's direction", () => {
  const units = ["ab", "cd", "\n", "שלום", " x", "ef", "gh"].map((text) => ({ text }));
  const rows = layRows(units, 6, ({ text }) => text.length);
  assert.deepEqual(rows.map((row) => row.units.map(({ text }) => text).join("|")), ["ab|cd|\n", "שלום| x", "ef|gh"]);
  assert.deepEqual(rows.map(({ rtl }) => rtl), [false, true, true]);
});

test("the first letter decides the direction", () => {
  assert.ok(rightToLeft(" 12 مرحبا"));
  assert.ok(!rightToLeft("abc שלום"));
  assert.ok(!rightToLeft("123"));
});

test("text on every colour has a contrast of 4.5 or more, in both themes", () => {
  const light = (color) => {
    const parts = rgb(color).map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const record = { n_blocks: 30, depths: [1, 2, 3, 4, 5, 6, 7] };
  for (const theme of Object.values(THEMES)) {
    for (const depth of [0, ...record.depths, 30]) assert.ok(contrast(theme.ink, depthStyle(record, depth, theme).tint) >= 4.5, `depth ${depth}`);
    for (const name of ["ink", "faint", "wrong", "accent"]) assert.ok(contrast(theme[name], theme.paper) >= 4.5, name);
  }
  for (let i = 0; i <= 20; i++) assert.ok(contrast(heat(i / 20), inkOn(heat(i / 20))) >= 4.5, `heat ${i / 20}`);
});

test("colours mix", () => {
  assert.equal(mix("#000000", "#ffffff", 0.5), "#808080");
  assert.equal(heat(-1), heat(0));
});

test("numbers as people read them", () => {
  assert.deepEqual([number(null), number(NaN), number(1.23456), number(-1.7e308)], ["–", "–", "1.23", "−∞"]);
  assert.deepEqual([percent(0.5), percent(0.013), percent(NaN)], ["50%", "1.3%", "–"]);
});

test("arrow keys stay within the list", () => {
  const press = (key, at) => moved({ key, preventDefault() {} }, at, 5);
  assert.deepEqual([press("ArrowRight", 4), press("ArrowLeft", 2), press("End", 0), press("a", 2)], [4, 1, 4, null]);
});

// Replays cases that Python wrote: node replay_cases.mjs what_if.mjs cases.json
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , module, file] = process.argv;
const { cost, load, recorded, replay } = await import(pathToFileURL(module));
const { runs, cases } = JSON.parse(readFileSync(file, "utf8"));
const loaded = runs.map(load);
const counted = ({ work, rounds, settled }) => ({
  ...work,
  calls: Object.fromEntries([...work.calls.values()].map(([key, times]) => [key.join(), times])),
  each: rounds.map(({ drafts, accepted }) => [drafts.length, accepted]),
  settled,
});
const out = cases.map(({ run, settings, prices }) => {
  const made = settings ? replay(loaded[run], settings) : recorded(loaded[run]);
  return { ...counted(made), costs: prices.map((of) => cost(made.work, of).total) };
});
process.stdout.write(JSON.stringify(out));

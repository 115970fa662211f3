"""What drafts bring: `make bench-drafts`, after `make paper`. Ways of decoding in turn, as ratios; some minutes, alone.

Prompts that nothing was tuned on, of two kinds; default settings. `--write` keeps the table in docs/results/drafts.csv.
"""

import argparse
from pathlib import Path

import pandas as pd

import eelib
from eelib import evaluation
from eelib.backbone import packed
from eelib.corpus import as_prompt
from eelib.evaluation.cases import read_rows
from eelib.timing import machine

TABLE = Path(__file__).parents[2] / "docs" / "results" / "drafts.csv"


def decoders(model, heads, fused, traces: pd.DataFrame, fused_traces: pd.DataFrame, new: int) -> dict:
    """By name. DSSD with heads of kind `mlp` is set as `05_acceptance` chooses it, with `fused` ones as in
    `00_quickstart`."""
    options, lookup = {"do_sample": False, "max_new_tokens": new}, eelib.Lookup()
    deep = eelib.Confidence.from_calibration(
        eelib.calibrate(traces, "entropy", 0.7), 4, back_off=False, deepest=heads.depths[0]
    )
    shallow = eelib.calibrate(fused_traces, "max_prob", 0.6)
    alone, both = (
        eelib.Confidence.from_calibration(shallow, 3, back_off=False, lookup=more) for more in (None, lookup)
    )

    def theirs(pack: bool, **more):
        def decode(prompt):
            with packed(*([model] if pack else [])):
                return model.generate(prompt, **options, **more)

        return decode

    def ours(policy, heads=None, **more):
        return lambda prompt: eelib.generate(model, prompt, heads=heads, policy=policy, **options, **more)

    return {
        "transformers": theirs(False),
        "transformers, packed": theirs(True),
        "transformers, packed, prompt lookup": theirs(True, prompt_lookup_num_tokens=4),
        "plain": ours(eelib.Never()),
        "lookup": ours(lookup),
        "mlp heads": ours(deep, heads),
        "fused heads, always two": ours(eelib.FixedExit(fused.depths[0], 2), fused),
        "fused heads": ours(alone, fused),
        "fused heads, lookup": ours(both, fused),
        "fused heads, lookup, exact": ours(both, fused, exact=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=6, help="of each kind, at most 30")
    parser.add_argument("--new", type=int, default=96, help="tokens")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    ws = eelib.Workspace("smollm2-135m")
    model, tokenizer = eelib.load_model("smollm2-135m", dtype="bfloat16")
    heads, fused = (eelib.ExitHeads.from_pretrained(folder, model) for folder in (ws.heads, ws.fused))
    texts = eelib.Corpus.load(ws.corpus)
    few, masks = texts.calibration[:80], texts.loss_mask["calibration"][:80]
    ways = decoders(
        model, heads, fused, pd.read_parquet(ws.traces / "calibration.parquet"),
        eelib.record_traces(model, fused, few, loss_mask=masks), given.new,
    )  # fmt: skip
    tables = []
    for kind, column in (("gsm8k", "prompt"), ("hellaswag", "ctx")):
        asked = [as_prompt(row[column], tokenizer) for row in read_rows(kind)[-given.prompts :]]
        runs = evaluation.compare(ways, asked, reference="transformers")
        assert evaluation.mismatches(model, runs, asked, reference="transformers").near_tie.all()
        of_plain = [evaluation.comparison.relative_speed(runs, name, "plain")["relative_speed"] for name in ways]
        tables.append(evaluation.summarise(runs).assign(of_plain=of_plain, prompts=kind))
    table = pd.concat(tables, ignore_index=True)
    shown = ["prompts", "decoder", "speed_ratio", "speed_ratio_low", "speed_ratio_high", "of_plain", "equal"]
    table = table[[*shown, "tokens_per_round", "acceptance_rate", "drafts_per_token"]].round(3)
    print(table.to_string(index=False))
    if given.write:
        about = machine()
        table.assign(processor=about["processor"], threads=about["threads"]).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()

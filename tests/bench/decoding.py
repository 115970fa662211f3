"""Ways of decoding beside each other, as ratios: `make bench`, after `make paper`. Run it alone; 15 minutes.

The offline model on prompts that nothing was tuned on, of two kinds, with what `05_acceptance` chose; then the engine
alone on random GPT-NeoX models. `--write` keeps table and figure in docs/results; `--full` asks five times as many
prompts, of fewer ways. Where `llama-cpp-python` is installed (`pip install llama-cpp-python`), llama.cpp decodes the
same weights, in bfloat16, in the same minutes.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import eelib
from eelib import evaluation, plotting, reporting
from eelib.backbone import packed
from eelib.baselines import transformers_generate
from eelib.corpus import as_prompt
from eelib.corpus.reading import read_documents
from eelib.evaluation.cases import read_rows
from eelib.evaluation.comparison import relative_speed
from eelib.packaged import MODEL, fetch_gguf
from eelib.timing import machine

PROJECT = Path(__file__).parents[2]
RESULTS = PROJECT / "docs" / "results"
KINDS = {"smollm2-135m": ("gsm8k", "hellaswag")}
FULL = ("transformers, prompt", "transformers, packed", "fused", "lookup", "DSSD", "LayerSkip, our", "llama.cpp")
"""Beginnings of the ways that `--full` compares, without the slowest."""
CODE = ("code_completion", "code_description", "gsm8k")
"""Kinds of prompts that other models are asked."""


def last_prompts(kind: str, n: int, tokenizer) -> list:
    """The last prompts of a kind: nothing was tuned on those."""
    fields = {"gsm8k": "prompt", "hellaswag": "ctx"}
    texts = [row[fields[kind]] for row in read_rows(kind)] if kind in fields else list(read_documents(kind))
    return [as_prompt(text, tokenizer) for text in texts[-n:]]


def transformers_ways(model, compiled: bool, **length) -> dict:
    """transformers' own, and two of them on packed weights."""

    def on_packed(decode):
        def decode_packed(prompt):
            with packed(model, exact=False):
                return decode(prompt)

        return decode_packed

    greedy = transformers_generate.greedy(model, **length)
    lookup = transformers_generate.prompt_lookup(model, 4, **length)
    ways = {
        "transformers": greedy,
        "transformers, prompt lookup": lookup,
        "transformers, packed": on_packed(greedy),
        "transformers, packed, prompt lookup": on_packed(lookup),
    }
    if compiled:
        ways["transformers, static cache, compiled"] = transformers_generate.static_compiled(model, **length)
    return ways


def chosen_ways(model, ws: eelib.Workspace, **length) -> dict:
    """Plain decoding, what `05_acceptance` chose of each kind, and early exit."""
    heads, fused = (eelib.ExitHeads.from_pretrained(folder, model) for folder in (ws.heads, ws.fused))
    traces, fused_traces = (
        pd.read_parquet(ws.traces / f"{name}.parquet") for name in ("calibration", "fused_calibration")
    )
    table = pd.read_parquet(ws.results / "acceptance.parquet")
    chosen = evaluation.chosen_settings(table, traces, heads, "entropy", fused=(fused_traces, fused))
    ways = {"plain": evaluation.PLAIN.decoder(model, **length)}
    ways |= {name: setting.decoder(model, **length) for name, setting in chosen.items()}
    exact = ("DSSD", "LayerSkip, our heads", "fused", "fused + lookup")
    ways |= {f"{name}, exact": chosen[name].decoder(model, exact=True, **length) for name in exact}
    for epsilon in (0.8, 0.9):
        policy = eelib.Confidence.from_calibration(eelib.calibrate(traces, "entropy", epsilon))
        setting = evaluation.Setting("early exit", policy, heads)
        ways[f"early exit, ε = {epsilon:g}"] = setting.decoder(model, verify=False, **length)
    return ways


@contextlib.contextmanager
def llama_cpp(name: str, new: int) -> Iterator[dict]:
    """llama.cpp's greedy decoding of a packaged model in bfloat16, where its Python package is installed."""
    try:
        import llama_cpp as library
    except ImportError:
        print("llama.cpp: not installed (pip install llama-cpp-python)")
        yield {}
        return
    folder = PROJECT / "data" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    dense = folder / f"{name}-bf16.gguf"
    if not dense.is_file():
        settings = library.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = 32, True  # bfloat16, from the file's 4 bits
        partial = dense.with_suffix(".partial")
        given = str(fetch_gguf(name, folder)).encode(), str(partial).encode()
        if library.llama_model_quantize(*given, settings):
            raise RuntimeError("llama.cpp could not make its weights bfloat16.")
        partial.replace(dense)
    model = library.Llama(
        str(dense), n_ctx=1024, n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(),
        verbose=False,
    )  # fmt: skip
    end = model.token_eos()

    def decode(prompt):
        model.reset()
        tokens = prompt[0].tolist()
        for token in model.generate(tokens, temp=0.0, repeat_penalty=1.0):
            tokens.append(token)
            if token == end or len(tokens) == prompt.shape[1] + new:
                break
        return torch.tensor([tokens])

    yield {"llama.cpp, bfloat16": decode}
    model.close()


def measure(model, ways: dict, prompts: dict[str, list], lossless_but: tuple[str, ...] = ()) -> pd.DataFrame:
    """One row a kind of prompts and way. Lossless ways part from transformers at near-ties only, or this fails."""
    tables = []
    for kind, asked in prompts.items():
        runs = evaluation.compare(ways, asked, reference="transformers")
        ties = evaluation.mismatches(model, runs, asked, reference="transformers")
        ties = ties[~ties.decoder.str.startswith(lossless_but)] if lossless_but else ties
        assert ties.near_tie.all(), f"not near-ties:\n{ties[~ties.near_tie]}"
        assert not ties.decoder.str.endswith("exact").any(), "exact verification gave another text"
        of_plain = [relative_speed(runs, name, "plain") for name in ways]
        intervals = {
            name: [row[f"relative_speed{name.removeprefix('of_plain')}"] for row in of_plain]
            for name in ("of_plain", "of_plain_low", "of_plain_high")
        }
        tables.append(evaluation.summarise(runs).assign(**intervals, prompts=kind))
    return pd.concat(tables, ignore_index=True)


def bandwidth() -> float:
    """Bytes a second that all threads together read from memory, the best of some passes over a gigabyte."""
    numbers, best = torch.ones(2**28), float("inf")
    for _ in range(6):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    return numbers.nbytes / best


def random_neox(n_blocks: int) -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=2048, num_hidden_layers=n_blocks, num_attention_heads=8,
        max_position_embeddings=1024,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).to(torch.bfloat16).eval()


def engine_alone(n_blocks: int, new: int) -> pd.DataFrame:
    model, length = random_neox(n_blocks), {"max_new_tokens": new, "eos_token_id": None}
    ways = transformers_ways(model, compiled=False, **length)
    ways = {name: way for name, way in ways.items() if "lookup" not in name}
    ways["plain"] = evaluation.PLAIN.decoder(model, **length)
    fixed = evaluation.Setting("fixed", eelib.FixedExit(n_blocks // 3, 3))
    ways["one exit, 3 drafts"] = fixed.decoder(model, **length)
    ways["one exit, 3 drafts, exact"] = fixed.decoder(model, exact=True, **length)
    generator = torch.Generator().manual_seed(0)
    asked = [torch.randint(0, 8192, (1, 64), generator=generator) for _ in range(3)]
    return measure(model, ways, {f"random GPT-NeoX, {n_blocks} blocks": asked})


def draw(table: pd.DataFrame):
    """Speed over transformers' greedy decoding, a marker a kind of prompts."""
    plotting.use_style()
    order = list(dict.fromkeys(table.decoder))[::-1]
    figure, (axes,) = plotting.style.panels(1, height=0.6 + 0.19 * len(order))
    for shift, ((kind, part), marker) in enumerate(zip(table.groupby("prompts", sort=False), "os^D", strict=False)):
        part = part.reset_index(drop=True)
        rows = part.decoder.map(order.index) + 0.12 - 0.24 * shift
        errors = plotting.style.interval_errors(part, "speed_ratio")
        axes.errorbar(
            part.speed_ratio, rows, xerr=errors, fmt=marker, capsize=1.5, elinewidth=0.7, label=kind,
            color=plotting.style.PALETTE[shift],
        )  # fmt: skip
    axes.axvline(1, color="0.6", linewidth=0.6)
    axes.set(xlabel="speed, ratio to transformers' greedy decoding (95%)", yticks=range(len(order)), yticklabels=order)
    axes.legend(fontsize=6)
    return figure


def in_words(table: pd.DataFrame) -> str:
    """The quickest way for each kind of prompts."""
    best = table.loc[table.groupby("prompts", sort=False).speed_ratio.idxmax()].to_dict("records")
    quickest = [f"on {row['prompts']} {row['decoder']}, {reporting.wording.pace(row)}" for row in best]
    return f"**Beside transformers' greedy decoding, the quickest is {'; '.join(quickest)}.**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a packaged model that `make paper` or `make sizes` ran on")
    parser.add_argument("--prompts", type=int, default=6, help="of each kind, at most 30")
    parser.add_argument("--new", type=int, default=96, help="tokens")
    parser.add_argument("--compiled", action="store_true", help="also transformers' static cache, compiled")
    parser.add_argument("--only", nargs="*", help="beginnings of the names of ways, beside transformers and plain")
    parser.add_argument(
        "--full", action="store_true", help="30 prompts of each kind, 128 tokens, the main ways: an hour"
    )
    parser.add_argument("--workspace", default=str(PROJECT), help="the folder that `make paper` wrote to")
    parser.add_argument("--write", action="store_true", help="docs/results/decoding*.csv and its figure")
    given = parser.parse_args()
    if given.full:
        given.prompts, given.new, given.only = 30, 128, FULL
    ws, kinds = eelib.Workspace(given.model, given.workspace), KINDS.get(given.model, CODE)
    model, tokenizer = eelib.load_model(given.model, dtype="bfloat16")
    length = {"max_new_tokens": given.new}
    prompts = {kind: last_prompts(kind, given.prompts, tokenizer) for kind in kinds}
    with llama_cpp(given.model, given.new) as llama:
        ways = transformers_ways(model, given.compiled, **length) | chosen_ways(model, ws, **length) | llama
        depth = eelib.Backbone.of(model).n_blocks // 5
        ways["transformers, assistant_early_exit"] = transformers_generate.assistant_early_exit(
            model, depth, 4, **length
        )
        if given.only is not None:
            kept = ("transformers", "plain", *given.only)
            ways = {name: way for name, way in ways.items() if name in kept[:2] or name.startswith(kept[2:])}
        table = measure(model, ways, prompts, ("early exit", "llama.cpp"))
    if given.only is None and given.model == MODEL:
        table = pd.concat([table, engine_alone(6, given.new), engine_alone(32, given.new)], ignore_index=True)
    read = sum(p.nbytes for p in model.parameters())
    of_model = table.prompts.isin(kinds)
    table["of_bandwidth"] = np.where(of_model, table.tokens_per_second * read / bandwidth(), np.nan)
    shown = ["prompts", "decoder", "speed_ratio", "speed_ratio_low", "speed_ratio_high"]
    shown += ["of_plain", "of_plain_low", "of_plain_high", "of_bandwidth", "equal"]
    table = table[[*shown, "tokens_per_round", "acceptance_rate", "drafts_per_token"]].round(3)
    print(table.to_string(index=False))
    if given.write:
        about = machine()
        table = table.assign(n_prompts=given.prompts, processor=about["processor"], threads=about["threads"])
        name = "decoding" + "_full" * given.full + (f"_{given.model}" if given.model != MODEL else "")
        plotting.save_figure(draw(table[of_model]), RESULTS, name, table, in_words(table[of_model]))


if __name__ == "__main__":
    main()

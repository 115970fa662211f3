"""What holds on this machine's accelerator: `make check-gpu`, ten minutes. Runs on a CPU too (`ARGS=--small`).

Is the output the model's own, how quick is each way of decoding, how much memory does it hold? For the offline model
with its heads where `make paper` has made them, else the logit lens, and for a random model of Pythia-410M's shape.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

import eelib
from eelib import evaluation
from eelib.baselines import transformers_generate
from eelib.errors import EelibError
from eelib.evaluation.cases import load_prompts
from eelib.timing import machine, peak_memory

PROJECT = Path(__file__).parents[2]


def pythia_410m(small: bool) -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    width, n_blocks = (128, 6) if small else (1024, 24)
    config = GPTNeoXConfig(
        vocab_size=1000 if small else 50304, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=n_blocks,
        num_attention_heads=16, rotary_pct=0.25, max_position_embeddings=2048, use_parallel_residual=True,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


def settings(model: PreTrainedModel, folder: Path) -> dict[str, evaluation.Setting]:
    """By name; `folder` may hold heads of kind `fused` for this model."""
    depth = max(1, model.config.num_hidden_layers // 5)
    ways = {"plain": evaluation.PLAIN, "lens, 3 drafts": evaluation.Setting("lens", eelib.FixedExit(depth, 3))}
    if (folder / "config.json").is_file():
        fused = eelib.ExitHeads.from_pretrained(folder, model)
        ways["fused heads, 2 drafts"] = evaluation.Setting("fused", eelib.FixedExit(fused.depths[0], 2), fused)
        both = eelib.Confidence("max_prob", (0.5,), 3, back_off=False, lookup=eelib.Lookup())
        ways["fused heads, lookup"] = evaluation.Setting("fused", both, fused)
    ways["lookup"] = evaluation.Setting("lookup", eelib.Lookup())
    return ways


def check(name: str, model: PreTrainedModel, prompts: list, folder: Path, new: int, compiled: bool) -> pd.DataFrame:
    """One row a way: is it lossless, how quick, and with how much memory beside the weights."""
    length = {"max_new_tokens": new, "do_sample": False}
    tried = settings(model, folder)
    decoders = {"transformers": transformers_generate.greedy(model, **length)}
    decoders |= {way: setting.decoder(model, **length) for way, setting in tried.items()}
    try:
        eelib.generate(model, prompts[0], policy=eelib.FixedExit(1, 2), exact=True, max_new_tokens=4)
        decoders["lens, 3 drafts, exact"] = tried["lens, 3 drafts"].decoder(model, exact=True, **length)
    except EelibError as error:
        print(f"{name}, {model.dtype}: exact is refused: {error}")
    if compiled:
        decoders["transformers, static cache, compiled"] = transformers_generate.static_compiled(model, **length)
    working, failed = evaluation.working(decoders, prompts[0])
    runs = evaluation.compare(working, prompts, reference="transformers")
    ties = evaluation.mismatches(model, runs, prompts, reference="transformers").groupby("decoder").near_tie.all()
    table = evaluation.summarise(runs)[["decoder", "equal", "speed_ratio", "tokens_per_second", "acceptance_rate"]]
    table["near_ties_only"] = [bool(ties.get(way, True)) for way in table.decoder]
    table["peak_mb"] = [peak_memory(lambda way=way: working[way](prompts[0])) / 1e6 for way in table.decoder]
    table = pd.concat([table, failed], ignore_index=True)
    return table.assign(model=name, type=str(model.dtype).removeprefix("torch."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="two prompts, few tokens, small models")
    parser.add_argument("--compiled", action="store_true", help="also transformers' static cache, compiled")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n_prompts, new = (2, 12) if given.small else (8, 128)
    ws, tables = eelib.Workspace("smollm2-135m", PROJECT), []
    for dtype in ("bfloat16",) if given.small else ("bfloat16", "float32"):
        model, tokenizer = eelib.load_model("smollm2-135m", dtype=dtype)
        model.to(device)
        prompts = [prompt.to(device) for prompt in load_prompts(tokenizer, n_prompts)]
        tables.append(check("smollm2-135m", model, prompts, ws.fused, new, given.compiled))
        model = pythia_410m(given.small).to(device, getattr(torch, dtype))
        generator = torch.Generator().manual_seed(0)
        prompts = [torch.randint(0, 1000, (1, 64), generator=generator).to(device) for _ in range(n_prompts)]
        tables.append(check("random, Pythia-410M's shape", model, prompts, ws.root / "none", new, given.compiled))
    table = pd.concat(tables, ignore_index=True).set_index(["model", "type", "decoder"])
    print(table.round(3).to_string())
    print(machine())
    lossless = table.near_ties_only.dropna().all()
    print("lossless: " + ("yes, but for near-ties" if lossless else "NO: see near_ties_only"))
    raise SystemExit(not lossless)


if __name__ == "__main__":
    main()

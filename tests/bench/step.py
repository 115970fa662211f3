"""Where the time of one step of plain decoding goes: `make bench-step`. Microseconds, medians, on packed weights.

Blocks are timed as decoding runs them, recorded, and in Python. Pieces of a block are called again and again by
themselves, so that their weights lie in the caches; what they sum to falls short of the block in place, whose weights
come from memory. `--write` keeps the table in docs/results/step.csv.

`--types` times whole steps instead, by type of the weights, packed or not, and number of rows. `--write` puts them in
docs/results/types.csv, in place of what this kind of processor wrote there before.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import eelib
from eelib.backbone import Graphs, packed
from eelib.backbone.kv_cache import KVCache
from eelib.timing import commit, interleaved, machine

RESULTS = Path(__file__).parents[2] / "docs" / "results"
MODELS = "smollm2-135m", "qwen2.5-coder-0.5b"


def microseconds(call: Callable[[], object], repeats: int = 200) -> float:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return 1e6 * sorted(taken)[repeats // 2]


@torch.no_grad()
def pieces(model, length: int = 150) -> pd.DataFrame:
    """One row a piece: piece, microseconds, times (a step calls it)."""
    backbone, ids = eelib.Backbone.of(model), torch.arange(5, 5 + length)[None]
    n, cache = backbone.n_blocks, KVCache(model.config, length + 8)
    span = backbone.capture(ids, 0, cache)
    backbone.run(0, n, span.hidden, span)
    rows, graphs = [], Graphs.of(backbone.blocks)

    def put(piece: str, times: int, call: Callable[[], object], back: bool = False) -> None:
        def both():
            call()
            cache.truncate(0, n, length)

        rows.append({"piece": piece, "times": times, "microseconds": microseconds(both if back else call)})

    for k in (1, 2, 4, 8):
        some = backbone.capture(ids[:, :k], length, cache)
        put(f"embedding and masks, {k} rows", 1, lambda k=k: backbone.capture(ids[:, :k], length, cache))
        put(f"all blocks in Python, {k} rows", 1, lambda some=some: backbone.run(0, n, some.hidden, some), back=True)
        record(graphs, backbone, ids, length, k)
        put(f"all blocks, {k} rows", 1, lambda some=some: graphs.run(0, n, some.hidden, some, cache), back=True)
        put(f"unembedding, {k} rows", 1, lambda some=some: backbone.unembed(some.hidden))
    span = backbone.capture(ids[:, :1], length, cache)
    x, block, (cos, sin) = span.hidden, backbone.blocks[5], span.calls[5][1]["position_embeddings"]
    attention, mlp = block.self_attn, block.mlp
    inner, heads = mlp.gate_proj(x), attention.q_proj(x).view(1, 1, -1, attention.head_dim).transpose(1, 2)
    keys, values = (part[:, :, :length] for part in (cache.layers[5].keys, cache.layers[5].values))
    put("norm", 2 * n, lambda: block.input_layernorm(x))
    put("query, key, value products", n, lambda: (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)))
    put("rotary", n, lambda: apply_rotary_pos_emb(heads, keys[:, :, :1], cos, sin))
    put("cache", n, lambda: cache.update(keys[:, :, :1], values[:, :, :1], 5), back=True)
    shared = {"scale": attention.scaling, "enable_gqa": True}
    sdpa = torch.nn.functional.scaled_dot_product_attention
    put("attention kernel", n, lambda: sdpa(heads, keys, values, **shared))
    put("output product", n, lambda: attention.o_proj(x))
    put("gate and up products", n, lambda: (mlp.gate_proj(x), mlp.up_proj(x)))
    put("activation", n, lambda: mlp.act_fn(inner) * inner)
    put("down product", n, lambda: mlp.down_proj(inner))
    put("residual", 2 * n, lambda: x + x)
    return pd.DataFrame(rows)


def record(graphs: Graphs, backbone: eelib.Backbone, ids: torch.Tensor, length: int, n_rows: int) -> None:
    """Let the blocks be recorded for a number of rows, and compared around a length."""
    graphs.record_soon(n_rows)
    cache = KVCache(backbone.model.config, length + 4 * n_rows)
    span = backbone.capture(ids, 0, cache)
    backbone.run(0, backbone.n_blocks, span.hidden, span)
    for start in (length, length + n_rows):
        span = backbone.capture(ids[:, :n_rows], start, cache)
        graphs.run(0, backbone.n_blocks, span.hidden, span, cache)


@torch.no_grad()
def step(model, n_rows: int, length: int = 150) -> Callable[[], object]:
    """A call that feeds so many tokens to all blocks, recorded, and the unembedding."""
    backbone, ids = eelib.Backbone.of(model), torch.arange(5, 5 + length)[None]
    n, cache, graphs = backbone.n_blocks, KVCache(model.config, length + n_rows), Graphs.of(backbone.blocks)
    record(graphs, backbone, ids, length, n_rows)
    span = backbone.capture(ids, 0, cache)
    backbone.run(0, n, span.hidden, span)

    @torch.no_grad()
    def call():
        some = backbone.capture(ids[:, :n_rows], length, cache)
        backbone.unembed(graphs.run(0, n, some.hidden, some, cache))
        cache.truncate(0, n, length)

    return call


def types(name: str, repeats: int = 9) -> pd.DataFrame:
    """Milliseconds a step of one model, interleaved medians: one row a type, packed or not, and number of rows."""
    calls, kind = {}, [machine()["processor"], torch.backends.cpu.get_cpu_capability()]
    with contextlib.ExitStack() as entered:
        for dtype in ("bfloat16", "float32"):
            for weights in ("own", "packed"):
                model, _ = eelib.load_model(name, dtype=dtype)
                if weights == "packed":
                    entered.enter_context(packed(model, exact=False))
                calls |= {(dtype, weights, k): step(model, k) for k in (1, 2, 4, 8)}
        runs = interleaved(calls, repeats=repeats, description=name)
    table = runs.groupby("candidate", sort=False).seconds.median().mul(1e3).rename("milliseconds").reset_index()
    table[["dtype", "weights", "rows"]] = table.pop("candidate").tolist()
    about = {"model": name, "processor": ", ".join(kind), "threads": torch.get_num_threads(), "commit": commit()}
    columns = ["processor", "threads", "model", "dtype", "weights", "rows", "milliseconds", "commit"]
    return table.assign(**about)[columns]


def put_types(found: pd.DataFrame) -> None:
    """Keep what was found beside other processors' rows."""
    file = RESULTS / "types.csv"
    if file.is_file():
        before = pd.read_csv(file)
        found = pd.concat([before[~before.processor.isin(found.processor)], found])
    found.round(3).sort_values("processor", kind="stable").to_csv(file, index=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--types", nargs="*", metavar="MODEL", help=f"by default {', '.join(MODELS)}")
    given = parser.parse_args()
    if given.types is not None:
        table = pd.concat([types(name) for name in given.types or MODELS], ignore_index=True)
        shown = table.pivot(index=["model", "dtype", "weights"], columns="rows", values="milliseconds")
        print(shown.round(1).to_string())
        if given.write:
            put_types(table)
        return
    model, _ = eelib.load_model("smollm2-135m", dtype="bfloat16")
    with packed(model):
        table = pieces(model)
    table["milliseconds_a_step"] = table.microseconds * table.times / 1e3
    print(table.round(2).to_string(index=False))
    if given.write:
        about = machine()
        table = table.round(3).assign(processor=about["processor"], threads=about["threads"])
        table.to_csv(RESULTS / "step.csv", index=False)


if __name__ == "__main__":
    main()

"""Where the time of one step of plain decoding goes: `make bench-step`. Microseconds, medians, on packed weights.

Blocks are timed as decoding runs them, recorded, and in Python. Pieces of a block are called again and again by
themselves, so that their weights lie in the caches; what they sum to falls short of the block in place, whose weights
come from memory. `--write` keeps the table in docs/results/step.csv.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import eelib
from eelib.backbone import Graphs, packed
from eelib.backbone.kv_cache import KVCache
from eelib.timing import machine

TABLE = Path(__file__).parents[2] / "docs" / "results" / "step.csv"


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    model, _ = eelib.load_model("smollm2-135m", dtype="bfloat16")
    with packed(model):
        table = pieces(model)
    table["milliseconds_a_step"] = table.microseconds * table.times / 1e3
    print(table.round(2).to_string(index=False))
    if given.write:
        about = machine()
        table.round(3).assign(processor=about["processor"], threads=about["threads"]).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()

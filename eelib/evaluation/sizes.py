"""Model sizes: measured gains and popular claims; computed gains and training costs."""

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from eelib.errors import InvalidInputError
from eelib.workspace import expanded
from eelib.workspace.artefacts import read_bytes

_VOCABULARY = 50304


class Dimensions(NamedTuple):
    """What a model's cost depends on.

    Attributes:
        blocks: their number.
        hidden: width of the hidden states.
        block_weights: of one block.
        vocabulary: tokens, as many as the unembedding has rows.
    """

    blocks: int
    hidden: int
    block_weights: int
    vocabulary: int = _VOCABULARY


PYTHIA_SIZES = {
    name: Dimensions(blocks, hidden, 12 * hidden**2)
    for name, blocks, hidden in (
        ("70M", 6, 512), ("160M", 12, 768), ("410M", 24, 1024),
        ("1B", 16, 2048), ("1.4B", 24, 2048), ("2.8B", 32, 2560),
    )
}  # fmt: skip
"""The suite, by name (arXiv 2304.01373, table 1)."""
LARGE_SIZES = {
    "Pythia-12B": Dimensions(36, 5120, 12 * 5120**2, 50688),
    "Llama-3-70B": Dimensions(80, 8192, 2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672, 128256),
}
"""Models that need several accelerators (arXiv 2304.01373; 2407.21783, table 3: eight key and value heads)."""


def gain_by_size(shares: pd.DataFrame, draft_vocab_size: int = 8192) -> pd.DataFrame:
    """Speed ratio by weights read on Pythia's sizes, for given exit shares.

    Four `mlp` heads at the fifths of the depth, as wide as the model, with a linear map beside the MLP. Exit shares are
    assumed equal, not measured: only the dilution by the heads' own weights is computed.

    Args:
        shares: `exit_shares`: decoder, and share_{depth} for four heads, ascending; the rest goes to the full model.

    Returns:
        One row per decoder and size: decoder, size, speed_ratio_computed, head_share (weights that one head reads, as a
        share of the model's).
    """
    rows, columns = [], [name for name in shares if name.startswith("share_")]
    for record in shares.to_dict("records"):
        share = np.array([record[name] for name in columns])
        asked = 1 - np.concatenate([[0], share.cumsum()[:-1]])  # of the tokens reach each head
        for size, (blocks, hidden, block_weights, vocabulary) in PYTHIA_SIZES.items():
            weights, unembedding = blocks * block_weights, vocabulary * hidden
            head, full = 4 * hidden**2 + draft_vocab_size * hidden, weights + unembedding
            depths = np.round(np.arange(1, len(share) + 1) / (len(share) + 1) * blocks) / blocks
            read = (share * depths * weights).sum() + (1 - share.sum()) * full + asked.sum() * head
            rows.append({
                "decoder": record["decoder"], "size": size, "speed_ratio_computed": full / read,
                "head_share": head / full,
            })  # fmt: skip
    return pd.DataFrame(rows)


def training_cost_by_size(
    tokens: int = 8_192_000,
    positions: int = 16_384,
    *,
    sizes: Mapping[str, Dimensions] | None = None,
    shards: int = 1,
    n_heads: int = 4,
    draft_vocab_size: int = 8192,
    flops_per_second: float = 1e14,
) -> pd.DataFrame:
    """Computed size, training time and memory of `mlp` heads.

    With L blocks of W weights, hidden states of width H, V tokens, n heads and D drafted tokens, a token takes
    2LW + 2VH FLOPs in the model, 2DH in the teacher's probabilities and 24H² + 4DH in each head, forward and backward.
    A step holds the model and, for each position, n + 1 states in bfloat16, n arrays of D in float32, and 16 bytes for
    each trained parameter: the weight, its gradient, and AdamW's two moments.

    Args:
        tokens: trained on once. The default: 80% of 20,000 documents of 512 tokens.
        positions: in one step. The default: 32 documents of 512 tokens.
        sizes: models; None for Pythia's suite.
        shards: accelerators that share the text, and over which the blocks are spread (FSDP). Each holds two whole
            blocks at a time, and embeddings and heads always. Their communication is not counted.
        flops_per_second: what an accelerator is taken to reach.

    Returns:
        One row a size: size, heads_parameters (rows of the unembedding that the heads copy included), heads_share and
        linear_share (of the model's parameters: these heads, and as many full-vocabulary `linear` ones),
        gflop_per_token, minutes, gigabytes (of one accelerator).
    """
    rows, drafted = [], draft_vocab_size
    for size, (blocks, hidden, block_weights, vocabulary) in (PYTHIA_SIZES if sizes is None else sizes).items():
        weights, embeddings = blocks * block_weights, 2 * vocabulary * hidden
        held = weights if shards == 1 else weights / shards + 2 * block_weights
        trained = n_heads * mlp_head_parameters(hidden)
        own = trained + drafted * hidden
        flops = 2 * weights + 2 * (vocabulary + drafted) * hidden
        flops += n_heads * (24 * hidden**2 + 4 * drafted * hidden)
        activations = positions / shards * (2 * (n_heads + 1) * hidden + 4 * n_heads * drafted)
        rows.append({
            "size": size, "heads_parameters": own, "heads_share": own / (weights + embeddings),
            "linear_share": n_heads * (vocabulary + 1) * hidden / (weights + embeddings),
            "gflop_per_token": flops / 1e9,
            "minutes": tokens * flops / flops_per_second / 60 / shards,
            "gigabytes": (2 * (held + embeddings + drafted * hidden) + 16 * trained + activations) / 1e9,
        })  # fmt: skip
    return pd.DataFrame(rows)


def mlp_head_parameters(hidden: int) -> int:
    """Trained parameters of an `mlp` head as wide as the model.

    MLP, linear map, norm, and the class "other".
    """
    return 4 * hidden**2 + 3 * hidden + 1


_TABLES = {
    "02_auroc.csv": ("text", "depth", "metric", "auroc", "agreement"),
    "04_exits.csv": ("epsilon", "generated_blocks", "speed_ratio"),
    "05_speed.csv": ("decoder", "speed_ratio", "acceptance_rate", "parameters", "n_blocks"),
}
_CLAIM_TABLES = {
    "05_speed.csv": ("decoder", "speed_ratio", "parameters"),
    "10_claims.csv": ("threshold", "speed_ratio", "compute_saved", "task", "setting", "value", "value_less_full"),
}


def read_sizes(folders: Mapping[str, str | Path] | str | Path, among: Collection[str] | None = None) -> pd.DataFrame:
    """Results of several models, smallest first, from the CSVs of their figures.

    Args:
        folders: for each model the folder of its figures; or the folder that holds these, for every model with all
            three tables.
        among: names of models that are read of such a folder, such as those that were asked for the same text; None
            for all.

    Returns:
        One row per model, measure and place: model, parameters, n_blocks, measure, at, value, value_low, value_high
        (NaN for a single run). Measures: `agreement` and `auroc of <metric>` at a share of the depth, on the heads' own
        kind of text; `blocks saved` and `early exit, speed` at an ε; `speed` and `acceptance` of what was tuned, named
        by `at`. Speed is relative to plain decoding in the same engine.

    Raises:
        InvalidInputError: a table is missing, or lacks a column because an earlier version wrote it.
    """
    folders = _folders(folders, among, _TABLES)
    of_models = [_of_model(model, expanded(folder)) for model, folder in folders.items()]
    return pd.concat(sorted(of_models, key=lambda table: table.parameters.iloc[0]), ignore_index=True)


def _folders(
    folders: Mapping[str, str | Path] | str | Path, among: Collection[str] | None, tables: Collection[str]
) -> Mapping[str, str | Path]:
    if isinstance(folders, Mapping):
        return folders
    inside = sorted(expanded(folders).glob("*"))
    inside = [path for path in inside if among is None or path.name in among]
    named = {path.name: path for path in inside if all((path / name).is_file() for name in tables)}
    if not named:
        of = "" if among is None else f" of {', '.join(among)}"
        raise InvalidInputError(f"{folders} holds no folder{of} with {', '.join(tables)}: make these tables first.")
    return named


def _of_model(model: str, folder: Path) -> pd.DataFrame:
    separation, exits, speed = (_read(folder / name, *columns) for name, columns in _TABLES.items())
    n_blocks, rows = int(speed.n_blocks.iloc[0]), []

    def add(measure: str, at: float | str, row: dict, name: str) -> None:
        value, low, high = (float(row.get(f"{name}{end}", np.nan)) for end in ("", "_low", "_high"))
        rows.append({"measure": measure, "at": at, "value": value, "value_low": low, "value_high": high})

    own = separation[separation.text == "own"]
    for row in own.drop_duplicates("depth").to_dict("records"):
        add("agreement", row["depth"] / n_blocks, row, "agreement")
    for row in own.to_dict("records"):
        add(f"auroc of {row['metric']}", row["depth"] / n_blocks, row, "auroc")
    for row in exits[exits.epsilon < 1].to_dict("records"):
        add("blocks saved", row["epsilon"], {"saved": 1 - row["generated_blocks"]}, "saved")
        add("early exit, speed", row["epsilon"], row, "speed_ratio")
    for row in speed.to_dict("records"):
        add("speed", row["decoder"], row, "speed_ratio")
        if pd.notna(row["acceptance_rate"]):
            add("acceptance", row["decoder"], row, "acceptance_rate")
    about = {"model": model, "parameters": int(speed.parameters.iloc[0]), "n_blocks": n_blocks}
    return pd.DataFrame([about | row for row in rows])


def _read(path: Path, *columns: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(io.BytesIO(read_bytes(path)))
    except ValueError as error:
        raise InvalidInputError(f"{path} cannot be read ({error}): make this table first.") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise InvalidInputError(
            f"{path} has no column {', '.join(missing)}, so an earlier version wrote it: make it again."
        )
    return table


class _PopularClaim(NamedTuple):
    """A claim of popular accounts, and the number that judges it.

    Attributes:
        claim: in words.
        measure: `speed` over plain decoding's, `compute saved` as a share of the weights read, or `accuracy` less the
            full model's.
        least, most: of what is claimed. Of accuracies, shares of the full model's.
        table, row, column: where the number is.
    """

    claim: str
    measure: str
    least: float
    most: float
    table: str
    row: Mapping[str, object]
    column: str


_HELLASWAG = {"task": "offline_hellaswag"}
_POPULAR_CLAIMS = (
    _PopularClaim("max_prob ≥ 0.7: 3 times", "speed", 3, 3, "10_claims.csv", {"threshold": 0.7}, "speed_ratio"),
    _PopularClaim("max_prob ≥ 0.95: 1.5 times", "speed", 1.5, 1.5, "10_claims.csv", {"threshold": 0.95}, "speed_ratio"),
    _PopularClaim(
        "LayerSkip: 2 times", "speed", 2, 2, "05_speed.csv", {"decoder": "LayerSkip, our heads"}, "speed_ratio"
    ),
    _PopularClaim(
        "max_prob ≥ 0.7: 30 to 60%", "compute saved", 0.3, 0.6, "10_claims.csv", {"threshold": 0.7}, "compute_saved"
    ),
    _PopularClaim(
        "max_prob ≥ 0.7: 5 to 10% worse", "accuracy", -0.1, -0.05, "10_claims.csv", {"threshold": 0.7} | _HELLASWAG,
        "value_less_full",
    ),
    _PopularClaim(
        "max_prob ≥ 0.95: 1% worse", "accuracy", -0.01, -0.01, "10_claims.csv", {"threshold": 0.95} | _HELLASWAG,
        "value_less_full",
    ),
    _PopularClaim(
        "SLED: 2.1 points better", "accuracy", 0.021, 0.021, "10_claims.csv", {"setting": "SLED"}, "value_less_full"
    ),
)  # fmt: skip


def read_claims(folders: Mapping[str, str | Path] | str | Path, among: Collection[str] | None = None) -> pd.DataFrame:
    """Popular claims beside what several models measured, smallest model first.

    Args:
        folders, among: as in `read_sizes`; of a folder, models without a table of claims are left out.

    Returns:
        One row per model and claim: model, parameters, measure, claim, claimed_low, claimed_high, value, value_low,
        value_high (NaN for a count). `speed` is relative to plain decoding's, `accuracy` less the full model's; what
        accounts claim of accuracy is a share of the full model's, SLED's excepted.

    Raises:
        InvalidInputError: a table or a claim's row is missing.
    """
    rows = []
    for model, folder in _folders(folders, among, _CLAIM_TABLES).items():
        held = {name: _read(expanded(folder) / name, *columns) for name, columns in _CLAIM_TABLES.items()}
        parameters = int(held["05_speed.csv"].parameters.iloc[0])
        for one in _POPULAR_CLAIMS:
            table = held[one.table]
            found = table[np.logical_and.reduce([table[name] == value for name, value in one.row.items()])]
            if found.empty:
                raise InvalidInputError(f"{expanded(folder) / one.table} has no row for {one.claim!r}: make it again.")
            row = found.iloc[0]
            full = row["value"] - row["value_less_full"] if "task" in one.row else 1
            bounds = {f"value{end}": float(row.get(f"{one.column}{end}", np.nan)) for end in ("", "_low", "_high")}
            rows.append({
                "model": model, "parameters": parameters, "measure": one.measure, "claim": one.claim,
                "claimed_low": one.least * full, "claimed_high": one.most * full, **bounds,
            })  # fmt: skip
    return pd.DataFrame(rows).sort_values("parameters", kind="stable", ignore_index=True)


def larger_gain_more(table: pd.DataFrame, smaller: str, larger: str) -> pd.DataFrame:
    """Whether the larger of two models gains more, by each shared measure.

    Depths are the same place if they are within a twentieth of all blocks.

    Args:
        table: from `read_sizes`.
        smaller, larger: names of models in it.

    Returns:
        One row per measure and place: measure, at, smaller, larger (the values), difference, verdict: `more` or `less`
        for disjoint intervals, `undecided` for overlapping ones, `one run` where there are none.
    """
    few, many = (table[table.model == model] for model in (smaller, larger))
    if few.empty or many.empty:
        raise InvalidInputError(
            f"{smaller} or {larger} is not in the table: expected two of {', '.join(set(table.model))}."
        )
    rows = []
    for row in few.itertuples():
        same = many[many.measure == row.measure]
        by_depth = row.measure == "agreement" or row.measure.startswith("auroc")
        near = [abs(float(at) - float(row.at)) < 0.05 if by_depth else at == row.at for at in same["at"]]
        for other in same[near].head(1).itertuples():
            if np.isnan([row.value_low, other.value_low]).any():
                verdict = "one run"
            elif other.value_low > row.value_high or other.value_high < row.value_low:
                verdict = "more" if other.value > row.value else "less"
            else:
                verdict = "undecided"
            rows.append({
                "measure": row.measure, "at": row.at, "smaller": row.value, "larger": other.value,
                "difference": other.value - row.value, "verdict": verdict,
            })  # fmt: skip
    return pd.DataFrame(rows)

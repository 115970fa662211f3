"""Do larger models gain more? Computed from measured exit shares, for the sizes of the Pythia suite."""

import numpy as np
import pandas as pd

PYTHIA_SIZES = {
    "70M": (6, 512), "160M": (12, 768), "410M": (24, 1024), "1B": (16, 2048), "1.4B": (24, 2048), "2.8B": (32, 2560),
}  # fmt: skip
"""Blocks and hidden size by name (arXiv 2304.01373, table 1)."""
_VOCABULARY = 50304


def gain_by_size(shares: pd.DataFrame, draft_vocab_size: int = 8192) -> pd.DataFrame:
    """The speed ratio by weights read that exit shares would give on Pythia's sizes, if they were the same there.

    Four `mlp` heads at the fifths of the depth, as wide as the model, with a linear map beside the MLP. What is
    computed is only how the heads' own weights dilute the gain; exit shares are assumed, not measured.

    Args:
        shares: `exit_shares`: decoder, and share_{depth} for four heads, ascending; what is left goes to the full
            model.

    Returns:
        One row a decoder and size: decoder, size, speed_ratio_computed, head_share (weights that one head reads, as a
        share of the model's).
    """
    rows, columns = [], [name for name in shares if name.startswith("share_")]
    for record in shares.to_dict("records"):
        share = np.array([record[name] for name in columns])
        asked = 1 - np.concatenate([[0], share.cumsum()[:-1]])  # of the tokens reach each head
        for size, (blocks, hidden) in PYTHIA_SIZES.items():
            weights, unembedding = blocks * 12 * hidden**2, _VOCABULARY * hidden
            head, full = 4 * hidden**2 + draft_vocab_size * hidden, weights + unembedding
            depths = np.round(np.arange(1, len(share) + 1) / (len(share) + 1) * blocks) / blocks
            read = (share * depths * weights).sum() + (1 - share.sum()) * full + asked.sum() * head
            rows.append({
                "decoder": record["decoder"], "size": size, "speed_ratio_computed": full / read,
                "head_share": head / full,
            })  # fmt: skip
    return pd.DataFrame(rows)

"""From traces to a policy: what policies would do on text that the model wrote, and which of them is best."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from eelib.decoding.policies import Policy
from eelib.evaluation.replay import replay_policy


def expected(
    policies: Mapping[str, Policy], traces: pd.DataFrame, n_blocks: int, prompt_lengths: Sequence[int]
) -> pd.DataFrame:
    """What each policy would do on traced texts (see `eelib.evaluation.replay`), summed over them.

    Columns: policy (its name), emitted, rounds, drafted, accepted, acceptance_rate, accepted_per_round,
    drafts_per_token, tokens_per_round, work (a `Work`, which `Timings` prices in seconds and `Costs` in weights read).
    Rates are NaN where nothing was drafted.
    """
    rows = []
    for name, policy in policies.items():
        work = replay_policy(policy, traces, n_blocks, prompt_lengths)
        rows.append({
            "policy": name, "emitted": work.emitted, "rounds": work.rounds, "drafted": work.drafted,
            "accepted": work.accepted, "acceptance_rate": work.accepted / work.drafted if work.drafted else np.nan,
            "accepted_per_round": work.accepted / work.rounds, "drafts_per_token": work.drafted / work.emitted,
            "tokens_per_round": (work.emitted - len(prompt_lengths)) / work.rounds, "work": work,
        })  # fmt: skip
    return pd.DataFrame(rows)

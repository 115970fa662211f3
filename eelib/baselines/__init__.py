"""The peers, one file each, all as decoders for `eelib.comparison.compare`: a call that takes a prompt [1, position].

transformers' own ways of decoding are decoders as they are (`hf`). The others share this project's engine, so that
what differs is the method and not the code around it: as policies (`draft_verify`, `dynamic_exit`, `calm`), or as
sessions that go from token to token in their own way (`ee_llm`, `calm`, `dynamic_exit`, `sled`). LayerSkip's decoding
is `eelib.FixedExit`, SkipDecode's `eelib.Schedule`; LayerSkip's training is in `layerskip`.
"""

from collections.abc import Mapping

import pandas as pd
from torch import Tensor

from eelib.comparison import Decoder


def working(decoders: Mapping[str, Decoder], prompt: Tensor) -> tuple[dict[str, Decoder], pd.DataFrame]:
    """Tries each decoder once: those that work, and a table of the errors of the others (candidate, error), so that a
    peer that fails on a model has a row with its reason and does not end the comparison."""
    fine, failed = {}, []
    for name, decode in decoders.items():
        try:
            decode(prompt)
            fine[name] = decode
        except Exception as error:  # whatever a peer's own code raises is its result here
            failed.append({"candidate": name, "error": f"{type(error).__name__}: {error}".splitlines()[0]})
    return fine, pd.DataFrame(failed, columns=["candidate", "error"])

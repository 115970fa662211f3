"""Decoding with early exits, verified by the full model (DSSD) or not."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "engine", "options", "session", "output", "policies", "ngrams", "acceptance", "branches", "frontier", "bitwise",
        "lossless", "monitor", "batches",
    ],
    submod_attrs={
        "batches": ["Batcher", "BatchOutput", "BatchStats", "Gathering"],
        "engine": ["custom_generate", "generate"],
        "session": ["DecodingCall", "Session"],
        "output": ["DecodingOutput", "DecodingStats"],
        "policies": ["Confidence", "FixedExit", "Lookup", "Never", "Outcome", "Policy", "keep_policy", "kept_policy"],
        "frontier": ["Frontier"],
        "bitwise": ["RowExact"],
        "lossless": ["first_mismatch", "verify_lossless"],
        "monitor": ["ExitMonitor"],
    },
)  # fmt: skip

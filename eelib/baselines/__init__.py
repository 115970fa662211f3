"""Baselines: methods of the literature, one per file, each a decoder.

A decoder is a call that takes a prompt [1, position]. transformers' own ways of decoding are decoders as they are
(`transformers_generate`). The others share this engine, so that only the method differs: as policies (`draft_verify`,
`del_`, `calm`, `skip_decode`), or as sessions (`ee_llm`, `calm`, `del_`, `sled`). LayerSkip's decoding is
`eelib.FixedExit`; its training is in `layerskip`, with its effects in `layerskip_quality`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "calm",
        "del_",
        "draft_verify",
        "ee_llm",
        "layerskip",
        "layerskip_quality",
        "skip_decode",
        "sled",
        "transformers_generate",
    ],
    submod_attrs={
        "calm": ["CALM", "CALMSession"],
        "del_": ["DEL", "DELSession"],
        "draft_verify": ["DraftVerify"],
        "ee_llm": ["EELLMSession"],
        "layerskip": ["LayerSkipConfig"],
        "skip_decode": ["SkipDecode"],
        "sled": ["SLED", "SLEDSession", "sled_model"],
    },
)

"""Runs and monitors to look at and to play with.

The live views need the extra `explore`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "explorer", "ladder", "monitor_view", "page", "recording", "running", "svg", "text_traces",
    ],
    submod_attrs={
        "explorer": ["Explorer"],
        "ladder": ["ThresholdLadder"],
        "monitor_view": ["MonitorView"],
        "recording": ["Recording"],
        "text_traces": ["TextTraces", "trace_text"],
    },
)  # fmt: skip

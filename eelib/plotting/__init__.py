"""Every figure of the notebooks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["style"],
    submod_attrs={
        "style": [
            "COLUMN",
            "LINES",
            "MARKERS",
            "PAGE",
            "PALETTE",
            "band",
            "depth_style",
            "epsilon_style",
            "metric_style",
            "panels",
            "save_figure",
            "use_style",
        ],
    },
)

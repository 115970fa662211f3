"""Confidence of heads: metrics, traces, and how well they separate."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["metrics", "traces", "separation", "combined"],
    submod_attrs={
        "metrics": ["METRICS", "confidence", "known_metrics", "register_metric"],
        "traces": ["record_traces", "record_traces_of"],
        "separation": [
            "compare_separation",
            "density_table",
            "judge_reference",
            "measure_separation",
            "risk_coverage_table",
            "roc_table",
        ],
        "combined": ["Combined"],
    },
)

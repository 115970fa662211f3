"""Early-exit inference for language models, lossless when verified.

Heads, confidence, calibration and decoding. Names and rooms are imported on first use, so `import eelib` is cheap.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "backbone", "baselines", "calibration", "confidence", "corpus", "decoding", "display", "errors", "evaluation",
        "explorer", "heads", "packaged", "plotting", "reporting", "settings", "statistics", "timing", "workspace",
    ],
    submod_attrs={
        "backbone.segments": ["Backbone"],
        "backbone.loading": ["load_model"],
        "backbone.teacher": ["Teacher"],
        "corpus.corpus": ["Corpus", "load_corpus"],
        "corpus.documents": ["CorpusConfig"],
        "heads.exit_heads": ["ExitHeads", "HeadConfig"],
        "heads.training": ["TrainConfig", "train_heads", "evaluate_heads"],
        "heads.recipe": ["Recipe"],
        "confidence.metrics": ["METRICS", "known_metrics", "register_metric"],
        "confidence.traces": ["record_traces"],
        "calibration.thresholds": ["Calibration", "calibrate"],
        "decoding.engine": ["custom_generate", "generate"],
        "decoding.output": ["DecodingOutput", "DecodingStats"],
        "decoding.policies": ["Confidence", "FixedExit", "Lookup", "Never", "Policy"],
        "decoding.lossless": ["verify_lossless"],
        "decoding.monitor": ["ExitMonitor"],
        "workspace": ["Workspace"],
    },
)  # fmt: skip

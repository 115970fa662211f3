"""Early-exit inference for language models: heads, confidence, calibration, and decoding that stays lossless.

Names are imported when they are first used, so that `import eelib` costs nothing.
"""

from importlib import import_module

_HOMES = {
    "backbone": ["Backbone"],
    "calibration": ["Calibration", "calibrate"],
    "confidence": ["METRICS", "known_metrics", "register_metric"],
    "corpus": ["Corpus", "load_corpus"],
    "decoding": ["custom_generate", "generate"],
    "documents": ["CorpusConfig"],
    "heads": ["ExitHeads", "HeadConfig"],
    "baselines.layerskip": ["LayerSkipConfig"],
    "lessons": ["Lessons"],
    "lossless": ["verify_lossless"],
    "models": ["load_model"],
    "monitor": ["ExitMonitor"],
    "policies": ["Confidence", "FixedExit", "Never", "Policy", "Schedule"],
    "recipe": ["Recipe"],
    "session": ["DecodingOutput", "DecodingStats"],
    "traces": ["record_traces"],
    "training": ["TrainConfig", "distil", "evaluate"],
    "workspace": ["Workspace"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'eelib' has no attribute {name!r}")
    return getattr(import_module(f"eelib.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME_OF]

"""Early-exit inference for language models: heads, confidence, calibration, and decoding that stays lossless."""

from eelib.backbone import Backbone
from eelib.calibration import Calibration, calibrate
from eelib.confidence import METRICS, confidence
from eelib.corpus import Corpus, CorpusConfig, load_corpus
from eelib.decoding import DecodingOutput, DecodingStats, custom_generate, generate
from eelib.heads import ExitHeads, HeadConfig
from eelib.lossless import verify_lossless
from eelib.models import load_model
from eelib.policies import Confidence, FixedExit, Never, Policy
from eelib.traces import record_traces
from eelib.training import TrainConfig, distil, evaluate
from eelib.workspace import Workspace

__all__ = [
    "METRICS",
    "Backbone",
    "Calibration",
    "Confidence",
    "Corpus",
    "CorpusConfig",
    "DecodingOutput",
    "DecodingStats",
    "ExitHeads",
    "FixedExit",
    "HeadConfig",
    "Never",
    "Policy",
    "TrainConfig",
    "Workspace",
    "calibrate",
    "confidence",
    "custom_generate",
    "distil",
    "evaluate",
    "generate",
    "load_corpus",
    "load_model",
    "record_traces",
    "verify_lossless",
]

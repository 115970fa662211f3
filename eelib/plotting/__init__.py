"""Figures: functions from a table to a figure. Needs the extra `paper`."""

from importlib.util import find_spec

import lazy_loader

from eelib.errors import MissingExtraError

if not (find_spec("matplotlib") and find_spec("seaborn")):
    raise MissingExtraError("No matplotlib or no seaborn: pip install 'eelib[paper]'")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "acceptance",
        "accuracy",
        "attacks",
        "calibration",
        "confidence",
        "heads",
        "layerskip",
        "sizes",
        "speed",
        "style",
        "tokens",
        "training",
    ],
    submod_attrs={
        "accuracy": ["accuracy_against_cost", "anytime_quality", "exits_and_speed"],
        "attacks": ["alarms_over_time", "speed_under_attack"],
        "heads": ["agreement_against_cost", "agreement_against_tokens"],
        "layerskip": ["exits_by_depth", "full_model_change"],
        "calibration": ["promised_against_achieved", "shifted_agreement", "violations"],
        "confidence": ["auroc_by_depth", "risk_coverage_curves", "roc_curves", "score_densities"],
        "acceptance": ["acceptance_by_exit", "acceptance_curve", "setting_label", "tuned_speed"],
        "sizes": ["agreement_and_speed", "claims_by_size"],
        "speed": ["baselines", "popular_claims", "predicted_speed", "speed_against_agreement", "speed_in_batches"],
        "style": [
            "COLUMN",
            "LINES",
            "MARKERS",
            "PAGE",
            "PALETTE",
            "band",
            "check_table",
            "depth_style",
            "epsilon_style",
            "metric_style",
            "panels",
            "save_figure",
            "use_style",
        ],
        "tokens": ["depth_shares", "settled_shares", "tokens_html"],
        "training": ["training_curves"],
    },
)

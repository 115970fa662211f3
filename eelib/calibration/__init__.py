"""Thresholds, and what they promise: from traces and a target ε to one threshold a head."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["thresholds", "cascade", "risk_control", "p_values", "violations"],
    submod_attrs={
        "thresholds": ["Calibration", "achieved_agreement", "calibrate"],
        "cascade": ["HeadScores"],
        "risk_control": ["control_risk"],
        "violations": ["Population", "synthetic", "violation_rates"],
    },
)

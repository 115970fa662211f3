"""Calibration: from traces and a target ε to one threshold per head."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["thresholds", "cascade", "risk_control", "p_values", "violations", "promises"],
    submod_attrs={
        "thresholds": ["METHODS", "Calibration", "achieved_agreement", "calibrate"],
        "cascade": ["TARGETS", "HeadScores"],
        "risk_control": ["control_risk"],
        "promises": ["achieved_table", "halves", "shift_table"],
        "violations": ["Population", "synthetic", "violation_rates"],
    },
)

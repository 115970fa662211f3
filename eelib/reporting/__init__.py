"""Results in words: a sentence per figure, and a model's report.

Each function of a table has the name of the one in `eelib.plotting` that draws the figure (for `depth_shares` that of
its table, `settled_shares`), and takes the table that `save_figure` writes, in memory or read back from its CSV.
`write_report` makes the report: the claims judged, each with its figure, number and test. Needs the extra `paper`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "accuracy",
        "claims",
        "heads",
        "judging",
        "model_tables",
        "pdf",
        "promises",
        "report",
        "speed",
        "tables",
        "wording",
    ],
    submod_attrs={
        "accuracy": ["accuracy_against_cost", "anytime_quality"],
        "claims": ["Claim", "judge_claims"],
        "heads": [
            "agreement_against_cost",
            "agreement_against_tokens",
            "exits_by_depth",
            "full_model_change",
            "settled_shares",
            "training_curves",
        ],
        "model_tables": ["ModelTables"],
        "promises": [
            "alarms_over_time",
            "auroc_by_depth",
            "promised_against_achieved",
            "risk_coverage_curves",
            "roc_curves",
            "score_densities",
            "shifted_agreement",
            "violations",
        ],
        "report": ["Report", "read_report", "write_report"],
        "speed": [
            "acceptance_by_exit",
            "acceptance_curve",
            "agreement_and_speed",
            "baselines",
            "claims_by_size",
            "exits_and_speed",
            "popular_claims",
            "predicted_speed",
            "speed_against_agreement",
            "speed_in_batches",
            "speed_under_attack",
            "tuned_speed",
        ],
    },
)

"""Speed and accuracy: ways of decoding side by side, predicted speed, tuning, benchmarks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "comparison",
        "replay",
        "latency",
        "weight_reads",
        "tuning",
        "cases",
        "harness",
        "harness_model",
        "sizes",
        "attacks",
    ],
    submod_attrs={
        "comparison": [
            "acceptance_in_words",
            "block_shares",
            "compare",
            "mismatches",
            "acceptance_ratios",
            "summarise",
            "token_agreement",
            "token_agreements",
            "working",
        ],
        "replay": ["Work", "replay_policy"],
        "latency": ["Timings", "time_pieces"],
        "weight_reads": ["WeightReads", "exit_costs", "exit_shares", "inventory"],
        "tuning": [
            "PLAIN",
            "OwnTexts",
            "Setting",
            "check_predictions",
            "chosen_settings",
            "count_work",
            "curve_settings",
            "dssd_settings",
            "layerskip_settings",
            "predict",
            "settings_table",
            "tune",
        ],
        "cases": ["load_prompts", "question_prompts"],
        "sizes": ["PYTHIA_SIZES", "gain_by_size"],
        "attacks": ["search_prompts"],
    },
)

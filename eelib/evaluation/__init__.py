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
        "attacks",
    ],
    submod_attrs={
        "comparison": ["compare", "mismatches", "summarise", "token_agreement", "token_agreements"],
        "replay": ["Work", "replay_policy"],
        "latency": ["Timings", "time_pieces"],
        "weight_reads": ["Costs", "costs"],
        "tuning": ["expected"],
        "cases": ["load_prompts", "question_prompts"],
        "attacks": ["search_prompts"],
    },
)

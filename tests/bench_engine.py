"""What the engine itself costs, on the offline model: `make bench`. Ratios of interleaved runs, medians over prompts.

Each row is one question: how fast is the first way of decoding, next to the second, on the same prompts in one run?
"""

import argparse

import torch

import eelib
from eelib import benchmarks, comparison, measure
from eelib.backbone import Backbone

DEPTHS = (6, 12, 18, 24)


def wrong_heads(model):
    """Heads that are always sure and, being random, always wrong."""
    heads = eelib.ExitHeads.init(model, DEPTHS, "affine").to(model.dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in heads.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return heads.requires_grad_(False)


def head_seconds(model, heads, repeats: int = 50) -> float:
    """Seconds that all heads take for one token, asked as the engine asks them."""
    hidden = torch.randn(1, Backbone.of(model).hidden_size, dtype=model.dtype)

    def ask():
        for depth in heads.depths:
            logits = heads.logits(depth, hidden)
            heads.tokens(logits).item()
            eelib.confidence.confidence(logits, ("max_prob",))["max_prob"].item()

    with torch.no_grad():
        timed = measure.interleaved({"heads": ask}, repeats=repeats, warm_up=5, description="heads")
    return timed.seconds.median()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    model, tokenizer = eelib.load_model("smollm2-135m", dtype="bfloat16")
    prompts = benchmarks.question_prompts(tokenizer, arguments.prompts)
    heads = eelib.ExitHeads.init(model, DEPTHS, "mlp").to(model.dtype)
    wrong = wrong_heads(model)
    length = {"max_new_tokens": arguments.tokens}

    def decode(policy, heads=None, **kwargs):
        return lambda p: eelib.generate(model, p, policy=policy, heads=heads, **length, **kwargs)

    drafting = eelib.FixedExit(24, 3)
    sure = (-1e9,) * len(DEPTHS)
    candidates = {
        "transformers": lambda p: model.generate(p, do_sample=False, **length),
        "Never": decode(eelib.Never()),
        "heads that never exit": decode(eelib.Confidence("max_prob", (2.0,) * len(DEPTHS)), heads),
        "always sure, always wrong": decode(eelib.Confidence("max_logit", sure), wrong),
        "the same, no back-off": decode(eelib.Confidence("max_logit", sure, max_draft=4, back_off=False), wrong),
        "FixedExit(24, 3)": decode(drafting),
        "FixedExit(24, 3), exact": decode(drafting, exact=True),
    }
    runs = comparison.compare(candidates, prompts, reference="Never", repeats=arguments.repeats)
    table = comparison.summarise(runs).set_index("candidate")
    print(table[["equal", "tokens_per_second", "speed_ratio", "speed_ratio_low", "speed_ratio_high"]].round(3))
    print()
    speed = table.tokens_per_second
    plain = 1 / speed["Never"]
    asked = head_seconds(model, heads)
    print(f"Never / transformers: {speed['Never'] / speed['transformers']:.3f} (goal: at least 1)")
    print(
        f"heads that never exit: {1 / speed['heads that never exit'] / (plain + asked) - 1:+.1%} beside Never and the "
        f"heads' own {asked / plain:.1%} (goal: at most +3%)"
    )
    print(f"always wrong / Never: {speed['always sure, always wrong'] / speed['Never']:.3f} (goal: at least 0.90)")
    ratio = speed["FixedExit(24, 3), exact"] / speed["FixedExit(24, 3)"]
    print(f"exact / not exact, FixedExit(24, 3): {ratio:.3f}")
    print(measure.machine())


if __name__ == "__main__":
    main()

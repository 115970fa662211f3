"""What the engine itself costs, on the offline model: `make bench-engine`. Interleaved ratios, medians over prompts.

Each row is one question: how fast is the first way of decoding, next to the second, on the same prompts in one run?
"""

import argparse
import statistics
import time

import torch
from tqdm.auto import tqdm

import eelib
from eelib import timing
from eelib.backbone import packed
from eelib.evaluation import cases, comparison

DEPTHS = (6, 12, 18, 24)


def wrong_heads(model):
    """Heads that are always sure and, being random, always wrong."""
    heads = eelib.ExitHeads.init(model, DEPTHS, "affine").to(model.dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in heads.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return heads.requires_grad_(False)


class Charged(eelib.Confidence):
    """Never exits, and keeps the time that asking it and its heads takes."""

    seconds = 0.0

    @classmethod
    def timed(cls, call):
        def timed_call(*args):
            started = time.perf_counter()
            result = call(*args)
            cls.seconds += time.perf_counter() - started
            return result

        return timed_call


def overhead_of_heads_that_never_exit(model, heads, prompts, **length) -> tuple[float, float]:
    """What asking heads in vain costs beside the heads' own time, and that time; medians, as shares of `Never`."""
    heads.logits, heads.drafted_tokens = Charged.timed(heads.logits), Charged.timed(heads.drafted_tokens)
    Charged.exits = Charged.timed(lambda *args: eelib.Confidence.exits(*args))
    policy = Charged("max_prob", (2.0,) * len(heads.depths))
    beside, own = [], []
    for prompt in tqdm(prompts, desc="heads that never exit", unit="prompt"):
        for _ in range(2):  # the first warms up
            plain = eelib.generate(model, prompt, policy=eelib.Never(), **length).stats.seconds
            Charged.seconds = 0.0
            whole = eelib.generate(model, prompt, policy=policy, heads=heads, **length).stats.seconds
        beside.append((whole - Charged.seconds) / plain - 1)
        own.append(Charged.seconds / plain)
    return statistics.median(beside), statistics.median(own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    model, tokenizer = eelib.load_model("smollm2-135m", dtype="bfloat16")
    prompts = cases.load_prompts(tokenizer, arguments.prompts)
    heads = eelib.ExitHeads.init(model, DEPTHS, "mlp").to(model.dtype)
    wrong = wrong_heads(model)
    length = {"max_new_tokens": arguments.tokens}

    def decode(policy, heads=None, **kwargs):
        return lambda p: eelib.generate(model, p, policy=policy, heads=heads, **length, **kwargs)

    sure = (-1e9,) * len(DEPTHS)

    def own(prompt):
        return model.generate(prompt, do_sample=False, **length)

    def own_packed(prompt):
        with packed(model, exact=False):
            return own(prompt)

    decoders = {
        "transformers": own,
        "transformers, packed": own_packed,
        "Never": decode(eelib.Never()),
        "always sure, always wrong": decode(eelib.Confidence("max_logit", sure), wrong),
        "the same, no back-off": decode(eelib.Confidence("max_logit", sure, max_draft=4, back_off=False), wrong),
        "FixedExit(24, 3)": decode(eelib.FixedExit(24, 3)),
        "FixedExit(24, 3), exact": decode(eelib.FixedExit(24, 3), exact=True),
        "FixedExit(6, 3)": decode(eelib.FixedExit(6, 3)),
        "FixedExit(6, 3), exact": decode(eelib.FixedExit(6, 3), exact=True),
    }
    runs = comparison.compare(decoders, prompts, reference="Never", repeats=arguments.repeats)
    table = comparison.summarise(runs).set_index("decoder")
    print(
        table[["equal", "tokens_per_second", "speed_ratio", "speed_ratio_low", "speed_ratio_high"]].round(3).to_string()
    )
    print()
    speed = table.tokens_per_second
    print(f"Never / transformers: {speed['Never'] / speed['transformers']:.3f} (goal: 1.6 where bf16 is fast)")
    print(f"Never / transformers, packed: {speed['Never'] / speed['transformers, packed']:.3f} (goal: at least 1)")
    print(f"always wrong / Never: {speed['always sure, always wrong'] / speed['Never']:.3f} (goal: at least 0.90)")
    for policy in ("FixedExit(24, 3)", "FixedExit(6, 3)"):
        print(f"exact / not exact, {policy}: {speed[f'{policy}, exact'] / speed[policy]:.3f}")
    beside, own = overhead_of_heads_that_never_exit(model, heads, prompts, **length)
    print(f"heads that never exit: {beside:+.1%} beside Never and the heads' own {own:.1%} (goal: at most +3%)")
    print(timing.machine())


if __name__ == "__main__":
    main()

"""Recording: a decoded text, its rounds and its traces."""

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd

from eelib.confidence.metrics import METRICS, axis_label
from eelib.decoding.output import DecodingOutput
from eelib.decoding.policies import Confidence, FixedExit, Lookup, Never, Policy
from eelib.errors import HeadsError, InvalidInputError
from eelib.evaluation.latency import Timings
from eelib.evaluation.weight_reads import WeightReads
from eelib.explorer.ladder import ThresholdLadder
from eelib.explorer.text_traces import TextTraces

KINDS = {Never: "never", FixedExit: "fixed", Confidence: "confidence", Lookup: "lookup"}
"""Policies that the sliders can say, with their names there."""
_OWN_TEXT = 0.95  # share of tokens that must be the full model's best: all but near-ties
_FINITE = float(np.finfo(float).max)  # JSON has no infinity


@dataclass(frozen=True)
class Round:
    """One round of a decoding; without verification, one token.

    Attributes:
        drafts: token, depth, score (None where none decided), and whether it was accepted.
        declined: whether heads were asked once more, in vain.
        unfed: whether the last draft was not fed to the model, since nothing could follow it.
    """

    drafts: tuple[tuple[int, int, float | None, bool], ...]
    declined: bool = False
    unfed: bool = False


@dataclass(frozen=True)
class Recording:
    """One run to be explored.

    Attributes:
        output: of `generate`.
        traces: of the same text, from `trace_text`.
        policy: that made the output; None if unknown.
        ladder: thresholds for every ε; None leaves out the slider of ε.
        timings: of the pieces on this machine; None counts weights read instead of seconds.
        name: of the run, where there are two.
        rounds: as decoded.

    Raises:
        InvalidInputError: an output without new tokens, traces of another text, a policy that did not make the output
            or whose metric was not traced.
        HeadsError: heads, thresholds or timings of other depths.
    """

    output: DecodingOutput
    traces: TextTraces
    policy: Policy | None = None
    ladder: ThresholdLadder | None = None
    timings: Timings | None = None
    name: str = ""
    rounds: tuple[Round, ...] = field(init=False)

    def __post_init__(self):
        self._check_text()
        self._check_depths()
        object.__setattr__(self, "rounds", rounds_of(self.output))
        self._check_policy()

    @property
    def verified(self) -> bool:
        """Whether the full model verified the drafts.

        Otherwise what a head said stands (early exit).
        """
        return self.output.stats.rounds > 0 or self.output.stats.emitted == 1

    @property
    def exit_depths(self) -> tuple[int, ...]:
        """Depths at which the policy may ask a head."""
        depths = self.traces.depths if self.policy is None else self.policy.exit_depths(self.traces.depths)
        return tuple(depth for depth in depths if depth != self.traces.n_blocks)

    @property
    def why_no_what_if(self) -> str:
        """Why the sliders are off, in words; empty where they work."""
        own = float((self.traces.teacher == self.traces.tokens[self.traces.prompt_length :]).mean())
        if not self.verified:
            return (
                "This run is early exit without verification: what a head said stands, so other settings would give "
                "another text."
            )
        if own < _OWN_TEXT:
            return (
                f"Only {own:.0%} of this text is what the full model says first (it was sampled, or changed by "
                "processors): other settings are replayed on greedy text only."
            )
        return ""

    @property
    def settings(self) -> dict:
        """Where the sliders begin: at the policy.

        For one that they cannot say, at half of the tokens.
        """
        traces = self.traces
        metric = next((m for m in METRICS if m in traces.scores), next(iter(traces.scores)))
        middle = [float(np.median(traces.scores[metric][0, :, i])) for i in range(len(traces.depths))]
        settings = {
            "kind": "confidence", "metric": metric, "method": None, "epsilon": None, "deepest": None,
            "thresholds": middle, "max_draft": 4, "back_off": False, "price": Confidence.price,
            "depth": traces.depths[0], "draft_length": 4, "lookup": None,
        }  # fmt: skip
        if self.policy is not None and type(self.policy) in KINDS:
            settings["kind"] = KINDS[type(self.policy)]
            own = {"lookup": asdict(self.policy)} if isinstance(self.policy, Lookup) else asdict(self.policy)
            settings |= {name: own[name] for name in set(settings) & set(own)}
            if settings["lookup"] is not None:
                settings["lookup"] |= {"sizes": list(settings["lookup"]["sizes"])}
        settings["thresholds"] = [_finite(threshold) for threshold in settings["thresholds"]]
        return settings | self._step(settings)

    def policy_of(self, settings: Mapping) -> Policy:
        """The policy that settings of the sliders say, for `generate`."""
        kind, lookup = settings["kind"], settings["lookup"]
        found = None if lookup is None else Lookup(lookup["max_draft"], lookup["record"], tuple(lookup["sizes"]))
        if kind == "never":
            return Never()
        if kind == "fixed":
            return FixedExit(settings["depth"], settings["draft_length"])
        if kind == "lookup":
            return found or Lookup()
        deepest = math.inf if settings["deepest"] is None else settings["deepest"]
        asked = zip(self.traces.depths, settings["thresholds"], strict=True)
        thresholds = tuple(threshold if depth <= deepest else None for depth, threshold in asked)
        return Confidence(
            settings["metric"], thresholds, settings["max_draft"], self.traces.depths, settings["back_off"],
            self.traces.heads_fingerprint, found, settings["price"],
        )  # fmt: skip

    def to_json(self) -> dict:
        """All that the browser needs; arrays in base64, little-endian."""
        traces, stats = self.traces, self.output.stats
        layers = range(len(traces.drafted))
        drafts = [
            {
                "tokens": _base64(traces.drafted[i], "<i4"),
                "scores": {metric: _base64(scores[i], "<f4") for metric, scores in traces.scores.items()},
            }
            for i in layers
        ]
        return {
            "name": self.name, "model": traces.model, "n_blocks": traces.n_blocks, "depths": list(traces.depths),
            "exit_depths": list(self.exit_depths), "prompt_length": traces.prompt_length,
            "metrics": list(traces.scores), "labels": {metric: axis_label(metric) for metric in traces.scores},
            "pieces": list(traces.pieces), "tokens": _base64(traces.tokens, "<i4"),
            "teacher": _base64(traces.teacher, "<i4"), "drafts": drafts, "kl": _base64(traces.kl, "<f4"),
            "best": {
                "offsets": _base64(traces.offsets, "<i4"), "ids": _base64(traces.best, "<i4"),
                "probabilities": _base64(traces.probabilities, "<f4"),
            },
            "vocabulary": {str(token): text for token, text in traces.vocabulary.items()},
            "rounds": [asdict(one) for one in self.rounds], "verified": self.verified,
            "policy": "a policy that was not named" if self.policy is None else _words(self.policy),
            "replayed": self.policy is None or type(self.policy) in KINDS, "what_if": self.why_no_what_if,
            "settings": self.settings, "ladder": None if self.ladder is None else self.ladder.to_json(),
            "prices": prices_of(self.timings or self.traces.reads),
            "stats": {"block_positions": list(stats.block_positions), "seconds": stats.seconds},
        }  # fmt: skip

    def _step(self, settings: Mapping) -> dict:
        """Step of the ladder whose thresholds these are, if any."""
        if self.ladder is None:
            return {}
        for method, metrics in self.ladder.thresholds.items():
            for epsilon, found in zip(self.ladder.epsilons, metrics.get(settings["metric"], ()), strict=False):
                pairs = list(zip(found, settings["thresholds"], strict=True))
                asked = [i for i, (of, own) in enumerate(pairs) if own is not None]
                if asked and all(of == own for of, own in pairs[: asked[-1] + 1]):
                    depths = self.traces.depths
                    deepest = None if asked[-1] == len(depths) - 1 else depths[asked[-1]]
                    return {"method": method, "epsilon": epsilon, "thresholds": list(found), "deepest": deepest}
        return {"method": next(iter(self.ladder.thresholds))}

    def _check_text(self) -> None:
        if not isinstance(self.output, DecodingOutput) or not isinstance(self.traces, TextTraces):
            raise InvalidInputError(
                f"output of type {type(self.output).__name__}, traces of type {type(self.traces).__name__}: expected "
                "what `generate` returned, and its `trace_text`."
            )
        if not self.output.stats.emitted:
            raise InvalidInputError("The output has no new token: expected at least one to look at.")
        text, n = self.output.sequences[0].cpu().numpy(), self.output.stats.emitted
        if not np.array_equal(text, self.traces.tokens) or self.traces.prompt_length != len(text) - n:
            raise InvalidInputError(
                f"The traces are of another text: {len(self.traces.tokens)} tokens, {self.traces.prompt_length} of "
                f"them the prompt's, and the output has {len(text)}, {len(text) - n} the prompt's. Call `trace_text` "
                "on this output."
            )

    def _check_depths(self) -> None:
        depths = self.traces.depths
        unknown = sorted({int(depth) for depth in self.output.trace.depth} - {0, *self.traces.exits})
        if unknown:
            raise HeadsError(
                f"The output has tokens of depth {unknown}, and the traces are of heads at {list(depths)}: trace the "
                "text with the heads that decoded it."
            )
        if self.ladder is not None and self.ladder.depths != depths:
            raise HeadsError(
                f"The ladder of thresholds is for heads at {list(self.ladder.depths)}, and the traces are of heads at "
                f"{list(depths)}: make it from calibration traces of these heads."
            )
        both = self.ladder and self.ladder.heads_fingerprint, self.traces.heads_fingerprint
        if all(both) and both[0] != both[1]:
            raise HeadsError(
                "The ladder of thresholds was calibrated for other heads of the same depths: make it from calibration "
                "traces of these heads."
            )
        if self.timings is not None:
            timed = {key[1] for key in self.timings.pieces if key[0] == "head"}
            if not set(depths) <= timed:
                raise HeadsError(
                    f"The timings are of heads at {sorted(timed)}, and the traces of heads at {list(depths)}: call "
                    "`time_pieces` with these heads."
                )

    def _check_policy(self) -> None:
        metric = getattr(self.policy, "metric", None)
        if metric is not None and metric not in self.traces.scores:
            raise InvalidInputError(
                f"The policy's metric {metric!r} is not in the traces, which have {', '.join(self.traces.scores)}: "
                "register it (`register_metric`) before tracing the text."
            )
        asked, settings = self.exit_depths, self.settings  # raises where its thresholds are for other depths
        if type(self.policy) not in KINDS:
            return
        most = settings["draft_length" if isinstance(self.policy, FixedExit) else "max_draft"]
        allowed = [*asked, *([0] if settings["lookup"] else [])]
        for one in self.rounds:
            depths = [depth for _, depth, *_ in one.drafts]
            if sum(depth > 0 for depth in depths) > most or not {*depths} <= {*allowed}:
                raise InvalidInputError(
                    f"A round of the output has {len(depths)} drafts of depth {sorted({*depths})}, where {self.policy} "
                    f"allows {most} of heads at {list(asked)}: pass the policy that made it, or None."
                )


def prices_of(prices: Timings | WeightReads) -> dict:
    """Prices of the pieces of decoding, for the browser."""
    if isinstance(prices, WeightReads):
        heads = {str(depth): share for depth, share in prices.heads.items()}
        return {"unit": "passes", "block": prices.block, "unembedding": prices.unembedding, "heads": heads}
    pieces = [[list(key), seconds] for key, seconds in prices.pieces.items()]
    per = {"per_round": prices.per_round, "per_token": prices.per_token}
    return {"unit": "seconds", "pieces": pieces, **per}


def rounds_of(output: DecodingOutput) -> tuple[Round, ...]:
    """Rounds as decoded; without verification, one for each token."""
    verified, trace, rounds = output.stats.rounds > 0, output.trace.iloc[1:], []  # the first token is prefill's
    for _, rows in trace.groupby(trace["round"] if verified else trace.position, sort=True):
        made = rows.drafted if verified else rows.depth < len(output.stats.block_positions)
        drafts = [
            (int(row.token_id), int(row.depth), _finite(row.score), bool(row.accepted) or not verified)
            for row in rows[made].itertuples()
        ]
        rounds.append(Round(tuple(drafts), bool(rows.asked[~made].any()), bool(rows.ends[made].any())))
    return tuple(rounds)


def selection_table(recording: Recording, chosen: list[int]) -> pd.DataFrame:
    """One row per chosen new token and exit.

    Columns: token (its number), position, token_id, text; depth of the exit; head_token and head_text (-1 where it
    declines), probability of the token itself (NaN where it is not among the best), agrees, kl, one column per metric.
    """
    traces, rows = recording.traces, []
    for token in chosen:
        position = traces.prompt_length + token
        own = int(traces.tokens[position])
        best = traces.best[traces.offsets[token] : traces.offsets[token + 1]].tolist()
        for exit_, depth in enumerate(traces.exits):
            said = int(traces.drafted[0, token, exit_])
            place = traces.offsets[token] + best.index(own) if own in best else None
            rows.append({
                "token": token, "position": position, "token_id": own, "text": traces.pieces[position],
                "depth": depth, "head_token": said, "head_text": traces.vocabulary.get(said, ""),
                "probability": float("nan") if place is None else float(traces.probabilities[place, exit_]),
                "agrees": said == int(traces.teacher[token]), "kl": float(traces.kl[token, exit_]),
                **{metric: float(scores[0, token, exit_]) for metric, scores in traces.scores.items()},
            })  # fmt: skip
    columns = "token position token_id text depth head_token head_text probability agrees kl".split()
    return pd.DataFrame(rows, columns=[*columns, *traces.scores])


def _words(policy: Policy) -> str:
    said = repr(policy).replace(f", heads_fingerprint={getattr(policy, 'heads_fingerprint', None)!r}", "")
    said = re.sub(r"\d+\.\d{4,}", lambda found: f"{float(found[0]):.4g}", said)
    return said if len(said) < 200 else f"{said[:197]}..."


def _finite(value: float | None) -> float | None:
    if value is None or math.isnan(value):
        return None
    return float(min(max(value, -_FINITE), _FINITE))


def _base64(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode("ascii")

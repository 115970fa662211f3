"""Claims of the paper and of popular accounts, with their verdicts."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from eelib.errors import InvalidInputError
from eelib.plotting.acceptance import PAPERS_RATIO
from eelib.reporting import judging
from eelib.reporting.judging import ACCURACY_MARGIN, PROMISE_MARGIN, UNMEASURED
from eelib.reporting.model_tables import ModelTables


@dataclass(frozen=True)
class Claim:
    """A claim, and what a model's tables say of it.

    Attributes:
        key: "1" to "4", with a letter where a claim has parts; "P1" and so on for popular accounts.
        statement: the claim in one line.
        source: key of the work that makes it in the bibliography; empty for popular accounts.
        judged_by: what the number is.
        test: how the number decides.
        verdict: holds, does not hold, not decided, or not measured.
        number: the number with its interval; empty where it is not measured.
        table: name of the CSV that the number is from.
        figure: name of the figure, without ending.
        found: more of what was found, in Markdown; where it is not measured, why.
    """

    key: str
    statement: str
    source: str
    judged_by: str
    test: str
    verdict: str = UNMEASURED
    number: str = ""
    table: str = ""
    figure: str = ""
    found: str = ""

    @property
    def popular(self) -> bool:
        return self.key.startswith("P")


def judge_claims(tables: ModelTables) -> list[Claim]:
    """Every claim with its verdict; `not measured` where its table is missing."""
    judged = []
    for claim, judge in CLAIMS:
        try:
            judged.append(replace(claim, **judge(tables)))
        except InvalidInputError as error:
            judged.append(replace(claim, verdict=UNMEASURED, found=str(error)))
    return judged


_PROMPTS = (
    "95% percentile bootstrap over prompts, paired; it holds where the whole interval is {}, and does not hold where "
    "it is {}"
)
_BOTH = (
    "95% percentile bootstrap, paired, over prompts (speed) and cases (accuracy). Holds where the speed's interval is "
    "above {speed:g} and each change's is above {kept}; does not hold where the speed's is below {speed:g} or a "
    "change's is below 0"
)
_PAPER = "valade2024"

CLAIMS: tuple[tuple[Claim, Callable[[ModelTables], dict[str, str]]], ...] = (
    (
        Claim(
            "1a", "Early exits cut the cost of inference and keep accuracy on benchmarks.", _PAPER,
            "speed over the full model's, and change of accuracy",
            _BOTH.format(speed=1, kept=f"−{ACCURACY_MARGIN:g}"),
        ),
        judging.cost_and_accuracy,
    ),
    (
        Claim(
            "1b", "Larger models gain more.", _PAPER, "speed of early exit over the full model's",
            "95% intervals of the two; decided where they do not meet",
        ),
        judging.larger_gain_more,
    ),
    (
        Claim(
            "2", "Entropy separates correct from incorrect head predictions most reliably.", _PAPER,
            "AUROC of every metric less entropy's", "paired bootstrap over texts, corrected by Bonferroni",
        ),
        judging.entropy_is_best,
    ),
    (
        Claim(
            "3", "One calibrated threshold ε governs when a head's prediction is accepted.", _PAPER,
            "agreement with the full model of the tokens that exit",
            "95% bootstrap over texts; it does not hold where the whole interval is below ε, and holds where it "
            f"reaches ε and starts at most {PROMISE_MARGIN:g} below",
        ),
        judging.threshold_keeps_promise,
    ),
    (
        Claim(
            "4a", f"DSSD's drafts are accepted {PAPERS_RATIO} times as often as those of a tuned LayerSkip.", _PAPER,
            "acceptance of DSSD over that of LayerSkip with the same heads, both tuned for tokens per second",
            _PROMPTS.format(f"above {PAPERS_RATIO}", "below"),
        ),
        judging.acceptance_over_layerskip,
    ),
    (
        Claim(
            "4b", "So DSSD decodes faster than the model alone, with the output kept.", _PAPER,
            "speed of DSSD as tuned over plain decoding's, in the same engine", _PROMPTS.format("above 1", "below"),
        ),
        judging.drafting_is_faster,
    ),
    (
        Claim(
            "P1", "Thresholds of 0.7 to 0.95 on max_prob make decoding up to 3 times as fast.", "",
            "speed over plain decoding's", _PROMPTS.format("above 3 at one threshold", "below 3 at all"),
        ),
        judging.three_times_as_fast,
    ),
    (
        Claim(
            "P2", "They make it 1.5 times as fast at 99% of the accuracy.", "",
            "speed over plain decoding's, and change of accuracy",
            _BOTH.format(speed=1.5, kept="−1% of the full model's accuracy") + "; one threshold must hold",
        ),
        judging.fast_at_kept_accuracy,
    ),
    (
        Claim(
            "P3", "Early exit needs 30 to 60% less compute.", "", "share of the weights' reading that is saved",
            "a count, without an interval: it holds from 30% on",
        ),
        judging.less_compute,
    ),
    (
        Claim(
            "P4", "Listening to earlier layers makes answers more factual.", "zhang2024sled",
            "change of accuracy on TruthfulQA by SLED",
            "95% percentile bootstrap over cases, paired; it holds where the whole interval is above 0, and does not "
            "hold where it is below",
        ),
        judging.factual_layers,
    ),
)  # fmt: skip

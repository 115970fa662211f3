"""Combined confidence, learned from all metrics: a yardstick for single ones."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from eelib.confidence.metrics import BUILT_IN
from eelib.errors import CorpusError


@dataclass(frozen=True)
class Combined:
    """Logistic regression of agreement per depth, on metrics and position.

    Its score is the log odds that a head agrees. For analysis only: the engine decides by single metrics. Fit it on
    other text than it is evaluated or calibrated on.

    Attributes:
        models: regression by depth.
    """

    models: dict[int, Pipeline]

    @classmethod
    def fit(cls, traces: pd.DataFrame) -> "Combined":
        """Fit on traces of calibration text, where heads do not decline.

        Raises:
            CorpusError: no head both agrees and disagrees there.
        """
        models = {}
        for depth, table in traces[traces.head_token >= 0].groupby("depth"):
            if table.agrees.nunique() == 2:
                model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
                models[int(depth)] = model.fit(_features(table), table.agrees)
        if not models:
            raise CorpusError(
                "No head is both right and wrong on these traces, so there is nothing to learn: use more text."
            )
        return cls(models)

    def score(self, traces: pd.DataFrame) -> Float[np.ndarray, " row"]:
        """One score a row of traces; -inf where the head declines.

        0 at a depth without a fit.
        """
        scores = np.zeros(len(traces))
        for depth, model in self.models.items():
            rows = ((traces.depth == depth) & (traces.head_token >= 0)).to_numpy()
            if rows.any():
                scores[rows] = model.decision_function(_features(traces[rows]))
        scores[(traces.head_token < 0).to_numpy()] = -np.inf
        return scores


def _features(traces: pd.DataFrame) -> np.ndarray:
    return np.column_stack([traces[[*BUILT_IN]], np.log1p(traces.position)])

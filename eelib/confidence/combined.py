"""How much a single metric leaves on the table: a score learned from all of them."""

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
    """The log odds that a head is right, by a logistic regression a depth over the built-in metrics and the position.

    For analysis: the engine decides by single metrics. Fit it on other text than it is judged or calibrated on.
    """

    models: dict[int, Pipeline]

    @classmethod
    def fit(cls, traces: pd.DataFrame) -> "Combined":
        """Learned from traces of calibration text, from the tokens that a head does not decline.

        Raises:
            CorpusError: no head is both right and wrong there.
        """
        models = {}
        for depth, table in traces[traces.head_token >= 0].groupby("depth"):
            if table.agrees.nunique() == 2:
                model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
                models[int(depth)] = model.fit(_features(table), table.agrees)
        if not models:
            raise CorpusError("No head is both right and wrong on these traces: nothing to learn from. Give more text.")
        return cls(models)

    def score(self, traces: pd.DataFrame) -> Float[np.ndarray, " row"]:
        """One score a row of traces; -inf where the head declines; 0 at a depth there was nothing to learn about."""
        scores = np.zeros(len(traces))
        for depth, model in self.models.items():
            rows = ((traces.depth == depth) & (traces.head_token >= 0)).to_numpy()
            if rows.any():
                scores[rows] = model.decision_function(_features(traces[rows]))
        scores[(traces.head_token < 0).to_numpy()] = -np.inf
        return scores


def _features(traces: pd.DataFrame) -> np.ndarray:
    return np.column_stack([traces[[*BUILT_IN]], np.log1p(traces.position)])

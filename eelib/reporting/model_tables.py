"""Tables of one model, as a run leaves them."""

from pathlib import Path

import pandas as pd

from eelib.errors import InvalidInputError
from eelib.plotting.style import check_table
from eelib.reporting.wording import listed
from eelib.workspace import read_table


class ModelTables:
    """Tables of one model: CSV files of its figures, Parquet results.

    Args:
        figures: folder of the figures.
        results: folder of the results; None for `data/results/<model>` of the same workspace.
    """

    def __init__(self, figures: str | Path, results: str | Path | None = None):
        self.figures = Path(figures).absolute()
        self.model = self.figures.name
        default = self.figures.parent.parent / "data" / "results" / self.model
        self.results = default if results is None else Path(results)

    def read(self, *names: str, columns: tuple[str, ...]) -> tuple[str, pd.DataFrame]:
        """Name and rows of the first of these tables that is there.

        Raises:
            InvalidInputError: none is there, or it cannot be read, has no rows or lacks one of the columns.
        """
        there = [self.figures / f"{name}.csv" for name in names if (self.figures / f"{name}.csv").is_file()]
        if not there:
            raise InvalidInputError(f"There is no {listed((f'`{name}.csv`' for name in names), 'or')}.")
        try:
            table = pd.read_csv(there[0])
            check_table(table, *columns)
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"`{there[0].name}` cannot be used: {error}") from error
        return there[0].stem, table

    def result(self, name: str, *columns: str) -> tuple[str, pd.DataFrame]:
        """File name and rows of a table of results.

        Raises:
            InvalidInputError: it is not there, or cannot be read, has no rows or lacks one of the columns.
        """
        path = self.results / f"{name}.parquet"
        if not path.is_file():
            raise InvalidInputError(f"There is no `{path.name}` among the results of {self.model}.")
        try:
            table = read_table(path)
            check_table(table, *columns)
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"`{path.name}` cannot be used: {error}") from error
        return path.name, table

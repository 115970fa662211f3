"""Training report: rows written as they come, and smoothing for figures."""

import json
from pathlib import Path

import pandas as pd

from eelib.workspace import expanded


class Report:
    """Growing table of training metrics, written to files as rows come.

    Args:
        rows: the table so far, non-empty in a resumed run; `add` appends to it.
        log: file for one JSON object a row, overwritten; None for none.
        tensorboard: folder for TensorBoard's event files, a curve for each measured column and depth; None for none.
        writes: whether this process writes files.
    """

    def __init__(self, rows: list[dict], log: str | Path | None, tensorboard: str | Path | None, writes: bool):
        self.rows, self.log, self.board = rows, None, None
        if log is not None and writes:
            log = expanded(log)
            log.parent.mkdir(parents=True, exist_ok=True)
            self.log = open(log, "w", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        if tensorboard is not None and writes:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(tensorboard, purge_step=rows[-1]["step"] + 1 if rows else None)
        self._write(rows, again=True)

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_) -> None:
        for file in (self.log, self.board):
            if file is not None:
                file.close()

    def add(self, rows: list[dict]) -> None:
        """Append rows with step, depth, loss, agreement, and any other keys."""
        self.rows += rows
        self._write(rows)

    def _write(self, rows: list[dict], again: bool = False) -> None:
        if self.log is not None:
            self.log.writelines(json.dumps(row) + "\n" for row in rows)
            self.log.flush()
        if self.board is not None and not again:
            for row in rows:
                for name in ("loss", "agreement"):
                    self.board.add_scalar(f"{name}/depth {row['depth']}", row[name], row["step"])


def smooth_report(report: pd.DataFrame, rows: int = 5) -> pd.DataFrame:
    """Report with loss and agreement as running means of each depth."""
    noisy = ["loss", "agreement"]
    smooth = report.groupby("depth")[noisy].transform(lambda column: column.rolling(rows, 1).mean())
    return report.assign(**smooth)

"""The report of training: rows that are written to files as they come, and smoothed for a figure."""

import json
from pathlib import Path

import pandas as pd

from eelib.workspace import expanded


class Report:
    """Rows of a table that grows, written to files as they come.

    Args:
        rows: the table so far, of which a resumed run has some; `add` appends to it.
        log: file for one JSON object a row, made anew; None for none.
        tensorboard: folder for TensorBoard's event files, a curve for each measured column and depth; None for none.
        writes: whether this process writes files at all.
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
        """Appends rows with the keys step, depth, loss, agreement, and whatever else."""
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
    """Loss and agreement of a report of `train_heads` as running means over each depth's last `rows` rows."""
    noisy = ["loss", "agreement"]
    smooth = report.groupby("depth")[noisy].transform(lambda column: column.rolling(rows, 1).mean())
    return report.assign(**smooth)

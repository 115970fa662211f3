"""What counts as equal between two runs of the main job."""

from pathlib import Path

import pandas as pd
from chaos.main_job import differing


def workspace(folder: Path, speeds: list[float], equal: float = 1.0, chosen: int = 6) -> Path:
    """A table that is sorted by speed, as 05_speed is."""
    table = pd.DataFrame({"decoder": ["plain", f"exit={chosen}"], "equal": [1.0, equal], "tokens_per_second": speeds})
    (folder / "figures" / "a").mkdir(parents=True)
    table.sort_values("tokens_per_second").to_csv(folder / "figures" / "a" / "05_speed.csv", index=False)
    return folder


def test_what_the_clock_decides_is_no_difference(tmp_path):
    one, other = workspace(tmp_path / "one", [1.0, 2.0]), workspace(tmp_path / "other", [4.0, 3.0], chosen=15)
    assert differing(one, other) == ([], 1) and differing(one, other, model="b") == ([], 0)
    assert differing(one, workspace(tmp_path / "third", [1.0, 2.0], equal=0.5)) == (["figures/a/05_speed.csv"], 1)
    (other / "figures" / "a" / "05_speed.csv").unlink()
    assert differing(one, other) == (["figures/a/05_speed.csv"], 1)

"""A live page for the docs: `python -m workflow.explorer_page` writes docs/explorer_page.html.

With `--again` the run that is in it is kept, and only the view is made anew: no model is needed.
"""

import argparse
import json
import re
from pathlib import Path

import pandas as pd

import eelib
from eelib.explorer import Explorer, ThresholdLadder, page
from eelib.workspace import Workspace, atomic_write

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "explorer_page.html"
TITLE = "Exit explorer: a run to play with"
QUESTION = "Write a Python function that returns the n-th Fibonacci number, with a docstring and two examples."


def again() -> str:
    """The committed page with the view as it is now."""
    held = re.search(r'id="held">(.*?)</script>', PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    return page.page(json.loads(held), TITLE)


def main() -> None:
    """Decode, trace and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b", help="a packaged name, with heads and traces in data/")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--epsilon", type=float, default=0.7)
    parser.add_argument("--again", action="store_true", help="keep the run, make the view anew")
    arguments = parser.parse_args()
    if arguments.again:
        made = again()
        with atomic_write(PAGE) as path:
            path.write_text(made, encoding="utf-8")
        return
    ws = Workspace(arguments.model, PROJECT)
    model, tokenizer = eelib.load_model(arguments.model, dtype="bfloat16")
    heads = eelib.ExitHeads.from_pretrained(ws.heads, model)
    traces = pd.read_parquet(ws.traces / "calibration.parquet")
    policy = eelib.Confidence.from_calibration(
        eelib.calibrate(traces, "entropy", arguments.epsilon), max_draft=4, back_off=False
    )
    explorer = Explorer.run(
        model, tokenizer, heads, policy, arguments.question, ladder=ThresholdLadder.of(traces),
        max_new_tokens=arguments.tokens,
    )  # fmt: skip
    explorer.to_html(PAGE, title=TITLE)
    print(explorer, explorer.recordings[0].output.stats)


if __name__ == "__main__":
    main()

"""What a notebook shows of eelib's objects: a few lines, with all text escaped."""

import re

import numpy as np
import pytest
import torch
from tiny import drawn, prompts, random_heads

import eelib
from eelib.display import shown, table_html
from eelib.heads import small_recipe


@pytest.fixture(scope="module")
def decoded(llama):
    return eelib.generate(llama, prompts(1)[0], heads=random_heads(llama), policy=eelib.FixedExit(3, 2), max_length=20)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (float("nan"), "–"), (True, "yes"), (np.bool_(False), "no"), (12345, "12,345"),
        (0.12345, "0.123"), (12345.6, "12,346"), ({2: 1, 4: None}, "2: 1, 4: –"), ((1, 2), "1, 2"),
        ((), "–"), ("as it is", "as it is"),
    ],
)  # fmt: skip
def test_values_are_shown_as_people_read_them(value, text):
    assert shown(value) == text


def test_all_text_is_escaped():
    bad = "<script>alert('&')</script>"
    page = table_html(bad, [(bad, {bad: (bad,)})], (bad, bad))
    assert "<script" not in page and page.count("&lt;script&gt;") == 6
    columns, rows = page.count("<th>"), page.count("<tr>")
    assert (columns, rows, page.count("<td>")) == (2, 2, 2)


def test_stats_are_a_small_table(decoded):
    page, stats = decoded.stats._repr_html_(), decoded.stats
    said = dict(re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", page))
    assert said["new tokens"] == str(stats.emitted) and said["accepted"].endswith(f"({stats.acceptance_rate:.0%})")
    assert len(said) <= 9 and "block_positions" not in page
    assert len(repr(stats)) < 120 and f"{stats.accepted} of {stats.drafted}" in repr(stats)


def test_stats_of_plain_decoding_have_no_rate(llama):
    out = eelib.generate(llama, prompts(1)[0], policy=eelib.Never(), max_new_tokens=1)
    assert "%" not in out._repr_html_() and "nan" not in out._repr_html_() + repr(out)


def test_an_output_is_told_in_a_line_and_a_table(decoded):
    assert "\n" not in repr(decoded) and len(repr(decoded)) < 200
    assert f"7 tokens of the prompt, {decoded.stats.emitted} new" in decoded._repr_html_()


def test_heads_say_what_they_are_and_how_well_they_agree(llama):
    heads = random_heads(llama)
    assert repr(heads) == "ExitHeads(affine, at depths 1, 3, 5 of 6)" and "agreement" not in heads._repr_html_()
    heads.training_record = {"validation": [{"depth": 1, "agreement": 0.25}, {"depth": 3, "agreement": 0.5}]}
    assert "1: 0.25, 3: 0.5" in heads._repr_html_()


def test_a_calibration_says_what_it_promises():
    calibration = eelib.calibrate(drawn(8), "entropy", 0.7)
    assert "\n" not in repr(calibration) and "entropy, exit agreement ε = 0.7, empirical" in repr(calibration)
    page = calibration._repr_html_()
    assert page.count("<tr>") == 1 + len(calibration.depths) and "<th>exit agreement</th>" in page
    assert "δ = 0.1" in repr(eelib.calibrate(drawn(8), "entropy", 0.7, method="risk", delta=0.1))


def test_a_corpus_is_counted_not_printed():
    text = [torch.arange(5)]
    masks = {split: [torch.arange(5) > 2] for split in ("train", "calibration", "test")}
    corpus = eelib.Corpus(text * 3, text, [], {**masks, "train": masks["train"] * 3, "test": []}, written=4)
    assert repr(corpus) == "Corpus(train: 3 documents, calibration: 1 documents, test: 0 documents)"
    assert "<td>train</td><td>3</td><td>15</td><td>6</td>" in corpus._repr_html_()


def test_a_recipe_shows_what_differs_from_the_defaults(llama):
    page = small_recipe(llama)._repr_html_()
    assert "documents: 300" in page and "shuffle_buffer" not in page and page.count("<tr>") == 5

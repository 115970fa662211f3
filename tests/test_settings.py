"""Settings as people give them: numpy's numbers, 1e3, strings as YAML reads them; and what is none of these."""

from pathlib import Path

import numpy as np
import pytest
import torch

import eelib
from eelib.errors import InvalidInputError
from eelib.heads import HeadConfig, TrainConfig
from eelib.settings import COUNT, POSITIVE, SHARE, Number, flag


@pytest.mark.parametrize("given", [6, np.int64(6), np.float32(6), 6.0, "6", "6.0", torch.tensor(6), np.array([6])])
def test_whole_numbers_become_pythons_own(given):
    found = COUNT("n", given)
    assert found == 6 and type(found) is int


@pytest.mark.parametrize("given", [True, np.True_, None, "six", 1.5, float("nan"), float("inf"), 0, -1, [6], b"6", 1j])
def test_what_is_no_count_is_refused_with_what_was_expected(given):
    with pytest.raises(InvalidInputError, match=r"n=.*: expected a positive whole number\."):
        COUNT("n", given)


def test_numbers_and_flags():
    assert POSITIVE("rate", "2e-3") == 0.002 and type(POSITIVE("rate", 1)) is float
    assert Number(optional=True)("x", None) is None and Number(infinite=True)("x", "-inf") == -float("inf")
    assert [flag("f", given) for given in (True, np.False_, "false", "True")] == [True, False, False, True]
    for given in (1, "no", None):
        with pytest.raises(InvalidInputError, match="expected True or False"):
            flag("f", given)
    with pytest.raises(InvalidInputError, match="a number from 0 to 1"):
        SHARE("share", 1.01)
    with pytest.raises(InvalidInputError, match="a whole number from 8 on, or None"):
        Number(least=8, whole=True, optional=True)("documents", 7)


def test_settings_are_settled_before_any_work(llama):
    assert TrainConfig(epochs=1e0, learning_rate="2e-3", batch_size=np.int64(2)).learning_rate == 0.002
    heads = HeadConfig(np.array([1, 3]), width=np.int64(8), skip="false")
    assert (heads.depths, heads.width, heads.skip) == ((1, 3), 8, False)
    assert type(heads.width) is int and type(heads.depths[0]) is int
    corpus = eelib.CorpusConfig(documents="1e2", int8="true", temperatures=np.array([0.0, 0.5]), length=np.int32(64))
    assert eelib.CorpusConfig(Path("a.txt")).source == "a.txt"
    assert (corpus.documents, corpus.int8, corpus.temperatures, corpus.length) == (100, True, (0.0, 0.5), 64)
    assert eelib.FixedExit(np.int64(3), 4.0) == eelib.FixedExit(3, 4)
    assert eelib.Confidence("entropy", np.array([-1.0, np.inf]), np.int64(4)).thresholds == (-1.0, float("inf"))
    backbone = eelib.Backbone.of(llama)
    assert backbone.check_depths(np.int64(2)) == backbone.check_depths(2) == (2, 4)
    assert backbone.check_depths(np.array([1, 3])) == (1, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainConfig(epochs=True),
        lambda: TrainConfig(batch_size=1.5),
        lambda: TrainConfig(learning_rate="fast"),
        lambda: TrainConfig(seed=-1),
        lambda: HeadConfig((1, True)),
        lambda: HeadConfig((1,), width="wide"),
        lambda: eelib.CorpusConfig(int8="no"),
        lambda: eelib.CorpusConfig(temperatures=(0.5, float("nan"))),
        lambda: eelib.FixedExit(True, 4),
        lambda: eelib.Confidence("entropy", (float("nan"),)),
        lambda: eelib.Confidence("entropy", (True,)),
        lambda: eelib.Lookup(record="often"),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(InvalidInputError, match="expected"):
        make()


def test_heads_of_numpys_numbers_can_be_saved(llama, tmp_path):
    heads = eelib.ExitHeads.init(llama, np.array([1, 3]), width=np.int64(8))
    heads.save_pretrained(tmp_path / "heads")
    assert eelib.ExitHeads.from_pretrained(tmp_path / "heads", llama).config == heads.config

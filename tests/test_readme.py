"""README's usage block, as somebody would run it who has the package and an empty folder."""

import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from tiny import PROJECT, tiny_model
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from eelib.corpus.reading import read_documents

NAME = "EleutherAI/pythia-410m"


@pytest.fixture(scope="module")
def usage() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if NAME in block]
    return block


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> str:
    """A random model with as many blocks and tokens as the block asks for, in a folder."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model("gpt_neox", torch.float32, num_hidden_layers=24, vocab_size=9000, max_position_embeddings=512)
    model.save_pretrained(folder)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(read_documents("pydoc"), 9000, special_tokens=["<|endoftext|>"], show_progress=False)
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **names).save_pretrained(folder)
    return str(folder)


def run(code: str, folder) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_usage_runs_on_a_little_text(usage, stand_in, tmp_path):
    # So few that it is quick, so many that no split stays empty, whatever text this machine's bfloat16 makes.
    less = usage.replace("documents=2000", "documents=100").replace("length=192", "length=72")
    assert less != usage
    run(less.replace(NAME, stand_in), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["my-heads"], "nothing lies where it was not asked for"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_usage_runs_as_it_is_written(usage, stand_in, tmp_path):
    run(usage.replace(NAME, stand_in), tmp_path)


def test_how_many_architectures_decode_is_what_the_table_says():
    outcomes = pd.read_csv(PROJECT / "docs" / "results" / "architectures.csv").outcome.value_counts()
    said = f"{outcomes['equal']} of {outcomes.sum()} architectures decode, {outcomes['refused']} are refused"
    assert said in " ".join((PROJECT / "README.md").read_text(encoding="utf-8").split())
    assert not outcomes.get("raw", 0) and not outcomes.get("another text", 0)

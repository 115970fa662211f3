import json

import pytest
import torch
from conftest import VOCAB_SIZE, letters, tiny_model

import eelib
from eelib import corpus as corpora
from eelib.errors import CorpusError, InvalidInputError

CONFIG = eelib.CorpusConfig(documents=60, length=24, batch_size=16)


@pytest.fixture(scope="module")
def written(llama):
    return corpora.load_corpus(CONFIG, llama, letters())


def test_self_generated_text(written):
    texts = [t for split in corpora.SPLITS for t in getattr(written, split)]
    assert len(texts) == 60 and {len(t) for t in texts} == {24} and all(t[0] == 1 for t in texts)
    assert written.report().tokens.sum() == 60 * 24


def test_splits_share_no_document_and_stay(llama, written):
    texts = {split: {tuple(t.tolist()) for t in getattr(written, split)} for split in corpora.SPLITS}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["calibration"]
    more = corpora.load_corpus(eelib.CorpusConfig(documents=80, length=24, batch_size=16), llama, letters())
    for split, kept in texts.items():
        assert len(kept & {tuple(t.tolist()) for t in getattr(more, split)}) >= len(kept) * 0.5  # 48 of 60 are the same


def test_sampling_follows_the_models_distribution(llama):
    torch.manual_seed(0)
    opening, temperature = torch.full((4000, 1), 1), 0.9
    second = corpora._sample(llama, opening, 2, temperature, torch.Generator().manual_seed(1))[:, 1]
    expected = (llama(opening[:1]).logits[0, -1].float() / temperature).softmax(-1)
    found = torch.bincount(second, minlength=VOCAB_SIZE) / len(second)
    error = 4 * (expected * (1 - expected) / len(second)).sqrt() + 1e-3
    assert ((found - expected).abs() < error).all()


def test_killed_generation_goes_on_from_its_finished_batches(llama, written, tmp_path, monkeypatch):
    sample, calls = corpora._sample, []

    def dying(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return sample(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpora, "_sample", dying)
        corpora.load_corpus(CONFIG, llama, letters(), scratch=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(corpora, "_sample", lambda *a: calls.append(1) or sample(*a))
    again = corpora.load_corpus(CONFIG, llama, letters(), scratch=tmp_path)
    assert len(calls) == 4 and all(map(torch.equal, again.train, written.train))


def test_saved_and_loaded(written, tmp_path):
    written.save(tmp_path)
    loaded = eelib.Corpus.load(tmp_path)
    assert all(map(torch.equal, loaded.test, written.test)) and loaded.made_of == written.made_of
    with pytest.raises(CorpusError, match="No corpus"):
        eelib.Corpus.load(tmp_path / "nowhere")


def texts(n):
    return [f"Document number {i} says nothing, but at some length, {i * i}." for i in range(n)]


def test_text_from_files_and_datasets(llama, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(texts(40)))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts(40)))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text((tmp_path / "a.jsonl").read_text())
    read = [
        corpora.load_corpus(eelib.CorpusConfig(str(tmp_path / name), 40, 32), llama, letters())
        for name in ("a.txt", "a.jsonl", "set")
    ]
    for one in read:
        assert sum(one.report().documents) == 40
        assert all(map(torch.equal, one.train, read[0].train))


def test_bad_text_is_one_readable_error(llama, tmp_path):
    def load(name, n=8):
        return corpora.load_corpus(eelib.CorpusConfig(str(tmp_path / name), n, 32), llama, letters())

    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"words": 1}')
    (tmp_path / "same.txt").write_text("\n\n".join(texts(1) * 20))
    with pytest.raises(CorpusError, match="0 different documents"):
        load("empty.txt")
    with pytest.raises(CorpusError, match=r"bad.jsonl, line 2"):
        load("bad.jsonl")
    with pytest.raises(CorpusError, match="1 different documents"):
        load("same.txt")
    with pytest.raises(CorpusError, match="No file"):
        load("missing.txt")
    with pytest.raises(CorpusError, match="Cannot read dataset"):
        load("no-such-folder")
    for wrong in ({"documents": 3}, {"length": 4}, {"temperature": 0.0}, {"batch_size": 0}):
        with pytest.raises(InvalidInputError):
            eelib.CorpusConfig(**wrong)


def test_padding_marks_what_is_real():
    tokens, real = corpora.pad([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]] and real.sum(1).tolist() == [3, 1]


def test_a_tokenizer_that_cannot_begin_a_text():
    with pytest.raises(CorpusError, match="no token that begins"):
        corpora.load_corpus(CONFIG, tiny_model("llama"), letters(unk_token="<unk>"))

import gzip
import json
import zipfile

import numpy as np
import pytest
import torch
from tiny import letters, own_text

import eelib
from eelib.corpus import corpus as corpora
from eelib.corpus import documents
from eelib.corpus.chat import answers
from eelib.corpus.documents import read_tokenized
from eelib.corpus.reading import read_documents
from eelib.errors import CorpusError, InvalidInputError

CONFIG = eelib.CorpusConfig(documents=160, length=24, batch_size=40, prompt_length=8)


@pytest.fixture(scope="module")
def written(llama):
    return corpora.load_corpus(CONFIG, llama, letters())


def test_self_generated_text(written):
    texts = [t for split in corpora.SPLITS for t in getattr(written, split)]
    assert len(texts) == 160 and {len(t) for t in texts} == {24} and all(t[0] == 1 for t in texts)
    assert written.report().tokens.sum() == 160 * 24


def test_splits_share_no_document_and_stay(llama, written):
    texts = {split: {tuple(t.tolist()) for t in getattr(written, split)} for split in corpora.SPLITS}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["calibration"]
    more = corpora.load_corpus(
        eelib.CorpusConfig(documents=200, length=24, batch_size=40, prompt_length=8), llama, letters()
    )
    for split, kept in texts.items():
        assert (
            len(kept & {tuple(t.tolist()) for t in getattr(more, split)}) >= len(kept) * 0.5
        )  # 160 of 200 are the same


def test_what_counts_is_what_is_said(llama):
    texts = {}
    for loss_on in documents.LOSS_ON:
        config = eelib.CorpusConfig(documents=40, length=24, batch_size=40, prompt_length=5, loss_on=loss_on)
        texts[loss_on] = corpora.load_corpus(config, llama, letters())
    # Position 0 holds the opening, so 0 ... 4 say the user's five tokens and the rest is the model's.
    assert all(mask.tolist() == [True] * 24 for mask in texts["words"].loss_mask["train"])
    assert all(mask.tolist() == [False] * 5 + [True] * 19 for mask in texts["answers"].loss_mask["train"])
    assert texts["answers"].report().loss_tokens.sum() == 40 * 19


@pytest.mark.parametrize("pays", [True, False])
def test_an_eight_bit_copy_writes_only_where_that_is_quicker(llama, monkeypatch, pays):
    monkeypatch.setattr(documents, "int8_pays", lambda device: pays)
    written = []
    for int8 in (False, True):
        config = eelib.CorpusConfig(documents=40, length=24, batch_size=40, prompt_length=5, int8=int8)
        texts = corpora.load_corpus(config, llama, letters())
        written.append([t.tolist() for split in corpora.SPLITS for t in getattr(texts, split)])
    assert (written[0] != written[1]) == pays and len(written[1]) > 30


def test_temperatures_take_turns(llama):
    config = eelib.CorpusConfig(documents=40, length=24, temperatures=(0.0, 1.0), prompt_length=1, seed=1)
    texts = corpora.load_corpus(config, llama, letters())
    greedy = [
        t for split in corpora.SPLITS for t in getattr(texts, split)
        if t.equal(own_text(llama, t[None, :2], max_new_tokens=22, eos_token_id=None)[0])
    ]  # fmt: skip
    assert texts.written == 40 and 2 <= len(greedy) <= 20, "half, but for those that began alike"
    assert texts.report().duplicates[0] == 40 - texts.report().documents.sum() > 0


def test_every_other_document_begins_with_given_words(llama, tmp_path):
    given = [f"question {i}" for i in range(3)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in [*given, "too long " * 20]))
    settings = {"documents": 48, "length": 40, "temperatures": (0.0, 1.0), "prompts": str(tmp_path / "prompts.jsonl")}
    made = corpora.load_corpus(eelib.CorpusConfig(**settings, prompt_length=5), llama, letters())
    words = [letters()(text, add_special_tokens=False).input_ids for text in given]
    begins = [t[1 : 1 + len(words[0])].tolist() in words for t in made.train]
    assert sum(begins) == 24, "every prompt has one greedy answer, so that none is there twice"
    assert made.report().duplicates[0] == 0
    others = made.calibration + made.test
    assert others and not any(t[1 : 1 + len(words[0])].tolist() in words for t in others)
    for text, mask, given_words in zip(made.train, made.loss_mask["train"], begins, strict=True):
        assert mask.tolist() == [i >= (len(words[0]) if given_words else 5) for i in range(len(text))]
    with pytest.raises(CorpusError, match="4 prompts, none of 1 to 1 tokens"):
        corpora.load_corpus(eelib.CorpusConfig(**settings | {"length": 18}), llama, letters())


def test_every_third_document_begins_with_a_prompt_made_up_like_those_given(llama, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("question one\n\nquestion two")
    settings = {"documents": 60, "length": 64, "temperatures": (1.0,), "prompts": str(tmp_path / "prompts.txt")}
    config = eelib.CorpusConfig(**settings, invent=True, prompt_length=40)
    made = corpora.load_corpus(config, llama, letters(), tmp_path / "scratch")
    kept = [file for file in (tmp_path / "scratch").iterdir() if file.suffix == ".json"]
    invented = json.loads(kept[0].read_text())["prompts"]
    assert len(set(invented)) == 20 and not {"question one", "question two"} & set(invented)
    words = [letters()(text, add_special_tokens=False).input_ids for text in invented]
    assert all(4 <= len(w) <= 40 for w in words)
    where = [
        split
        for w in words
        for split in corpora.SPLITS
        for t in getattr(made, split)
        if t[1 : 1 + len(w)].tolist() == w
    ]
    assert len(where) == 20 and len(set(where)) > 1, "one document each, in any split"
    monkeypatch.setattr(documents, "invent_prompts", None)  # not asked again
    again = corpora.load_corpus(config, llama, letters(), tmp_path / "scratch")
    assert all(map(torch.equal, made.train, again.train))


def test_prompts_that_a_model_cannot_make_up(llama, tmp_path):
    (tmp_path / "prompts.txt").write_text("question one")
    config = eelib.CorpusConfig(
        documents=60, length=32, prompts=str(tmp_path / "prompts.txt"), invent=True, prompt_length=5
    )
    with pytest.raises(CorpusError, match="were new and ended within 5 tokens"):
        corpora.load_corpus(config, llama, letters())
    with pytest.raises(InvalidInputError, match="expected `prompts`"):
        eelib.CorpusConfig(invent=True)


def test_other_prompts_are_another_corpus(llama, tmp_path):
    """Under the same name: what was written from the old ones is not taken for finished."""
    texts = []
    for words in ("one", "two"):
        (tmp_path / "prompts.txt").write_text(words)
        config = eelib.CorpusConfig(documents=40, length=24, prompts=str(tmp_path / "prompts.txt"))
        texts.append(corpora.load_corpus(config, llama, letters(), scratch=tmp_path / "scratch"))
    assert len(list((tmp_path / "scratch").iterdir())) == 2
    assert not all(map(torch.equal, texts[0].train, texts[1].train))


def test_repeated_words_are_found():
    text = torch.tensor([*range(10), *range(10), 50])
    found = corpora._repeats(text)
    assert found.nonzero()[0].tolist() == [16, 17, 18], "the tokens 17, 18, 19 end eight that stood there before"


def test_killed_generation_goes_on_from_its_finished_batches(llama, written, tmp_path, monkeypatch):
    write_batch, calls = documents._write_batch, []

    def dying(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return write_batch(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(documents, "_write_batch", dying)
        corpora.load_corpus(CONFIG, llama, letters(), scratch=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(documents, "_write_batch", lambda *a: calls.append(1) or write_batch(*a))
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
    (tmp_path / "a.txt").write_text("\n\n".join(texts(60)))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts(60)))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text((tmp_path / "a.jsonl").read_text())
    read = [
        corpora.load_corpus(eelib.CorpusConfig(str(tmp_path / name), 60, 32), llama, letters())
        for name in ("a.txt", "a.jsonl", "set")
    ]
    for one in read:
        assert sum(one.report().documents) == 60
        assert all(map(torch.equal, one.train, read[0].train))


def test_bad_text_is_one_readable_error(llama, tmp_path):
    def load(name, n=8):
        return corpora.load_corpus(eelib.CorpusConfig(str(tmp_path / name), n, 32), llama, letters())

    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"words": 1}')
    (tmp_path / "old.txt").write_bytes("façade".encode("latin-1"))
    (tmp_path / "same.txt").write_text("\n\n".join(texts(1) * 20))
    with pytest.raises(CorpusError, match="ran out: it has 0 documents"):
        load("empty.txt")
    with pytest.raises(CorpusError, match=r"bad.jsonl, line 2"):
        load("bad.jsonl")
    with pytest.raises(CorpusError, match=r"old.txt, line 1: expected text in UTF-8"):
        load("old.txt")
    with pytest.raises(CorpusError, match="1 different documents"):
        load("same.txt", None)
    with pytest.raises(CorpusError, match="No file"):
        load("missing.txt")
    with pytest.raises(CorpusError, match="Cannot read dataset"):
        load("no-such-folder")
    for wrong in (
        {"documents": 3},
        {"length": 4},
        {"temperatures": (-1.0,)},
        {"temperatures": ()},
        {"batch_size": 0},
        {"documents": None},
        {"prompt_temperature": 0.0},
        {"loss_on": "all"},
    ):
        with pytest.raises(InvalidInputError):
            eelib.CorpusConfig(**wrong)


def test_text_files_as_people_have_them(tmp_path):
    lines = ['\ufeff{"text": "one"}', "", '{"text": "two\u2028lines"}', "   ", '{"text": "three"}']
    (tmp_path / "a.JSONL").write_bytes("\r\n".join(lines).encode())
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write("\n".join(lines).encode())
    for name in ("a.JSONL", "a.jsonl.gz"):
        assert list(read_documents(str(tmp_path / name))) == ["one", "two\u2028lines", "three"]
    (tmp_path / "b.txt").write_bytes("\ufeffone\r\nmore\r\n \r\n\r\ntwo\r\n".encode())
    assert list(read_documents(str(tmp_path / "b.txt"))) == ["one\nmore", "two"]


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": null}', "'text' is null"),
        (b'{"text": ["a"]}', "is ..a.., expected a string"),
        (b'{"text": 3}', "'text' is 3"),
        (b'{"text": "\xff"}', "expected text in UTF-8"),
        (b"[1]", "a field 'text'"),
        (b'"text"', "a field 'text'"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(CorpusError, match=rf"a\.jsonl, line 3: .*{message}"):
        list(read_documents(str(tmp_path / "a.jsonl")))


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fine"}\n' * 1000)[:-20])
    with pytest.raises(CorpusError, match=r"a\.jsonl\.gz, after line \d+: cannot be read"):
        list(read_documents(str(tmp_path / "a.jsonl.gz")))
    (tmp_path / "b.txt.gz").write_bytes(b"no archive")
    with pytest.raises(CorpusError, match="cannot be read"):
        list(read_documents(str(tmp_path / "b.txt.gz")))


def test_a_finished_batch_that_holds_no_array_is_refused(tmp_path):
    """Numpy returns the bytes of a member whose first ones are not those of an array."""
    np.savez(tmp_path / "whole.npz", np.zeros((2, 8), np.int64), np.ones((2, 8), bool))
    assert documents._finished(tmp_path / "whole.npz", 8)[0].shape == (2, 8)
    for name in ("arr_0.npy", "arr_1.npy"):
        with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(tmp_path / "odd.npz", "w") as odd:
            for member in whole.namelist():
                odd.writestr(member, b"text" if member == name else whole.read(member))
        with pytest.raises(CorpusError, match="holds something else than a batch of text"):
            documents._finished(tmp_path / "odd.npz", 8)


def test_a_home_folder_in_a_source(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one\n\ntwo", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    assert list(read_documents("~/a.txt")) == list(read_documents("$SCRATCH/a.txt")) == ["one", "two"]


def test_a_base_model_whose_texts_would_be_all_prompt_is_told(llama):
    config = eelib.CorpusConfig(documents=20, length=24, prompt_length=24)
    with pytest.raises(CorpusError, match="smaller prompt_length"):
        corpora.load_corpus(config, llama, letters())


def test_answers_end_at_any_of_several_ends(llama, monkeypatch):
    monkeypatch.setattr(llama.generation_config, "eos_token_id", [2, 52])
    sequences, spoken = answers(llama, letters(), ["abc", "bcd", "cde", "def", "efg", "fgh"], max_new_tokens=60)
    ended = [text for text in sequences if int(text[-1]) in (2, 52)]
    assert any(int(text[-1]) == 52 for text in ended)
    for text, counts in zip(sequences, spoken, strict=True):
        said = text[1:][counts[:-1]]
        assert not any(int(token) in (2, 52) for token in said[:-1])


def test_packaged_text_of_other_kinds():
    """Whole documents, all different, that need no download."""
    for source, least in (("hellaswag", 60), ("pydoc", 60)):
        found = list(read_documents(source))
        assert len(set(found)) == len(found) >= least and all(len(text) > 40 for text in found)
    config = eelib.CorpusConfig("pydoc", documents=8, length=16)
    assert [len(text.tokens) for text in read_tokenized(config, letters(unk_token="<unk>"))] == [16] * 8

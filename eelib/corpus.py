"""Text as sequences of tokens: written by the model itself, read from a file, or streamed from the Hub.

A sequence is one document, cut at `length` tokens and never packed with another: packed rows are not independent.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.chat import Turns
from eelib.errors import CorpusError, InvalidInputError
from eelib.int8 import int8_pays
from eelib.lessons import Lessons
from eelib.prompts import Opening, given_prompts, invent_prompts, openings
from eelib.self_generation import write
from eelib.sources import read_documents
from eelib.workspace import written_whole

SPLITS = {"train": 0.8, "calibration": 0.1, "test": 0.1}
"""Shares of the documents. Which split a document falls in is a hash of its own tokens, so it never moves; but one that
begins with a given prompt is for training, since others begin with the same."""

COUNTED = ("answers", "words")

_SHORTEST = 16  # tokens; a shorter document says little about the model


@dataclass(frozen=True)
class CorpusConfig:
    """Which text.

    source: "self" (the model writes it), a .jsonl file with a field "text", a .txt file with blank lines between
        documents, or a dataset that `datasets.load_dataset` knows (a Hub id or a folder), streamed.
    documents: how many, over all splits, before duplicates are dropped; None for all that a file or dataset has.
    length: most tokens of a document.
    The rest is for "self". temperatures: of the model's answers, taken in turn by the documents; 0 is greedy.
    prompts: file or dataset, as above, of words that the user of every other document begins with, in turn: text for
        what the heads will be used on. None: the model makes all of them up.
    invent: the model makes up more prompts of that kind first; then of three documents one begins with a given prompt,
        one with a prompt of its own that was made up like those, and one with what the model makes up from nothing.
    prompt_temperature: of the user's words where the model makes them up.
    prompt_length: those are cut off after so many tokens, and prompts made up like given ones that are longer dropped.
    counted: which positions are trained on and measured: those where the model speaks as itself ("answers") or those
        where it speaks at all, its user's words too ("words"). What a chat template puts in never counts.
    batch_size: documents written at once.
    int8: an eight-bit copy of the model writes (and says what is kept as lessons) where that is quicker.
    seed: of the sampling.
    """

    source: str = "self"
    documents: int | None = 560
    length: int = 160
    temperatures: Sequence[float] = (0.0, 0.0, 0.6, 0.9)
    prompts: str | None = None
    invent: bool = False
    prompt_temperature: float = 1.0
    prompt_length: int = 64
    counted: str = "answers"
    batch_size: int = 256
    int8: bool = False
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        if self.documents is None and self.source == "self":
            raise InvalidInputError("documents=None: a model writes without end, so say how many.")
        if self.documents is not None and self.documents < 8:
            raise InvalidInputError(f"documents={self.documents}: expected at least 8, to fill three splits.")
        if self.length < _SHORTEST:
            raise InvalidInputError(f"length={self.length}: expected at least {_SHORTEST} tokens.")
        if self.invent and self.prompts is None:
            raise InvalidInputError("invent=True: expected `prompts`, a file of examples to make up more like them.")
        if not self.temperatures or not all(t >= 0 for t in self.temperatures):
            raise InvalidInputError(f"temperatures={self.temperatures}: expected numbers from 0 (greedy) on.")
        if not self.prompt_temperature > 0:
            raise InvalidInputError(
                f"prompt_temperature={self.prompt_temperature}: expected a positive number, or all texts are the same."
            )
        if self.counted not in COUNTED:
            raise InvalidInputError(f"counted={self.counted!r}: expected one of {', '.join(COUNTED)}.")
        for name in ("prompt_length", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name}={getattr(self, name)}: expected a positive number.")


@dataclass(frozen=True)
class Corpus:
    """Three disjoint lists of sequences, each a 1-D LongTensor, and what they were made of.

    counted: per split and sequence the positions that count, a mask as long as the sequence. A position stands for
    what is said next; where a chat template goes on by itself, that says nothing about a head.
    written: documents before duplicates were dropped.
    """

    train: list[Tensor]
    calibration: list[Tensor]
    test: list[Tensor]
    counted: dict[str, list[Tensor]]
    written: int
    made_of: dict = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Writes train.parquet, calibration.parquet, test.parquet (columns `tokens`, `counted`) and corpus.json."""
        folder = Path(folder)
        for split in SPLITS:
            tokens = [s.numpy().astype(np.int32) for s in getattr(self, split)]
            table = pd.DataFrame({"tokens": tokens, "counted": [mask.numpy() for mask in self.counted[split]]})
            with written_whole(folder / f"{split}.parquet") as path:
                table.to_parquet(path)
        with written_whole(folder / "corpus.json") as path:
            path.write_text(json.dumps({"written": self.written, "made_of": self.made_of}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Corpus":
        """Raises CorpusError where there is no corpus, or one of an earlier version."""
        folder = Path(folder)
        files = ["corpus.json", *(f"{split}.parquet" for split in SPLITS)]
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise CorpusError(f"No corpus in {folder}: {', '.join(missing)} missing. Notebook 01_train_heads makes it.")
        tables = {split: pd.read_parquet(folder / f"{split}.parquet") for split in SPLITS}
        if any("counted" not in table for table in tables.values()):
            raise CorpusError(
                f"The corpus in {folder} does not say which positions count. Notebook 01_train_heads makes it anew."
            )
        splits = {s: [torch.from_numpy(t.astype(np.int64)) for t in table.tokens] for s, table in tables.items()}
        counted = {s: [torch.from_numpy(mask.copy()) for mask in table.counted] for s, table in tables.items()}
        return cls(**splits, counted=counted, **json.loads((folder / "corpus.json").read_text()))

    def report(self) -> pd.DataFrame:
        """What each split holds, one row each: documents, duplicates dropped (over all splits, before splitting),
        tokens, counted tokens, different tokens, and the share of counted tokens that repeat: the last of eight
        tokens that stood in the same document before.
        """
        rows, kept = [], sum(len(getattr(self, split)) for split in SPLITS)
        for split in SPLITS:
            texts, masks = getattr(self, split), self.counted[split]
            counted = sum(int(mask.sum()) for mask in masks)
            repeated = sum(int((_repeats(t) & mask.numpy()).sum()) for t, mask in zip(texts, masks, strict=True))
            rows.append({
                "split": split, "documents": len(texts), "duplicates": self.written - kept,
                "tokens": sum(map(len, texts)), "counted": counted, "different": len(torch.cat(texts).unique()),
                "repeated": repeated / max(counted, 1),
            })  # fmt: skip
        return pd.DataFrame(rows)


def load_corpus(
    config: CorpusConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scratch: str | Path | None = None,
    lessons: Lessons | None = None,
) -> Corpus:
    """The corpus that `config` describes, duplicates dropped, split by document.

    Args:
        scratch: folder for the finished batches of self-generation, which a later call with the same config goes on
            from, and where several processes meet; None keeps nothing.
        lessons: where to keep what the model says of its own text while it writes it, so that it need not be asked
            again for training.

    Raises:
        CorpusError: no document, one that cannot be read, fewer than asked for, or a split that stays empty.
        LessonsError: there is no room to keep the lessons.
    """
    if config.source == "self":
        documents = _self_generate(config, model, tokenizer, None if scratch is None else Path(scratch), lessons)
    else:
        documents = _tokenize(config, tokenizer)
    splits, counted = {split: [] for split in SPLITS}, {split: [] for split in SPLITS}
    seen, written = set(), 0
    for document, mask, shared in documents:
        written += 1
        digest = hashlib.sha256(document.numpy().tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            split = "train" if shared else _split_of(digest)
            splits[split].append(document)
            counted[split].append(mask)
    if config.documents is not None and written < config.documents:
        raise CorpusError(
            f"{config.source!r} ran out: it has {written} documents of at least {_SHORTEST} tokens, and "
            f"{config.documents} were asked for. Give more text, or say documents=None for all there is."
        )
    empty = [split for split, sequences in splits.items() if not sequences]
    if empty:
        raise CorpusError(
            f"{config.source!r} gave {len(seen)} different documents of at least {_SHORTEST} tokens, which leaves no "
            f"{' and no '.join(empty)} text: give more documents."
        )
    made_of = {**asdict(config), "temperatures": [*config.temperatures], "model": model.config._name_or_path}
    return Corpus(**splits, counted=counted, written=written, made_of=made_of)


def _split_of(digest: bytes) -> str:
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in SPLITS.items():
        if place < share:
            return split
        place -= share
    return "test"


def _repeats(tokens: Tensor, n: int = 8) -> np.ndarray:
    """Which positions' next token ends n tokens that stood in the same document before, [position]."""
    found, seen, text = np.zeros(len(tokens), dtype=bool), set(), tokens.tolist()
    for end in range(n - 1, len(text)):
        words = tuple(text[end - n + 1 : end + 1])
        found[end - 1] = words in seen
        seen.add(words)
    return found


def _self_generate(
    config: CorpusConfig, model, tokenizer, scratch: Path | None, lessons: Lessons | None
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Each document, where it counts, and whether others begin with the same words."""
    turns, state = Turns.of(tokenizer), PartialState()
    if len(turns.opening) + _SHORTEST > config.length:
        raise CorpusError(f"length={config.length} leaves no room behind an opening of {len(turns.opening)} tokens.")
    if scratch is None and state.num_processes > 1:
        raise InvalidInputError("Several processes share the writing through files: give load_corpus a `scratch`.")
    given, most = [], config.length - len(turns.opening) - _SHORTEST
    if config.prompts is not None:
        given = given_prompts(config.prompts, most, config.documents, tokenizer)
    key = hashlib.sha256(json.dumps([asdict(config), given, model.config._name_or_path, str(model.dtype)]).encode())
    name = None if scratch is None else f"{scratch / key.hexdigest()[:12]}"
    with state.main_process_first():
        invented = _invented(config, model, tokenizer, given, most, None if name is None else Path(f"{name}.json"))
    words = ([tokenizer(text, add_special_tokens=False).input_ids for text in texts] for texts in (given, invented))
    begun = openings(config.documents, config.temperatures, *words)
    starts = range(0, config.documents, config.batch_size)
    shards = [None if name is None else Path(f"{name}-{start:06d}.npz") for start in starts]
    mine = range(state.process_index, len(starts), state.num_processes)
    if lessons is not None:
        missing = sum(1 for shard in shards if shard is None or not shard.is_file())
        lessons.announce(missing * config.batch_size * config.length)
    batches = {}
    for i in tqdm(mine, desc="writing text", unit="batch", disable=not state.is_main_process):
        if shards[i] is None or not shards[i].is_file():
            batch = begun[starts[i] : starts[i] + config.batch_size]
            batches[i] = _write_batch(config, model, turns, batch, starts[i], lessons)
            if shards[i] is not None:
                with written_whole(shards[i]) as path:
                    np.savez(path, *batches.pop(i))
    state.wait_for_everyone()
    for i, shard in enumerate(shards):
        tokens, counted = batches[i] if i in batches else np.load(shard).values()
        for document, mask, opening in zip(tokens, counted, begun[starts[i] :], strict=False):
            yield torch.from_numpy(document), torch.from_numpy(mask), opening.shared


def _invented(config: CorpusConfig, model, tokenizer, given: list[str], most: int, file: Path | None) -> list[str]:
    """A prompt for every third document, if there are to be any; kept in a file, if there is one, for the next call."""
    if not config.invent:
        return []
    if file is not None and file.is_file():
        return json.loads(file.read_text())
    found = invent_prompts(
        model, tokenizer, given, config.documents // 3, min(most, config.prompt_length), config.seed,
        int8=config.int8 and int8_pays(model.device),
    )  # fmt: skip
    if file is not None:
        with written_whole(file) as path:
            path.write_text(json.dumps(found, indent=0))
    return found


def _write_batch(
    config: CorpusConfig, model, turns: Turns, begun: Sequence[Opening], start: int, lessons: Lessons | None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and counted positions of the documents from number `start` on, which begin so; [row, position]."""
    generator = torch.Generator(model.device).manual_seed(config.seed * 1_000_003 + start)
    text = write(
        model, turns, config.length, [opening.temperature for opening in begun], config.prompt_temperature,
        config.prompt_length, generator, depths=() if lessons is None else lessons.depths,
        prompts=[opening.words for opening in begun], int8=config.int8 and int8_pays(model.device),
    )  # fmt: skip
    counted = text.said_by_model if config.counted == "answers" else text.said_by_model | text.said_by_user
    if lessons is not None:
        for row, mask in enumerate(counted):
            lessons.store(text.tokens[row], mask, text.lessons.at(row, mask))
    return text.tokens.numpy(), counted.numpy()


def _tokenize(config: CorpusConfig, tokenizer) -> Iterator[tuple[Tensor, Tensor, bool]]:
    texts = tqdm(read_documents(config.source), desc="reading text", unit="document")
    tokens = (tokenizer(t, truncation=True, max_length=config.length, return_tensors="pt").input_ids[0] for t in texts)
    for document in islice((t for t in tokens if len(t) >= _SHORTEST), config.documents):
        yield document, torch.ones(len(document), dtype=torch.bool), False

"""Text as sequences of tokens: written by the model itself, read from a file, or streamed from the Hub.

A sequence is one document, cut at `length` tokens and never packed with another: packed rows are not independent.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.errors import CorpusError, InvalidInputError
from eelib.kvcache import KVCache
from eelib.workspace import written_whole

SPLITS = {"train": 0.7, "calibration": 0.15, "test": 0.15}
"""Shares of the documents. Which split a document falls in is a hash of its own tokens, so it never moves."""

_SHORTEST = 16  # tokens; a shorter document says little about the model


@dataclass(frozen=True)
class CorpusConfig:
    """Which text.

    source: "self" (the model writes it), a .jsonl file with a field "text", a .txt file with blank lines between
        documents, or a dataset that `datasets.load_dataset` knows (a Hub id or a folder), streamed.
    documents: how many, over all splits, before duplicates are dropped.
    length: most tokens of a document.
    temperature: of the sampling, for "self".
    batch_size: documents written at once, for "self".
    seed: of the sampling, for "self".
    """

    source: str = "self"
    documents: int = 560
    length: int = 160
    temperature: float = 0.7
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self):
        if self.documents < 8:
            raise InvalidInputError(f"documents={self.documents}: expected at least 8, to fill three splits.")
        if self.length < _SHORTEST:
            raise InvalidInputError(f"length={self.length}: expected at least {_SHORTEST} tokens.")
        if not self.temperature > 0:
            raise InvalidInputError(f"temperature={self.temperature}: expected a positive number.")
        if self.batch_size < 1:
            raise InvalidInputError(f"batch_size={self.batch_size}: expected a positive number.")


@dataclass(frozen=True)
class Corpus:
    """Three disjoint lists of sequences, each a 1-D LongTensor, and what they were made of.

    first_position: the first position whose next token is text. Before it stands what every document opens with (a
    chat template's words), which says nothing about a head and must not count.
    """

    train: list[Tensor]
    calibration: list[Tensor]
    test: list[Tensor]
    first_position: int = 0
    made_of: dict = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Writes train.parquet, calibration.parquet, test.parquet (column `tokens`) and corpus.json."""
        folder = Path(folder)
        for split in SPLITS:
            with written_whole(folder / f"{split}.parquet") as path:
                pd.DataFrame({"tokens": [s.numpy().astype(np.int32) for s in getattr(self, split)]}).to_parquet(path)
        with written_whole(folder / "corpus.json") as path:
            described = {"first_position": self.first_position, "made_of": self.made_of}
            path.write_text(json.dumps(described, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Corpus":
        """Raises CorpusError where there is no corpus."""
        folder = Path(folder)
        files = ["corpus.json", *(f"{split}.parquet" for split in SPLITS)]
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise CorpusError(f"No corpus in {folder}: {', '.join(missing)} missing. Notebook 01_train_heads makes it.")
        splits = {
            split: [torch.from_numpy(t.astype(np.int64)) for t in pd.read_parquet(folder / f"{split}.parquet").tokens]
            for split in SPLITS
        }
        return cls(**splits, **json.loads((folder / "corpus.json").read_text()))

    def report(self) -> pd.DataFrame:
        """Documents and tokens per split."""
        rows = [
            {"split": split, "documents": len(getattr(self, split)), "tokens": sum(map(len, getattr(self, split)))}
            for split in SPLITS
        ]
        return pd.DataFrame(rows)


def load_corpus(
    config: CorpusConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scratch: str | Path | None = None,
) -> Corpus:
    """The corpus that `config` describes, duplicates dropped, split by document.

    Args:
        scratch: folder for the finished batches of self-generation, which a later call with the same config goes on
            from; None keeps nothing.

    Raises:
        CorpusError: no document, one that cannot be read, or a split that stays empty.
    """
    if config.source == "self":
        documents = _self_generate(config, model, tokenizer, None if scratch is None else Path(scratch))
    else:
        documents = _tokenize(_read(config.source), config, tokenizer)
    splits, seen = {split: [] for split in SPLITS}, set()
    for document in documents:
        digest = hashlib.sha256(document.numpy().tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            splits[_split_of(digest)].append(document)
    empty = [split for split, sequences in splits.items() if not sequences]
    if empty:
        raise CorpusError(
            f"{config.source!r} gave {len(seen)} different documents of at least {_SHORTEST} tokens, which leaves no "
            f"{' and no '.join(empty)} text: give more documents."
        )
    first_position = len(opening(tokenizer)) - 1 if config.source == "self" else 0
    return Corpus(
        **splits, first_position=first_position, made_of={**asdict(config), "model": model.config._name_or_path}
    )


def pad(
    sequences: Sequence[Tensor], first_positions: int | Sequence[int] | Tensor = 0
) -> tuple[Int[Tensor, "batch position"], Bool[Tensor, "batch position"]]:
    """Sequences [position] as one tensor, filled up with token 0 on the right, and the mask of the positions that
    count: real, and not before the first position. A causal model's states do not depend on what is right of them.
    """
    tokens = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    lengths = torch.tensor([len(s) for s in sequences])
    first = torch.as_tensor(first_positions).expand(len(sequences))
    position = torch.arange(tokens.shape[1])[None]
    return tokens, (position < lengths[:, None]) & (position >= first[:, None])


def _split_of(digest: bytes) -> str:
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in SPLITS.items():
        if place < share:
            return split
        place -= share
    return "test"


def _self_generate(config: CorpusConfig, model, tokenizer, scratch: Path | None) -> Iterator[Tensor]:
    prompt = opening(tokenizer).to(model.device)
    if len(prompt) + _SHORTEST > config.length:
        raise CorpusError(f"length={config.length} leaves no room behind an opening of {len(prompt)} tokens.")
    key = hashlib.sha256(json.dumps([asdict(config), model.config._name_or_path, str(model.dtype)]).encode())
    starts = range(0, config.documents, config.batch_size)
    for start in tqdm(starts, desc="writing text", unit="batch"):
        shard = None if scratch is None else scratch / f"{key.hexdigest()[:12]}-{start:06d}.npy"
        if shard is not None and shard.is_file():
            tokens = torch.from_numpy(np.load(shard))
        else:
            rows = min(config.batch_size, config.documents - start)
            generator = torch.Generator(model.device).manual_seed(config.seed * 1_000_003 + start)
            tokens = _sample(model, prompt.repeat(rows, 1), config.length, config.temperature, generator).cpu()
            if shard is not None:
                with written_whole(shard) as path:
                    np.save(path, tokens.numpy())
        yield from tokens


def opening(tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " position"]:
    """What self-generated text starts with: a chat template up to the user's words, which the model then invents with
    the answer to them; without a template, the token that begins (or, failing that, ends) a text.

    Raises:
        CorpusError: the tokenizer has none of these.
    """
    if tokenizer.chat_template:
        mark = "\N{SECTION SIGN}\N{SECTION SIGN}"
        text = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
        tokens = tokenizer(text.partition(mark)[0], add_special_tokens=False).input_ids
    else:
        tokens = [t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None][:1]
    if not tokens:
        raise CorpusError("The tokenizer has no chat template and no token that begins or ends a text: give text.")
    return torch.tensor(tokens)


def as_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, "1 position"]:
    """The text as the model expects to be asked: a user's turn where there is a chat template, else as it is."""
    if not tokenizer.chat_template:
        return tokenizer(text, return_tensors="pt").input_ids
    turn = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt").input_ids


@torch.no_grad()
def _sample(model, tokens: Tensor, length: int, temperature: float, generator: torch.Generator) -> Tensor:
    """Samples on to `length` tokens, through ends of turns. Returns [batch, length]."""
    cache = KVCache(model.config, length)
    fed = tokens
    while tokens.shape[1] < length:
        logits = model(input_ids=fed, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        cumulative = (logits.float() / temperature).softmax(-1).cumsum(-1)  # [batch, vocab]
        u = torch.rand(len(tokens), 1, generator=generator, device=tokens.device)
        fed = torch.searchsorted(cumulative, u * cumulative[:, -1:]).clamp(max=logits.shape[-1] - 1)
        tokens = torch.cat([tokens, fed], dim=1)
    return tokens


def _tokenize(texts: Iterable[str], config: CorpusConfig, tokenizer) -> Iterator[Tensor]:
    kept = 0
    for text in tqdm(texts, desc="reading text", unit="document"):
        tokens = tokenizer(text, truncation=True, max_length=config.length, return_tensors="pt").input_ids[0]
        if len(tokens) >= _SHORTEST:
            yield tokens
            kept += 1
        if kept == config.documents:
            return


def _read(source: str) -> Iterator[str]:
    path = Path(source)
    if path.suffix == ".jsonl" and path.is_file():
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            try:
                yield json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise CorpusError(f"{path}, line {number}: expected a JSON object with a field 'text'.") from error
    elif path.suffix == ".txt" and path.is_file():
        yield from (text for text in path.read_text().split("\n\n") if text.strip())
    elif path.suffix in (".txt", ".jsonl"):
        raise CorpusError(f"No file {source}.")
    else:
        yield from _stream(source)


def _stream(source: str) -> Iterator[str]:
    import datasets  # heavy, and of no use to the other sources

    try:
        rows = datasets.load_dataset(source, split="train", streaming=True)
        for row in rows:
            yield row["text"]
    except KeyError as error:
        raise CorpusError(f"Dataset {source!r} has no column 'text', but {sorted(row)}.") from error
    except Exception as error:  # whatever the library and the network raise, the user needs one sentence
        raise CorpusError(
            f"Cannot read dataset {source!r}: {error}. Expected 'self', a .txt or .jsonl file, a folder of data "
            "files, or the Hub id of a dataset with a split 'train' and a column 'text'."
        ) from error

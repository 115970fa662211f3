"""Corpora: token sequences, self-generated, read from a file, or streamed.

A sequence is one document, cut at `length` tokens and never packed with others: packed rows are not independent.
"""

import hashlib
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.backbone.teacher import Teacher
from eelib.corpus.documents import SHORTEST, CorpusConfig, read_tokenized, write_documents
from eelib.display import table_html
from eelib.errors import CorpusError, InvalidInputError
from eelib.settings import Number
from eelib.workspace import expanded, read_json, read_table, recorded, write_json, write_whole

SPLITS = {"train": 0.8, "calibration": 0.1, "test": 0.1}
"""Shares of the documents.

A document's split is a hash of its own tokens, so it never moves; but one that begins with a given prompt is for
training, since others begin with the same.
"""


@dataclass(frozen=True)
class Corpus:
    """Three disjoint splits of token sequences, and where they come from.

    Attributes:
        train, calibration, test: sequences, each a 1-D LongTensor.
        loss_mask: per split and sequence a mask of the positions that count. A position stands for the next token;
            where the chat template dictates that, it says nothing about a head.
        written: number of documents before duplicates were dropped.
        made_of: source and settings.

    Example:
        >>> corpus = load_corpus(CorpusConfig(documents=80, length=24), model, tokenizer)
        >>> list(corpus.report().columns)[:4]
        ['split', 'documents', 'duplicates', 'tokens']
    """

    train: list[Tensor]
    calibration: list[Tensor]
    test: list[Tensor]
    loss_mask: dict[str, list[Tensor]]
    written: int
    made_of: dict = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Corpus({', '.join(f'{split}: {len(getattr(self, split))} documents' for split in SPLITS)})"

    def _repr_html_(self) -> str:
        rows = []
        for split in SPLITS:
            texts, masks = getattr(self, split), self.loss_mask[split]
            rows.append((split, len(texts), sum(map(len, texts)), sum(int(mask.sum()) for mask in masks)))
        return table_html("Corpus", rows, ("split", "documents", "tokens", "loss tokens"))

    def save(self, folder: str | Path) -> None:
        """Write one parquet file per split, and corpus.json with their digests.

        Raises:
            DiskFullError: the disk is full.
        """
        digests = {}
        with recorded(folder) as temporary:
            for split in SPLITS:
                tokens = [s.numpy().astype(np.int32) for s in getattr(self, split)]
                table = pd.DataFrame({"tokens": tokens, "loss_mask": [mask.numpy() for mask in self.loss_mask[split]]})
                content = io.BytesIO()
                table.to_parquet(content)
                write_whole(temporary / f"{split}.parquet", content.getvalue())
                digests[split] = hashlib.sha256(content.getvalue()).hexdigest()
            about = {"written": self.written, "made_of": self.made_of, "sha256": digests}
            write_json(temporary / "corpus.json", about)

    @classmethod
    def load(cls, folder: str | Path) -> "Corpus":
        """Read what `save` wrote.

        Raises:
            CorpusError: no corpus there, a damaged one, or one of an older layout.
        """
        folder = expanded(folder)
        files = ["corpus.json", *(f"{split}.parquet" for split in SPLITS)]
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise CorpusError(
                f"No corpus in {folder}: {', '.join(missing)} missing. Make one with `eelib.load_corpus` and save it "
                "with `Corpus.save`."
            )
        about = read_json(folder / "corpus.json", CorpusError)
        tables = {split: read_table(folder / f"{split}.parquet", "tokens", error=CorpusError) for split in SPLITS}
        if any("loss_mask" not in table for table in tables.values()):
            raise CorpusError(
                f"The corpus in {folder} has no loss mask, so an earlier version wrote it: make it again with "
                "`eelib.load_corpus`."
            )
        _check_corpus(about, tables, folder)
        splits = {s: [torch.from_numpy(t.astype(np.int64)) for t in table.tokens] for s, table in tables.items()}
        loss_mask = {s: [torch.from_numpy(mask.copy()) for mask in table.loss_mask] for s, table in tables.items()}
        return cls(**splits, loss_mask=loss_mask, written=about["written"], made_of=about["made_of"])

    def report(self) -> pd.DataFrame:
        """Size and repetition of each split, one row each.

        Columns: documents, duplicates dropped (over all splits, before splitting), tokens, loss_tokens (where the loss
        mask holds), distinct tokens, and the share of loss_tokens that repeat: the last of eight tokens that occurred
        in the same document before.
        """
        rows, kept = [], sum(len(getattr(self, split)) for split in SPLITS)
        for split in SPLITS:
            texts, masks = getattr(self, split), self.loss_mask[split]
            loss_tokens = sum(int(mask.sum()) for mask in masks)
            repeated = sum(int((_repeats(t) & mask.numpy()).sum()) for t, mask in zip(texts, masks, strict=True))
            rows.append({
                "split": split, "documents": len(texts), "duplicates": self.written - kept,
                "tokens": sum(map(len, texts)), "loss_tokens": loss_tokens, "different": len(torch.cat(texts).unique()),
                "repeated": repeated / max(loss_tokens, 1),
            })  # fmt: skip
        return pd.DataFrame(rows)


def _check_corpus(about: dict, tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Check that files hold token ids and masks, as saved."""
    digests = about.get("sha256", {})  # an earlier version wrote none
    if not isinstance(about.get("made_of"), dict) or not isinstance(digests, dict):
        raise CorpusError(f"{folder / 'corpus.json'} does not describe a corpus: expected written, made_of, sha256.")
    try:
        Number(least=0, whole=True)("written", about.get("written"))
    except InvalidInputError as error:
        raise CorpusError(f"{folder / 'corpus.json'}: {error}") from error
    for split, table in tables.items():
        file = folder / f"{split}.parquet"
        if split in digests and hashlib.sha256(file.read_bytes()).hexdigest() != digests[split]:
            raise CorpusError(f"{file} was changed after it was written: its digest does not match. Make it again.")
        for tokens, mask in zip(table.tokens, table.loss_mask, strict=True):
            rows = [np.asarray(tokens), np.asarray(mask)]
            if not (
                rows[0].ndim == rows[1].ndim == 1 and np.issubdtype(rows[0].dtype, np.integer) and rows[1].dtype == bool
                and len(rows[0]) == len(rows[1]) > 0 and rows[0].min() >= 0
            ):  # fmt: skip
                raise CorpusError(f"{file} does not hold token ids and their loss mask: make the corpus again.")


def load_corpus(
    config: CorpusConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scratch: str | Path | None = None,
    teacher: Teacher | None = None,
) -> Corpus:
    """Generate or read a corpus, deduplicate it, and split by document.

    Args:
        scratch: folder for finished batches of self-generation, from which a later call with the same config resumes,
            and where several processes meet; None keeps nothing.
        teacher: caches its outputs on the model's own text during generation, to save a pass in training.

    Raises:
        CorpusError: no document, an unreadable one, fewer than requested, or an empty split.
        TeacherError: no disk space for teacher outputs.

    Example:
        >>> corpus = load_corpus(CorpusConfig(documents=80, length=24), model, tokenizer)
        >>> len(corpus.train) > len(corpus.test) > 0
        True
    """
    if config.source == "self":
        documents = write_documents(config, model, tokenizer, None if scratch is None else expanded(scratch), teacher)
    else:
        documents = read_tokenized(config, tokenizer)
    splits, loss_mask = {split: [] for split in SPLITS}, {split: [] for split in SPLITS}
    seen, written = set(), 0
    for document, mask, shared in documents:
        written += 1
        digest = hashlib.sha256(document.numpy().tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            split = "train" if shared else _split_of(digest)
            splits[split].append(document)
            loss_mask[split].append(mask)
    if config.documents is not None and written < config.documents:
        raise CorpusError(
            f"{config.source!r} ran out: it has {written} documents of at least {SHORTEST} tokens, expected "
            f"{config.documents}. Add text, or set documents=None for all there is."
        )
    empty = [split for split, sequences in splits.items() if not sequences]
    if empty:
        raise CorpusError(
            f"{config.source!r} has {len(seen)} different documents of at least {SHORTEST} tokens, which leaves no "
            f"{' and no '.join(empty)} text: use more documents."
        )
    made_of = {**asdict(config), "temperatures": [*config.temperatures], "model": model.config._name_or_path}
    return Corpus(**splits, loss_mask=loss_mask, written=written, made_of=made_of)


def _split_of(digest: bytes) -> str:
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in SPLITS.items():
        if place < share:
            return split
        place -= share
    return "test"


def _repeats(tokens: Tensor, n: int = 8) -> np.ndarray:
    """Positions whose next token completes a repeated n-gram of the document, [position]."""
    found, seen, text = np.zeros(len(tokens), dtype=bool), set(), tokens.tolist()
    for end in range(n - 1, len(text)):
        words = tuple(text[end - n + 1 : end + 1])
        found[end - 1] = words in seen
        seen.add(words)
    return found

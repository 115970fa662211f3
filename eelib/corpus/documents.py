"""Documents as tokens, one by one: self-generated, or read."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm

from eelib.backbone.int8 import int8_pays
from eelib.backbone.segments import Backbone
from eelib.backbone.teacher import Teacher
from eelib.corpus.chat import Turns
from eelib.corpus.generation import generate_texts
from eelib.corpus.prompts import Opening, given_prompts, invent_prompts, openings
from eelib.corpus.reading import read_documents
from eelib.errors import CorpusError, InvalidInputError
from eelib.settings import COUNT, POSITIVE, SEED, Number, check_known, flag, settle
from eelib.workspace import atomic_write, read_json, write_json
from eelib.workspace.artefacts import read_bytes, short

LOSS_ON = ("answers", "words")

SHORTEST = 16  # tokens; a shorter document says little about the model


@dataclass(frozen=True)
class CorpusConfig:
    """Settings of a corpus.

    Attributes:
        source: "self" (the model writes it), a packaged text (`eelib.corpus.reading.PACKAGED`), a .jsonl file with a
            field "text", a .txt file with blank lines between documents, or a dataset for `datasets.load_dataset` (a
            Hub id or a folder), streamed.
        documents: number over all splits, before deduplication; None for all of a file or dataset.
        length: maximum tokens of a document.
        temperatures: of the model's answers, cycled over documents; 0 is greedy. This and the rest are for "self".
        prompts: file or dataset, as above, of prompts that open every other document, in turn: text like that of the
            heads' later use. None: the model makes all of them up.
        invent: the model first makes up more such prompts. Then of three documents one opens with a prompt from
            `prompts`, one with an invented one of its own, and one with what the model makes up from nothing.
        prompt_temperature: of the user's words that the model makes up.
        prompt_length: maximum tokens of those; longer invented prompts are dropped.
        loss_on: positions for training and measuring: those of the model's answers ("answers"), or of the user's words
            too ("words"). Tokens of the chat template never count.
        batch_size: documents generated at once.
        int8: generate (and teach) with an int8 copy of the model where that is faster.
        seed: of the sampling.

    Raises:
        InvalidInputError: a setting is out of range.

    Example:
        >>> CorpusConfig(documents=200, temperatures=[0, 0.8]).temperatures
        (0.0, 0.8)
    """

    source: str = "self"
    documents: int | None = 560
    length: int = 160
    temperatures: Sequence[float] = (0.0, 0.0, 0.6, 0.9)
    prompts: str | None = None
    invent: bool = False
    prompt_temperature: float = 1.0
    prompt_length: int = 64
    loss_on: str = "answers"
    batch_size: int = 256
    int8: bool = False
    seed: int = 0

    def __post_init__(self):
        at_least_8 = Number(least=8, whole=True, optional=True)  # to fill three splits
        settle(self, documents=at_least_8, length=Number(least=SHORTEST, whole=True), seed=SEED)
        settle(self, prompt_length=COUNT, batch_size=COUNT, invent=flag, int8=flag, temperatures=_temperatures)
        if self.documents is None and self.source == "self":
            raise InvalidInputError("documents=None: expected a number of documents to generate.")
        if self.invent and self.prompts is None:
            raise InvalidInputError("invent=True: expected `prompts`, a file of examples to invent more from.")
        settle(self, prompt_temperature=POSITIVE)  # at 0 all texts would be the same
        check_known("loss_on", self.loss_on, LOSS_ON)
        settle(self, source=_text_of, prompts=lambda name, given: None if given is None else _text_of(name, given))


def _text_of(name: str, source: str | Path) -> str:
    if not isinstance(source, str | Path):
        raise InvalidInputError(f"{name}={source!r}: expected the name of a source, a file or a dataset.")
    return str(source)


def _temperatures(name: str, values: Sequence[float]) -> tuple[float, ...]:
    values = tuple(Number(least=0)(name, value) for value in ([values] if np.ndim(values) == 0 else values))
    if not values:
        raise InvalidInputError(f"{name}=(): expected numbers from 0 (greedy) on.")
    return values


class Document(NamedTuple):
    """One document as tokens.

    Attributes:
        tokens: [position].
        loss_mask: positions that count, [position].
        shared: whether other documents begin with the same words.
    """

    tokens: Tensor
    loss_mask: Tensor
    shared: bool


def write_documents(
    config: CorpusConfig, model, tokenizer, scratch: Path | None, teacher: Teacher | None
) -> Iterator[Document]:
    """Documents written by the model, in batches cached in `scratch`, if given."""
    turns, state, context = Turns.of(tokenizer), PartialState(), Backbone.of(model).context_length
    if context is not None and config.length > context:
        raise CorpusError(f"length={config.length}: the model was made for texts of at most {context} tokens.")
    if len(turns.opening) + SHORTEST > config.length:
        raise CorpusError(
            f"length={config.length}: expected more than the {len(turns.opening)} tokens of the chat template's "
            "opening."
        )
    if not turns.to_model and config.prompts is None and config.prompt_length + 1 >= config.length:
        raise CorpusError(
            f"length={config.length}, prompt_length={config.prompt_length}: without a chat template the first "
            "prompt_length tokens are the user's, which leaves none to the model. Use a greater length or a smaller "
            "prompt_length."
        )
    if scratch is None and state.num_processes > 1:
        raise InvalidInputError(
            "Several processes share generated text through files: pass load_corpus a `scratch` folder."
        )
    given, most = [], config.length - len(turns.opening) - SHORTEST
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
    if teacher is not None:
        missing = sum(1 for shard in shards if shard is None or not shard.is_file())
        teacher.announce(missing * config.batch_size * config.length)
    batches = {}
    for i in tqdm(mine, desc="writing text", unit="batch", disable=not state.is_main_process):
        if shards[i] is None or not shards[i].is_file():
            batch = begun[starts[i] : starts[i] + config.batch_size]
            batches[i] = _write_batch(config, model, turns, batch, starts[i], teacher)
            if shards[i] is not None:
                batch = batches.pop(i)
                with atomic_write(shards[i], size=sum(array.nbytes + 1024 for array in batch)) as path:
                    np.savez(path, *batch)
    state.wait_for_everyone()
    for i, shard in enumerate(shards):
        tokens, loss_mask = batches[i] if i in batches else _finished(shard, config.length)
        for document, mask, opening in zip(tokens, loss_mask, begun[starts[i] :], strict=False):
            yield Document(torch.from_numpy(document), torch.from_numpy(mask), opening.shared)


def _finished(shard: Path, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss masks of a finished batch, [row, position]."""
    try:
        with np.load(
            io.BytesIO(read_bytes(shard, CorpusError, most=2**34, scratch=True)), allow_pickle=False
        ) as arrays:
            tokens, loss_mask = map(np.asarray, arrays.values())  # numpy returns the bytes of what holds no array
    except Exception as error:  # zip, deflate and numpy's header share no narrower class
        raise CorpusError(
            f"{shard} is damaged ({short(error)}): delete it, and that batch is written again."
        ) from error
    right = tokens.ndim == 2 and tokens.shape == loss_mask.shape and tokens.shape[1] == length
    if not (right and tokens.dtype == np.int64 and loss_mask.dtype == bool and tokens.min(initial=0) >= 0):
        raise CorpusError(f"{shard} holds something else than a batch of text: delete it, and it is written again.")
    return tokens, loss_mask


def _invented(config: CorpusConfig, model, tokenizer, given: list[str], most: int, file: Path | None) -> list[str]:
    """Invented prompts for every third document, cached in `file`, if requested."""
    if not config.invent:
        return []
    if file is not None and file.is_file():
        found = read_json(file, CorpusError, scratch=True).get("prompts")
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise CorpusError(f"{file} holds no invented prompts: delete it, and they are invented again.")
        return found
    found = invent_prompts(
        model, tokenizer, given, config.documents // 3, min(most, config.prompt_length), config.seed,
        int8=config.int8 and int8_pays(model.device),
    )  # fmt: skip
    if file is not None:
        write_json(file, {"prompts": found})
    return found


def _write_batch(
    config: CorpusConfig, model, turns: Turns, begun: Sequence[Opening], start: int, teacher: Teacher | None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss masks of the documents from `start` on, [row, position]."""
    generator = torch.Generator(model.device).manual_seed(config.seed * 1_000_003 + start)
    text = generate_texts(
        model, turns, config.length, [opening.temperature for opening in begun], config.prompt_temperature,
        config.prompt_length, generator, depths=() if teacher is None else teacher.depths,
        prompts=[opening.words for opening in begun], int8=config.int8 and int8_pays(model.device),
    )  # fmt: skip
    loss_mask = text.by_model if config.loss_on == "answers" else text.by_model | text.by_user
    if teacher is not None:
        for row, mask in enumerate(loss_mask):
            teacher.store(text.tokens[row], mask, text.teacher_outputs.of_row(row, mask))
    return text.tokens.numpy(), loss_mask.numpy()


def read_tokenized(config: CorpusConfig, tokenizer) -> Iterator[Document]:
    """Documents of the file or dataset `config.source`; every position counts."""
    texts = tqdm(read_documents(config.source), desc="reading text", unit="document")
    tokens = (tokenizer(t, truncation=True, max_length=config.length, return_tensors="pt").input_ids[0] for t in texts)
    for document in islice((t for t in tokens if len(t) >= SHORTEST), config.documents):
        yield Document(document, torch.ones(len(document), dtype=torch.bool), shared=False)

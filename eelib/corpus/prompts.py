"""Prompts that open a chat: from a file, or invented."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.corpus.chat import Turns
from eelib.corpus.generation import generate_texts
from eelib.corpus.reading import read_documents
from eelib.errors import CorpusError

_EXAMPLES = 3  # given prompts that stand before one that is made up
_ROWS = 256  # at most so many are made up at once, behind the same examples
_TEMPERATURE = 0.9
_FEWEST = 4  # tokens of a prompt that is made up


@dataclass(frozen=True)
class Opening:
    """How a document begins.

    Attributes:
        temperature: of its answers; 0 is greedy.
        words: tokens of the user's first words; empty where the model makes them up.
        shared: whether other documents begin with the same.
    """

    temperature: float
    words: Sequence[int] = ()
    shared: bool = False


def openings(
    documents: int, temperatures: Sequence[float], given: Sequence[Sequence[int]], invented: Sequence[Sequence[int]]
) -> list[Opening]:
    """Openings of the documents: without, given and invented prompts in turn.

    As far as there are such. A given prompt meets every temperature in turn, but is answered greedily only once.
    """
    found, again = [], [t for t in temperatures if t > 0] or temperatures
    ways = 1 + bool(given) + bool(invented)
    for number in range(documents):
        turn, way = divmod(number, ways)
        temperature = temperatures[turn % len(temperatures)]
        if way == 0:
            found.append(Opening(temperature))
        elif way == 1:
            time, which = divmod(turn, len(given))
            those = temperatures if time < len(temperatures) else again
            found.append(Opening(those[(time + which) % len(those)], given[which], shared=True))
        else:
            found.append(Opening(temperature, invented[turn]))
    return found


def given_prompts(source: str, most: int, limit: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of a source that are short enough for prompts.

    They have 1 to `most` tokens, and are among the first `limit`.

    Raises:
        CorpusError: there is none.
    """
    texts = list(islice(read_documents(source), limit))
    fitting = [text for text in texts if 0 < len(tokenizer(text, add_special_tokens=False).input_ids) <= most]
    if not fitting:
        raise CorpusError(
            f"{source!r} has {len(texts)} prompts, none of 1 to {most} tokens, which would leave room for an answer: "
            "use shorter prompts, or a greater `length`."
        )
    return fitting


def invent_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    given: Sequence[str],
    count: int,
    most: int,
    seed: int = 0,
    int8: bool = False,
) -> list[str]:
    """Prompts invented by the model as continuations of a list.

    They are distinct, of one line and up to `most` tokens. The examples are neighbours, which in a file are often of
    one kind, from all over the given ones; of one line and up to `most` tokens where there are such, since what follows
    is about as long.

    Raises:
        CorpusError: hardly any are new.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    alike = [text for text in given if "\n" not in text.strip()] or given
    alike = [text for text in alike if len(tokenizer(text, add_special_tokens=False).input_ids) <= most] or alike
    examples, found, place = [" ".join(text.split()) for text in alike], {}, 0.0
    with tqdm(total=count, desc="making up prompts", unit="prompt") as bar:
        while len(found) < count:
            first, place = int(place * len(examples)), (place + 0.618) % 1  # the golden ratio leaves no gaps
            some = [examples[(first + i) % len(examples)] for i in range(min(_EXAMPLES, len(examples)))]
            opening = tokenizer("\n".join([*(f"- {text}" for text in some), "-"])).input_ids
            rows = min(_ROWS, 32 + (count - len(found)) * 2)  # about half of them will do
            text = generate_texts(
                model, Turns(tuple(opening), (), (), frozenset()), len(opening) + most + 1, [_TEMPERATURE] * rows,
                _TEMPERATURE, 1, generator, int8=int8,
            )  # fmt: skip
            new = [_first_line(row, tokenizer) for row in text.tokens[:, len(opening) :].tolist()]
            new = {line: None for line in new if line and line not in found and line not in examples}
            if len(new) < rows / 32:
                raise CorpusError(
                    f"Of {rows} prompts that {model.config._name_or_path} invented, {len(new)} were new and ended "
                    f"within {most} tokens: set `invent` to false, or use more and shorter prompts."
                )
            found |= new
            bar.update(min(len(new), count - bar.n))
    return list(found)[:count]


def _first_line(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The first line; None if unfinished, too short, or with special tokens."""
    text = tokenizer.decode(tokens)
    line, end, _ = text.partition("\n")
    words = tokenizer(line, add_special_tokens=False).input_ids
    special = set(words) & set(tokenizer.all_special_ids)
    return line.strip() if end and len(words) >= _FEWEST and not special else None

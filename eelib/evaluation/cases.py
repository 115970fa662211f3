"""Packaged benchmark cases, and prompts to decode."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eelib.corpus.chat import as_prompt
from eelib.corpus.reading import read_documents
from eelib.errors import FetchError, InvalidInputError
from eelib.packaged import case_file
from eelib.workspace import read_lines

MULTIPLE_CHOICE = ("hellaswag", "truthfulqa_mc1")


@dataclass(frozen=True)
class Case:
    """Multiple-choice case: the model ranks continuations of a context.

    Attributes:
        context: the text to continue.
        choices: continuations.
        answer: index of the right one.
        per_character: whether log-likelihoods are divided by the characters of the choice.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    per_character: bool


def load_cases(task: str) -> list[Case]:
    """Packaged cases of `hellaswag` (log-likelihood per character) or `truthfulqa_mc1` (zero-shot, sums)."""
    if task not in MULTIPLE_CHOICE:
        raise InvalidInputError(f"Unknown task {task!r}: expected one of {', '.join(MULTIPLE_CHOICE)}.")
    rows = read_rows(task)
    if task == "hellaswag":
        return [
            Case(f"{r['activity_label']}: {r['ctx']}", tuple(r["endings"]), r["expected_index"], True) for r in rows
        ]
    return [Case(f"Q: {r['question']}\nA:", tuple(r["choices"]), r["expected_index"], False) for r in rows]


def load_prompts(
    tokenizer: PreTrainedTokenizerBase, n: int, skip: int = 0, file: str | Path | None = None
) -> list[Int[Tensor, "1 position"]]:
    """Load n prompts from number `skip` on, of a file or GSM8K.

    Args:
        file: a .jsonl file with a field "text", or a .txt file with blank lines between prompts (`read_documents`);
            None for GSM8K's questions.

    Raises:
        InvalidInputError: there are fewer.
        CorpusError: the file is unreadable.
    """
    return [as_prompt(text, tokenizer) for text in prompt_texts(tokenizer, n, skip, file)]


def prompt_texts(
    tokenizer: PreTrainedTokenizerBase, n: int, skip: int = 0, file: str | Path | None = None
) -> list[str]:
    """Prompts of `load_prompts` as text.

    For a user's turn or, without a chat template, to be continued.
    """
    if file is None:
        rows = read_rows("gsm8k")
        if skip + n > len(rows):
            raise InvalidInputError(f"{skip + n} questions asked for, {len(rows)} are there: ask for fewer.")
        template = "{}" if tokenizer.chat_template else "Question: {}\nAnswer:"
        return [template.format(row["prompt"]) for row in rows[skip : skip + n]]
    texts = list(islice(read_documents(str(file)), skip, skip + n))
    if len(texts) < n:
        raise InvalidInputError(
            f"{skip + n} prompts asked for, {file} has {skip + len(texts)}: add more, or ask for fewer."
        )
    return [text.strip() for text in texts]


def read_rows(task: str) -> list[dict]:
    """Packaged cases of a task, as stored.

    Raises:
        FetchError: they have not been fetched, or are damaged.
    """
    return read_lines(case_file(task), error=FetchError)

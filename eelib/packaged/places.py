"""Lookup of fetched files.

They are in `data/` of `EELIB_HOME`, of the working folder, or of one of its parents.
"""

from collections.abc import Callable
from pathlib import Path

from eelib.errors import FetchError, InvalidInputError, ModelError
from eelib.packaged.registry import CASES
from eelib.workspace import home


def model_folder(name: str) -> Path:
    """Folder of a packaged model.

    Raises:
        ModelError: it has not been fetched.
    """
    folder = _find(Path("models") / name, model_is_there)
    if folder is None:
        raise ModelError(
            f"The packaged model {name} is not in {home() / 'data' / 'models'}, nor under data/models of the working "
            f"folder or one above it. Fetch it with `python -m eelib.packaged {name}`."
        )
    return folder


def case_file(name: str) -> Path:
    """File of benchmark cases or of the prompts beside them, `{name}.jsonl`.

    Raises:
        InvalidInputError: no packaged file has this name.
        FetchError: it has not been fetched.
    """
    of = next((of for of, cases in CASES.items() if name in cases.names), None)
    if of is None:
        known = sorted(file for cases in CASES.values() for file in cases.names)
        raise InvalidInputError(f"No packaged cases are called {name!r}: expected one of {', '.join(known)}.")
    folder = _find(Path(of), lambda folder: cases_are_there(of, folder))
    if folder is None:
        raise FetchError(
            f"No {CASES[of].title} in {home() / 'data' / of}, nor in data/{of} of the working folder or one above it. "
            f"Fetch them with `python -m eelib.packaged {of}`."
        )
    return folder / f"{name}.jsonl"


def _find(place: Path, is_there: Callable[[Path], bool]) -> Path | None:
    roots = (home(), Path.cwd(), *Path.cwd().parents)
    return next((folder for root in roots if is_there(folder := root / "data" / place)), None)


def model_is_there(folder: Path) -> bool:
    """Whether `folder` holds a converted model: configuration, weights and tokenizer."""
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json"))


def cases_are_there(name: str, folder: Path) -> bool:
    """Whether `folder` holds the packaged cases and the prompts beside them."""
    return all((folder / f"{file}.jsonl").is_file() for file in CASES[name].names)

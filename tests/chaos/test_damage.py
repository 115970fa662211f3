"""Damaged files of every kind: refused in one of eelib's own errors before use, or harmless."""

import random
import struct
from pathlib import Path

import pandas as pd
import pytest
from chaos.readers import Places
from tiny import PROJECT

from eelib.errors import EelibError

NAMES = (
    "heads: weights", "heads: config", "heads: policy", "fused heads: weights", "fused heads: config", "calibration",
    "traces", "corpus: about", "corpus: text", "teacher outputs", "checkpoint", "batch of text", "invented prompts",
    "recipe", "config", "prompts: jsonl", "prompts: text", "prompts: gzip", "cases", "note", "table of a figure",
    "notebook", "provenance", "model: config", "model: weights", "model: tokenizer",
)  # fmt: skip
TRIED: list[dict] = []


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return Places(tmp_path_factory.mktemp("files"))


def test_every_reader_is_tried(places):
    assert list(places.readers()) == list(NAMES)


def header(content: bytes) -> int:
    """Bytes that say what the others are."""
    if len(content) > 8 and content[8:9] == b"{":
        return min(len(content), 8 + struct.unpack("<Q", content[:8])[0])
    return min(len(content), 256)


def cut(content: bytes, points: int, every: int) -> list[bytes]:
    """The file cut off at every so many bytes of its header and at points of its body."""
    start, step = header(content), max(1, (len(content) - header(content)) // points)
    ends = [*range(0, start, every), *range(start, len(content), step)]
    return [content[:end] for end in ends]


def flipped(content: bytes, n: int) -> list[bytes]:
    """The file with one bit changed, n times; half of them in the header, where it is not half of the file."""
    draw, found = random.Random(0), []
    for i in range(n):
        place = draw.randrange(header(content) if i % 2 else len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        found.append(bytes(changed))
    return found


def refused(reader, folder: Path, content: bytes, good: object = None) -> bool:
    """Whether a reader refuses a content; if not, it must use it without an error, and sealed ones as if undamaged."""
    file = folder / reader.file
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        found = reader.read(folder)
        assert not reader.sealed or found == good, "a change went unseen"
        return False
    except EelibError as error:
        assert str(error) and len(str(error)) < 2000
        return True
    finally:
        file.write_bytes(before)


def tried(places: Places, name: str, how: str, contents: list[bytes]) -> int:
    """Reads damaged contents; returns how many were refused."""
    reader = places.readers()[name]
    good = reader.read(places.folder)
    count = sum(refused(reader, places.folder, content, good) for content in contents)
    TRIED.append({"file": name, "damage": how, "tried": len(contents), "refused": count})
    return count


def damage(places: Places, name: str, flips: int, points: int, every: int) -> None:
    content = (places.folder / places.readers()[name].file).read_bytes()
    cuts = cut(content, points, every)
    counts = tried(places, name, "cut off", cuts), tried(places, name, "one bit", flipped(content, flips))
    if places.readers()[name].sealed:
        assert counts[0] >= len(cuts) - 1 and counts[1] >= 0.9 * flips  # the last byte may be the end of a line


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_refused_or_harmless(places, name):
    damage(places, name, flips=10, points=5, every=61)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_damage_at_every_byte_of_the_header(places, name):
    """And at 200 points of the body, and 1,000 single bits; counts go into docs/results/damage.csv."""
    TRIED.clear()
    damage(places, name, flips=1000, points=200, every=1)
    file = PROJECT / "docs" / "results" / "damage.csv"
    earlier = pd.read_csv(file).to_dict("records") if file.is_file() else []
    rows = [*(row for row in earlier if row["file"] != name), *TRIED]
    rows.sort(key=lambda row: NAMES.index(row["file"]))
    pd.DataFrame(rows).to_csv(file, index=False)

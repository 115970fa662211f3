"""API pages: one per room, with every public name."""

import ast
import importlib
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator
from types import ModuleType

import eelib

FRONT, FIELD = "eelib", re.compile(r"(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*): (?P<text>\S.*)")
SECTIONS = {"Args", "Raises", "Returns", "Yields", "Attributes", "Example", "Examples", "Note", "Columns"}


def rooms() -> list[str]:
    """Rooms and the modules beside them, in alphabetical order."""
    return sorted(name for name in eelib.__all__ if inspect.ismodule(getattr(eelib, name)))


def public_names(module: ModuleType) -> list[str]:
    """Public names of a room or module, modules included.

    Without `__all__`, those that the module defines itself.
    """
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return sorted(name for name in own if not name.startswith("_"))


def api_pages() -> dict[str, str]:
    """Sources of the API pages in reStructuredText, by path."""
    return {"api/index.rst": _front_page()} | {f"api/{room}.rst": _room_page(room) for room in rooms()}


def at_home() -> dict[str, str]:
    """Full name of each name at the front door.

    Such as `eelib.decoding.generate`; a name that no room has is described at the door.
    """
    homes = {}
    for name in sorted(set(public_names(eelib)) - set(rooms())):
        offering = (room for room in rooms() if name in public_names(importlib.import_module(f"{FRONT}.{room}")))
        homes[name] = ".".join(filter(None, (FRONT, next(offering, ""), name)))
    return homes


def _front_page() -> str:
    lines = [*_title(FRONT, "="), f".. automodule:: {FRONT}", "", *_title("Names at the front door", "-")]
    lines += [".. list-table::", ""]
    for name, home in at_home().items():
        lines += [f"   * - :py:obj:`{FRONT}.{name} <{home}>`", *_cell(docstring(*home.rsplit(".", 1)))]
    lines += ["", *_title("Rooms", "-"), ".. list-table::", ""]
    for room in rooms():
        lines += [f"   * - :doc:`{FRONT}.{room} <{room}>`", *_cell(docstring(FRONT, room))]
    lines += [""]
    for name, home in at_home().items():
        lines += _entry(FRONT, name) if home == f"{FRONT}.{name}" else []
    return "\n".join(lines)


def _cell(text: str) -> list[str]:
    """First sentence of a docstring, as a cell."""
    sentence = " ".join(inspect.cleandoc(text).partition("\n\n")[0].split())
    return ["     - .. markdown::", "", f"          {re.split(r'(?<=[.]) ', sentence)[0]}"]


def _room_page(room: str) -> str:
    module = importlib.import_module(f"eelib.{room}")
    names = public_names(module)
    modules = [name for name in names if inspect.ismodule(getattr(module, name))]
    lines = [*_title(module.__name__, "="), f".. automodule:: {module.__name__}", ""]
    for name in names:
        if name not in modules:
            lines += _entry(module.__name__, name)
    if modules:
        lines += _title("Modules", "-")
        for name in modules:
            lines += [*_title(name, "~"), f".. automodule:: {module.__name__}.{name}", ""]
    return "\n".join(lines)


def _entry(owner: str, name: str) -> list[str]:
    value = getattr(importlib.import_module(owner), name)
    if inspect.isclass(value):
        bases = ["   :show-inheritance:"] if value.__bases__ != (object,) else []
        return [f".. autoclass:: {owner}.{name}", "   :members:", *bases, ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {owner}.{name}", ""]
    text = as_markdown(docstring(owner, name)).splitlines()
    return [
        f".. py:data:: {name}",
        f"   :module: {owner}",
        "",
        "   .. markdown::",
        "",
        *(f"      {line}" for line in text),
        "",
    ]


def docstring(owner: str, name: str) -> str:
    """Docstring of a public name, or "".

    For a constant, the string behind its assignment.
    """
    value = getattr(importlib.import_module(owner), name)
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isroutine(value):
        return value.__doc__ or ""
    package = importlib.import_module(owner)
    modules = [package, *(getattr(package, part) for part in getattr(package, "__all__", []))]
    for module in filter(inspect.ismodule, modules):
        if (found := _constant_docstring(module, name)) is not None:
            return found
    return ""


def _constant_docstring(module: ModuleType, name: str) -> str | None:
    """String behind the assignment of a name, or None."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, following in itertools.pairwise(body):
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        names = {node.id for target in targets if target for node in ast.walk(target) if isinstance(node, ast.Name)}
        explained = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if name in names and isinstance(statement, ast.Assign | ast.AnnAssign) and explained:
            return str(following.value.value)
    return None


def as_markdown(text: str) -> str:
    """Docstring as Markdown.

    Sections such as `Args:` become lists, examples become code.
    """
    lines, parts = inspect.cleandoc(text).splitlines(), [("", [])]
    for line, following in itertools.zip_longest(lines, lines[1:], fillvalue=""):
        if line.removesuffix(":") in SECTIONS and line.endswith(":") and following.startswith(" "):
            parts.append((line.removesuffix(":"), []))
        elif parts[-1][0] and line and not line.startswith(" "):
            parts.append(("", [line]))
        else:
            parts[-1][1].append(line)
    return "\n".join(part for section, body in parts for part in _part(section, body))


def _part(section: str, body: list[str]) -> Iterator[str]:
    if section:
        yield from ("", f"**{section}**", "")
        body = textwrap.dedent("\n".join(body)).splitlines()
    code = [line for line in body if line.strip()]
    if section.startswith("Example") and not any(line.startswith(">>>") for line in code):
        yield from ("```python", *body, "```")
    else:
        yield from _lists(_examples(body))


def _examples(lines: Iterable[str]) -> Iterator[str]:
    """Lines with interactive sessions fenced as code."""
    fenced = False
    for line in lines:
        if line.startswith(">>>") and not fenced:
            fenced = True
            yield from ("", "```pycon")
        elif fenced and not line.strip():
            fenced = False
            yield "```"
        yield line
    if fenced:
        yield "```"


def _lists(lines: Iterable[str]) -> Iterator[str]:
    """Lines with runs of `name: text` as lists.

    Hanging lines belong to the item above them.
    """
    listing, before = False, ""
    for line in lines:
        entry = FIELD.fullmatch(line)
        if entry and (listing or not before.strip()):
            names = ", ".join(f"`{name}`" for name in entry["names"].split(", "))
            yield from ([] if listing else [""])
            listing, text = True, f"- {names}: {entry['text']}"
        elif listing and line.startswith(" "):
            text = f"  {line.removeprefix('    ')}"
        elif listing and line.strip():
            listing, text = False, f"\n{line}"
        else:
            text = line
        before = line
        yield text


def _title(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]

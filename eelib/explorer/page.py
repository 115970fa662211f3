"""Live views as widgets, and as pages without kernel or network."""

import html
import json
import re
from importlib.resources import files
from typing import Any

from eelib.errors import MissingExtraError

MODULES = (
    "what_if", "drawing", "tokens_view", "heatmap_view", "replay_view", "token_details", "what_if_view", "explorer",
)  # fmt: skip
"""The view's modules, each after those that it imports from."""
_IMPORT = re.compile(r'^import\s[^;]*?\sfrom\s"\./[^"]+";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) )", re.MULTILINE)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
{css}
html, body {{ margin: 0; }}
</style>
</head>
<body>
<main></main>
<script type="application/json" id="held">{held}</script>
<script type="module">
{script}
mount(document.querySelector("main"), JSON.parse(document.getElementById("held").textContent));
</script>
</body>
</html>
"""


def module() -> str:
    """The view as one ES module: its modules in a row.

    Without their imports and exports of each other.
    """
    sources = [_read(f"{name}.mjs") for name in MODULES]
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", source)) for source in sources)


def style() -> str:
    """The view's stylesheet."""
    return _read("explorer.css")


def page(state: dict, title: str) -> str:
    """The whole page.

    Args:
        state: as the widget has it.
    """
    return page_of(state, title, style(), module())


def page_of(state: dict, title: str, css: str, script: str) -> str:
    """A page of any view whose module has `mount(element, state)`."""
    held = json.dumps(state, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
    return _PAGE.format(title=html.escape(title), css=css, held=held, script=script)


def frame(content: str, height: int) -> str:
    """A page inside another one, such as a notebook's output."""
    about = "Exit explorer, without a kernel"
    return (
        f'<iframe title="{about}" srcdoc="{html.escape(content)}" loading="lazy" '
        f'style="width:100%;height:{height}px;border:1px solid #8888;border-radius:6px"></iframe>'
    )


def widget_class(name: str, script: str, style: str, **fields: Any) -> type:
    """An anywidget whose fields, given with their defaults, the browser shares.

    Raises:
        MissingExtraError: anywidget is not installed.
    """
    try:
        import anywidget
        import traitlets as of
    except ImportError as error:
        raise MissingExtraError(f"No anywidget ({error}): pip install 'eelib[explore]' (to_html needs none)") from error
    kinds = {dict: of.Dict, list: of.List, str: of.Unicode, int: of.Int, bool: of.Bool}
    shared = {field: kinds[type(value)](default_value=value).tag(sync=True) for field, value in fields.items()}
    return type(name, (anywidget.AnyWidget,), {"_esm": script, "_css": style, **shared})


def show_live(bundle: tuple[dict, dict], told: str) -> None:
    """Display a live view, below a sentence that its style hides.

    So what is seen where a saved notebook is opened without the kernel is the sentence.
    """
    from IPython.display import display

    display({"text/html": f'<p class="eelib-note">{html.escape(told)}</p>', "text/plain": ""}, raw=True)
    display(bundle[0], metadata=bundle[1], raw=True)


def _read(name: str) -> str:
    return files("eelib.explorer").joinpath(name).read_text(encoding="utf-8")

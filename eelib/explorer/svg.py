"""Pictures of a recording without a browser."""

import html
import unicodedata

import numpy as np

from eelib.errors import InvalidInputError
from eelib.evaluation.weight_reads import emitted_depths
from eelib.explorer.recording import Recording
from eelib.settings import check_known

VIEWS = ("tokens", "heatmap", "replay")
"""Pictures that `Explorer.to_svg` draws."""
DEPTHS = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#56b4e9", "#ece133")
"""Colours of depths, in their order."""
_HEAT = np.array([[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]])
_INK, _FAINT, _WRONG, _LOOKED_UP = "#1b1f24", "#57606a", "#b3261e", "#949494"
_WIDE, _LETTER, _ROW = 760, 8.43, 28


def picture(recording: Recording, view: str, metric: str | None = None) -> str:
    """A view as SVG, on white.

    Args:
        metric: of the heatmap; the policy's by default.
    """
    check_known("view", view, VIEWS)
    if view != "heatmap":
        return {"tokens": _tokens, "replay": _replay}[view](recording)
    metric = metric or recording.settings["metric"]
    scores = {"kl": -recording.traces.kl} | {name: of[0] for name, of in recording.traces.scores.items()}
    if metric not in scores:
        raise InvalidInputError(f"metric={metric!r}: expected one of {', '.join(scores)}.")
    return _heatmap(recording, scores[metric])


def _tokens(recording: Recording) -> str:
    """The text in rows; rejected drafts stand where they were made."""
    traces, x, y, shapes = recording.traces, 12.0, _ROW, []
    depths, rejected = _settled(recording)
    for position, piece in enumerate(traces.pieces):
        token = position - traces.prompt_length
        words = [(traces.vocabulary.get(draft, ""), None) for draft in rejected.get(token, ())]
        for text, depth in [*words, (piece, depths[token] if token >= 0 else -1)]:
            shown, width = _shown(text), _width(_shown(text)) + 5
            if x + width > _WIDE:
                x, y = 12.0, y + _ROW
            color = _color(recording, depth)
            if color:
                shapes.append(_box(x, y - 16, width, 22, f'fill="{color}" opacity="0.42"'))
                shapes.append(_box(x, y + 4, width, 2, f'fill="{color}"'))
            fill = _WRONG if depth is None else _FAINT if depth < 0 else _INK
            struck = ' text-decoration="line-through"' if depth is None else ""
            shapes.append(_text(x + 2, y, shown, f'font-family="monospace" font-size="14" fill="{fill}"{struck}'))
            x += width
        if "\n" in piece:
            x, y = 12.0, y + _ROW
    return _svg(_WIDE + 12, y + _ROW, shapes)


def _heatmap(recording: Recording, scores: np.ndarray) -> str:
    """Exits x tokens, the full model on top; bright is sure."""
    traces, (wide, high), shapes = recording.traces, (66, 26), []
    finite = scores[np.isfinite(scores)]
    low, top = np.quantile(finite, [0.02, 0.98])
    for token, row in enumerate(scores):
        for exit_, score in enumerate(row):
            x, y = 60 + wide * token, 6 + high * (len(row) - 1 - exit_)
            share = float(np.clip((score - low) / (top - low or 1), 0, 1))
            r, g, b = (int(np.interp(5 * share, range(6), part)) for part in _HEAT.T)
            said = int(traces.drafted[0, token, exit_])
            fill = "#fff" if 0.2126 * r + 0.7152 * g + 0.0722 * b < 118 else "#000"
            slant = "" if said == traces.teacher[token] else ' font-style="italic"'
            shapes.append(_box(x, y, wide - 2, high - 2, f'fill="rgb({r},{g},{b})"'))
            shapes.append(
                _text(x + 4, y + 16, _shown(traces.vocabulary.get(said, "other"))[:8], f'fill="{fill}"{slant}')
            )
        own = _shown(traces.pieces[traces.prompt_length + token])[:8]
        shapes.append(_text(64 + wide * token, 26 + high * len(row), own, f'fill="{_INK}" font-weight="600"'))
    names = [_text(8, 22 + high * i, str(depth), f'fill="{_INK}"') for i, depth in enumerate(reversed(traces.exits))]
    return _svg(64 + wide * len(scores), 40 + high * len(traces.exits), [*names, *shapes])


def _replay(recording: Recording) -> str:
    """Rounds in a row: drafts up to their heads, and verifications."""
    traces, high, x, shapes = recording.traces, 160, 60, []
    for depth in traces.exits:
        y = 8 + high * (1 - depth / traces.n_blocks)
        shapes.append(_text(8, y + 4, str(depth), f'fill="{_INK}"'))
        shapes.append(_box(52, y, "{end}", 1, f'fill="{_FAINT}" opacity="0.6"'))
    for one in recording.rounds:
        for _, depth, _, accepted in one.drafts:
            top = 8 + high * (1 - depth / traces.n_blocks)
            color = _color(recording, depth) if accepted else _WRONG
            shapes.append(_box(x, top, 7, 8 + high - top, f'fill="{color}"'))
            x += 8
        if recording.verified or not one.drafts:
            shapes.append(_box(x, 8, 7, high, f'fill="{_FAINT}" opacity="0.5"'))
            x += 11
    about = "drafts by the depth of their head (red: rejected); grey: the full model verifies, and speaks"
    shapes.append(_text(60, high + 28, about, f'fill="{_FAINT}"'))
    return _svg(max(x, 520) + 12, high + 40, [shape.replace("{end}", str(max(x, 500))) for shape in shapes])


def _settled(recording: Recording) -> tuple[list[int], dict[int, list[int]]]:
    """Depth of each new token, and rejected drafts by their place."""
    depths = emitted_depths(recording.output).tolist()
    done, rejected = 1, {}
    for one in recording.rounds:
        wrong = [token for token, _, _, accepted in one.drafts if not accepted]
        done += len(one.drafts) - len(wrong)
        if wrong:
            rejected[min(done, len(depths) - 1)] = wrong
        done += recording.verified or not one.drafts
    return depths, rejected


def _color(recording: Recording, depth: int | None) -> str:
    if depth is None or depth < 0 or depth == recording.traces.n_blocks:
        return ""
    return _LOOKED_UP if depth == 0 else DEPTHS[recording.traces.depths.index(depth) % len(DEPTHS)]


def _shown(text: str) -> str:
    marks = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(marks.get(c, c if c.isprintable() else "␀") for c in text) or "⋯"


def _width(text: str) -> float:
    return sum(_LETTER * (2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c)) for c in text)


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" xml:space="preserve" {attributes}>{html.escape(text)}</text>'


def _box(x: float, y: float, width: float | str, height: float, attributes: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="{height:.1f}" {attributes}/>'


def _svg(width: float, height: float, shapes: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" font-size="12" '
    return f'{head}font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>{"".join(shapes)}</svg>'

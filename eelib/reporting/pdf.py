"""A report as PDF: A4, fonts embedded. Needs fpdf2 (extra `paper`)."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from eelib.errors import MissingExtraError
from eelib.reporting.claims import Claim
from eelib.reporting.judging import FAILS, HOLDS, OPEN, UNMEASURED
from eelib.reporting.report import ABOUT, Report, markdown_parts, references
from eelib.reporting.tables import Table
from eelib.reporting.wording import capitalised

if not find_spec("fpdf"):
    raise MissingExtraError("No fpdf2: pip install 'eelib[paper]'")

from fpdf import FPDF
from fpdf.enums import TableBordersLayout, TableCellFillMode
from fpdf.fonts import FontFace

if TYPE_CHECKING:
    from fpdf.table import Table as Grid

FONT, MONO = "DejaVu", "DejaVuMono"
MARGIN, LINE = 17.0, 4.6  # millimetres; a line of text
INK, SOFT, RULE, SHADE = (28, 32, 36), (91, 100, 112), (205, 210, 217), (246, 247, 249)
COLOURS = {HOLDS: (20, 108, 67), FAILS: (161, 38, 13), OPEN: (122, 86, 0), UNMEASURED: SOFT}


class Page(FPDF):
    """A4 with matplotlib's DejaVu fonts, and a footer with the report's title."""

    def __init__(self, title: str):
        super().__init__(format="A4")
        import matplotlib

        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        for style, name in (("", "DejaVuSans"), ("B", "DejaVuSans-Bold"), ("I", "DejaVuSans-Oblique")):
            self.add_font(FONT, style, fonts / f"{name}.ttf")
        self.add_font(MONO, "", fonts / "DejaVuSansMono.ttf")
        self.set_title(title)
        self.set_lang("en")
        self.set_margins(MARGIN, MARGIN)
        self.set_auto_page_break(True, MARGIN + 4)
        self.footing = title
        self.add_page()

    def footer(self) -> None:
        self.set_y(-MARGIN)
        self.text_style(7, colour=SOFT)
        self.cell(0, 4, self.footing)
        self.set_x(MARGIN)
        self.cell(0, 4, f"{self.page_no()} / {{nb}}", align="R")

    def text_style(self, size: float = 8.5, style: str = "", colour: Sequence[int] = INK, family: str = FONT) -> None:
        """Sets font, size and colour of what is written next."""
        self.set_font(family, style, size)
        self.set_text_color(*colour)

    def paragraph(self, text: str, size: float = 8.5, style: str = "", colour: Sequence[int] = INK, gap: float = 1.5):
        """A paragraph over the whole width, then a gap."""
        self.text_style(size, style, colour)
        self.multi_cell(0, LINE * size / 8.5, text, align="L", new_x="LMARGIN", new_y="NEXT")
        self.ln(gap)

    def sentence(self, text: str, colour: Sequence[int] = INK) -> None:
        """A paragraph of Markdown: bold and code."""
        for kind, part in markdown_parts(text):
            self.text_style(8.5, "B" if kind == "bold" else "", colour, MONO if kind == "code" else FONT)
            self.write(LINE, part)
        self.ln(LINE + 1.5)

    def heading(self, text: str, room: float = 40) -> None:
        """Heading of a section, with at least `room` millimetres below it."""
        self.need(room)
        self.ln(3)
        self.paragraph(text, 12.5, "B", gap=0.5)
        self.set_draw_color(*RULE)
        self.line(MARGIN, self.get_y(), self.w - MARGIN, self.get_y())
        self.ln(2.5)

    def need(self, room: float) -> None:
        """A new page unless this much of the page is left."""
        if self.get_y() + room > self.page_break_trigger:
            self.add_page()

    def facts(self, rows: dict[str, str], size: float = 8.5) -> None:
        """Names and what they are, in two columns."""
        for name, value in rows.items():
            self.text_style(size, colour=SOFT)
            self.cell(22, LINE, name)
            self.text_style(size)
            self.multi_cell(0, LINE, value, align="L", new_x="LMARGIN", new_y="NEXT")
        self.ln(1.5)


def to_pdf(report: Report) -> bytes:
    """The report as PDF."""
    page = Page(report.title)
    page.paragraph(report.title, 18, "B", gap=1)
    page.paragraph(report.summary, 10.5, gap=2)
    page.facts(report.about | {"Measured": "\n".join(report.measured)})
    page.sentence(ABOUT, SOFT)
    page.heading("Claims")
    _overview(page, report.claims)
    works, popular = references(), None
    for claim in report.claims:
        if claim.popular != popular:
            page.heading("Popular accounts" if claim.popular else "The paper", room=70)
            popular = claim.popular
        _claim(page, report, claim, works)
    page.heading("Main results")
    for table in report.tables:
        if table.name != "claims":
            _table(page, table)
    page.heading("Cited")
    for key in report.cited:
        work = works[key]
        page.paragraph(f"{work['authors']} ({work['year']}). {work['title']}. {work['where']}.", 8, gap=1)
    return bytes(page.output())


def _claim(page: Page, report: Report, claim: Claim, works: dict[str, dict[str, str]]) -> None:
    number = report.shown.get(claim.figure)
    drawn = number and claim in report.figure_holders
    image = report.figures / f"{claim.figure}.png"
    width = page.epw * 0.74
    height = _height(image, width) if drawn else 0
    page.need(min(54 + height, page.eph) if drawn else 44)
    source = f" ({works[claim.source]['short']})" if claim.source else ""
    page.paragraph(f"{claim.key}. {claim.statement}{source}", 10, "B", gap=0.3)
    page.text_style(9.5, "B", COLOURS[claim.verdict])
    page.write(LINE, claim.verdict)
    page.text_style(9.5, "B")
    page.write(LINE, f"   {claim.number}")
    page.ln(LINE + 1.5)
    facts = {"Judged by": f"{capitalised(claim.judged_by)}.", "Test": f"{capitalised(claim.test)}."}
    page.facts(facts | ({"Table": claim.table} if claim.table else {}))
    if claim.found:
        page.sentence(claim.found)
    if drawn:
        page.need(height + 6)
        page.image(image, x=MARGIN + (page.epw - width) / 2, w=width, alt_text=f"{claim.figure}: {claim.judged_by}")
        page.ln(0.5)
        page.text_style(7.5, colour=SOFT)
        page.cell(0, LINE, f"Figure {number}: {claim.figure}", align="C", new_x="LMARGIN", new_y="NEXT")
    elif number:
        page.paragraph(f"See figure {number}.", 8, colour=SOFT)
    page.ln(3)


def _height(image: Path, width: float) -> float:
    """Height of an image that is this wide."""
    from PIL.Image import open as open_image

    with open_image(image) as picture:
        return width * picture.height / picture.width


def _overview(page: Page, claims: Sequence[Claim]) -> None:
    page.text_style(8)
    with _grid(page, (8, 78, 26, 64)) as grid:
        grid.row(("", "Claim", "Verdict", "Number"))
        for claim in claims:
            row = grid.row()
            row.cell(claim.key)
            row.cell(claim.statement)
            row.cell(claim.verdict, style=FontFace(emphasis="BOLD", color=COLOURS[claim.verdict]))
            row.cell(claim.number or "–")
    page.ln(2)


def _table(page: Page, table: Table) -> None:
    page.need(50)
    caption = f"{table.caption} {table.source}".strip()
    page.paragraph(caption, 8, colour=SOFT, gap=1)
    columns = [[str(name), *map(str, table.rows[name])] for name in table.rows.columns]
    page.text_style(6.8, "B")  # the header's
    widths = [max(map(page.get_string_width, column)) + 3.4 for column in columns]
    with _grid(page, widths, size=6.8, fits=sum(widths) <= page.epw) as grid:
        for cells in zip(*columns, strict=True):
            grid.row(cells)
    page.ln(5)


def _grid(page: Page, widths: Sequence[float], size: float = 8, fits: bool = False) -> "Grid":
    page.set_draw_color(*RULE)
    page.text_style(size)
    return page.table(
        col_widths=tuple(widths), width=sum(widths) if fits else page.epw, align="L", text_align="L", v_align="T",
        line_height=size * 0.52, borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        headings_style=FontFace(emphasis="BOLD", color=INK), cell_fill_color=SHADE,
        cell_fill_mode=TableCellFillMode.NONE, padding=(0.5, 1.2, 0.5, 0),
    )  # fmt: skip

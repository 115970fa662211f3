"""Sphinx's settings.

Sphinx with myst-nb and furo has all three: notebooks with their stored outputs, API pages by import (which follows
lazily loaded names) and checked references; it is BSD and MIT, kept up, and its pages load nothing from a server.
Jupyter Book 2 needs Node to build and takes API pages from Sphinx; Zensical was at 0.1 when this was chosen.
"""

import sys
from pathlib import Path

from docutils import nodes
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from workflow.site.api import as_markdown, at_home  # noqa: E402

project, author = "Early-Exit Workbench", "the authors of eelib"
project_copyright = ""
html_title, html_show_copyright, html_show_sphinx = project, False, False
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "index"
exclude_patterns = []

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # would be loaded from a server
nb_merge_streams = True
myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_copy_source = False
pygments_style, pygments_dark_style = "default", "github-dark"


class Markdown(SphinxDirective):
    """Directive whose content is Markdown."""

    has_content = True

    def run(self):
        document = new_document(self.get_source_info()[0], self.state.document.settings)
        document.reporter = self.state.document.reporter
        MystParser().parse("\n".join(self.content), document)
        return document.children


def docstring_as_markdown(app, what, name, value, options, lines):
    """Hand a docstring to Sphinx as Markdown."""
    text = as_markdown("\n".join(lines)).strip()
    if text:
        lines[:] = [".. markdown::", "", *(f"   {line}" for line in text.splitlines()), ""]


def link_names(app, doctree, page):
    """Link inline code that is a public name."""
    objects = app.env.domains["py"].objects
    homes = {f"eelib.{name}": home for name, home in at_home().items()}
    homes |= {home.rpartition(".")[2]: home for home in homes.values()} if page.startswith("api/") else {}
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()")
        entry = objects.get(homes.get(name, name))
        if entry and not isinstance(literal.parent, nodes.reference):
            link = make_refnode(app.builder, page, entry.docname, entry.node_id, literal.deepcopy(), name)
            literal.replace_self(link)


def setup(app):
    """Register what this configuration adds to Sphinx."""
    app.add_directive("markdown", Markdown)
    app.connect("autodoc-process-docstring", docstring_as_markdown)
    app.connect("doctree-resolved", link_names)

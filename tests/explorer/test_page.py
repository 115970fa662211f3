"""The page that the docs link to."""

from workflow.explorer_page import PAGE, again


def test_the_docs_show_the_view_as_it_is_now():
    found = PAGE.read_text(encoding="utf-8")
    assert found == again(), "the view has changed: python -m workflow.explorer_page --again"
    assert len(found.encode()) < 1_500_000

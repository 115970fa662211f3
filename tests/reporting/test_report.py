"""A model's report: verdicts follow the tables, and what is written can be read and compiled."""

import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
from pypdf import PdfReader
from tiny import PROJECT

from eelib.errors import InvalidInputError
from eelib.reporting import ModelTables, claims, judging, read_report, report, tables, write_report
from eelib.reporting import __main__ as command
from eelib.statistics import format_interval
from eelib.workspace import read_note, write_note
from workflow import batch

SMALL, CODER = (PROJECT / "figures" / model for model in ("smollm2-135m", "qwen2.5-coder-0.5b"))
NO_RESULTS = SMALL / "none"
"""What the committed report was made with: the results beside a run are not committed."""
VOID = {"meta", "img", "br", "link", "hr"}


def judged(folder, **given) -> dict[str, claims.Claim]:
    return {claim.key: claim for claim in claims.judge_claims(ModelTables(folder, **given))}


@pytest.fixture
def folder(tmp_path):
    """The committed tables of the small model, to be changed."""
    copy = tmp_path / "figures" / SMALL.name
    copy.mkdir(parents=True)
    for table in SMALL.glob("*.csv"):
        shutil.copy(table, copy)
    return copy


def change(folder, name, **columns):
    """Sets columns of a table; a function is of the table."""
    path = folder / f"{name}.csv"
    pd.read_csv(path).assign(**columns).to_csv(path, index=False)


@pytest.mark.parametrize("folder", [SMALL, CODER], ids=lambda folder: folder.name)
def test_committed_numbers_are_those_of_the_tables(folder):
    of = judged(folder)
    longest = "05_speed_full.csv" if (folder / "05_speed_full.csv").is_file() else "05_speed.csv"
    auroc, speed = pd.read_csv(folder / "02_auroc.csv"), pd.read_csv(folder / longest)
    (dssd,) = speed[speed.decoder == "DSSD"].to_dict("records")
    assert of["4b"].number == f"{format_interval(dssd, 'speed_ratio')} times" and of["4b"].table == longest
    assert (of["4b"].verdict == judging.HOLDS) == (dssd["speed_ratio_low"] > 1)
    rivals = auroc[auroc.p_corrected.notna()].to_dict("records")
    assert any(f"{row['metric']} less entropy {format_interval(row, 'auroc_less_entropy', '+.3f')}" in of["2"].number
               for row in rivals)  # fmt: skip
    assert f"{auroc.p_corrected.count()} comparisons" in of["2"].test
    if (folder / "03_calibration.csv").is_file():
        rows = pd.read_csv(folder / "03_calibration.csv").query(
            "target == 'exit_agreement' and metric == 'entropy' and method == 'empirical' and epsilon == 0.9"
        )
        assert of["3"].number == f"{format_interval(rows.iloc[0], 'achieved', '.3f')} of 0.9 promised"


def interval(name, value, width=0.001):
    return {name: value, f"{name}_low": value - width, f"{name}_high": value + width}


@pytest.mark.parametrize(
    ("key", "table", "columns", "verdict"),
    [
        ("1a", "04_speed", interval("speed_ratio", 1.5) | interval("accuracy_less_full", 0.0), judging.HOLDS),
        ("1a", "04_speed", interval("speed_ratio", 1.5) | interval("accuracy_less_full", -0.2), judging.FAILS),
        ("1a", "04_speed", interval("speed_ratio", 0.9) | interval("accuracy_less_full", 0.0), judging.FAILS),
        ("1a", "04_speed", interval("speed_ratio", 1.5) | interval("accuracy_less_full", 0.0, 0.1), judging.OPEN),
        ("1a", "04_speed", interval("speed_ratio", 1.0) | interval("accuracy_less_full", 0.0), judging.OPEN),
        ("2", "02_auroc", {"auroc_less_entropy": -0.1, "p_corrected": 1e-6}, judging.HOLDS),
        ("2", "02_auroc", {"auroc_less_entropy": 0.1, "p_corrected": 1e-6}, judging.FAILS),
        ("2", "02_auroc", {"auroc_less_entropy": 0.1, "p_corrected": 0.5}, judging.OPEN),
        ("3", "03_calibration", interval("achieved", 0.9), judging.HOLDS),
        ("3", "03_calibration", interval("achieved", 0.89), judging.FAILS),
        ("3", "03_calibration", interval("achieved", 0.9, 0.05), judging.OPEN),
        ("4a", "05_curve_full", interval("acceptance_ratio", 1.7), judging.HOLDS),
        ("4a", "05_curve_full", interval("acceptance_ratio", 1.6), judging.FAILS),
        ("4a", "05_curve_full", interval("acceptance_ratio", 1.6, 0.1), judging.OPEN),
        ("4b", "05_speed_full", interval("speed_ratio", 1.2), judging.HOLDS),
        ("4b", "05_speed_full", interval("speed_ratio", 0.8), judging.FAILS),
        ("P1", "10_claims", interval("speed_ratio", 3.1), judging.HOLDS),
        ("P1", "10_claims", interval("speed_ratio", 2.9), judging.FAILS),
        ("P2", "10_claims", interval("speed_ratio", 1.6) | interval("value_less_full", 0.0), judging.HOLDS),
        ("P2", "10_claims", interval("speed_ratio", 1.6) | interval("value_less_full", -0.1), judging.FAILS),
        ("P2", "10_claims", interval("speed_ratio", 1.6) | interval("value_less_full", 0.0, 0.1), judging.OPEN),
        ("P3", "10_claims", {"compute_saved": 0.4}, judging.HOLDS),
        ("P3", "10_claims", {"compute_saved": 0.2}, judging.FAILS),
    ],
)
def test_verdicts_follow_the_intervals(folder, key, table, columns, verdict):
    change(folder, table, **columns)
    assert judged(folder)[key].verdict == verdict


def test_a_p_value_counts_only_where_another_metric_is_ahead(folder):
    """A single case where entropy is beaten leaves the claim open, as in the sentence of the figure."""
    first = pd.read_csv(folder / "02_auroc.csv").index < 5
    change(folder, "02_auroc", auroc_less_entropy=[0.1 if one else -0.1 for one in first], p_corrected=1e-6)
    claim = judged(folder)["2"]
    assert claim.verdict == judging.OPEN and "beaten in 1" in claim.number and "is not confirmed" in claim.found


def test_without_the_longer_run_the_shorter_one_decides(folder):
    claims_by = [judged(folder)["4a"]]
    for longest in ("05_curve_full.csv", "05_speed_full.csv"):
        assert claims_by[-1].table == longest
        (folder / longest).unlink()
        claims_by.append(judged(folder)["4a"])
    assert claims_by[-1].table == "05_speed.csv"
    assert claims_by[-1].number.removesuffix(" times") in claims_by[0].found, "the other run's number is told, too"


def test_what_was_not_run_is_said_to_be_not_measured(folder):
    for table in folder.glob("*.csv"):
        if table.name[:2] not in ("01", "02", "05"):
            table.unlink()
    of = judged(folder)
    unmeasured = {key for key, claim in of.items() if claim.verdict == judging.UNMEASURED}
    assert unmeasured == {"1a", "1b", "3", "P1", "P2", "P3", "P4"}
    assert "10_claims.csv" in of["P1"].found and not of["P1"].number
    assert {table.name for table in read_report(folder).tables} == {"claims", "speed", "auroc"}


@pytest.mark.parametrize("content", ["", "decoder\n", "decoder,speed_ratio\nDSSD,1.2\n", "\x00\x01"])
def test_a_table_of_another_version_or_none_is_said_to_be_so(folder, content):
    (folder / "05_speed_full.csv").unlink()
    (folder / "05_speed.csv").write_text(content, encoding="utf-8")
    claim = judged(folder)["4b"]
    assert claim.verdict == judging.UNMEASURED and "05_speed.csv" in claim.found


def test_no_folder_and_no_tables(tmp_path):
    for wrong in (tmp_path / "missing", tmp_path):
        with pytest.raises(InvalidInputError, match=r"is no folder|holds no table"):
            read_report(wrong)


@pytest.mark.parametrize(("larger", "verdict"), [(1.5, judging.HOLDS), (1.1, judging.FAILS), (1.3, judging.OPEN)])
def test_larger_models_gain_more(folder, larger, verdict):
    rows = [
        {"model": model, "parameters": size, "n_blocks": 30, "measure": "early exit, speed", "at": at}
        | interval("value", value, 0.05)
        for model, size, value in ((SMALL.name, 1e8, 1.3), ("larger", 1e9, larger))
        for at in (0.5, 0.9)
    ]
    (folder.parent / "sizes").mkdir()
    pd.DataFrame(rows).to_csv(folder.parent / "sizes" / "11_sizes.csv", index=False)
    assert judged(folder)["1b"].verdict == verdict
    other = folder.rename(folder.with_name("another"))
    assert "not another" in judged(other)["1b"].found


def test_results_stand_in_where_no_csv_is(folder):
    results = folder.parent.parent / "data" / "results" / SMALL.name
    results.mkdir(parents=True)
    row = {"table": "sled", "setting": "SLED", "task": "truthfulqa", "value": 0.3} | interval("value_less_full", 0.05)
    pd.DataFrame([row]).to_parquet(results / "claims.parquet")
    assert judged(folder)["P4"].verdict == judged(folder, results=results)["P4"].verdict == judging.HOLDS
    assert judged(folder)["P4"].table == "claims.parquet"


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.resources, self.ids, self.links, self.text = [], [], set(), [], ""

    def handle_starttag(self, tag, attributes):
        of = dict(attributes)
        self.open += [tag] * (tag not in VOID)
        self.ids.add(of.get("id"))
        self.resources += [of[name] for name in ("src", "srcset", "data", "poster") if name in of]
        self.resources += [of["href"]] if tag == "link" else []
        self.links += [of["href"]] if tag == "a" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] != ["style"] else ""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return {path.name: path for path in write_report(SMALL, NO_RESULTS, folder)}


def test_the_page_is_one_file_that_needs_nothing_else(written):
    page = written["report.html"].read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert not reader.open and "prefers-color-scheme: dark" in page and "@media print" in page
    assert reader.resources and all(resource.startswith("data:image/png;base64,") for resource in reader.resources)
    assert not re.search(r"url\(|@import|<script", page)
    assert {link[1:] for link in reader.links if link.startswith("#")} <= reader.ids
    assert len(page) < 1.5e6
    said = " ".join(reader.text.split())
    for claim in read_report(SMALL, NO_RESULTS).claims:
        assert f"claim-{claim.key}" in reader.ids and claim.statement in said and claim.number in said
    commits = {read_note(note)[1].rpartition(" · ")[2] for note in SMALL.glob("[01]*.md")}
    assert "**" not in said and len(commits) > 1 and all(commit in said for commit in commits)


def test_what_is_committed_is_what_the_tables_say(written):
    """Where it is not: `python -m eelib.reporting figures/smollm2-135m --results none`."""

    def said(path):
        text = re.sub(r"data:image/png;base64,[^\"]+", "", path.read_text(encoding="utf-8"))
        return re.sub(r"<dt>Made with</dt>.*", "", text)

    for committed in (SMALL / "report.html", SMALL / "report.bib", *SMALL.glob("tables/*.tex")):
        assert said(committed) == said(written[committed.name]), committed.name


def test_names_from_outside_stay_text(folder):
    change(folder, "05_speed_full", decoder=lambda table: table.decoder.replace("fused", "<b>50% & _more_</b>"))
    made = read_report(folder)
    assert "<b>50%" not in report.to_html(made) and "&lt;b&gt;50%" in report.to_html(made)
    (speed,) = [table for table in made.tables if table.name == "speed"]
    assert r"\textless{}b\textgreater{}50\% \& \_more\_" in tables.to_latex(speed, "x")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="apt-get install texlive-latex-base texlive-latex-recommended")
def test_tables_compile_and_fit_the_page(written, tmp_path):
    names = [name.removesuffix(".tex") for name in written if name.endswith(".tex")]
    for name in (*(f"{name}.tex" for name in names), "report.bib"):
        (tmp_path / name).write_text(written[name].read_text(encoding="utf-8"), encoding="utf-8")
    inputs = "".join(rf"\input{{{name}}}\clearpage " for name in names)
    packages = r"\usepackage[utf8]{inputenc}\usepackage{booktabs,graphicx,url}"
    end = r"\nocite{*}\bibliographystyle{plain}\bibliography{report}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{inputs}{end}\end{{document}}"
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    for step in (latex, ["bibtex", "all"], latex, latex):
        done = subprocess.run(step, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
    assert len(names) == 6 and "Overfull" not in done.stdout and "undefined" not in done.stdout, done.stdout[-2000:]


def test_latex_escapes():
    assert tables.latex_escape("a_b 5% {x} ~^\\ #$& ε ≥ -0.5 0-1 6 x 2–3") == (
        r"a\_b 5\% \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \#\$\& $\varepsilon$ $\geq$ $-$0.5 0-1 "
        r"6 x 2--3"
    )


def test_tables_are_balanced_and_cite_what_is_in_the_bibliography(written):
    works = report.references()
    keys = re.findall(r"^@\w+\{(.+),$", report.bibliography(), re.MULTILINE)
    assert sorted(keys) == sorted(works) and len(set(keys)) == len(keys)
    assert written["report.bib"].read_text(encoding="utf-8") == report.bibliography()
    assert all(
        work["authors"] and work["title"] and re.fullmatch("20[0-9]{2}", work["year"]) for work in works.values()
    )
    assert {"speed.tex", "auroc.tex", "calibration.tex", "accuracy.tex", "baselines.tex"} <= set(written)
    for path in (path for name, path in written.items() if name.endswith(".tex")):
        text = path.read_text(encoding="utf-8")
        body = re.sub(r"(?<!\\)%.*", "", text)
        opened = []
        for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
            assert (kind == "begin" and not opened.append(name)) or opened.pop() == name
        bare = re.sub(r"\\[{}\\]", "", body)
        assert not opened and bare.count("{") == bare.count("}") and text.isascii()
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
        assert body.count("$") % 2 == 0 and not re.search(r"(?<!\\)[_^#]", re.sub(r"\\(cite|label)\{.*?\}", "", body))
        assert set(re.findall(r"[\w]+", " ".join(re.findall(r"\\cite\{(.*?)\}", body)))) <= set(keys)


def test_the_pdf_says_the_same(written):
    assert written["report.pdf"].read_bytes().startswith(b"%PDF")
    said = " ".join(page.extract_text() for page in PdfReader(written["report.pdf"]).pages)
    said = " ".join(said.split())
    for claim in read_report(SMALL, NO_RESULTS).claims:
        assert claim.statement in said and claim.verdict in said
    table = pd.read_csv(SMALL / "03_calibration.csv")
    row = table.query("target == 'exit_agreement' and metric == 'entropy' and method == 'empirical' and epsilon == 0.9")
    assert format_interval(row.iloc[0], "achieved", ".3f") in said and "LayerSkip: Enabling Early Exit" in said


def test_without_fpdf2_the_pdf_is_left_out_and_said_so(folder, monkeypatch, caplog):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name != "fpdf" and found(name, *more))
    monkeypatch.delitem(sys.modules, "eelib.reporting.pdf", raising=False)
    with caplog.at_level(logging.WARNING):
        names = {path.name for path in write_report(folder)}
    assert "report.html" in names and "report.pdf" not in names
    assert "report.pdf is left out" in caplog.text and "eelib[paper]" in caplog.text


def test_where_numbers_come_from(folder):
    assert read_report(folder).measured == ["day, machine and commit were not recorded"]
    write_note(folder / "02_roc.md", "**A curve.**", "2026-01-02 · a machine · commit abc1234")
    assert read_report(folder).measured[1:] == ["02_roc: 2026-01-02 · a machine · commit abc1234"]


def test_command(folder, tmp_path, capsys):
    assert command.main([str(folder), "--no-pdf", "--output", str(tmp_path / "out")]) == 0
    assert "report.html" in capsys.readouterr().out and (tmp_path / "out" / "tables" / "speed.tex").is_file()
    assert command.main([str(tmp_path / "missing")]) == 1
    assert "error:" in capsys.readouterr().err


def test_the_batch_writes_reports_of_newer_tables_and_a_failure_loses_nothing(folder, capsys):
    assert batch.write_reports([folder]) == 0
    page = folder / "report.html"
    before = page.stat().st_mtime_ns
    assert batch.write_reports([folder]) == 0 and page.stat().st_mtime_ns == before, "nothing is newer"
    os.utime(folder / "02_auroc.csv", (page.stat().st_mtime + 5,) * 2)
    (folder / "02_auroc.png").write_text("no image", encoding="utf-8")
    assert batch.write_reports([folder, folder.parent]) == 1
    assert "no report in" in capsys.readouterr().err and page.stat().st_mtime_ns == before

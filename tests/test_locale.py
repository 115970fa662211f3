"""Files are UTF-8 whatever the locale says: what is read and written under `LC_ALL=C` is what it is elsewhere."""

import os
import subprocess
import sys

from tiny import PROJECT

SCRIPT = r"""
import locale, sys
from pathlib import Path
sys.path.insert(0, "tests")
assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"), locale.getpreferredencoding(False)
import eelib
from eelib.corpus.reading import read_documents
from tiny import random_heads, tiny_model

folder = Path(sys.argv[1])
(text,) = read_documents(str(folder / "a.jsonl"))
assert text == "d\u00e9j\u00e0 vu \u2028 \U0001f600", ascii(text)
model = tiny_model("llama")
heads = random_heads(model)
heads.training_record = {"note": text}
heads.save_pretrained(folder / "heads")
assert eelib.ExitHeads.from_pretrained(folder / "heads", model).training_record["note"] == text
"""


def test_files_under_a_locale_without_utf8(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "déjà vu \u2028 😀"}\n', encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

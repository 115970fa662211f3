"""Heads go to the Hub and come back, through huggingface_hub's own client; a small local server answers it."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny import PROJECT

COMMIT = "0" * 40
SCRIPT = """
import torch, eelib
from tiny import tiny_model
model = tiny_model("llama", torch.float32)
heads = eelib.ExitHeads.init(model, [2, 4], seed=3)
print(heads.push_to_hub("somebody/tiny-heads"))
back = eelib.ExitHeads.from_pretrained("somebody/tiny-heads", model)
assert all(map(torch.equal, heads.state_dict().values(), back.state_dict().values()))
try:
    eelib.ExitHeads.from_pretrained("somebody/nothing", model)
except eelib.errors.HeadsError as error:
    print(error)
"""


@pytest.fixture
def hub():
    """A server that keeps what is committed to it. Yields its address and the files, by repository."""
    files: dict[str, dict[str, bytes]] = {}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, body=b"", status=200, **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def say(self, **said):
            self.answer(json.dumps(said).encode(), Content_Type="application/json")

        def do_POST(self):
            given = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/api/repos/create":
                wanted = json.loads(given)
                repo = f"{wanted.get('organization') or 'somebody'}/{wanted['name']}"
                files[repo] = {}
                self.say(url=f"http://{self.headers['Host']}/{repo}", id=repo)
            elif "/preupload/" in self.path:
                paths = [file["path"] for file in json.loads(given)["files"]]
                self.say(files=[{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths])
            elif "/commit/" in self.path:
                repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
                for line in map(json.loads, given.splitlines()):
                    if line["key"] == "file":
                        files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.say(commitUrl=f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}", commitOid=COMMIT)
            else:
                self.say()

        def do_GET(self):
            path = self.path.partition("?")[0]
            repo = next((name for name in files if name in path), None)
            if repo is None:
                self.answer(b"{}", 404, X_Error_Code="RepoNotFound")
            elif "/resolve/" in path:
                content = files[repo][path.rpartition("/")[2]]
                self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
            elif "/tree/" in path:
                entries = [{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in files[repo].items()]
                self.answer(json.dumps(entries).encode(), Content_Type="application/json")
            else:
                self.say(id=repo, sha=COMMIT, siblings=[{"rfilename": name} for name in files[repo]])

        do_HEAD = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()


def test_heads_go_to_the_hub_and_come_back(hub, tmp_path):
    address, files = hub
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1"}
    settings |= {"PYTHONPATH": str(PROJECT / "tests")}
    settings |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # it is here, not out there
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    commit, error = done.stdout.strip().split("\n", 1)
    assert commit.endswith(COMMIT) and error.startswith("somebody/nothing is neither a folder nor heads on the Hub")
    kept = files["somebody/tiny-heads"]
    assert set(kept) == {"model.safetensors", "config.json", "README.md"} and b"fingerprint" in kept["config.json"]

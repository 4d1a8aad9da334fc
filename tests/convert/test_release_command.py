"""`convert release` and `convert push`; the hub is a server on this machine that speaks its protocol."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from PIL import Image

from mperceiver_jax.checkpoints.run_params import run_params
from mperceiver_jax.convert.__main__ import main
from mperceiver_jax.restore.__main__ import main as restore
from tests.support.released_run import released_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return released_run(tmp_path_factory.mktemp("released"))


class Hub(BaseHTTPRequestHandler):
    """Takes every file of a commit as a regular one, and keeps them."""

    repositories: ClassVar[dict[str, dict]] = {}
    commits: ClassVar[list[dict[str, bytes]]] = []
    refuse = False

    def log_message(self, *arguments):
        pass

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer({"id": "somebody/restoration", "sha": "0", "siblings": [], "tags": [], "private": False})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        root = f"http://{self.headers['Host']}/somebody/restoration"
        if self.refuse:
            self.answer({"error": "you may not write here"}, 403)
        elif self.path == "/api/repos/create":
            self.repositories[json.loads(body)["name"]] = json.loads(body)
            self.answer({"url": root, "name": "somebody/restoration", "id": "0"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self.answer({"files": files})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            self.commits.append(
                {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines
                 if line["key"] == "file"}
            )  # fmt: skip
            self.answer({"success": True, "commitOid": "1", "commitUrl": f"{root}/commit/1"})


@pytest.fixture
def hub(monkeypatch):
    """The hub's client talks to a server on this machine."""
    from huggingface_hub import constants, hf_api

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(hf_api, "ENDPOINT", constants.ENDPOINT, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_token")
    monkeypatch.setattr(Hub, "repositories", {})
    monkeypatch.setattr(Hub, "commits", [])
    yield Hub
    server.shutdown()
    server.server_close()


def test_the_card_says_what_the_run_knows(made):
    card = (made.weights / "README.md").read_text()
    for origin in run_params(made.workdir).origins:
        assert origin in card
    assert "stored in float16" in card


def test_a_card_of_ones_own_is_taken(made, tmp_path):
    (tmp_path / "card.md").write_text("# Mine\n")
    assert main(["release", str(made.workdir), f"--output={tmp_path / 'out'}", f"--card={tmp_path / 'card.md'}"]) == 0
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine\n"


def test_notes_are_shown_to_whoever_restores(made, tmp_path, capsys):
    weights = tmp_path / "out"
    assert main(["release", str(made.workdir), f"--output={weights}", "--note=first note", "--note=second"]) == 0
    image = tmp_path / "image.png"
    Image.new("RGB", (16, 16)).save(image)
    assert restore([str(image), f"--checkpoint={weights}", f"--output={tmp_path / 'restored'}"]) == 0
    assert "warning: first note\nwarning: second\n" in capsys.readouterr().err


def test_a_folder_that_exists_is_left_alone(made, tmp_path, capsys):
    (tmp_path / "note").write_text("mine")
    assert main(["release", str(made.workdir), f"--output={tmp_path}"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["note"]


def test_push_writes_the_folder_as_one_commit(made, hub, capsys):
    assert main(["push", str(made.weights), "somebody/restoration", "--private"]) == 0
    assert "/somebody/restoration/commit/1" in capsys.readouterr().out
    assert hub.repositories["restoration"]["visibility"] == "private"
    assert hub.commits == [{file.name: file.read_bytes() for file in made.weights.iterdir()}]


def test_push_says_why_it_failed(made, hub, monkeypatch, capsys):
    assert main(["push", str(made.workdir), "somebody/restoration"]) == 1
    assert "no released weights; write some with `convert release`" in capsys.readouterr().err
    monkeypatch.setattr(hub, "refuse", True)
    assert main(["push", str(made.weights), "somebody/restoration"]) == 1
    assert "the hub refused" in capsys.readouterr().err and not hub.commits

"""A stand-in for the Hugging Face Hub on the loopback address: repositories kept in memory.

It speaks as much of the Hub's HTTP interface as downloading single files, listing and one commit of
small files take.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

COMMIT = "a" * 40
FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
MODEL = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<action>\w+)/(?P<revision>[^/?]+))?")


@dataclass
class Hub:
    """The server's state.

    Args:
        repos: files of each repository, by name.
        requests: what was asked for, as 'METHOD path'.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a stand-in Hub and point huggingface_hub to it, with an empty cache."""
    from huggingface_hub import constants

    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        do_GET = do_POST = do_HEAD

        def answer(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if found := FILE.fullmatch(self.path.split("?")[0]):
                self.send_file(hub.repos.get(found["repo"]), found["name"], found["revision"])
            elif self.path == "/api/repos/create":
                made = json.loads(body)
                name = f"{made['organization']}/{made['name']}" if made.get("organization") else ""
                hub.repos.setdefault(name or f"me/{made['name']}", {})
                self.send({"url": f"http://{self.headers['Host']}/{name}"})
            elif self.path == "/api/validate-yaml":  # of a model card
                self.send({"errors": [], "warnings": []})
            elif found := MODEL.fullmatch(self.path.split("?")[0]):
                self.api(found["repo"], found["action"], body)
            else:
                self.send({"error": "no such page"}, status=404)

        def api(self, repo: str, action: str | None, body: bytes) -> None:
            files = hub.repos.get(repo)
            if files is None:
                self.send({"error": "Repository not found"}, status=404, code="RepoNotFound")
            elif action == "preupload":
                asked = json.loads(body)["files"]
                plain = [{"path": f["path"], "uploadMode": "regular"} for f in asked]
                self.send({"files": [{**file, "shouldIgnore": False} for file in plain]})
            elif action == "commit":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        value = line["value"]
                        files[value["path"]] = base64.b64decode(value["content"])
                address = f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}"
                self.send({"commitUrl": address, "commitOid": COMMIT, "success": True})
            else:
                siblings = [{"rfilename": name} for name in files]
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": COMMIT}
                    for name, data in files.items()
                ]
                about = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
                self.send(tree if action == "tree" else about)

        def send_file(self, files: dict | None, name: str, revision: str) -> None:
            if files is None:
                self.send({"error": "Repository not found"}, status=404, code="RepoNotFound")
            elif revision not in ("main", "v1", COMMIT):
                self.send({"error": "Invalid rev"}, status=404, code="RevisionNotFound")
            elif name not in files:
                self.send({"error": "Entry not found"}, status=404, code="EntryNotFound")
            else:
                etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
                self.send(files[name], headers={"ETag": etag})

        def send(
            self,
            body: object,
            *,
            status: int = 200,
            code: str | None = None,
            headers: dict[str, str] | None = None,
        ) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            if code is not None:
                self.send_header("X-Error-Code", code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

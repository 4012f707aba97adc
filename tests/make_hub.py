"""A small server that answers as the hub does: repositories with their files, and repositories that it refuses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as constants
import pytest

# By repository: status and error code with which the hub refuses it; it has never heard of others that it does not hold.
REFUSED = {"org/gated": (403, "GatedRepo"), "org/norevision": (404, "RevisionNotFound")}
UNKNOWN = (401, "RepoNotFound")
COMMIT = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"  # of the main branch of every repository


class Hub(BaseHTTPRequestHandler):
    """What it holds and was asked.

    Attributes:
        held: folders of files, by repository.
        asked: every path.
    """

    held: dict[str, Path]
    asked: list[str]

    def do_GET(self) -> None:
        """Answer a question for a repository, its list of files, or a file."""
        self.asked.append(self.path)
        name = next((name for name in (*self.held, *REFUSED) if f"/{name}/" in f"{self.path}/"), "")
        if name not in self.held:
            status, code = REFUSED.get(name, UNKNOWN)
            return self._answer(status, b"{}", {"X-Error-Code": code})
        folder = self.held[name]
        if "/tree/" in self.path:
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            rows = [
                {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": "0" * 40}
                for path in files
            ]
            return self._answer(200, json.dumps(rows).encode())
        if "/api/models/" in self.path:
            return self._answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
        revision, _, file = self.path.split("/resolve/")[1].partition("/")
        content = (folder / file).read_bytes()
        blob = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, {"X-Repo-Commit": revision, "ETag": f'"{blob}"'})

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: a test's output is its own."""


def turn_to(hub: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process's hub the one at an address, and its cache a folder."""
    for name, value in {
        "HF_HUB_OFFLINE": False, "ENDPOINT": hub, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": True,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)


@contextmanager
def serve_hub(held: dict[str, Path]) -> Iterator[str]:
    """Serve repositories; gives the server's address."""
    Hub.held, Hub.asked = held, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

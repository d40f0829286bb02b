"""A server on loopback with the part of the hub's HTTP API that huggingface_hub uses for models.

It serves model information with file hashes, the tree of a commit, the check of a token, and files by commit, also in
ranges. A repository can require a token. The server counts the requests for each file's content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 1000  # larger files have a SHA-256, as files in LFS on the hub


@dataclass
class HubModel:
    """A repository: the files of each commit, and the commit of `main`."""

    commits: dict[str, dict[str, bytes]]
    main: str
    card: dict[str, Any] = field(default_factory=dict)
    gated_for: str | None = None  # the only token that may read the files


@dataclass
class Hub:
    """A running server."""

    endpoint: str
    models: dict[str, HubModel] = field(default_factory=dict)
    downloads: Counter[str] = field(default_factory=Counter)  # requests for a file's content
    spoil: set[str] = field(default_factory=set)  # files that are sent with a wrong byte
    status: int | None = None  # status of every answer, if set


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve within the block; `models` may change meanwhile."""
    hub = Hub("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if hub.status is not None:
                return self._refuse(hub.status, "")
            if path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/").split("/"))
            else:
                owner, name, _, commit, *rest = path.lstrip("/").split("/")
                self._file(f"{owner}/{name}", commit, "/".join(rest))

        def _api(self, parts: list[str]) -> None:
            name, rest = "/".join(parts[:2]), parts[2:]
            model = hub.models.get(name)
            if model is None:
                return self._refuse(404, "RepoNotFound")
            if rest == ["auth-check"]:
                return self._json({}) if self._may_read(model) else self._refuse(401, "GatedRepo")
            commit = rest[1] if len(rest) > 1 else "main"
            commit = model.main if commit == "main" else commit
            if commit not in model.commits:
                return self._refuse(404, "RevisionNotFound")
            files = model.commits[commit].items()
            if rest and rest[0] == "tree":
                return self._json([{"type": "file", "path": n, **_entry(d, "oid", "oid")} for n, d in files])
            siblings = [{"rfilename": n, **_entry(d, "blobId", "sha256")} for n, d in files]
            gated = "manual" if model.gated_for else False
            self._json({"id": name, "sha": commit, "siblings": siblings, "cardData": model.card, "gated": gated})

        def _file(self, name: str, commit: str, file: str) -> None:
            model = hub.models[name]
            if not self._may_read(model):
                return self._refuse(401, "GatedRepo")
            data = model.commits[commit][file]
            etag = _sha256(data) if len(data) >= LARGE_BYTES else _git_hash(data)
            headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
            status, first = 200, 0
            if (byte_range := self.headers.get("Range")) is not None:
                first, last = byte_range.removeprefix("bytes=").split("-")
                first, stop = int(first), int(last) + 1 if last else len(data)
                headers["Content-Range"] = f"bytes {first}-{min(stop, len(data)) - 1}/{len(data)}"
                data, status = data[first:stop], 206
            if self.command == "GET":
                hub.downloads[file] += 1
                if file in hub.spoil:
                    data = data[:-1] + bytes([data[-1] ^ 1])
            self._send(status, data, headers)

        def _may_read(self, model: HubModel) -> bool:
            return model.gated_for is None or self.headers.get("Authorization") == f"Bearer {model.gated_for}"

        def _json(self, content: Any) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entry(data: bytes, git: str, sha256: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"size": len(data), git: _git_hash(data)}
    if len(data) >= LARGE_BYTES:
        entry["lfs"] = {"size": len(data), sha256: _sha256(data), "pointerSize": 130}
    return entry

"""The notice of a new version, received by a real HTTP server: signed, tried again, and never in the way."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from pipelines.notify import ATTEMPTS, SECRET_VARIABLE, message_of, notify

SECRET = "a-key-for-this-test"


class Receiver(BaseHTTPRequestHandler):
    answers: list[int]
    received: list[tuple[Any, bytes]]

    def do_POST(self) -> None:
        self.received.append((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.answers.pop(0) if self.answers else 204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Receiver]]]:
    """(address, its class with what it received and will answer)."""
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    kind = type("Kind", (Receiver,), {"answers": [], "received": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", kind
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_receiver_can_tell_who_sent_it_and_that_it_is_whole(receiver, make_job) -> None:
    address, kind = receiver
    job = make_job(["one", "two"])
    assert notify(address, message_of("nightly", "s3://datasets/nightly", job.complete()))
    ((headers, body),) = kind.received
    told = json.loads(body)
    assert (told["event"], told["output"], told["version"]) == ("version.published", "s3://datasets/nightly", 1)
    assert told["counts"] == {"kept": 2, "rejected": 0, "quarantined": 0}
    signed = headers["X-JointDiT-Timestamp"].encode() + b"." + body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-JointDiT-Signature"] == f"sha256={expected}"


@pytest.mark.parametrize(
    ("answers", "taken", "posts"),
    [([503, 429, 200], True, 3), ([500] * 9, False, ATTEMPTS), ([403], False, 1)],
)
def test_a_busy_receiver_is_told_again_and_a_refusal_is_not(receiver, answers, taken, posts, caplog) -> None:
    address, kind = receiver
    kind.answers = answers
    assert notify(address, {"event": "x"}, pause_seconds=0.01) is taken
    assert len(kind.received) == posts
    assert ("was not told" in caplog.text) is not taken


def test_a_receiver_that_is_away_is_a_warning(receiver, caplog) -> None:
    address, _ = receiver
    assert not notify(address.replace("http://127.0.0.1", "http://127.0.0.2"), {"event": "x"}, pause_seconds=0.01)
    assert "notify.webhook was not told of the new version: URLError" in caplog.text


def test_without_the_key_nothing_is_sent(receiver, monkeypatch, caplog) -> None:
    address, kind = receiver
    monkeypatch.delenv(SECRET_VARIABLE)
    assert not notify(address, {"event": "x"})
    assert kind.received == []
    assert SECRET_VARIABLE in caplog.text

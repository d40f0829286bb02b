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

from jointdit.errors import SpecError
from pipelines.dataset.refilter import refilter
from pipelines.engine.progress import Progress
from pipelines.ledger.versions import read_latest
from pipelines.run.notify import ATTEMPTS, SECRET_VARIABLE, message_of, notify, webhook_of
from pipelines.run.report import keep_report, report_of
from pipelines.spec.job import load_spec
from pipelines.spec.running import NotifySpec
from tests.local_job import job_in

SECRET = "a-key-for-this-test"


class Receiver(BaseHTTPRequestHandler):
    answers: list[int]
    received: list[tuple[Any, bytes]]

    def do_GET(self) -> None:
        self.received.append((self.headers, b"GET"))
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.received.append((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
        answer = self.answers.pop(0) if self.answers else 204
        self.send_response(answer, "see https://hooks.example.org/T0/secret-of-the-address")
        if answer // 100 == 3:
            self.send_header("Location", "/elsewhere")
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


def test_the_receiver_can_verify_sender_and_content(receiver, make_job) -> None:
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
def test_a_busy_receiver_is_retried_and_a_refusal_is_not(receiver, answers, taken, posts, caplog) -> None:
    address, kind = receiver
    kind.answers = answers
    assert notify(address, {"event": "x"}, pause_seconds=0.01) is taken
    assert len(kind.received) == posts
    assert ("was not notified" in caplog.text) is not taken


def test_an_unreachable_receiver_is_a_warning(receiver, caplog) -> None:
    address, _ = receiver
    assert not notify(address.replace("http://127.0.0.1", "http://127.0.0.2"), {"event": "x"}, pause_seconds=0.01)
    assert "notify.webhook was not notified of the new version: URLError" in caplog.text


def test_without_the_key_nothing_is_sent(receiver, monkeypatch, caplog) -> None:
    address, kind = receiver
    monkeypatch.delenv(SECRET_VARIABLE)
    assert not notify(address, {"event": "x"})
    assert kind.received == []
    assert SECRET_VARIABLE in caplog.text


@pytest.mark.parametrize("answer", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(receiver, answer, caplog) -> None:
    address, kind = receiver
    kind.answers = [answer]
    assert not notify(address, {"event": "x"}, pause_seconds=0.01)
    assert [body for _, body in kind.received] == [b'{"event": "x"}'], "one POST, and no GET with the signature"
    assert f"it answers {answer}, a redirect, which is not followed" in caplog.text


SECRET_ADDRESS = "https://hooks.example.org/services/T0/B0/secret-of-the-address"


def test_the_address_is_written_nowhere(tmp_path, monkeypatch, caplog, capsys) -> None:
    job = job_in(tmp_path, ["one", "two"], notify={"webhook": SECRET_ADDRESS}, output={"points": "ply"})
    spec = job.context.spec
    job.complete()
    refilter(spec.output.uri, ["quality.filters=[{kind: depth_range, min_span: 0.9}]"])
    keep_report(job.context.storage, report_of(spec, Progress(None), 1, f"no access: {spec!r}"))
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"_job.json", "version.json", "README.md", "stats.json", "croissant.json"} <= {p.name for p in written}
    assert [path for path in written if b"secret-of-the-address" in path.read_bytes()] == []
    assert "notify" not in json.loads((tmp_path / "out" / "_job.json").read_text())["spec"]
    assert "notify" not in spec.model_dump()
    assert "notify" not in spec.model_dump_json()
    assert "secret" not in f"{spec!r} {spec} {spec.notify!r}"


def test_an_output_whose_record_has_an_address_stays_readable_and_its_next_version_has_none(tmp_path) -> None:
    job = job_in(tmp_path, ["one", "two"])
    job.complete()
    for path in (tmp_path / "out" / "_job.json", tmp_path / "out" / "_versions" / "000001" / "version.json"):
        record = json.loads(path.read_text())
        record["spec"]["notify"] = {"webhook": f"{SECRET_ADDRESS} with what is refused now"}
        path.write_text(json.dumps(record))
    assert "notify" not in job.ledger.read_job().spec
    assert "notify" not in read_latest(job.context.storage).spec
    refilter(job.context.spec.output.uri, ["quality.filters=[{kind: depth_range, min_span: 0.9}]"])
    latest = read_latest(job.context.storage)
    assert latest.number == 2
    assert "notify" not in latest.spec
    assert "secret-of-the-address" not in (tmp_path / "out" / "README.md").read_text()


def test_no_log_line_repeats_the_address_or_what_the_server_says(receiver, caplog) -> None:
    address, kind = receiver
    kind.answers = [403]
    notify(address, {"event": "x"})
    for broken in ("http://127.0.0.1:1/secret-of-the-address", "http://[::1/secret-of-the-address", "no/secret-of-the"):
        assert not notify(broken, {"event": "x"}, pause_seconds=0.001)
    assert "403 Forbidden" in caplog.text
    assert "secret-of" not in caplog.text


def test_the_address_comes_from_the_environment_by_name(receiver, monkeypatch, caplog) -> None:
    address, kind = receiver
    asked = NotifySpec(webhook_variable="CHAT_ADDRESS")
    assert webhook_of(NotifySpec()) is None
    assert webhook_of(NotifySpec(webhook=address)) == address
    assert webhook_of(asked) is None
    assert "notify.webhook_variable CHAT_ADDRESS is not set" in caplog.text
    monkeypatch.setenv("CHAT_ADDRESS", "secret-of-the-address")
    assert webhook_of(asked) is None
    assert "CHAT_ADDRESS does not hold an http address" in caplog.text
    assert "secret" not in caplog.text
    monkeypatch.setenv("CHAT_ADDRESS", address)
    assert notify(webhook_of(asked), {"event": "x"})
    assert len(kind.received) == 1


NO_ADDRESS = "notify.webhook must be an http:// or https:// address"


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"webhook": "hooks.example.org/secret"}, NO_ADDRESS),
        ({"webhook": "https://hooks.example.org/a secret"}, NO_ADDRESS),
        (
            {"webhook": "https://hooks.example.org:99999/secret"},
            NO_ADDRESS,
        ),
        ({"webhook": "https:///secret"}, NO_ADDRESS),
        ({"webhook": ["https://h/secret"]}, "notify.webhook must be text."),
        ("https://h/secret", "notify must be a section with keys of its own."),
        (
            {"webhook": "https://h/secret", "webhook_variable": "X"},
            "notify: give webhook or",
        ),
        ({"webhook_variable": "https://h/secret"}, "notify.webhook_variable"),
    ],
)
def test_a_wrong_address_is_one_sentence_that_does_not_repeat_it(section: Any, sentence: str) -> None:
    spec = {"task": "joint", "input": {"uri": "in"}, "output": {"uri": "out"}}
    with pytest.raises(SpecError) as caught:
        load_spec({**spec, "notify": section})
    assert str(caught.value).startswith(sentence)
    assert "secret" not in str(caught.value)


def test_an_address_with_a_signature_is_taken_because_it_is_written_nowhere() -> None:
    signed = "https://prod.example.org/workflows/1/triggers?sig=0123456789&sv=1"
    spec = load_spec({"task": "joint", "input": {"uri": "in"}, "output": {"uri": "out"}, "notify": {"webhook": signed}})
    assert webhook_of(spec.notify) == signed

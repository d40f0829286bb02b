"""Credentials and control characters never reach what is printed, logged or stored."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jobs import report as printed
from jobs.cli import main
from jointdit.errors import SpecError
from jointdit.geometry.points import PointCloud
from pipelines.engine.progress import Progress
from pipelines.engine.workers import in_one_line
from pipelines.ledger.reports import RunReport
from pipelines.run.report import markdown
from pipelines.spec.job import PointsSpec, load_spec
from pipelines.stages.sinks.geometry import Geometry, Intrinsics
from pipelines.stages.sinks.ply import describe, ply_bytes
from pipelines.store.safe_text import markdown_text, mask_secrets, printable

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"
STEERING = "[red]x[/red] :smile: \x1b[31m\x1b]0;title\x07 \u202egnp.exe \r\x08"
SPELT_OUT = "[red]x[/red] :smile: \\x1b[31m\\x1b]0;title\\x07 \\u202egnp.exe \\r\\x08"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return SECRET


@pytest.mark.parametrize(
    "text",
    [
        f"SignatureDoesNotMatch: {SECRET}",
        "https://host/x?key=wJalrXUtnFEMI%2FK7MDENG%2BbPxRfiCY",
        "http://user:hunter2hunter2@proxy:3128 cannot be reached",
        "abfs://container:hunter2hunter2@account.dfs.core.windows.net/x",
        "https://hunter2hunter2@host/x",
        "s3://key:hunter2/hunter2@bucket/x cannot be listed",
        "https://h/x?X-Goog-Credential=a&X-Goog-Signature=hunter2hunter2",
        "https://h/x?X-Amz-Signature=0123abcd&X-Amz-Credential=hunter2hunter2/2026",
        "https://h.blob.core.windows.net/x?sv=1&sig=hunter2hunter2",
        "InvalidAccessKeyId: AKIAABCDEFGHIJKLMNOP",
        "Bearer hf_" + "a" * 34,
    ],
)
def test_credentials_become_stars(text: str, secret: str) -> None:
    masked = mask_secrets(text)
    assert "***" in masked
    for part in (SECRET, "MDENG", "hunter2", "AKIAABC", "aaaa", "0123abcd"):
        assert part not in masked


def test_credentials_of_the_aws_files_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert mask_secrets("from-the-file") == "from-the-file"
    file.write_text("[default]\naws_access_key_id = ID-from-the-file\naws_secret_access_key=secret-from-the-file\n")
    assert mask_secrets("ID-from-the-file, secret-from-the-file") == "***, ***"


def test_other_text_stays_as_it_is(secret: str) -> None:
    for text in (
        "s3://bucket/a b/naïve.parquet: e-mail someone@example.org, 3 tokens, key: value",
        "abfs://container@account.dfs.core.windows.net/prompts/*.parquet",
        "s3://bucket/a:b/c@d.parquet",
        "http://host:8080/x@y",
    ):
        assert mask_secrets(text) == text
        assert printable(text) == text
        assert load_spec(MINIMAL, [f"input.prompt='{text}'"]).input.prompt == text


def test_the_terminal_shows_input_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, highlight=False, width=200)
    monkeypatch.setattr(printed, "console", terminal)
    printed.say(STEERING)
    Progress(terminal).note(STEERING)
    assert screen.getvalue().splitlines() == [SPELT_OUT, SPELT_OUT]


def test_log_lines_are_masked_and_steer_nothing(secret: str) -> None:
    record = logging.LogRecord("pipelines", logging.WARNING, "", 0, "row %s: %s", (STEERING, SECRET), None)
    assert printed.PlainFormatter("%(message)s").format(record) == f"row {SPELT_OUT}: ***"


def test_errors_of_the_command_line_are_masked_and_steer_nothing(secret: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", f"{STEERING}{SECRET}.yaml"]) == 1
    assert capsys.readouterr().err == (
        "Error: [red]x[/red] :smile: \\x1b[31m\\x1b]0;title\\x07 \\u202egnp.exe \\x08***.yaml does not exist: give the "
        "path of a job spec in YAML.\n"
    )


def test_a_secret_at_the_end_of_a_long_error_is_not_cut_before_it_is_masked(secret: str) -> None:
    told = in_one_line(RuntimeError("x" * 285 + f" {SECRET} and more"))
    assert "x ***" in told
    assert SECRET[:10] not in told


def test_a_point_clouds_comments_are_single_lines_of_visible_ascii() -> None:
    geometry = Geometry(Intrinsics(1.0, 1.0, 1.0, 1.0), "given", 1.0, 2.0, "given")
    name = "a\nend_header\nelement vertex 9\x00\x1b[31m\u202e é"
    cloud = PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8))
    header = ply_bytes(cloud, describe(name, geometry, PointsSpec())).decode("ascii")
    lines = header.splitlines()
    assert lines[2] == "comment sample a end-header element vertex 9\\x00\\x1b[31m\\u202e \\xe9"
    assert [line for line in lines if line.startswith("element")] == ["element vertex 0"]
    assert lines.count("end_header") == 1


LIVE = (
    "![x](http://h/p.png) [click](javascript:alert(1)) <img src=x onerror=alert(1)> | a | `c` **b** _i_ ~~s~~ # h "
    "$x^2$ &lt; www.h.org https://h.org a@h.org \\| \n\n---\n- item\x1b[31m"
)


def test_text_in_markdown_is_nothing_but_text() -> None:
    line = markdown_text(LIVE)
    assert not re.search(r"[\n\x1b]", line)
    bare = re.sub(r"\\.", "", line)  # a backslash takes what follows out of Markdown, another backslash included
    assert not re.search(r"[`*_\[\]<>|!~#@$]|://|www\.|&(?!amp;)", bare)


def report(stopped: str) -> RunReport:
    numbers = {"seconds": 1.0, "shards": 1, "rows": 1, "samples": 1, "bytes": 1, "gpu_hours": 0.0, "cpu_hours": 1.0}
    counts = {"counts": {"kept": 1, "rejected": 0, "quarantined": 0}, "rejected_by": {}, "retries": {}}
    text = {
        "name": LIVE,
        "output": f"/out/{LIVE}",
        "finished": "now",
        "code": "1",
        "stopped": stopped,
        "currency": LIVE,
    }
    return RunReport(**numbers, **counts, **text, version=None, busy_share=0.5, rows_per_gpu_hour=None, cost=0.0)


def test_an_id_from_the_input_is_text_in_the_report_of_a_run() -> None:
    lines = markdown(report(f"row {LIVE} was quarantined")).splitlines()
    for line in lines:
        cells = re.sub(r"\\.", "", line)
        assert not re.search(r"[`*_\[\]<>!~@$]|://|www\.|&(?!amp;)", cells)
        assert cells.count("|") in (0, 3)
        assert cells.count("#") == line.startswith("# Run of ")


def test_the_address_of_a_webhook_in_the_environment_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_WEBHOOK_URL", "https://hooks.example.org/T0/B0/x")
    assert mask_secrets("cannot post to https://hooks.example.org/T0/B0/x") == "cannot post to ***"


MINIMAL = {"task": "joint", "input": {"uri": "prompts.txt"}, "output": {"uri": "out"}}
HIDDEN = {
    "key and secret before the bucket": "output.uri=s3://AKIAX:hunter2hunter2@bucket/out",
    "a secret alone before the bucket": "output.uri=s3://hunter2hunter2@bucket/out",
    "user info in a list": "input.uri=[a.txt, 's3://k:hunter2hunter2@b/x']",
    "a key with a slash before the bucket": "input.uri=s3://key:hunter2/hunter2@bucket/in",
    "in the address of weights": "model.name=s3://key:hunter2hunter2@bucket/weights",
    "in the address of a calibration": "quality.calibration=gs://k:hunter2/hunter2@bucket/c",
    "a signature of Google": "input.uri='gs://b/x?X-Goog-Signature=hunter2hunter2'",
    "a signature of CloudFront": "model.name='hf://a/b?Key-Pair-Id=hunter2hunter2'",
    "a signature in a query": "input.uri=s3://b/x?X-Amz-Signature=hunter2hunter2",
    "a shared access signature": "input.uri='abfs://c/x?sv=1&sig=hunter2hunter2'",
    "a token in a query": "input.uri='s3://b/x?token=hunter2hunter2'",
    "a field for it": "output.secret_access_key=hunter2hunter2",
    "a section for it": "output.storage_options={aws_secret_access_key: hunter2hunter2}",
    "a connection string": "name='DefaultEndpointsProtocol=https;AccountKey=hunter2hunter2'",
    "a private key": "name='-----BEGIN RSA PRIVATE KEY----- hunter2hunter2'",
    "the environment's own secret": f"name=x-{SECRET}",
    "as a key": f"model.{SECRET}=1",
    "without an equals sign": "output.secret_key:hunter2hunter2",
    "not even YAML": "output.secret_key=[hunter2hunter2",
}


@pytest.mark.parametrize("name", HIDDEN)
def test_credentials_in_a_spec_are_refused_without_being_repeated(name: str, secret: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(MINIMAL, [HIDDEN[name]])
    assert "credential" in str(caught.value) or "not valid YAML" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert SECRET not in str(caught.value)

"""jointdit validate from the command line: its progress, Ctrl-C, --resume and --ray with other options."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

from jobs.cli import main
from jobs.validation import ProgressLine
from pipelines.dataset.validation import objects
from pipelines.dataset.validation.objects import Progressed
from tests.local_job import LocalJob


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOINTDIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def job(make_job) -> LocalJob:
    job = make_job([f"p{n}" for n in range(12)], output={"shard_rows": 1})
    job.complete()
    return job


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(job: LocalJob, capsys, monkeypatch) -> None:
    uri, check, done = job.context.storage.uri, objects.check_object, []

    def pressed(*arguments):
        done.append(arguments)
        if len(done) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return check(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "check_object", pressed)
        assert main(["validate", uri]) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "of 12 files are checked; `jointdit validate" in error
    assert "--resume` goes on from there." in error
    assert main(["validate", uri, "--resume", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["is_whole"], found["files"], found["images"]) == (True, 12, 24)
    assert any("passed in the check that began at" in note for note in found["notes"])


def test_quick_takes_no_other_way_of_reading(job: LocalJob, capsys) -> None:
    for option in ("--ray", "--resume"):
        assert main(["validate", job.context.storage.uri, "--quick", option]) == 2
        assert "--quick opens no file" in " ".join(capsys.readouterr().err.split())


def test_without_a_terminal_the_progress_is_plain_lines() -> None:
    text = io.StringIO()
    with ProgressLine(Console(file=text, width=200), seconds=0.0) as line:
        line.show(Progressed(objects=0, of_objects=4, bytes=0, of_bytes=4000, taken=0))
        line.show(Progressed(objects=3, of_objects=4, bytes=3000, of_bytes=4000, taken=0))
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("0 of 4 files, 0 bytes of 4 kB")
    assert lines[1].startswith("3 of 4 files, 3 kB of 4 kB, ")
    assert lines[1].endswith(" left")

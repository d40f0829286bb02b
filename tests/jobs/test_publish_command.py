"""jointdit publish, and what the other commands say of a partial version."""

from __future__ import annotations

import json

import pytest

from jobs.cli import main
from pipelines.dataset.export import export_hf
from pipelines.ledger.versions import read_latest
from pipelines.run.notify import message_of
from pipelines.run.rounds import pending_shards
from pipelines.spec.job import load_spec
from tests.local_job import LocalJob


@pytest.fixture
def job(make_job) -> LocalJob:
    """Three shards of 4 samples, none of them committed."""
    job = make_job([f"p{n}" for n in range(12)])
    job.plan()
    return job


def words(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_every_command_says_that_a_version_is_partial(job: LocalJob, capsys, tmp_path) -> None:
    uri, storage = job.context.storage.uri, job.context.storage
    assert main(["publish", uri]) == 0
    assert "has no committed sample yet: nothing was published." in words(capsys)
    job.run_shard(pending_shards(job.ledger)[0])
    partial = "4 kept, 0 rejected, 0 quarantined, partial: 8 planned samples left out"
    assert main(["publish", uri]) == 0
    assert f"version 1 published: {partial}" in words(capsys)
    assert main(["publish", uri]) == 0
    assert f"version 1 is the latest: {partial}; nothing more is committed." in words(capsys)
    assert main(["versions", uri]) == 0
    assert f"{partial}; plan 1;" in words(capsys)
    assert main(["status", uri]) == 0
    assert f"version 1, {partial}; more is planned: run again" in words(capsys)
    assert main(["validate", uri]) == 0
    assert "which is partial, 8 planned samples left out" in words(capsys)
    assert "**This version is partial:** 8 planned samples are left out" in storage.read_bytes("README.md").decode()
    assert "8 planned samples are left out" in storage.read_bytes("gallery/index.html").decode()
    statistics = json.loads(storage.read_bytes("stats.json"))
    assert (statistics["is_partial"], statistics["left_out"]) == (True, 8)
    message = message_of("job", uri, read_latest(storage))
    assert (message["is_partial"], message["left_out"]) == (True, 8)
    export_hf(uri, str(tmp_path / "exported"))
    assert "**This version is partial:**" in (tmp_path / "exported" / "README.md").read_text()
    job.run()
    assert main(["publish", uri, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["is_new"], found["version"]["is_partial"], found["version"]["counts"]["kept"]) == (True, False, 12)
    assert main(["diff", uri, "1", "2"]) == 0
    assert "version 1, partial: 8 planned samples left out -> 2" in words(capsys)
    assert "partial" not in storage.read_bytes("README.md").decode()


def test_an_output_without_a_job_or_a_plan_is_refused(make_job, capsys, tmp_path) -> None:
    assert main(["publish", str(tmp_path / "nothing")]) == 1
    assert "nothing" in words(capsys)
    job = make_job(["a"])
    job.ledger.open_job(job.context.spec, job.context.fingerprint)
    assert main(["publish", job.context.storage.uri]) == 1
    assert "has no plan: there is nothing to publish." in words(capsys)


@pytest.mark.parametrize("value", [6, "6", "six hours", "0s", "-1h", "400d", ""])
def test_a_wrong_interval_is_refused(value: object) -> None:
    output = {"uri": "out", "publish_every": value}
    with pytest.raises(Exception, match=r"output\.publish_every must be a duration from 1s to 365d"):
        load_spec({"task": "joint", "input": {"uri": "a.txt"}, "output": output})


def test_an_interval_in_any_unit() -> None:
    for text, seconds in {"90s": 90, "30m": 1800, "6h": 21600, "1.5d": 129600}.items():
        spec = load_spec({"task": "joint", "input": {"uri": "a.txt"}, "output": {"uri": "out", "publish_every": text}})
        assert spec.output.publish_seconds == seconds

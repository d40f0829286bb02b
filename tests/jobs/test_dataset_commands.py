"""retry, gc, versions, diff, status --watch and run --if-idle from the command line, on jobs that need no Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

import jobs.watch
from jobs.cli import main
from jobs.datasets import seconds_of_age
from jobs.watch import duration, watch
from jointdit.errors import SpecError
from pipelines.ledger.lease import Heartbeat
from pipelines.run.rounds import pending_shards
from tests.local_job import LocalJob


@pytest.fixture
def job(make_job) -> LocalJob:
    """Two shards; one sample is rejected, one quarantined. Version 1."""
    quality = {"filters": [{"kind": "depth_range"}], "max_quarantined_fraction": 1.0}
    job = make_job(["a", "FLAT", "", "b", "c", "d"], quality=quality)
    job.complete()
    return job


def words(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_retry_prints_its_plan_and_the_next_version_differs_by_it(job: LocalJob, capsys) -> None:
    uri = job.context.storage.uri
    assert main(["retry", uri]) == 2, "an outcome is required"
    capsys.readouterr()
    assert main(["retry", uri, "--quarantined", "--rejected"]) == 0
    printed = words(capsys)
    assert "planned again: 2 samples in 1 shard: 1 quarantined, 1 rejected" in printed
    assert "Their seeds stay" in printed
    assert main(["retry", uri, "--quarantined"]) == 0
    assert "has nothing to retry: 0 quarantined." in words(capsys)
    assert main(["status", uri]) == 0
    assert "shards 2 of 3 committed samples 4 of 6 (67%)" in words(capsys)

    job.complete()
    assert main(["versions", uri]) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert one.split()[0] == "1"
    assert "4 kept, 1 rejected, 1 quarantined; plan 1" in one
    assert "4 kept, 1 rejected, 1 quarantined, 2 superseded; plans 1, 2" in two
    assert main(["versions", uri, "--json"]) == 0
    assert [version["number"] for version in json.loads(capsys.readouterr().out)] == [1, 2]

    assert main(["diff", uri, "1", "2"]) == 0
    assert "made again 2: 1 rejected, 1 quarantined prompts.txt:1/0" in words(capsys)
    assert main(["diff", uri, "1", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [change["id"] for change in found["made_again"]] == ["prompts.txt:1/0", "prompts.txt:2/0"]
    assert (found["first"], found["second"], found["same"]) == (1, 2, 4)
    assert main(["diff", uri, "1", "7"]) == 1
    assert "has no version 7: it has 1, 2." in capsys.readouterr().err
    assert main(["validate", uri]) == 0


def test_refilter_as_json_has_both_versions(job: LocalJob, capsys) -> None:
    uri = job.context.storage.uri
    assert main(["refilter", uri, "--set", "quality.filters=[]", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["before"]["number"], content["version"]["number"], content["is_new"]) == (1, 2, True)
    assert content["version"]["spec"]["quality"]["filters"] == []
    assert content["moved"] == {"rejected -> kept": 1}


def test_gc_lists_objects_before_it_deletes_them(job: LocalJob, capsys) -> None:
    uri, storage = job.context.storage.uri, job.context.storage
    name = f"data/{job.ledger.planned()[0].shard.id}-0123456789abcdef.parquet"
    storage.write_bytes(name, b"of a loser")
    assert main(["gc", uri, "--dry-run", "--older-than", "0s"]) == 0
    printed = capsys.readouterr().out
    assert f"{name}  1 object, 10 bytes" in printed
    assert "1 object, 10 bytes would be deleted" in printed
    assert storage.exists(name)
    assert main(["gc", uri]) == 0, "it keeps what is younger than an hour"
    assert "0 objects, 0 bytes deleted" in capsys.readouterr().out
    assert main(["gc", uri, "--json", "--older-than", "0s"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ([each["path"] for each in found["objects"]], found["bytes"]) == ([name], 10)
    assert not storage.exists(name)
    assert main(["gc", uri, "--older-than", "soon"]) == 1
    assert "--older-than 'soon' is no age: give a number with s, m, h or d, such as 12h." in capsys.readouterr().err


def test_ages() -> None:
    assert [seconds_of_age(age) for age in ("90s", "1.5m", "12h", " 7d ")] == [90, 90, 43200, 604800]
    for age in ("", "7", "d", "-1d", "1w"):
        with pytest.raises(SpecError, match="is no age"):
            seconds_of_age(age)
    assert [duration(seconds) for seconds in (5, 65, 3661)] == ["5 s", "1 min 05 s", "1 h 01 min"]


def test_watch_follows_a_job_to_its_end(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job([f"prompt {number}" for number in range(8)])
    job.plan()
    first, second = pending_shards(job.ledger)
    seen: list[str] = []
    started, half = threading.Event(), threading.Event()

    def listen(line: str) -> None:
        seen.append(line)
        started.set()
        if line.startswith("4 of 8"):
            half.set()

    def work() -> None:
        started.wait(timeout=30)
        with Heartbeat(job.context.storage, beat_seconds=0.01):
            job.run_shard(first)
            half.wait(timeout=30)
            job.run_shard(second)
            job.publish()

    monkeypatch.setattr(jobs.watch, "say", listen)
    driver = threading.Thread(target=work)
    driver.start()
    watch(job.context.storage.uri, refresh_seconds=0.05)
    driver.join()
    assert seen[0] == (
        "0 of 8 samples, 0 kept, 0 rejected, 0 quarantined; measuring the rate; "
        "no active driver: `jointdit run` resumes the job"
    )
    assert seen[1].startswith("4 of 8 samples, 4 kept, 0 rejected, 0 quarantined; ")
    assert "samples/s, " in seen[1]
    assert seen[1].endswith(" s left; 1 active driver")
    assert seen[-1].endswith("8 kept, 0 rejected, 0 quarantined; complete: version 1")


def test_watch_of_a_finished_job_ends_at_once_and_needs_no_ray(job: LocalJob) -> None:
    script = (
        "import sys\n"
        "from jobs.cli import main\n"
        f"code = main(['status', {job.context.storage.uri!r}, '--watch'])\n"
        "sys.exit('imported Ray' if {'ray', 'torch'} & set(sys.modules) else code)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert "6 of 6 samples, 4 kept, 1 rejected, 1 quarantined; complete: version 1" in answer.stdout


def test_status_as_json(job: LocalJob, capsys) -> None:
    assert main(["status", job.context.storage.uri, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["latest"], found["is_complete"], found["leases"]) == (6, 1, True, [])


def test_if_idle_exits_if_another_run_is_active(job: LocalJob, capsys, tmp_path: Path) -> None:
    """The spec could not run: the command must exit before it checks the model."""
    (tmp_path / "spec.yaml").write_text(
        yaml.safe_dump({**job.context.spec.as_given(), "model": {"name": str(tmp_path / "no checkpoint")}})
    )
    command = ["run", str(tmp_path / "spec.yaml"), "--if-idle"]
    before = {each.path for each in job.context.storage.list()}
    with Heartbeat(job.context.storage, beat_seconds=0.05):
        assert main(command) == 0
        assert f"{job.context.storage.uri} has an active run, process " in capsys.readouterr().out
    assert {each.path for each in job.context.storage.list()} == before
    assert main(command) == 1, "no run is active, so it starts and finds that the checkpoint is missing"
    assert "no checkpoint" in capsys.readouterr().err

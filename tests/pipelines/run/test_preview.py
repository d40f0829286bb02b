"""What `jointdit plan` says of bytes, hours, cost and settings."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from pipelines.engine.progress import Progress
from pipelines.engine.usage import Usage
from pipelines.run.opening import open_job
from pipelines.run.preview import preview
from pipelines.run.report import keep_report, report_of
from pipelines.store.storage import Storage
from tests.local_job import IDENTITY, LocalJob

SIZES = [(240, 320), (480, 640)]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.run.opening.identify_job", lambda spec, recorded: IDENTITY)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def report(job: LocalJob, samples: int, usage: Usage) -> None:
    """Store the report of a run that made so many samples."""
    progress = Progress()
    progress.counts, progress.usage = Counter({"kept": samples}), usage
    assert keep_report(job.context.storage, report_of(job.context.spec, progress, 1, ""))


def test_bytes_in_flight_follow_the_size_of_the_images(make_job, photos: Path) -> None:
    job = make_job(task="depth", input={"uri": str(photos)}, resources={"shards_in_flight": 2})
    found = preview(job.context.spec)
    pixels = sum(height * width for height, width in SIZES)
    encoded = sum(path.stat().st_size for path in photos.iterdir())
    at_the_models_size = 2 * 32 * 32 * 2 * (3 + 4)
    assert found.in_flight_bytes == 2 * (3 * pixels + encoded + at_the_models_size)
    assert found.output_bytes == round(pixels * (1.7 + 1.2))


def test_a_shard_in_flight_holds_no_more_sources_than_the_reader_keeps(make_job, photos: Path, monkeypatch) -> None:
    monkeypatch.setattr("pipelines.run.preview.HELD_BYTES", 1000)
    job = make_job(task="depth", input={"uri": str(photos)}, resources={"shards_in_flight": 1})
    assert preview(job.context.spec).in_flight_bytes == 1000 + 2 * 32 * 32 * 2 * (3 + 4)


def test_a_resumed_plan_samples_what_is_pending(make_job, photos: Path) -> None:
    job = make_job(task="depth", input={"uri": str(photos)}, output={"shard_rows": 1})
    job.plan()
    before = preview(job.context.spec)
    assert (before.new_rows, before.sample.rows, before.sample.failed) == (0, 2, 0)
    job.run()
    after = preview(job.context.spec)
    assert (after.sample.rows, after.in_flight_bytes, after.output_bytes) == (0, 0, 0)


def test_hours_and_cost_come_from_the_rate_of_earlier_runs(make_job) -> None:
    job = make_job([f"prompt {n}" for n in range(30)], price={"gpu_hour": 2.5, "currency": "EUR"})
    job.plan()
    assert (preview(job.context.spec).rate, preview(job.context.spec).cost) == (None, None)
    report(job, 5, Usage(held_seconds=3600, cpus=4.0))
    found = preview(job.context.spec)
    assert (found.rate.device, found.cpu_hours, found.gpu_hours, found.cost) == ("CPU", 24.0, None, None)
    report(job, 4, Usage(held_seconds=3600, gpus=1.0, cpus=4.0))
    report(job, 6, Usage(held_seconds=3600, gpus=1.0, cpus=4.0))
    report(job, 0, Usage(held_seconds=3600, gpus=1.0, cpus=4.0))
    found = preview(job.context.spec)
    assert dataclasses.astuple(found.rate) == (2, 10, "GPU", 2.0)
    assert (found.gpu_hours, found.cpu_hours, found.cost, found.currency) == (6.0, None, 15.0, "EUR")


def write_spec(folder: Path, job: LocalJob, **sections: Any) -> str:
    path = folder / "spec.yaml"
    path.write_text(json.dumps({**job.context.spec.as_given(), **sections}))
    return str(path)


def test_plan_prints_the_sample_the_hours_and_the_cost(make_job, tmp_path: Path, capsys) -> None:
    job = make_job([*(f"prompt {n}" for n in range(7)), ""], price={"gpu_hour": 2.0})
    spec = write_spec(tmp_path, job)
    assert main(["plan", spec]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 8 rows of .txt files would be quarantined, such as prompts.txt:7 (prompt is empty" in printed
    assert "takes no measured rate yet" in printed
    job.plan()
    report(job, 16, Usage(held_seconds=7200, gpus=1.0))
    assert main(["plan", spec]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "takes 1 GPU-hours, 2.00 USD, at 8 samples per GPU-hour in 1 earlier run" in printed
    assert main(["plan", spec, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["gpu_hours"], plan["cost"], plan["rate"]["samples"]) == (1.0, 2.0, 16)
    assert (plan["sample"]["rows"], plan["new_rows"]) == (0, 0), "the lines of a planned file are not sought again"


def test_plan_says_where_the_size_of_planned_images_is_not_known(
    make_job, photos: Path, tmp_path: Path, capsys
) -> None:
    records = [{"image": f"photos/{number}.png"} for number in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    job = make_job(task="depth", input={"uri": str(tmp_path / "rows.jsonl")})
    spec = write_spec(tmp_path, job)
    assert main(["plan", spec, "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)["sample"]
    assert (sample["rows"], sample["failed"], sample["kinds"][0]["kind"]) == (2, 0, ".jsonl files")
    job.plan()
    assert main(["plan", spec]) == 0
    assert "no row of a planned table was read, so the bytes below do not count" in capsys.readouterr().out


def test_plan_ends_with_1_and_a_new_run_writes_nothing_where_no_row_can_be_read(
    make_job, tmp_path: Path, capsys
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"image": f"{n}.png"}) + "\n" for n in range(20)))
    job = make_job(task="depth", input={"uri": str(tmp_path / "rows.jsonl")})
    spec = write_spec(tmp_path, job, quality={})
    for command in ("plan", "run"):
        assert main([command, spec]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith(
            "Error: input.uri: all 8 sampled rows of .jsonl files would be quarantined, such as "
        )
        assert "rows.jsonl:0 (image" in captured.err
        assert captured.out == ""
        assert not (tmp_path / "out").exists()


def test_settings_of_what_is_written_cannot_change_on_a_finished_output(make_job, tmp_path: Path, capsys) -> None:
    job = make_job(["a", "b"])
    job.complete()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    spec = write_spec(tmp_path, job)
    for command in ("plan", "run"):
        assert main([command, spec, "--set", "output.points=ply", "--set", "output.image_format=jpeg"]) == 1
        assert capsys.readouterr().err == (
            f"Error: output.uri {tmp_path / 'out'} already holds a job that writes its samples in another way, by "
            "output.image_format (png there, jpeg here), output.points.format (none there, ply here): choose another "
            "output, or use its values.\n"
        )
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_setting_that_may_change_goes_on(make_job) -> None:
    make_job(["a", "b"]).complete()
    sections = {
        "output": {"shard_rows": 2, "retain_versions": 5},
        "model": {"batch_size": 1},
        "budget": {"max_rows": 9},
    }
    assert preview(make_job(**sections).context.spec).pending_samples == 0


def test_settings_that_wait_for_the_next_version_are_said(make_job, tmp_path: Path) -> None:
    make_job(["a", "b"]).complete()
    output = {"license": "mit", "gallery_rows": 9}
    job = make_job(output=output, quality={"filters": [{"kind": "depth_range"}]})
    notes = preview(job.context.spec).notes
    assert notes[0].startswith("quality.filters and keep_best differ from those of version 1 and apply to new samples")
    assert notes[1:] == (
        "output.license mit applies from the next version on; version 1 has other.",
        "output.gallery_rows 9 applies from the next version on; version 1 has 2000.",
    )
    with (tmp_path / "prompts.txt").open("a") as file:
        file.write("c\n")
    assert job.complete().number == 2
    assert open_job(job.context.spec, Storage(str(tmp_path / "out"))).notes == ()

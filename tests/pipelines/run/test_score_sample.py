"""calibrate: a sample of the job itself, pixel for pixel, and thresholds that its scores suggest."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from jobs.cli import main
from jointdit.errors import PermanentError, SpecError
from pipelines.ledger.ledger import Ledger
from pipelines.run import calibrate as calibrating
from pipelines.run.calibrate import calibrate, draw
from pipelines.run.rounds import pending_shards
from pipelines.spec.job import load_spec
from pipelines.store.storage import Storage
from tests.local_job import LocalJob, job_in


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    """Sixteen prompts, every fourth of a flat map; a filter without a calibration that its quantile could come from."""
    prompts = ["FLAT" if number % 4 == 2 else f"prompt {number}" for number in range(16)]
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    data = {
        "task": "joint",
        "model": {"height": 32, "width": 32},
        "input": {"uri": str(tmp_path / "prompts.txt"), "samples_per_row": 2},
        "output": {"uri": str(tmp_path / "out"), "points": "ply"},
        "quality": {"filters": [{"kind": "depth_range", "min_span": {"quantile": 0.2}}], "regenerate": 2},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "job.yaml"


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are run in this process by the stand-in; tests/integration/test_rounds_and_samples.py has Ray."""

    def run(context, ledger, progress, limits, worker_class):
        for entry in pending_shards(ledger):
            LocalJob(context, ledger).run_shard(entry)

    monkeypatch.setattr(calibrating, "generate_all", run)


def test_from_a_spec_to_a_spec_with_thresholds(spec_file: Path, tmp_path: Path, capsys) -> None:
    assert main(["calibrate", str(spec_file), "-n", "12", "--reject", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "12 samples with scores, 0 quarantined" in printed
    assert "depth_range.min_span bounds depth_span" in printed
    assert "█" in printed
    assert "0.1 rejects " in printed, "the default, in place of a quantile that cannot be known yet"
    folder = tmp_path / "out-calibration"
    snippet = yaml.safe_load((folder / "calibration.yaml").read_text())["quality"]
    assert [each["kind"] for each in snippet["filters"]] == ["depth_range"]
    assert (folder / "calibration.yaml").read_text() in printed
    assert not (tmp_path / "out").exists(), "the job itself is not begun"
    assert not (folder / "_versions").exists()
    assert not (folder / "pointclouds").exists()

    found = calibrating.Calibration(**{**yaml.safe_load((folder / "calibration.json").read_text())})
    scores = found.scores["depth_span"]
    assert (len(scores), scores[0], scores) == (12, 0.0, sorted(scores))
    bound = snippet["filters"][0]["min_span"]
    assert sum(score < bound for score in scores) == 2, "some 10 % of the sample, as asked"
    spec = load_spec(spec_file, [f"quality.calibration={folder}"])
    assert spec.quality.filters[0]["min_span"] == pytest.approx(found.quantile("depth_span", 0.2))


def pixels(ledger: Ledger) -> dict[str, tuple]:
    commits = (ledger.read_commit(shard) for shard in ledger.committed())
    tables = (io.BytesIO(ledger.storage.read_bytes(each.path)) for commit in commits for each in commit.objects)
    rows = (row for table in tables for row in pq.read_table(table).to_pylist())
    return {row["id"]: (row["seed"], row["rgb"], row["depth"], row["quality"]) for row in rows}


def test_the_sample_is_of_the_job_pixel_for_pixel(spec_file: Path, tmp_path: Path) -> None:
    spec = calibrating.load_to_calibrate(spec_file)
    calibrate(spec, 6)
    sampled = Ledger(Storage(str(tmp_path / "out-calibration")))
    ids = {s.id for shard in sampled.committed() for s in sampled.read_commit(shard).samples}
    assert len(ids) == 6
    assert len({identifier.rsplit("/")[0] for identifier in ids}) == 3, "both samples of each row"
    job = job_in(tmp_path, input={"samples_per_row": 2}, output={"uri": str(tmp_path / "whole")})
    job.plan()
    job.run()
    expected = pixels(job.ledger)
    assert {identifier: expected[identifier] for identifier in ids} == pixels(sampled)
    before = {each.path: each.etag for each in sampled.storage.list() if not each.path.startswith("calibration")}
    calibrate(spec, 6)
    after = {each.path: each.etag for each in sampled.storage.list() if not each.path.startswith("calibration")}
    assert after == before, "what is there is not made again"
    with pytest.raises(PermanentError, match="holds another sample, of other input or another size: give another"):
        calibrate(spec, 10)
    assert calibrate(spec, 10, str(tmp_path / "ten")).calibration.samples == 10


def test_settings_without_a_score_may_change_between_calibrations(spec_file: Path) -> None:
    calibrate(calibrating.load_to_calibrate(spec_file), 4)
    other = ["output.image_format=jpeg", "output.points={format: both, z_near: 2.0, z_far: 9.0}", "output.shard_rows=2"]
    assert calibrate(calibrating.load_to_calibrate(spec_file, other), 4).calibration.samples == 4


def test_rows_are_drawn_from_all_of_the_input() -> None:
    assert draw(5, 9, 0) == [0, 1, 2, 3, 4]
    drawn = draw(10_000, 100, 7)
    assert drawn == draw(10_000, 100, 7) == sorted(set(drawn))
    assert draw(10_000, 100, 8) != drawn
    assert min(drawn) < 1000
    assert max(drawn) > 9000


def test_latents_have_no_scores(tmp_path: Path) -> None:
    data = {"task": "encode", "input": {"uri": "in", "depth": {"kind": "disparity"}}, "output": {"uri": str(tmp_path)}}
    with pytest.raises(SpecError, match="there is nothing to calibrate"):
        calibrate(load_spec(data))

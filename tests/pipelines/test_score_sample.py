"""calibrate: a sample of the job itself, pixel for pixel, and thresholds that its scores suggest."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from jointdit.errors import PermanentError, SpecError
from pipelines import score_sample as calibrating
from pipelines.ledger import Ledger
from pipelines.run import pending_shards
from pipelines.score_sample import calibrate, draw
from pipelines.spec import load_spec
from pipelines.storage import Storage
from tests.local_job import LocalJob, job_in


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    """Forty prompts, every eighth of a flat map; a filter without a calibration that its quantile could come from."""
    prompts = ["FLAT" if number % 8 == 0 else f"prompt {number}" for number in range(40)]
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
    assert main(["calibrate", str(spec_file), "-n", "24", "--reject", "0.25"]) == 0
    printed = capsys.readouterr().out
    assert "24 samples with scores, 0 quarantined" in printed
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
    assert (len(scores), scores[0], scores) == (24, 0.0, sorted(scores))
    bound = snippet["filters"][0]["min_span"]
    assert sum(score < bound for score in scores) == 6, "a quarter of the sample, as asked"
    spec = load_spec(spec_file, [f"quality.calibration={folder}"])
    assert spec.quality.filters[0]["min_span"] == pytest.approx(found.quantile("depth_span", 0.2))


def test_the_sample_is_of_the_job_pixel_for_pixel(spec_file: Path, tmp_path: Path) -> None:
    spec = calibrating.load_to_calibrate(spec_file)
    calibrate(spec, 6)
    sampled = Ledger(Storage(str(tmp_path / "out-calibration")))
    ids = {s.id for shard in sampled.committed() for s in sampled.read_commit(shard).samples}
    assert len(ids) == 6
    assert len({identifier.rsplit("/")[0] for identifier in ids}) == 3, "both samples of each row"
    entry = sampled.planned()[0]
    whole = job_in(tmp_path, task="joint", input={"samples_per_row": 2}, output={"uri": str(tmp_path / "whole")})
    assert entry.shard.spans[0].uri == whole.context.spec.input.uri[0]
    commit = sampled.read_commit(entry.shard.id)
    assert all(sample.id.startswith("prompts.txt:") for sample in commit.samples)
    before = {each.path: each.etag for each in sampled.storage.list() if not each.path.startswith("calibration")}
    calibrate(spec, 6)
    after = {each.path: each.etag for each in sampled.storage.list() if not each.path.startswith("calibration")}
    assert after == before, "what is there is not made again"
    with pytest.raises(PermanentError, match="holds another sample, of other input or another size: give another"):
        calibrate(spec, 10)
    assert calibrate(spec, 10, str(tmp_path / "ten")).calibration.samples == 10


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

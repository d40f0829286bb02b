from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipelines.stages.read
from jointdit.geometry.depth import plan_fit
from pipelines.ledger.entries import PlannedShard
from pipelines.plan.shards import make_shard
from pipelines.records import Row, Sample
from pipelines.stages.read import Isolation, cut_parts, read_shard, sample_seed


def only_entry(job) -> PlannedShard:
    job.plan()
    (entry,) = job.ledger.planned()
    return entry


def ids(parts: list[list[Sample]]) -> list[list[str]]:
    return [[sample.id for sample in part] for part in parts]


def test_seeds_are_63_bits_of_job_seed_row_and_index_and_nothing_else() -> None:
    assert sample_seed(7, "a.txt:0", 1) == sample_seed(7, "a.txt:0", 1)
    seeds = {sample_seed(job, row, index) for job in (0, 7) for row in ("a:0", "a:1", "b:0") for index in range(3)}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(0, "prompts.txt:0", 0) == 2489803701259263986  # fixed for ever: it decides pixels


def test_a_shard_gives_as_many_parts_as_the_driver_expects(make_job) -> None:
    entry = only_entry(job := make_job(["a", "", "c", "  "], input={"samples_per_row": 3}, model={"batch_size": 4}))
    rows, parts = read_shard(job.context, entry)
    assert ids(parts) == [
        ["prompts.txt:0/0", "prompts.txt:0/1", "prompts.txt:0/2", "prompts.txt:2/0"],
        ["prompts.txt:2/1", "prompts.txt:2/2"],
        [],
    ]
    assert [result.sample.id for result in rows.failed] == [
        f"prompts.txt:{row}/{i}" for row in (1, 3) for i in range(3)
    ]
    assert {result.error for result in rows.failed} == {"prompt is empty: say what the image shows."}
    assert [source.row.position for source in rows.rows] == [0, 2]


def test_later_rounds_continue_the_sample_index(make_job) -> None:
    job = make_job(["a", "b"], input={"samples_per_row": 2})
    (entry,) = (job.plan(), job.ledger.planned())[1]
    later = PlannedShard(make_shard(entry.shard.spans, 3, "f"), 1, 2, 0, indices=(6,))
    _, parts = read_shard(job.context, later)
    assert ids(parts) == [["prompts.txt:0/6", "prompts.txt:1/6"]]
    assert {sample.round for part in parts for sample in part} == {3}


def test_images_of_different_shapes_go_into_different_batches(make_job, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate([(64, 64), (64, 32), (64, 64), (64, 32)]):
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "9.png").write_bytes(b"no image")
    job = make_job(task="depth", input={"uri": str(folder)}, output={"shard_rows": 10})
    rows, parts = read_shard(job.context, only_entry(job))
    assert ids(parts) == [["1.png:0/0", "3.png:0/0"], ["0.png:0/0", "2.png:0/0"], []]
    assert [{sample.rgb.shape for sample in part} for part in parts] == [{(16, 32, 3)}, {(32, 32, 3)}, set()]
    assert all(sample.row.rgb is None for part in parts for sample in part)  # the worker is not sent the source
    assert [source.row.rgb.shape for source in rows.rows] == [(64, 64, 3), (32, 64, 3), (64, 64, 3), (32, 64, 3)]
    assert [result.sample.id for result in rows.failed] == ["9.png:0/0"]


def test_a_constant_depth_map_is_a_bad_row(make_job, tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    np.save(folder / "flat.npy", np.ones((20, 30), np.float32))
    np.save(folder / "ramp.npy", np.linspace(1, 5, 600, dtype=np.float32).reshape(20, 30))
    job = make_job(task="depth-to-image", input={"uri": str(folder), "prompt": "a cube", "depth": {"kind": "metric"}})
    rows, parts = read_shard(job.context, only_entry(job))
    assert [result.sample.id for result in rows.failed] == ["flat.npy:0/0"]
    assert "constant" in rows.failed[0].error
    (sample,) = parts[0]
    mapping = plan_fit(20, 30, 32, 32)
    assert sample.disparity.shape == (mapping.model_height, mapping.model_width)
    assert sample.disparity.max() > 0.9  # 1 m is nearest


def test_inputs_that_changed_since_they_were_planned_are_bad_rows(make_job, tmp_path: Path) -> None:
    job = make_job(["a", "b"])
    entry = only_entry(job)
    (tmp_path / "prompts.txt").write_text("other\nrows\n")
    rows, parts = read_shard(job.context, entry)
    assert ids(parts) == [[]]
    assert all("has changed since it was planned" in result.error for result in rows.failed)
    (tmp_path / "prompts.txt").unlink()
    rows, _ = read_shard(job.context, entry)
    assert all("does not exist any more" in result.error for result in rows.failed)


def test_suspects_are_read_into_parts_of_their_own(make_job) -> None:
    job = make_job(["a", "b", "c", "d"])
    entry = only_entry(job)
    isolation = Isolation(suspects=frozenset({"prompts.txt:1/0", "prompts.txt:2/0"}))
    _, parts = read_shard(job.context, entry, isolation)
    assert ids(parts) == [["prompts.txt:0/0", "prompts.txt:3/0"], ["prompts.txt:1/0"], ["prompts.txt:2/0"]]
    assert len(parts) == isolation.parts(4, 2)


def test_poison_is_quarantined_without_being_generated(make_job) -> None:
    job = make_job(["a", "b", "c", "d"])
    isolation = Isolation(poison=frozenset({"prompts.txt:1/0"}), poison_rows=frozenset({(0, 3)}))
    rows, parts = read_shard(job.context, only_entry(job), isolation)
    assert ids(parts) == [["prompts.txt:0/0", "prompts.txt:2/0"], []]
    errors = {result.sample.id: result.error for result in rows.failed}
    assert errors == {
        "prompts.txt:1/0": "the model's process died each time this sample was generated.",
        "prompts.txt:3/0": "the reader's process died each time this row was read.",
    }


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_parts_hold_each_sample_once(batch_size: int) -> None:
    row = Row("r", "/in", 0)
    shapes = [(16, 16), (32, 16), (16, 16), (32, 32), (32, 16)]
    samples = [Sample(str(n), row, n, 0, 0, rgb=np.zeros((*shape, 3), np.uint8)) for n, shape in enumerate(shapes)]
    trusted, suspects = cut_parts(samples, batch_size, frozenset({"3"}))
    parts = trusted + suspects
    assert sorted(sample.id for part in parts for sample in part) == list("01234")
    assert max(map(len, parts)) <= batch_size
    assert ids(suspects) == [["3"]]


def test_a_row_that_cannot_be_brought_to_the_models_size_is_bad_alone(
    make_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number}.png")
    job = make_job(task="depth", input={"uri": str(folder)})
    fit_to_model = pipelines.stages.read.fit_to_model

    def fails_on_the_second(array, *arguments):
        if array[0, 0, 0] == 1:
            raise OverflowError("too large")
        return fit_to_model(array, *arguments)

    monkeypatch.setattr(pipelines.stages.read, "fit_to_model", fails_on_the_second)
    rows, parts = read_shard(job.context, only_entry(job))
    assert ids(parts) == [["0.png:0/0", "2.png:0/0"], []]
    (failed,) = rows.failed
    assert (failed.sample.id, failed.error) == (
        "1.png:0/0",
        "bringing it to the model's size failed, OverflowError: too large",
    )
    assert "fails_on_the_second" in failed.traceback

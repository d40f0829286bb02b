"""Rows that are read when a job is planned: which, how many, and what their faults mean."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jointdit.errors import InputError
from pipelines.plan import sample
from pipelines.plan.propose import Proposal, propose
from pipelines.plan.sample import InputSample
from tests.local_job import LocalJob


def png(height: int = 8, width: int = 12) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def folder_of(path: Path, *images: bytes) -> Path:
    path.mkdir(parents=True)
    for number, data in enumerate(images):
        (path / f"{number:03d}.png").write_bytes(data)
    return path


def proposed(job: LocalJob, fraction: float = 0.05) -> Proposal:
    quality = job.context.spec.quality.model_copy(update={"max_quarantined_fraction": fraction})
    spec = job.context.spec.model_copy(update={"quality": quality})
    return propose(spec, job.context.fingerprint, job.ledger, replace(job.context, spec=spec))


def sample_of(job: LocalJob) -> InputSample:
    return proposed(job).sample


def lines(*records: dict[str, object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def table_of(**columns: list[object]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


PROMPTS = lines(*({"prompt": ""} for _ in range(20)))
BROKEN = {
    "a column of paths without files": (
        "depth",
        "rows.jsonl",
        lines(*({"image": f"{n}.png"} for n in range(20))).encode(),
        "0.png does not exist",
    ),
    "an image column that is text": (
        "depth",
        "rows.parquet",
        table_of(image=[b"no image"] * 20),
        "image has an unknown format",
    ),
    "an empty prompt column": (
        "joint",
        "rows.csv",
        b"id,prompt\n" + b"".join(b"%d,\n" % n for n in range(20)),
        "prompt is missing",
    ),
    "prompts without words": ("joint", "rows.jsonl", PROMPTS.encode(), "prompt is empty"),
    "one row alone": ("joint", "rows.jsonl", lines({"prompt": " "}).encode(), "the only sampled row of .jsonl files"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_kind_whose_sampled_rows_all_fail_is_refused(name: str, make_job, tmp_path: Path) -> None:
    task, file, data, reason = BROKEN[name]
    (tmp_path / file).write_bytes(data)
    job = make_job(task=task, input={"uri": str(tmp_path / file)})
    with pytest.raises(InputError, match=r"^input\.uri: .* would be quarantined, such as rows\..*") as told:
        proposed(job)
    assert reason in str(told.value)
    assert not (tmp_path / "out").exists()
    assert proposed(job, fraction=1.0).sample.failed > 0, "who lets all rows be quarantined is told, not stopped"


def test_a_folder_whose_images_all_fail_is_refused_among_good_ones(make_job, tmp_path: Path) -> None:
    folder_of(tmp_path / "in" / "good", *[png()] * 30)
    folder_of(tmp_path / "in" / "bad", *[b"no image"] * 30)
    job = make_job(task="depth", input={"uri": str(tmp_path / "in")})
    with pytest.raises(
        InputError, match=r"all 8 sampled rows of images in /.*/bad would be quarantined, such as bad/000"
    ):
        proposed(job)


def test_some_bad_rows_are_counted_and_the_first_reason_is_kept(make_job, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines({"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}, {"prompt": 5}))
    found = sample_of(make_job(input={"uri": str(tmp_path / "rows.jsonl")}))
    assert (found.rows, found.failed) == (4, 2)
    assert found.reason == "rows.jsonl:1 (prompt is empty: say what the image shows)"


def test_one_bad_image_alone_in_its_folder_does_not_stop_the_others(make_job, tmp_path: Path) -> None:
    folder_of(tmp_path / "in" / "good", png())
    folder_of(tmp_path / "in" / "bad", b"no image")
    found = sample_of(make_job(task="depth", input={"uri": str(tmp_path / "in")}))
    assert (found.rows, found.failed) == (2, 1)


def test_the_first_file_and_a_later_one_of_each_format_are_read(make_job, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text("a prompt\n" * 20)
    (folder / "3.txt").write_text("\n" * 20)  # is not read
    (folder / "a.jsonl").write_text(lines(*({"prompt": "x"} for _ in range(20))))
    (folder / "b.jsonl").write_text(PROMPTS)
    found = sample_of(make_job(input={"uri": str(folder)}))
    assert [(kind.kind, kind.rows, kind.failed) for kind in found.kinds] == [
        (".txt files", 8, 0),
        (".jsonl files", 8, 4),
    ]
    assert found.reason.startswith("b.jsonl:0 ")


def test_of_a_single_table_some_rows_in_the_middle_are_read(make_job, tmp_path: Path) -> None:
    records = [{"prompt": ""}] * 10 + [{"prompt": "a"}] * 10  # as in a table that is sorted by its prompts
    (tmp_path / "rows.jsonl").write_text(lines(*records))
    found = sample_of(make_job(input={"uri": str(tmp_path / "rows.jsonl")}))
    assert (found.rows, found.failed) == (8, 4)


def test_a_sample_stays_small(make_job, tmp_path: Path) -> None:
    for number in range(50):
        folder_of(tmp_path / "in" / f"{number:02d}", *[png()] * 3)
    found = sample_of(make_job(task="depth", input={"uri": str(tmp_path / "in")}))
    assert (found.rows, len(found.kinds), found.all_kinds) == (sample.MOST_ROWS, sample.MOST_KINDS, 50)
    assert found.kinds[-1].kind.endswith("/43"), "spread over the folders"


def test_after_some_seconds_only_one_file_of_each_kind_is_read(make_job, tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "b"):
        folder_of(tmp_path / "in" / name, *[png()] * 8)
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    found = sample_of(make_job(task="depth", input={"uri": str(tmp_path / "in")}))
    assert [kind.rows for kind in found.kinds] == [1, 1]


def test_the_sizes_are_those_of_the_decoded_images(make_job, tmp_path: Path) -> None:
    folder_of(tmp_path / "in", png(100, 200), png(300, 400))
    found = sample_of(make_job(task="depth", input={"uri": str(tmp_path / "in")}))
    assert found.row_pixels == (100 * 200 + 300 * 400) / 2
    encoded = sum(path.stat().st_size for path in (tmp_path / "in").iterdir())  # copied to the output as they are
    assert found.row_bytes == (3 * (100 * 200 + 300 * 400) + encoded) / 2


def test_a_map_that_no_worker_could_use_is_found(make_job, tmp_path: Path) -> None:
    """It can be decoded, and fails where it is brought to the model's size."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        np.save(tmp_path / "in" / f"{number}.npy", np.full((8, 8), 3.0))
        (tmp_path / "in" / f"{number}.txt").write_text("a cube")
    job = make_job(task="depth-to-image", input={"uri": str(tmp_path / "in"), "depth": {"kind": "metric"}})
    with pytest.raises(InputError, match=r"all 3 sampled rows of depth maps in .*constant at 3"):
        proposed(job)


def test_a_table_that_changes_while_it_is_planned_is_listed_again(make_job, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines({"prompt": "a"}, {"prompt": "b"}))
    from pipelines.plan import propose as proposing

    list_files = proposing.list_files

    def then_append(*arguments: object) -> object:
        listed = list_files(*arguments)
        monkeypatch.setattr(proposing, "list_files", list_files)
        path.write_text(lines({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}))
        return listed

    monkeypatch.setattr(proposing, "list_files", then_append)
    found = proposed(make_job(input={"uri": str(path)}))
    assert (found.sample.rows, found.sample.failed, found.shards[0].rows) == (3, 0, 3)


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the bytes that readers read from files."""
    from pipelines.stages.readers import opening

    total, readinto = [0], opening._StoreFile.readinto

    def counting(self: object, buffer: object) -> int:
        count = readinto(self, buffer)
        total[0] += count
        return count

    monkeypatch.setattr(opening._StoreFile, "readinto", counting)
    return lambda: total[0]


def test_a_sample_reads_no_more_of_a_table_of_lines_than_counting_does(make_job, tmp_path: Path, bytes_read) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a prompt of some length\n" * 400_000)
    proposed(make_job(input={"uri": str(path)}))
    assert bytes_read() < path.stat().st_size + 3 * (1 << 20)


def test_of_a_parquet_file_only_the_first_row_group_is_read(make_job, tmp_path: Path, bytes_read) -> None:
    path = tmp_path / "rows.parquet"
    images = [png(256, 256)] * 200
    pq.write_table(pa.table({"image": images}), path, row_group_size=20, use_dictionary=False)
    found = sample_of(make_job(task="depth", input={"uri": str(path)}))
    assert (found.rows, found.failed) == (8, 0)
    assert bytes_read() < 0.2 * path.stat().st_size

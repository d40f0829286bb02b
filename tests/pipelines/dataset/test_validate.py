from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.dataset.validation.validate import validate
from pipelines.ledger.entries import sha256
from pipelines.ledger.ledger import PLAN_SCHEMA
from pipelines.ledger.versions import read_version
from pipelines.stages.sinks.parquet import table_bytes
from pipelines.store.parquet import parquet_bytes
from tests.edited_segments import edit_segments
from tests.local_job import LocalJob, job_in

PROMPTS = ["a", "b", "FLAT", "NAN", "c", "d"]
SECTIONS: dict[str, Any] = {
    "quality": {"filters": [{"kind": "depth_range"}], "max_quarantined_fraction": 1.0},
    "output": {"points": "ply"},
    "input": {"samples_per_row": 2},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished job."""
    folder = tmp_path_factory.mktemp("whole")
    job_in(folder, PROMPTS, **SECTIONS).complete()
    return folder


@pytest.fixture
def job(whole: Path, tmp_path: Path) -> LocalJob:
    """A copy of it, to be spoilt."""
    shutil.copytree(whole / "out", tmp_path / "out")
    return job_in(tmp_path, PROMPTS, **SECTIONS)


def first_commit(job: LocalJob) -> Path:
    return Path(job.context.storage.path(f"_commits/{job.ledger.planned()[0].shard.id}.json"))


def edit_commit(job: LocalJob, change: Callable[[dict], None]) -> None:
    path = first_commit(job)
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def path_of(job: LocalJob, folder: str) -> Path:
    """The first shard's largest file in a folder (quarantine: the only one)."""
    found = sorted(Path(job.context.storage.path(folder)).rglob("*.p*"), key=lambda path: -path.stat().st_size)
    return next((path for path in found if first_commit(job).stem in str(path)), found[0])


def rewrite(job: LocalJob, folder: str, data: bytes, rows: int | None = None) -> None:
    """Replace a table and make its commit and version agree on size and hash, so that only what is inside is wrong."""
    path = path_of(job, folder)
    name = str(path.relative_to(job.context.storage.path("")))
    path.write_bytes(data)
    storage = job.context.storage

    def update(files: list[dict]) -> None:
        for stored in files:
            if stored["path"] == name:
                stored.update(bytes=len(data), sha256=sha256(data), **({} if rows is None else {"rows": rows}))

    for info in storage.list("_commits"):
        fields = json.loads(storage.read_bytes(info.path))
        update(fields["objects"])
        storage.write_bytes(info.path, json.dumps(fields).encode())
    edit_segments(storage, shards=lambda shards: [update(shard["files"]) for shard in shards])


def with_image(job: LocalJob, column: str, image: Image.Image | bytes) -> bytes:
    table = pq.read_table(path_of(job, "data"))
    data = image
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    rows = table[column].to_pylist()
    rows[0]["bytes"] = data
    number = table.schema.get_field_index(column)
    return table_bytes(
        table.set_column(number, table.schema.field(column), pa.array(rows, table.schema.field(column).type))
    )


def lose_a_sample(fields: dict) -> None:
    for column in ("id", "span", "position", "index", "content"):
        fields["samples"][column].pop()
    fields["samples"]["outcome"] = fields["samples"]["outcome"][:-1]


def double_a_sample(fields: dict) -> None:
    for column in ("id", "span", "position", "index", "content"):
        fields["samples"][column].append(fields["samples"][column][-1])
    fields["samples"]["outcome"] += fields["samples"]["outcome"][-1]


def swap_an_outcome(fields: dict) -> None:
    fields["samples"]["outcome"] = "r" + fields["samples"]["outcome"][1:]


def misnamed(job: LocalJob) -> bytes:
    table = pq.read_table(path_of(job, "data"))
    ids = ["other/0", *table["id"].to_pylist()[1:]]
    return table_bytes(table.set_column(0, table.schema.field("id"), pa.array(ids)))


def edit_plan(job: LocalJob, change: Callable[[list[dict]], None]) -> None:
    path = Path(job.context.storage.path("_plan/000001.parquet"))
    records = pq.read_table(path).to_pylist()
    change(records)
    path.write_bytes(parquet_bytes(pa.Table.from_pylist(records, schema=PLAN_SCHEMA)))


def move_a_row(records: list[dict]) -> None:
    records[1]["spans"][0]["start"] += 1
    records[1]["rows"] -= 1


def plan_again(job: LocalJob) -> None:
    data = job.context.storage.read_bytes("_plan/000001.parquet")
    job.context.storage.write_bytes("_plan/000002.parquet", data)


def overlap(records: list[dict]) -> None:
    records[1]["spans"][0]["start"] -= 2
    records[1]["rows"] += 2


def with_value(job: LocalJob, column: str, value: object, folder: str = "data") -> bytes:
    """The table with another value in a column of its first row."""
    table = pq.read_table(path_of(job, folder))
    number = table.schema.get_field_index(column)
    values = [value, *table[column].to_pylist()[1:]]
    field = table.schema.field(column)
    return table_bytes(table.set_column(number, field, pa.array(values, field.type)))


def crash(job: LocalJob, number: int, data: bytes) -> None:
    job.context.storage.write_bytes(f"_crashes/{first_commit(job).stem}/{number}.json", data)


def rename_an_object(fields: dict) -> None:
    fields["objects"][0]["path"] = "pointclouds/" + "0" * 20 + "-0123456789abcdef/00000.ply"


def edit_version(job: LocalJob, change: Callable[[dict], object]) -> None:
    path = Path(job.context.storage.path("_versions/000001/version.json"))
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def segment_of(job: LocalJob) -> str:
    return read_version(job.context.storage, 1).segments[0].path


def edit_shard(job: LocalJob, change: Callable[[dict], object]) -> None:
    """Change the first shard of the version's segment."""
    edit_segments(job.context.storage, shards=lambda shards: change(shards[0]))


def broken_page(job: LocalJob) -> bytes:
    data = bytearray(path_of(job, "data").read_bytes())
    data[4:400] = b"\xff" * 396
    return bytes(data)


DAMAGE: dict[str, tuple[Callable[[LocalJob], object], str]] = {
    "a table is gone": (lambda job: path_of(job, "data").unlink(), "is named by a commit and missing"),
    "a point cloud is gone": (lambda job: path_of(job, "pointclouds").unlink(), "is named by a commit and missing"),
    "a flipped bit": (
        lambda job: path_of(job, "data").write_bytes(bytes([*path_of(job, "data").read_bytes()[:-1], 0])),
        "has another SHA-256 than its commit says",
    ),
    "a truncated table": (
        lambda job: path_of(job, "quarantine").write_bytes(path_of(job, "quarantine").read_bytes()[:-10]),
        "bytes, its commit says",
    ),
    "a commit is gone": (lambda job: first_commit(job).unlink(), "samples of version 1 have no commit"),
    "a commit is not JSON": (lambda job: first_commit(job).write_text("{"), "is not valid JSON"),
    "a commit of no plan": (
        lambda job: first_commit(job).with_name("0123.json").write_text(first_commit(job).read_text()),
        "_commits/0123.json commits a shard that no plan holds",
    ),
    "a lost sample": (lambda job: edit_commit(job, lose_a_sample), "1 of 8 planned samples are lost"),
    "a doubled sample": (lambda job: edit_commit(job, double_a_sample), "1 samples more than its 8 planned ones"),
    "another outcome": (
        lambda job: edit_commit(job, swap_an_outcome),
        "sample prompts.txt:0/0 is kept in version 1 and not so in the commit",
    ),
    "another id in the table": (
        lambda job: rewrite(job, "data", misnamed(job)),
        "sample other/0 is there and should not be",
    ),
    "a row too few": (
        lambda job: rewrite(job, "data", table_bytes(pq.read_table(path_of(job, "data")).slice(1))),
        "rows, its commit says 4",
    ),
    "a column too few": (
        lambda job: rewrite(job, "data", table_bytes(pq.read_table(path_of(job, "data")).drop_columns(["seed"]))),
        "column seed is missing, the schema says int64",
    ),
    "no Parquet": (lambda job: rewrite(job, "data", b"text"), "is not a readable Parquet file"),
    "a broken image": (
        lambda job: rewrite(job, "data", with_image(job, "rgb", b"\x89PNG broken")),
        "rgb of sample prompts.txt:0/0 cannot be decoded",
    ),
    "an image of another size": (
        lambda job: rewrite(job, "data", with_image(job, "rgb", Image.new("RGB", (32, 48)))),
        "rgb of sample prompts.txt:0/0 is 32 x 48, its row says 32 x 32",
    ),
    "8-bit depth": (
        lambda job: rewrite(job, "data", with_image(job, "depth", Image.fromarray(np.zeros((32, 32), np.uint8)))),
        "depth of sample prompts.txt:0/0 has mode L and not 16 bits",
    ),
    "a point too few": (
        lambda job: rewrite(job, "pointclouds", path_of(job, "pointclouds").read_bytes()[:-15]),
        "points, holds",
    ),
    "points that are not finite": (
        lambda job: rewrite(
            job, "pointclouds", path_of(job, "pointclouds").read_bytes()[:-15] + b"\x00\x00\x80\x7f" * 3 + b"rgb"
        ),
        "has points that are not finite",
    ),
    "no PLY": (lambda job: rewrite(job, "pointclouds", b"ply or not"), "is not a PLY file of points"),
    "a broken page": (lambda job: rewrite(job, "data", broken_page(job)), "is not a readable Parquet file"),
    "a seed of another sample": (
        lambda job: rewrite(job, "data", with_value(job, "seed", 7)),
        "sample prompts.txt:0/0 has seed 7, which is not that of its id",
    ),
    "a row of another source": (
        lambda job: rewrite(job, "data", with_value(job, "source", "prompts.txt:9")),
        "sample prompts.txt:0/0 says that its row is prompts.txt:9",
    ),
    "depth of another kind": (
        lambda job: rewrite(job, "data", with_value(job, "depth_kind", "metric")),
        "has depth_kind metric and not relative_disparity",
    ),
    "an image that is missing": (
        lambda job: rewrite(job, "data", with_value(job, "depth", None)),
        "depth of sample prompts.txt:0/0 is missing",
    ),
    "a point cloud that nobody committed": (
        lambda job: rewrite(job, "data", with_value(job, "pointcloud", "pointclouds/x.ply")),
        "names pointclouds/x.ply, which no commit and no version names",
    ),
    "a reject without a reason": (
        lambda job: rewrite(job, "rejected", with_value(job, "reasons", [], "rejected")),
        "is rejected without a reason",
    ),
    "quarantined without a reason": (
        lambda job: rewrite(job, "quarantine", with_value(job, "error", "", "quarantine")),
        "is quarantined without a reason",
    ),
    "an index that was not planned": (
        lambda job: edit_commit(job, lambda fields: fields["samples"]["index"].__setitem__(0, 5)),
        "1 of 8 planned samples are lost",
    ),
    "a commit of another shard": (
        lambda job: edit_commit(job, lambda fields: fields.update(shard="0123")),
        "is the commit of shard 0123",
    ),
    "an object of another shard": (
        lambda job: edit_commit(job, rename_an_object),
        "-0123456789abcdef/00000.ply, which is of another shard",
    ),
    "more samples than its tables hold": (
        lambda job: edit_commit(job, lambda fields: fields["objects"].pop()),
        "2 samples are quarantined, and its tables hold 0",
    ),
    "a plan that is cut off": (
        lambda job: Path(job.context.storage.path("_plan/000001.parquet")).write_bytes(b"PAR1 and no more"),
        "_plan/000001.parquet is damaged: restore it from a backup",
    ),
    "a plan that is missing": (
        lambda job: Path(job.context.storage.path("_plan/000001.parquet")).rename(
            Path(job.context.storage.path("_plan/000002.parquet"))
        ),
        "_plan/000001.parquet is missing",
    ),
    "a shard less in the plan": (
        lambda job: edit_plan(job, lambda records: records.pop(0)),
        "rows 0 to 4 of",
    ),
    "a row less in the plan": (lambda job: edit_plan(job, move_a_row), "is not what its id says"),
    "a row that no shard has": (lambda job: edit_plan(job, move_a_row), "are in no shard"),
    "a row in two shards": (lambda job: edit_plan(job, overlap), "rows 2 to 4 of"),
    "an input planned twice": (plan_again, "is planned twice, in _plan/000001.parquet and _plan/000002.parquet"),
    "other indices in the plan": (
        lambda job: edit_plan(job, lambda records: records[0].update(indices=[2, 3])),
        "is not what its id says",
    ),
    "a crash record that is cut off": (lambda job: crash(job, 1, b"{"), "is damaged"),
    "a crash record that is missing": (
        lambda job: crash(job, 2, b'{"stage": "read", "format": 1}'),
        "a record between the first and the last is missing",
    ),
    "a crash record of no plan": (
        lambda job: job.ledger.record_crash("0123", {"stage": "read"}),
        "_crashes/0123 is of a shard that no plan holds",
    ),
    "a version that is not JSON": (
        lambda job: job.context.storage.write_bytes("_versions/000001/version.json", b"{"),
        "_versions/000001/version.json is damaged",
    ),
    "a version without outcomes": (
        lambda job: job.context.storage.delete(segment_of(job)),
        ".parquet is missing.",
    ),
    "no version": (
        lambda job: [job.context.storage.delete(each.path) for each in job.context.storage.list("_versions")],
        "no version is published: the job has not run to its end",
    ),
    "a file that the version does not name": (
        lambda job: edit_shard(job, lambda shard: shard["files"].pop(0)),
        "for 0 kept samples of shard",
    ),
    "a file of another outcome": (
        lambda job: edit_shard(job, lambda shard: shard["files"][0].update(outcome="rejected")),
        "version 1 and a commit say different things of data/",
    ),
    "a sample of another outcome": (
        lambda job: edit_segments(
            job.context.storage, samples=lambda rows: rows[0].update(outcome="rejected", reasons=["x"])
        ),
        "sample prompts.txt:0/0 is rejected in version 1 and not so in the commit of shard",
    ),
    "a file of another shard": (
        lambda job: edit_shard(job, lambda shard: shard.update(shard="0123")),
        "kept samples of shard 0123, its outcomes for 0",
    ),
    "criteria of no filter": (
        lambda job: edit_version(job, lambda fields: fields["criteria"].update(filters=[{"kind": "none"}])),
        "what version 1 must contain cannot be determined (SpecError: quality.filters.0.kind is 'none'",
    ),
    "a card of another version": (
        lambda job: job.context.storage.write_bytes(
            "README.md", job.context.storage.read_bytes("README.md").replace(b"Version 1,", b"Version 7,")
        ),
        "README.md and stats.json are not those of version 1",
    ),
    "no card": (lambda job: job.context.storage.delete("README.md"), "README.md and stats.json are not those"),
    "outcomes that were rewritten": (
        lambda job: job.context.storage.write_bytes(
            segment_of(job), job.context.storage.read_bytes(segment_of(job)) + b"PAR1"
        ),
        ".parquet has another SHA-256 than version.json says",
    ),
}


def test_a_whole_dataset_has_no_problems(job: LocalJob) -> None:
    found = validate(job.context.storage.uri)
    assert found.problems == []
    assert found.notes == []
    assert found.counts == {"kept": 8, "rejected": 2, "quarantined": 2}
    assert (found.version, found.images, found.pointclouds) == (1, 20, 8)
    assert found.files == 4 + 8
    assert found.bytes == sum(
        f.size for folder in ("data", "rejected", "quarantine", "pointclouds") for f in job.context.storage.list(folder)
    )


@pytest.mark.parametrize(("spoil", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found(job: LocalJob, spoil: Callable[[LocalJob], object], sentence: str) -> None:
    spoil(job)
    problems = validate(job.context.storage.uri).problems
    assert any(sentence in problem for problem in problems), problems

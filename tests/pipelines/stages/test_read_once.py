"""However many spans a shard has, and however many shards a file has, bytes are read about once."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

import pipelines.stages.read
from pipelines.ledger.entries import PlannedShard
from pipelines.plan.shards import make_shard
from pipelines.records import BadRow, Row, SourceFile, Span
from pipelines.run.rounds import pending_shards
from pipelines.stages.finish import finish_shard
from pipelines.stages.read import Isolation, read_shard
from pipelines.stages.readers import count_rows, list_files, opening, read_rows
from tests.local_job import LocalJob
from tests.stand_in import StandInWorker

ROWS = 210
SCATTERED = [7, 200, 13, 26, 39, 52, 65, 78, 91, 104, 117, 130, 143, 156, 169, 182]  # in no order


@dataclass
class Reads:
    """What was read from files of the input."""

    opens: int = 0
    bytes: int = 0


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Count what the readers read, on the local disk and from S3."""
    counted = Reads()
    open_regular, open_s3, fetch_range = opening.open_regular, s3fs.S3FileSystem._open, s3fs.S3File._fetch_range

    class CountedFile(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            count = super().readinto(buffer)
            counted.bytes += count
            return count

    def open_counted(path: str) -> io.FileIO:
        counted.opens += 1
        with open_regular(path) as file:
            return CountedFile(os.dup(file.fileno()), "rb")

    def open_counted_s3(*arguments: Any, **options: Any) -> Any:
        counted.opens += 1
        return open_s3(*arguments, **options)

    def fetch_counted(file: Any, start: int, end: int) -> bytes:
        counted.bytes += end - start
        return fetch_range(file, start, end)

    monkeypatch.setattr(opening, "open_regular", open_counted)
    monkeypatch.setattr(s3fs.S3FileSystem, "_open", open_counted_s3)
    monkeypatch.setattr(s3fs.S3File, "_fetch_range", fetch_counted)
    return counted


def prompt_of(number: int, length: int) -> str:
    return f"prompt {number} " + random.Random(number).randbytes(length // 2).hex()


def shard_of(spans: list[Span], position: int = 0) -> PlannedShard:
    return PlannedShard(make_shard(spans, 0, "f"), 1, 1, position)


def spans_of(file: SourceFile, *ranges: range) -> list[Span]:
    return [Span(file.uri, file.etag, file.relative_path, rows.start, rows.stop) for rows in ranges]


def only_file(job: LocalJob) -> SourceFile:
    (file,) = list_files(job.context.spec.input, job.context.spec.reading)
    return file


# --- a Parquet file of 19 MB -----------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "s3"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, bytes], str]:
    """Return put(name, data) -> address, which writes an input file to a local folder or to S3."""
    if request.param == "local":
        return lambda name, data: str(tmp_path / name) if (tmp_path / name).write_bytes(data) else ""
    server = request.getfixturevalue("s3")
    bucket = server.make_bucket()

    def put_s3(name: str, data: bytes) -> str:
        s3fs.S3FileSystem(endpoint_url=server.endpoint, use_listings_cache=False).pipe_file(f"{bucket}/{name}", data)
        return f"{bucket}/{name}"

    return put_s3


@pytest.mark.parametrize("group_rows", [ROWS, 30])
def test_scattered_rows_of_a_parquet_file_cost_one_pass(
    group_rows: int, put: Callable[[str, bytes], str], make_job: Any, reads: Reads
) -> None:
    prompts = [prompt_of(number, 90_000) for number in range(ROWS)]
    unused = [random.Random(-number).randbytes(20_000) for number in range(ROWS)]
    table = pa.table({"id": [f"r{number}" for number in range(ROWS)], "prompt": prompts, "unused": unused})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group_rows, compression="none", use_dictionary=False)
    job = make_job(input={"uri": put("rows.parquet", sink.getvalue())}, output={"shard_rows": ROWS})
    file = only_file(job)
    metadata = pq.ParquetFile(sink).metadata
    groups = [metadata.row_group(number) for number in sorted({row // group_rows for row in SCATTERED})]
    needed = sum(group.column(column).total_compressed_size for group in groups for column in (0, 1))
    entry = shard_of(spans_of(file, *(range(row, row + 1) for row in SCATTERED)))
    rows, _ = read_shard(job.context, entry)
    assert [(source.row.id, source.row.prompt) for source in rows.rows] == [(f"r{n}", prompts[n]) for n in SCATTERED]
    assert rows.failed == ()
    assert reads.opens == 1
    assert reads.bytes <= 1.2 * needed, f"{reads.bytes / needed:.2f} of the columns in the row groups of these rows"


# --- formats whose rows are found by reading -------------------------------------------------------------------------


def texts(kind: str, count: int, length: int) -> bytes:
    """A file of `count` rows whose prompts have about `length` characters."""
    prompts = [prompt_of(number, length) for number in range(count)]
    if kind == "tar":
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as archive:
            for number, text in enumerate(prompts):
                for extension, data in (("json", b'{"id": "r%d"}' % number), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{number:05d}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        return sink.getvalue()
    lines = io.StringIO(newline="")
    if kind.startswith("csv"):
        csv.writer(lines).writerows([["prompt"], *([f"{text}\n"] for text in prompts)])
    elif kind.startswith("jsonl"):
        lines.writelines(json.dumps({"prompt": text}) + "\n" for text in prompts)
    else:
        lines.writelines(f"{text}\n" for text in prompts)
    data = lines.getvalue().encode()
    return gzip.compress(data, 1) if kind.endswith(".gz") else data


KINDS = ["txt", "jsonl", "csv", "tar", "txt.gz", "jsonl.gz", "csv.gz"]
COUNT, LENGTH = 4096, 1000


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_opened_once_for_all_spans_of_a_shard(kind: str, make_job: Any, tmp_path: Path, reads: Reads) -> None:
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(texts(kind, COUNT, 20))
    job = make_job(input={"uri": str(path)})
    file = only_file(job)
    wanted = [range(n, n + 1) for n in range(5, COUNT, COUNT // 16)] + [range(3, 5)]
    for opens in (2 if kind.startswith("csv") else 1, 1):  # the header of a table is read first
        reads.opens = 0
        rows, _ = read_shard(job.context, shard_of(spans_of(file, *wanted)))
        numbers = [number for each in wanted for number in each]
        assert [source.row.position for source in rows.rows] == numbers
        assert [source.row.prompt.strip() for source in rows.rows] == [prompt_of(number, 20) for number in numbers]
        assert reads.opens <= opens


@pytest.mark.parametrize("kind", KINDS)
def test_the_shards_of_a_file_read_it_about_once_together(
    kind: str, make_job: Any, tmp_path: Path, reads: Reads
) -> None:
    """Read-ahead at the end of a shard costs as much as the shard at most; a .gz file is not entered again."""
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(texts(kind, COUNT, LENGTH))
    job = make_job(input={"uri": str(path)})
    file, size = only_file(job), path.stat().st_size
    for start in range(0, COUNT, COUNT // 8):
        rows, _ = read_shard(job.context, shard_of(spans_of(file, range(start, start + COUNT // 8))))
        assert [source.row.position for source in rows.rows] == list(range(start, start + COUNT // 8))
    assert reads.bytes <= (1.1 if kind.endswith(".gz") else 2.1) * size, f"{reads.bytes / size:.2f} of the file"
    reads.bytes = 0
    assert count_rows(file, job.context.spec.input) == COUNT
    assert reads.bytes <= 0.1 * size, "counting goes on where reading ended"


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tar"])
def test_of_a_file_that_was_counted_only_the_parts_with_wanted_rows_are_read(
    kind: str, make_job: Any, tmp_path: Path, reads: Reads
) -> None:
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(texts(kind, 16 * 1024, 500))
    job = make_job(input={"uri": str(path)})
    file = only_file(job)
    assert count_rows(file, job.context.spec.input) == 16 * 1024
    reads.bytes = 0
    rows, _ = read_shard(job.context, shard_of(spans_of(file, range(1500, 1501), range(12_000, 12_001))))
    assert [source.row.position for source in rows.rows] == [1500, 12_000]
    assert reads.bytes <= 2.2 / 16 * path.stat().st_size


# --- the account of rows ---------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(make_job: Any, tmp_path: Path) -> tuple[LocalJob, list[Span]]:
    """Spans of four files, in no order; some rows are bad, and the last of each file is not there."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f'{{"prompt": "a{n}"}}\n' if n % 3 else "bad\n" for n in range(12)))
    (folder / "b.csv").write_text("prompt\n" + "".join(f"b{n}\n" if n % 4 else f"b{n},more\n" for n in range(12)))
    pq.write_table(pa.table({"prompt": [f"c{n}" if n % 5 else None for n in range(12)]}), folder / "c.parquet")
    (folder / "d.txt").write_text("".join(f"d{n}\n" if n % 2 else "\n" for n in range(12)))
    job = make_job(input={"uri": str(folder)})
    files = list_files(job.context.spec.input, "joint")
    spans = [span for file in files for span in spans_of(file, range(0, 4), range(4, 5), range(6, 8), range(11, 13))]
    random.Random(3).shuffle(spans)
    return job, spans


def test_rows_are_accounted_for_as_if_each_was_read_alone(mixed: tuple[LocalJob, list[Span]]) -> None:
    job, spans = mixed
    spec = job.context.spec
    places = [(span, number) for span in spans for number in range(span.start, span.stop)]
    expected = [
        replace(row, etag=span.etag)
        for span, number in places
        for row in read_rows(span, [range(number, number + 1)], spec.input, "joint")
    ]
    rows, parts = read_shard(job.context, shard_of(spans))
    bad = [row for row in expected if isinstance(row, BadRow)]
    good = [row for row in expected if not isinstance(row, BadRow)]
    assert 8 < len(bad) < len(expected) - 8
    assert [source.row for source in rows.rows] == good
    assert [(result.sample.id, result.error) for result in rows.failed] == [(f"{row.id}/0", row.error) for row in bad]
    assert [sample.id for part in parts for sample in part] == [f"{row.id}/0" for row in good]


def test_rows_that_kill_the_reader_stay_in_their_places(mixed: tuple[LocalJob, list[Span]]) -> None:
    job, spans = mixed
    whole, _ = read_shard(job.context, shard_of(spans))
    places = [(number, row) for number, span in enumerate(spans) for row in range(span.start, span.stop)]
    poison = frozenset(places[::4])
    rows, _ = read_shard(job.context, shard_of(spans), Isolation(poison_rows=poison))
    at = {(spans[number].uri, row) for number, row in poison}
    assert [place_of(s.row) for s in rows.rows] == [p for p in (place_of(s.row) for s in whole.rows) if p not in at]
    failed = [(*place_of(result.sample.row), "reader's process" in result.error) for result in rows.failed]
    bad = {place_of(result.sample.row) for result in whole.failed}
    order = [(spans[number].uri, row) for number, row in places]
    assert failed == [(*place, place in at) for place in order if place in at | bad]


def place_of(row: Row) -> tuple[str, int]:
    return row.uri, row.position


# --- rows that finish reads again ------------------------------------------------------------------------------------


def test_finish_reads_the_rows_that_are_not_held_in_one_pass_a_chunk(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Reads
) -> None:
    side, count = 64, 12
    sink = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(sink, "PNG")
    table = pa.table({"image": [sink.getvalue()] * count})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    monkeypatch.setattr(pipelines.stages.read, "HELD_BYTES", 4 * (3 * side * side + len(sink.getvalue())))
    job = make_job(task="depth", input={"uri": str(tmp_path / "a.parquet")}, output={"shard_rows": count})
    job.plan()
    (entry,) = pending_shards(job.ledger)
    worker = StandInWorker(job.context, "cpu", 1)
    worker.set_up()
    rows, parts = read_shard(job.context, entry)
    assert sum(source.again is not None for source in rows.rows) == count - 4
    results = [worker.generate(part)[0] for part in parts]
    reads.opens = reads.bytes = 0
    receipt = finish_shard(job.context, entry, rows, *results)
    assert receipt.counts == {"kept": count, "rejected": 0, "quarantined": 0}
    assert reads.opens == (count - 4) / 4

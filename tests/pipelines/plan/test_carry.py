"""A changed file costs its changed rows: 24 rows made, 12 appended and one changed cost 13 samples."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.dataset import about
from pipelines.dataset.publish import publish
from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import read_latest, read_outcomes
from pipelines.plan.regeneration import extend_with_regeneration
from pipelines.plan.retry import plan_retry
from pipelines.run.preview import preview
from pipelines.run.rounds import pending_shards
from tests.local_job import LocalJob

Row = tuple[str, str]  # id, prompt
ROWS: list[Row] = [(f"r{number}", f"a thing, number {number}") for number in range(36)]
CHANGED = [*ROWS[:5], ("r5", "another thing"), *ROWS[6:]]


def text(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(f"{prompt}\n" for _, prompt in rows))


def packed_text(path: Path, rows: Sequence[Row]) -> None:
    path.write_bytes(gzip.compress("".join(f"{prompt}\n" for _, prompt in rows).encode()))


def csv(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("prompt\n" + "".join(f'"{prompt}"\n' for _, prompt in rows))


def csv_with_ids(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("id,prompt\n" + "".join(f'{identifier},"{prompt}"\n' for identifier, prompt in rows))


def jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for _, prompt in rows))


def parquet(path: Path, rows: Sequence[Row]) -> None:
    columns = {"id": [identifier for identifier, _ in rows], "prompt": [prompt for _, prompt in rows]}
    pq.write_table(pa.table(columns), path, row_group_size=7)


def picture(prompt: str) -> bytes:
    noise = np.random.default_rng(len(prompt) + sum(map(ord, prompt)))
    buffer = io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def embedded(path: Path, rows: Sequence[Row]) -> None:
    images = [{"bytes": picture(prompt), "path": None} for _, prompt in rows]
    pq.write_table(pa.table({"image": images}), path, row_group_size=10)


def paths(path: Path, rows: Sequence[Row]) -> None:
    """A table of images beside it. The table of a changed image does not change itself, but for its size."""
    (path.parent / "photos").mkdir(exist_ok=True)
    for identifier, prompt in rows:
        image = path.parent / "photos" / f"{identifier}.png"
        if not image.exists() or image.read_bytes() != picture(prompt):
            image.write_bytes(picture(prompt))
    path.write_text("".join(json.dumps({"id": i, "image": f"photos/{i}.png"}) + "\n" for i, _ in rows))


Writer = Callable[[Path, Sequence[Row]], None]
KINDS: list[tuple[str, Writer, str]] = [
    ("rows.txt", text, "joint"),
    ("rows.txt.gz", packed_text, "joint"),
    ("rows.csv", csv, "joint"),
    ("rows.csv", csv_with_ids, "joint"),
    ("rows.jsonl", jsonl, "joint"),
    ("rows.parquet", parquet, "joint"),
    ("rows.parquet", embedded, "depth"),
    ("rows.jsonl", paths, "depth"),
]


def job_on(make_job, path: Path, **sections) -> LocalJob:
    return make_job(**{"input": {"uri": str(path)} | sections.pop("input", {})} | sections)


def check(job: LocalJob) -> None:
    """Check that the latest version is sound."""
    about.refresh(job.context.storage, job.ledger)
    assert validate(job.context.storage.uri).problems == []


def ids_of(job: LocalJob) -> list[str]:
    """The ids of the samples of the latest version."""
    return read_outcomes(job.context.storage, read_latest(job.context.storage))["id"].to_pylist()


def prompts_of(job: LocalJob) -> dict[str, str]:
    """Sample id -> prompt, of what the latest version keeps."""
    storage = job.context.storage
    tables = (pq.read_table(io.BytesIO(storage.read_bytes(p))) for p in read_latest(storage).files_of("kept"))
    return {row["id"]: row["prompt"] for table in tables for row in table.to_pylist()}


def made_by(job: LocalJob) -> int:
    """Run the job to its next version and return how many samples that made."""
    job.plan()
    made = sum(sum(receipt.counts.values()) for receipt in job.run())
    publish(job.context.storage, job.ledger, job.context.spec)
    return made


@pytest.mark.parametrize(("name", "write", "task"), KINDS, ids=[f"{w.__name__}" for _, w, _ in KINDS])
def test_a_changed_file_costs_its_changed_rows(make_job, tmp_path: Path, name: str, write: Writer, task: str) -> None:
    path = tmp_path / name
    write(path, ROWS[:24])
    job = job_on(make_job, path, task=task, input={"samples_per_row": 2})
    assert made_by(job) == 48
    before = set(ids_of(job))
    write(path, CHANGED)
    proposal = job.plan()
    assert str(proposal.rows) == "36 rows: 23 unchanged, 12 new, 1 changed"
    assert sum(shard.rows for shard in proposal.shards) == 13
    assert made_by(job) == 26
    after = ids_of(job)
    has_ids = write in (csv_with_ids, parquet, paths)
    assert len(after) == 72
    assert len(before & set(after)) == (48 if has_ids else 46), "a changed row keeps an id of its own"


@pytest.mark.parametrize(("name", "write"), [("rows.txt", text), ("rows.csv", csv_with_ids)])
def test_a_file_that_is_sorted_anew_or_cut_costs_nothing(make_job, tmp_path: Path, name: str, write: Writer) -> None:
    path = tmp_path / name
    write(path, CHANGED)
    job = job_on(make_job, path, input={"samples_per_row": 2})
    made_by(job)
    before = ids_of(job)
    random.Random(1).shuffle(shuffled := list(CHANGED))
    write(path, shuffled)
    assert made_by(job) == 0, "a file that was sorted anew has no new row"
    assert sorted(ids_of(job)) == sorted(before)
    write(path, shuffled[3:])
    assert str(job.plan().rows) == "33 rows: 33 unchanged, 3 gone"
    assert made_by(job) == 0
    assert len(ids_of(job)) == 66
    status = read_status(job.context.storage.uri)
    assert (status.samples, status.committed_samples, status.is_complete) == (66, 66, True)
    check(job)


def test_default_ids_are_never_used_with_other_content(make_job, tmp_path: Path) -> None:
    path, used = tmp_path / "rows.txt", dict[str, str]()
    draw = random.Random(3)
    prompts = [f"p{number}" for number in range(6)]
    job = job_on(make_job, path)
    for step in range(6):
        text(path, [("", prompt) for prompt in prompts])
        job.plan()
        if step % 3 != 2:  # else the file changes again before its rows are made
            made_by(job)
            assert sorted(prompts_of(job).values()) == sorted(prompts)
            for identifier, prompt in prompts_of(job).items():
                assert used.setdefault(identifier, prompt) == prompt
        place = draw.randrange(len(prompts))
        prompts[place : place + draw.choice([0, 1, 2])] = [f"q{step}"]
        draw.shuffle(prompts)
    assert len(used) > 8


def test_appended_rows_have_the_ids_of_their_row_numbers(make_job, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    text(path, ROWS[:3])
    job = job_on(make_job, path)
    made_by(job)
    text(path, [("", "first"), *ROWS[:5]])
    made_by(job)
    assert prompts_of(job) == {
        "rows.txt@2:0/0": "first",
        **{f"rows.txt:{number}/0": ROWS[number][1] for number in range(3)},
        "rows.txt:4/0": ROWS[3][1],
        "rows.txt:5/0": ROWS[4][1],
    }


def test_equal_rows_are_matched_one_by_one(make_job, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    text(path, [("", "same")] * 5 + [("", "other")])
    job = job_on(make_job, path)
    made_by(job)
    text(path, [("", "other")] + [("", "same")] * 7)
    assert str(job.plan().rows) == "8 rows: 6 unchanged, 2 new"
    assert made_by(job) == 2
    assert sorted(prompts_of(job).values()) == ["other"] + ["same"] * 7


def test_a_file_that_changes_back_costs_nothing(make_job, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    text(path, ROWS[:9])
    first = path.rename(tmp_path / "first")
    text(path, ROWS[:9])
    job = job_on(make_job, path)
    made_by(job)
    ids = ids_of(job)
    kept = path.rename(tmp_path / "kept")
    text(path, CHANGED[:9])
    assert made_by(job) == 1
    kept.rename(path)
    assert made_by(job) == 0
    assert ids_of(job) == ids
    first.unlink()


def test_a_file_that_changes_back_before_it_was_made_has_what_was_made_since(make_job, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    text(path, ROWS[:8])
    job = job_on(make_job, path)
    job.plan()
    job.run_shard(pending_shards(job.ledger)[0])  # four of eight rows
    kept = path.rename(tmp_path / "kept")
    text(path, [*ROWS[6:2:-1], ("", "new")])
    assert made_by(job) == 4, "three rows that were pending, and one that is new"
    kept.rename(path)
    assert made_by(job) == 1, "the row that was never made"
    assert sorted(prompts_of(job).values()) == sorted(prompt for _, prompt in ROWS[:8])
    check(job)


def test_a_file_that_changed_back_and_grew_carries_the_rows_of_superseded_shards(make_job, tmp_path: Path) -> None:
    """The segments of the latest version have no samples of them, the commits do."""
    path = tmp_path / "rows.txt"
    text(path, ROWS[:4])
    job = job_on(make_job, path)
    made_by(job)
    kept = path.rename(tmp_path / "kept")
    text(path, ROWS[10:15])
    assert made_by(job) == 5
    kept.rename(path)
    job.plan()
    text(path, ROWS[:5])
    assert str(job.plan().rows) == "5 rows: 4 unchanged, 1 new"
    assert made_by(job) == 1


def test_rows_that_were_not_made_when_their_file_changed_are_planned_anew(make_job, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    text(path, ROWS[:8])
    job = job_on(make_job, path)
    job.plan()
    late = pending_shards(job.ledger)
    job.run_shard(late[0])
    text(path, ROWS[:9])
    assert str(job.plan().rows) == "9 rows: 4 unchanged, 5 new"
    path.rename(tmp_path / "aside")
    job.run_shard(late[1])  # another driver's, of the version before; it can be read no more
    (tmp_path / "aside").rename(path)
    assert made_by(job) == 5
    assert sorted(prompts_of(job).values()) == sorted(prompt for _, prompt in ROWS[:9])
    check(job)


def test_a_row_that_was_quarantined_for_its_file_is_read_again(make_job, tmp_path: Path) -> None:
    """Its content could not be read, so it has no hash."""
    path = tmp_path / "rows.jsonl"
    paths(path, ROWS[:4])
    (tmp_path / "photos" / "r2.png").unlink()
    job = job_on(make_job, path, task="depth")
    made_by(job)
    assert read_latest(job.context.storage).counts["quarantined"] == 1
    paths(path, ROWS[:5])
    assert made_by(job) == 2
    assert read_latest(job.context.storage).counts == {"kept": 5, "rejected": 0, "quarantined": 0}


def test_a_retry_and_a_new_seed_of_a_carried_row_read_its_new_place(make_job, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    quality = {"filters": [{"kind": "depth_range", "min_span": 0.2}], "regenerate": 1, "max_quarantined_fraction": 1}
    text(path, [("", "a"), ("", "FLAT 1"), ("", "NAN 2"), ("", "b")])
    job = job_on(make_job, path, quality=quality)
    made_by(job)
    text(path, [("", "new"), ("", "b"), ("", "c"), ("", "NAN 2"), ("", "FLAT 1"), ("", "a")])
    assert made_by(job) == 2
    assert extend_with_regeneration(job.context.spec, job.context.fingerprint, job.ledger) == 1
    assert plan_retry(job.context.storage.uri, ["quarantined"]).counts == {"quarantined": 1}
    text(path, [("", "FLAT 1"), ("", "NAN 2"), ("", "a")])  # they are pending when the file changes again
    job.plan()
    pending = [entry for entry in pending_shards(job.ledger) if entry.samples]
    etag = f"{path.stat().st_size}-{path.stat().st_mtime_ns}"
    assert [list(entry.moved.values()) for entry in pending] == [[(etag, 0)], [(etag, 1)]]
    made_by(job)
    rows = read_outcomes(job.context.storage, read_latest(job.context.storage)).to_pylist()
    assert {row["id"]: row["outcome"] for row in rows} == {
        "rows.txt:0/0": "kept",
        "rows.txt:1/0": "rejected",
        "rows.txt:1/1": "rejected",
        "rows.txt:2/0": "quarantined",
    }
    tables = read_latest(job.context.storage).files_of("rejected")
    read = [pq.read_table(io.BytesIO(job.context.storage.read_bytes(p)))["prompt"].to_pylist() for p in tables]
    assert read == [["FLAT 1"], ["FLAT 1"]]
    check(job)


def test_rows_without_a_hash_are_made_again_and_that_is_said(make_job, tmp_path: Path) -> None:
    """Outputs of earlier versions have no hashes."""
    path = tmp_path / "rows.txt"
    text(path, ROWS[:8])
    job = job_on(make_job, path)
    job.plan()
    job.run()
    for commit in (tmp_path / "out" / "_commits").iterdir():
        fields = json.loads(commit.read_text())
        del fields["samples"]["content"]
        commit.write_text(json.dumps(fields))
    assert made_by(job) == 0
    text(path, ROWS[:9])
    (change,) = job.plan().changes
    assert str(change) == f"{path}: 9 rows: 9 made again (its rows were made before content hashes were kept)"
    assert made_by(job) == 9
    text(path, ROWS[:10])
    assert made_by(job) == 1


def test_a_changed_archive_is_made_again_and_that_is_said(make_job, tmp_path: Path) -> None:
    path = tmp_path / "rows.tar"

    def archive(count: int) -> None:
        with tarfile.open(path, "w") as tar:
            for number in range(count):
                info = tarfile.TarInfo(f"{number}.txt")
                data = f"prompt {number}".encode()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    archive(3)
    job = job_on(make_job, path)
    made_by(job)
    archive(4)
    assert [str(change) for change in job.plan().changes] == [
        f"{path}: 4 rows: 4 made again (rows of an archive are not compared)"
    ]


def test_a_folder_of_images_is_counted_in_the_same_form(make_job, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(picture(f"{number}"))
    job = job_on(make_job, folder, task="depth")
    made_by(job)
    (folder / "1.png").write_bytes(picture("changed"))
    (folder / "4.png").write_bytes(picture("4"))
    assert str(job.plan().rows) == "5 rows: 3 unchanged, 1 new, 1 changed"
    assert made_by(job) == 2
    assert sorted(ids_of(job)) == [f"{number}.png:0/0" for number in range(5)]


def test_a_folder_that_moved_after_a_change_keeps_each_row_once(make_job, tmp_path: Path) -> None:
    before, after = tmp_path / "mon", tmp_path / "tue"
    before.mkdir()
    text(before / "rows.txt", ROWS[:4])
    job = job_on(make_job, before)
    made_by(job)
    text(before / "rows.txt", [("", "new"), *ROWS[1:5]])
    made_by(job)
    before.rename(after)
    moved = job_on(make_job, after)
    made_by(moved)
    prompts = sorted(prompt for _, prompt in [*ROWS[1:5], ("", "new")])
    assert sorted(prompts_of(moved).values()) == prompts
    text(after / "rows.txt", [*ROWS[1:5]])
    made_by(moved)
    assert sorted(prompts_of(moved).values()) == prompts[:-1]
    assert len(ids_of(moved)) == 4
    check(moved)


def test_the_preview_says_what_a_changed_file_costs(make_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.local_job import IDENTITY

    monkeypatch.setattr("pipelines.run.opening.identify_job", lambda *_: IDENTITY)
    path = tmp_path / "rows.txt"
    text(path, ROWS[:24])
    job = job_on(make_job, path)
    made_by(job)
    text(path, CHANGED)
    plan = preview(job.context.spec)
    assert (str(plan.rows), plan.pending_samples) == ("36 rows: 23 unchanged, 12 new, 1 changed", 13)

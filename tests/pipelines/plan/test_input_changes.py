"""Files that share names, move, vanish and return: each row counts exactly once."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jointdit.errors import InputError
from pipelines.dataset.validation.validate import validate
from pipelines.engine.progress import Progress
from pipelines.ledger.counting import Counting
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_latest, read_outcomes
from pipelines.plan import propose as plan
from pipelines.plan.regeneration import extend_with_regeneration
from pipelines.plan.retry import plan_retry
from pipelines.run.job import generate_and_publish
from pipelines.run.rounds import pending_shards
from pipelines.stages.context import RunContext
from tests.edited_segments import edit_segments
from tests.local_job import LocalJob


def prompts_of(job: LocalJob) -> dict[str, str]:
    """sample id -> prompt, of what the latest version keeps."""
    storage, version = job.context.storage, read_latest(job.context.storage)
    tables = (pq.read_table(io.BytesIO(storage.read_bytes(path))) for path in version.files_of("kept"))
    rows = [row for table in tables for row in table.select(["id", "prompt"]).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["prompt"] for row in rows}


def ends_of(job: LocalJob) -> dict[str, str]:
    """sample id -> outcome, in the latest version; its account must be sound."""
    assert validate(job.context.storage.uri).problems == []
    rows = read_outcomes(job.context.storage, read_latest(job.context.storage)).to_pylist()
    ends = {row["id"]: row["outcome"] for row in rows}
    assert len(ends) == len(rows)
    return ends


def csv(path: Path, **prompts: str) -> Path:
    """A table of prompts by id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("id,prompt\n" + "".join(f"{identifier},{prompt}\n" for identifier, prompt in prompts.items()))
    return path


def text(path: Path, *prompts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{prompt}\n" for prompt in prompts))
    return path


def job_on(make_job, uri: Path | list[Path], **sections) -> LocalJob:
    uris = [str(each) for each in uri] if isinstance(uri, list) else str(uri)
    return make_job(input={"uri": uris, **sections.pop("input", {})}, **sections)


def test_a_folder_with_the_same_file_names_adds_rows(make_job, tmp_path: Path) -> None:
    """Daily partitions have equal names; monday's rows stay what they are."""
    text(tmp_path / "days" / "mon" / "prompts.txt", "m0", "m1", "m2")
    text(tmp_path / "days" / "tue" / "prompts.txt", "t0", "t1")
    job_on(make_job, tmp_path / "days" / "mon").complete()
    job = job_on(make_job, tmp_path / "days" / "tue")
    job.complete()
    monday = {f"prompts.txt:{n}/0": f"m{n}" for n in range(3)}
    assert prompts_of(job) == {**monday, "tue/prompts.txt:0/0": "t0", "tue/prompts.txt:1/0": "t1"}
    text(tmp_path / "days" / "tue" / "prompts.txt", "t0", "t1 changed")
    both = job_on(make_job, tmp_path / "days" / "*" / "prompts.txt")
    both.complete()
    assert prompts_of(both) == {**monday, "tue/prompts.txt:0/0": "t0", "tue/prompts.txt@3:1/0": "t1 changed"}
    assert len(ends_of(both)) == 5


def test_a_copy_of_a_file_is_another_file(make_job, tmp_path: Path) -> None:
    """Of the same size and modification time, as an unpacked archive may give them: both are there."""
    for day, prompt in (("mon", "monday"), ("tue", "tuesda")):
        os.utime(text(tmp_path / day / "prompts.txt", prompt), (0, 0))
    job_on(make_job, tmp_path / "mon").complete()
    job = job_on(make_job, tmp_path / "tue")
    job.complete()
    assert sorted(prompts_of(job).values()) == ["monday", "tuesda"]


def test_two_files_of_one_listing_with_the_same_name_are_told_apart(make_job, tmp_path: Path) -> None:
    uris = [text(tmp_path / day / "prompts.txt", day) for day in ("mon", "tue")]
    job = job_on(make_job, uris)
    job.complete()
    assert prompts_of(job) == {"mon/prompts.txt:0/0": "mon", "tue/prompts.txt:0/0": "tue"}


def test_a_folder_that_moved_keeps_its_ids(make_job, tmp_path: Path) -> None:
    text(tmp_path / "here" / "prompts.txt", "a", "b")
    before = job_on(make_job, tmp_path / "here")
    before.complete()
    ids = ends_of(before)
    (tmp_path / "here").rename(tmp_path / "there")
    after = job_on(make_job, tmp_path / "there")
    after.complete()
    assert ends_of(after) == ids


@pytest.mark.parametrize("change", ["unlink", "rewrite"])
def test_two_files_of_one_name_that_cannot_be_read_lose_no_row(make_job, tmp_path: Path, change: str) -> None:
    """Without its file a row has no id but the default one, which must be its own."""
    uris = [csv(tmp_path / day / "p.csv", **{f"{day}{n}": "x" for n in range(3)}) for day in ("mon", "tue")]
    job = job_on(make_job, uris)
    job.plan()
    for path in uris:
        path.unlink() if change == "unlink" else path.write_text("id,prompt\n")
    job.run()
    assert job.publish()[0].counts == {"kept": 0, "rejected": 0, "quarantined": 6}
    assert len(ends_of(job)) == 6


def test_a_round_of_new_seeds_whose_file_is_gone_is_in_the_version(make_job, tmp_path: Path) -> None:
    path = csv(tmp_path / "in" / "p.csv", r0="FLAT", r1="FLAT", r2="x")
    quality = {"filters": [{"kind": "depth_range", "min_span": 0.2}], "regenerate": 1, "max_quarantined_fraction": 1}
    job = job_on(make_job, path, quality=quality)
    job.plan()
    job.run()
    assert extend_with_regeneration(job.context.spec, job.context.fingerprint, job.ledger) == 2
    path.unlink()
    job.run()
    version, _ = job.publish()
    assert version.counts == {"kept": 1, "rejected": 2, "quarantined": 2}
    assert {i for i, end in ends_of(job).items() if end == "quarantined"} == {"p.csv:0/1", "p.csv:1/1"}


def test_the_account_of_validate_is_its_own(make_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that loses samples cannot make validate lose them too."""
    path = csv(tmp_path / "in" / "p.csv", r0="a", r1="b")
    job = job_on(make_job, path)
    made = Counting.made
    monkeypatch.setattr(Counting, "made", lambda self, *of: list(made(self, *of))[:1])
    job.complete()
    problems = validate(job.context.storage.uri).problems
    assert any(problem.startswith("sample r1/0 is kept in the commit of shard") for problem in problems), problems


def test_a_file_that_is_back_has_its_own_text(make_job, tmp_path: Path) -> None:
    """Moved, edited, and restored with its old modification time: the plan knows this version already."""
    folder = tmp_path / "in"
    path = csv(folder / "a.csv", r0="first", r1="second")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    job = job_on(make_job, folder)
    job.complete()
    path.rename(folder / "b.csv")
    csv(folder / "b.csv", r0="edited", r1="second")
    job.complete()
    assert prompts_of(job) == {"r0/0": "edited", "r1/0": "second"}
    (folder / "b.csv").unlink()
    os.utime(csv(folder / "a.csv", r0="first", r1="second"), ns=times)
    assert job.plan().restored == (str(path),)
    assert job.run()[0].counts == {"kept": 0, "rejected": 0, "quarantined": 0}, "nothing is made again"
    job.publish()
    assert prompts_of(job) == {"r0/0": "first", "r1/0": "second"}
    assert len(ends_of(job)) == 2
    assert job.plan().shards == ()


def test_a_table_that_another_run_reads_in_between_keeps_what_was_given_last(make_job, tmp_path: Path) -> None:
    """It is not gone: who goes back to the first table asks for nothing new."""
    one, two = csv(tmp_path / "one.csv", r0="one"), csv(tmp_path / "two.csv", r0="two")
    job_on(make_job, one).complete()
    job_on(make_job, two).complete()
    job = job_on(make_job, one)
    assert job.plan().restored == ()
    assert prompts_of(job) == {"r0/0": "two"}


@pytest.mark.parametrize("has_ids", [True, False])
@pytest.mark.parametrize("moved_when", ["before it is read", "between its shards", "before its retry"])
def test_a_file_that_moves_before_it_is_read_is_there_once(
    make_job, tmp_path: Path, has_ids: bool, moved_when: str
) -> None:
    folder, rows = tmp_path / "in", ["a", "b", "NAN" if moved_when == "before its retry" else "c"]
    name = "a.csv" if has_ids else "a.txt"
    path = csv(folder / name, **{f"r{n}": row for n, row in enumerate(rows)}) if has_ids else text(folder / name, *rows)
    job = job_on(make_job, folder, output={"shard_rows": 2})
    job.plan()
    if moved_when == "between its shards":
        job.run_shard(pending_shards(job.ledger)[0])
    elif moved_when == "before its retry":
        job.run()
        job.publish()
    moved = path.rename(folder / f"moved{path.suffix}")
    if moved_when == "before its retry":
        assert plan_retry(job.context.storage.uri, ["quarantined"]).counts == {"quarantined": 1}
    job.run()
    if not pending_shards(job.ledger):
        job.publish()
    proposal = job.plan()
    assert proposal.moved == ((str(path), str(moved)),)
    job.run()
    job.publish()
    expected = {f"r{n}/0" if has_ids else f"moved.txt:{n}/0" for n in range(3)}
    ends = ends_of(job)
    assert set(ends) == expected
    assert sorted(ends.values()) == (["kept", "kept", "quarantined"] if "NAN" in rows else ["kept"] * 3)
    assert job.plan().shards == ()
    assert job.plan().removed == ()


def test_a_file_may_move_onto_another_one(make_job, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    csv(folder / "b.csv", r1="b")
    path = csv(folder / "a.csv", r0="a")
    job = job_on(make_job, folder)
    job.plan()
    path.replace(folder / "b.csv")
    job.complete()
    job.complete()
    assert ends_of(job) == {"r0/0": "kept"}


def test_a_file_may_move_and_move_back(make_job, tmp_path: Path) -> None:
    """The file that it moves back to is planned already, before the one that was never read."""
    folder = tmp_path / "in"
    path = csv(folder / "a.csv", r0="a")
    job = job_on(make_job, folder)
    job.complete()
    path.rename(folder / "b.csv")
    job.plan()
    (folder / "b.csv").rename(path)
    job.complete()
    job.complete()
    assert ends_of(job) == {"r0/0": "kept"}
    assert job.plan().shards == ()


@pytest.mark.parametrize("read", [True, False])
def test_a_file_may_move_and_move_back_and_be_edited(make_job, tmp_path: Path, read: bool) -> None:
    """Nothing has the content of the one that was never read; the file that had it before stands for it."""
    folder = tmp_path / "in"
    path = csv(folder / "a.csv", r0="a", r1="b")
    job = job_on(make_job, folder)
    job.complete() if read else job.plan()
    path.rename(folder / "b.csv")
    job.plan()
    (folder / "b.csv").rename(path)
    csv(path, r0="edited", r1="b", r2="c")
    job.complete()
    job.complete()
    assert ends_of(job) == {f"r{n}/0": "kept" for n in range(3)}
    assert prompts_of(job)["r0/0"] == "edited"
    proposal = job.plan()
    assert (proposal.shards, proposal.removed) == ((), ())


def test_rows_of_a_moved_file_leave_with_the_file_in_its_new_place(make_job, tmp_path: Path) -> None:
    """The default ids went with the file to its new place, so what is taken out there is gone."""
    mon, tue = tmp_path / "in" / "mon", tmp_path / "in" / "tue"
    path = text(mon / "p.txt", "a", "b")
    text(tue / "q.txt", "another")
    job = job_on(make_job, [mon, tue])
    job.complete()
    path.rename(tue / "p.txt")
    text(mon / "q.txt", "stays")
    job.complete()
    assert sorted(prompts_of(job).values()) == ["a", "another", "b", "stays"]
    text(tue / "p.txt", "c")
    job.complete()
    assert {prompt: name for name, prompt in prompts_of(job).items()}["c"] == "p.txt@3:0/0"
    assert sorted(prompts_of(job).values()) == ["another", "c", "stays"]


def test_rows_without_ids_stay_when_a_file_of_the_same_content_is_edited(make_job, tmp_path: Path) -> None:
    """A copy that was read in part: its rows are nowhere else."""
    text(tmp_path / "mon" / "p.txt", "a", "b", "c")
    job_on(make_job, tmp_path / "mon").complete()
    copy = tmp_path / "tue" / "p.txt"
    text(tmp_path / "tue" / "q.txt", "another")
    shutil.copy2(tmp_path / "mon" / "p.txt", copy)
    job = job_on(make_job, [tmp_path / "mon", tmp_path / "tue"], output={"shard_rows": 2})
    job.plan()
    job.run_shard(pending_shards(job.ledger)[0])
    copy.unlink()
    text(tmp_path / "mon" / "p.txt", "edited")
    job.complete()
    assert sorted(prompts_of(job).values()) == ["a", "another", "b", "edited"]
    assert ends_of(job)["tue/p.txt:2/0"] == "quarantined"


def test_a_file_that_is_gone_for_good_leaves_its_account(make_job, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    csv(folder / "a.csv", r0="a")
    path = csv(folder / "b.csv", r1="b", r2="c")
    job = job_on(make_job, folder)
    job.plan()
    path.unlink()
    job.run()
    job.publish()
    proposal = job.plan()
    assert (proposal.moved, proposal.removed) == ((), (str(path),))
    assert ends_of(job) == {"r0/0": "kept", "b.csv:0/0": "quarantined", "b.csv:1/0": "quarantined"}


@pytest.mark.parametrize("times", [1, 100])
def test_a_file_that_changes_while_it_is_planned_has_the_rows_of_its_version(
    make_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Between the listing and the count: its ETag would stand with another version's rows."""
    path = csv(tmp_path / "a.csv", r0="a")
    job, count = job_on(make_job, path), plan.count_rows
    changes = iter(range(times))

    def count_rows(file, spec):
        for change in itertools.islice(changes, 1):
            csv(path, **{f"r{n}": "b" for n in range(change + 2)})
        return count(file, spec)

    monkeypatch.setattr(plan, "count_rows", count_rows)
    if times > 1:
        with pytest.raises(InputError, match=r"a\.csv keeps changing while its rows are counted"):
            job.plan()
    else:
        job.complete()
        assert ends_of(job) == {"r0/0": "kept", "r1/0": "kept"}


def test_equal_tables_of_two_shards_are_sound(make_job, tmp_path: Path) -> None:
    """Versions of an earlier format let shards share a table of the same bytes."""
    job = job_on(make_job, text(tmp_path / "a.txt", "a"))
    version = job.complete()
    storage = job.context.storage
    (file,) = version.files
    other = f"data/{'0' * 20}-v000001-{file.sha256[:16]}.parquet"
    storage.write_bytes(other, storage.read_bytes(file.path))
    edit_segments(
        storage,
        samples=lambda rows: [row.update(file=other) for row in rows],
        shards=lambda shards: [file.update(path=other) for shard in shards for file in shard["files"]],
    )
    assert [p for p in validate(storage.uri).problems if "README" not in p] == []


def test_a_file_that_moves_while_a_run_works_counts_under_its_new_name_alone(
    make_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run finds it gone, lists the input again before it publishes, and generates it from where it is."""
    job = job_on(make_job, csv(tmp_path / "in" / "a.csv", r0="a", r1="b").parent)
    job.plan()

    def generate_all(context: RunContext, ledger: Ledger, progress: Progress, *_: object) -> list[PlannedShard]:
        if not (tmp_path / "in" / "b.csv").exists():
            (tmp_path / "in" / "a.csv").rename(tmp_path / "in" / "b.csv")
        for entry in pending_shards(ledger):
            progress.committed(job.run_shard(entry))
        return []

    monkeypatch.setattr("pipelines.run.job.generate_all", generate_all)
    listed = []

    def plan_again() -> None:
        listed.append(job.plan().moved)

    progress = Progress()
    version, _ = generate_and_publish(job.context, job.ledger, progress, plan_again=plan_again)
    assert [to.rpartition("/")[2] for moved in listed for _, to in moved] == ["b.csv"]
    assert version.counts == {"kept": 2, "rejected": 0, "quarantined": 0}
    assert validate(job.context.storage.uri).problems == [
        "README.md and stats.json are not those of version 1: run the job again to rewrite them."
    ]

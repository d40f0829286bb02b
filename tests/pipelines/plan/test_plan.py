from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jointdit.errors import InputError, SpecError
from pipelines.dataset.validation.validate import validate
from pipelines.engine.limits import Limits
from pipelines.engine.progress import Progress
from pipelines.ledger.counting import Counting
from pipelines.ledger.ledger import Ledger
from pipelines.model.memory import MemoryBound, MemoryNeed, memory_need
from pipelines.plan.propose import propose
from pipelines.plan.regeneration import extend_with_regeneration
from pipelines.plan.shards import cut_shards, make_shard
from pipelines.records import SourceFile, Span
from pipelines.run.preview import preview
from pipelines.run.rounds import generate_all, pending_shards
from pipelines.spec.job import load_spec
from pipelines.store.parquet import parquet_bytes
from tests.local_job import IDENTITY, input_folder


def source(name: str, etag: str = "1") -> SourceFile:
    return SourceFile(uri=f"/in/{name}", etag=etag, size_bytes=1, relative_path=name)


def ranges(shards) -> list[list[tuple[str, int, int]]]:
    return [[(span.relative_path, span.start, span.stop) for span in shard.spans] for shard in shards]


def test_small_files_share_a_shard_whole_and_large_ones_are_cut() -> None:
    counts = [
        (source("a"), 2),
        (source("b"), 1),
        (source("c"), 10),
        (source("empty"), 0),
        (source("d"), 3),
        (source("e"), 4),
    ]
    shards = list(cut_shards(counts, 4, "f"))
    assert ranges(shards) == [
        [("a", 0, 2), ("b", 0, 1)],
        [("c", 0, 4)],
        [("c", 4, 8)],
        [("c", 8, 10)],
        [("d", 0, 3)],
        [("e", 0, 4)],
    ]
    assert len({shard.id for shard in shards}) == len(shards)


def test_a_shards_id_follows_from_what_it_is() -> None:
    span = Span("/in/a", "1", "a", 0, 4)
    first = make_shard([span], 0, "f").id
    assert first == make_shard([span], 0, "f").id
    others = [
        make_shard([Span("/in/a", "2", "a", 0, 4)], 0, "f"),
        make_shard([Span("/in/b", "1", "b", 0, 4)], 0, "f"),
        make_shard([Span("/in/a", "1", "a", 0, 3)], 0, "f"),
        make_shard([span], 1, "f"),
        make_shard([span], 0, "g"),
    ]
    assert len({first, *(shard.id for shard in others)}) == 6


def test_nothing_new_plans_nothing(make_job) -> None:
    job = make_job(["a", "b", "c", "d", "e"])
    assert len(job.plan().shards) == 2
    assert job.plan().shards == ()
    assert job.ledger.plan_numbers() == [1]


def test_new_files_are_appended_and_changed_ones_supersede(make_job, tmp_path: Path) -> None:
    folder = input_folder(tmp_path, a="a\nb\n")
    job = make_job(input={"uri": str(folder)})
    job.plan()
    (folder / "b.txt").write_text("c\n")
    assert ranges(job.plan().shards) == [[("b.txt", 0, 1)]]
    (folder / "a.txt").write_text("a\nb\nnew\n")
    proposal = job.plan()
    assert proposal.changed == (str(folder / "a.txt"),)
    assert ranges(proposal.shards) == [[("a.txt@3", 0, 2), ("a.txt", 2, 3)]]
    assert job.ledger.plan_numbers() == [1, 2, 3]
    assert [entry.plan for entry in pending_shards(job.ledger)] == [2, 3]


def test_removed_inputs_are_reported_and_stay(make_job, tmp_path: Path) -> None:
    folder = input_folder(tmp_path, a="a\n", b="b\n")
    job = make_job(input={"uri": str(folder)})
    job.plan()
    (folder / "b.txt").unlink()
    assert job.plan().removed == (str(folder / "b.txt"),)
    assert len(job.ledger.planned()[0].shard.spans) == 2


def test_who_loses_the_race_for_a_plan_file_subtracts_the_winners(make_job, tmp_path: Path) -> None:
    folder = input_folder(tmp_path, a="a\n")
    job = make_job(input={"uri": str(folder)})
    job.ledger.open_job(job.context.spec, job.context.fingerprint)
    (folder / "b.txt").write_text("b\n")
    stale = propose(job.context.spec, job.context.fingerprint, job.ledger)
    (folder / "b.txt").rename(tmp_path / "b.txt")
    job.plan()  # another driver, which saw a.txt alone
    (tmp_path / "b.txt").rename(folder / "b.txt")
    from pipelines.plan.propose import extend_plan

    added = extend_plan(job.context.spec, job.context.fingerprint, job.ledger, stale)
    assert ranges(added.shards) == [[("b.txt", 0, 1)]]
    planned = [(span.relative_path, entry.plan) for entry in job.ledger.planned() for span in entry.shard.spans]
    assert planned == [("a.txt", 1), ("b.txt", 2)]


def test_no_rows_is_one_sentence(make_job) -> None:
    job = make_job([])
    with pytest.raises(InputError, match=r"^input.uri .*prompts.txt has no rows: give at least one\.$"):
        job.plan()


def test_duplicate_ids_are_found_before_anything_is_planned(make_job, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"id": "x", "prompt": "a"}\n{"id": "y", "prompt": "b"}\n{"id": "x", "prompt": "c"}\n'
    )
    job = make_job(input={"uri": str(tmp_path / "rows.jsonl")})
    with pytest.raises(InputError, match="rows with the same id, such as 'x': give each row an id of its own"):
        job.plan()
    assert job.ledger.plan_numbers() == []


def test_a_missing_column_names_those_that_exist(make_job, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,caption\nx,a\n")
    job = make_job(input={"uri": str(tmp_path / "rows.csv")})
    with pytest.raises(InputError, match=r"has no column 'prompt' .* it has id, caption"):
        job.plan()


def test_regeneration_is_planned_from_committed_rejects_alone(make_job, monkeypatch) -> None:
    monkeypatch.setattr("pipelines.run.opening.identify_job", lambda spec, recorded: IDENTITY)
    quality = {"filters": [{"kind": "depth_range"}], "regenerate": 2}
    job = make_job(["fine", "FLAT", "fine too", "FLAT again"], quality=quality, input={"samples_per_row": 2})
    spec, fingerprint = job.context.spec, job.context.fingerprint
    job.plan()
    assert extend_with_regeneration(spec, fingerprint, job.ledger) == 0  # nothing is committed
    job.run()
    plan = preview(spec)
    assert (plan.round, plan.regenerate, plan.regenerated_samples, plan.pending_samples) == (0, 2, 4, 4)
    assert extend_with_regeneration(spec, fingerprint, job.ledger) == 4
    assert extend_with_regeneration(spec, fingerprint, job.ledger) == 0  # planned, not committed
    plan = preview(spec)
    assert (plan.round, plan.regenerated_samples, plan.pending_samples) == (1, 0, 4)
    (entry,) = pending_shards(job.ledger)
    assert entry.shard.round == 1
    assert [(span.start, span.stop) for span in entry.shard.spans] == [(1, 2), (3, 4)]
    assert entry.indices == (2, 3), "they go on where round 0 ended"
    job.run()
    assert extend_with_regeneration(spec, fingerprint, job.ledger) == 4
    job.run()
    assert extend_with_regeneration(spec, fingerprint, job.ledger) == 0  # two rounds are over
    version, _ = job.publish()
    assert version.counts == {"kept": 4, "rejected": 12, "quarantined": 0}


def test_a_file_that_changes_back_is_planned_again(make_job, tmp_path: Path) -> None:
    """On S3 an ETag is a hash of the content: the old content has the old ETag."""
    file = tmp_path / "prompts.txt"
    first = make_job(["a", "b", "c", "d", "e"])
    first.complete()
    stat = file.stat()
    file.write_text("other\n")
    assert first.complete().counts["kept"] == 1
    file.write_text("a\nb\nc\nd\ne\n")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert first.plan().changed == (str(file),)
    planned = first.ledger.planned()
    counting = Counting(planned)
    current = [entry for entry in planned if not counting.is_superseded(entry)]
    assert [(entry.plan, entry.samples) for entry in current] == [(1, 4), (1, 1), (3, 0)]
    assert not any(entry.samples for entry in pending_shards(first.ledger)), "what was made of it before is still there"
    assert first.complete().counts["kept"] == 5
    assert first.plan().shards == ()
    assert validate(first.context.storage.uri).problems == []


@pytest.mark.parametrize(
    ("name", "whole", "empty"),
    [("a.txt", "a\nb\n", ""), ("a.jsonl", '{"prompt": "a"}\n', ""), ("a.csv", "prompt\na\n", "prompt\n")],
)
def test_a_file_that_lost_all_its_rows_supersedes_them(
    make_job, tmp_path: Path, name: str, whole: str, empty: str
) -> None:
    folder = input_folder(tmp_path, b="b\n")
    (folder / name).write_text(whole)
    job = make_job(input={"uri": [str(folder / name), str(folder / "b.txt")]})
    job.complete()
    (folder / name).write_text(empty)
    assert job.plan().changed == (str(folder / name),)
    progress = Progress()
    generate_all(job.context, job.ledger, progress, Limits(), None)  # starts no Ray
    version, is_new = job.publish()
    assert (is_new, version.counts["kept"], progress.shards) == (True, 1, 0)
    assert job.plan().shards == ()
    assert validate(job.context.storage.uri).problems == []
    (folder / name).write_text(whole)
    assert job.complete().counts["kept"] > 1


def test_a_plan_of_an_earlier_version_is_read(make_job) -> None:
    """Without the columns that retries brought: the indices follow from the round."""
    quality = {"filters": [{"kind": "depth_range"}], "regenerate": 1}
    job = make_job(["fine", "FLAT"], quality=quality, input={"samples_per_row": 2})
    job.plan()
    job.run()
    extend_with_regeneration(job.context.spec, job.context.fingerprint, job.ledger)
    expected = job.ledger.planned()
    for number in (1, 2):
        name = f"_plan/{number:06d}.parquet"
        table = pq.read_table(io.BytesIO(job.context.storage.read_bytes(name)))
        job.context.storage.write_bytes(name, parquet_bytes(table.drop_columns(["indices", "retry"])))
    assert Ledger(job.context.storage).planned() == expected
    assert [entry.indices for entry in expected] == [(0, 1), (2, 3)]


@pytest.fixture
def folder_spec(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a\nb\nc\nd\ne\n")
    return {
        "task": "joint",
        "model": {"name": "tiny", "height": 32, "width": 48},
        "input": {"uri": str(tmp_path / "prompts.txt"), "samples_per_row": 2},
        "output": {"uri": str(tmp_path / "out"), "shard_rows": 2},
    }


def test_a_preview_writes_nothing(folder_spec, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = preview(load_spec(folder_spec))
    assert (found.new_shards, found.new_rows, found.pending_samples, found.committed_shards) == (3, 5, 10, 0)
    assert found.output_bytes > 10 * 32 * 48
    assert found.weights_bytes > 1000
    assert found.in_flight_bytes > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_tells_the_memory_of_a_worker_and_refuses_what_cannot_fit(folder_spec):
    need = preview(load_spec({**folder_spec, "resources": {"gpu_memory_gb": 100}})).memory
    assert (need.batch_size, need.height, need.width, need.is_assumed) == (8, 32, 48, False)
    assert 34_000_000 < sum(need.estimate.weights.values()) < 36_000_000
    room = need.bytes / 1e9
    assert preview(load_spec({**folder_spec, "resources": {"gpu_memory_gb": room}})).memory == need
    small = {**folder_spec, "resources": {"gpu_memory_gb": room - 0.001}}
    numbers = (
        rf"gives a worker [\d.]+ GB, and a batch of 8 at 32 x 48 needs {room:.1f} GB \(weights 0.0 GB; activations of "
    )
    with pytest.raises(SpecError, match=numbers + r"denoise.*; model\.batch_size: 4 fits\."):
        preview(load_spec(small))
    shared = {**folder_spec, "resources": {"gpu_memory_gb": 2 * room - 0.1, "gpus_per_worker": 0.5}}
    with pytest.raises(SpecError, match=r"not even batch_size 1 fits: model\.vae_slicing"):
        preview(load_spec(shared))


def test_the_plan_of_a_small_model_bounds_its_memory_without_torch(folder_spec, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps(folder_spec))
    script = (
        "import sys\n"
        "from jobs.cli import main\n"
        f"code = main(['plan', {str(tmp_path / 'job.yaml')!r}])\n"
        "sys.exit('imported torch' if {'ray', 'torch'} & set(sys.modules) else code)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (answer.returncode, answer.stderr) == (0, "")
    bound = preview(load_spec(folder_spec)).memory
    assert isinstance(bound, MemoryBound)
    assert f"below {bound.bytes / 1e9:.3g} GB per worker" in " ".join(answer.stdout.split())
    for model in ({}, {"dtype": "float32"}, {"dtype": "float32", "height": 256, "width": 256}):
        exact = {**folder_spec, "model": {**folder_spec["model"], **model}}
        found = preview(load_spec(exact)).memory
        need = preview(load_spec({**exact, "resources": {"gpu_memory_gb": 100}})).memory
        assert isinstance(found, MemoryBound)
        assert isinstance(need, MemoryNeed)
        assert found.bytes > need.bytes
    large = {**folder_spec, "model": {**folder_spec["model"], "batch_size": 64}}
    assert isinstance(preview(load_spec(large)).memory, MemoryNeed)


def test_a_hub_name_that_is_not_here_is_taken_for_flux():
    model = {"base": "owner/flux", "adapter": "owner/adapter", "height": 1024, "width": 1024, "batch_size": 8}
    spec = load_spec({"task": "joint", "model": model, "input": {"uri": "prompts.txt"}, "output": {"uri": "out"}})
    need = memory_need(spec, 1024, 1024, 8)
    assert need.is_assumed
    assert need.estimate.weights["transformer"] == pytest.approx(2 * 11.90e9, rel=0.001)
    assert need.estimate.weights["adapter"] == pytest.approx(2 * 2.354e9, rel=0.001)
    assert need.estimate.peak_stage == "decode"


def test_a_preview_refuses_what_the_run_would(folder_spec, make_job, tmp_path: Path) -> None:
    make_job(["a"]).plan()
    with pytest.raises(SpecError, match=r"already holds a job that differs in model\.weights"):
        preview(load_spec(folder_spec))


def test_an_untouched_local_file_keeps_its_version_and_a_rewritten_one_does_not(make_job, tmp_path: Path) -> None:
    job = make_job(["a", "b"])
    job.plan()
    os.utime(tmp_path / "prompts.txt", ns=(time.time_ns(), time.time_ns() + 10**9))
    assert job.plan().changed == (str(tmp_path / "prompts.txt"),)

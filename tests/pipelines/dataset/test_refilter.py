"""Refilter: other criteria from stored scores; the same criteria restore the same version."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jointdit.errors import PermanentError, SpecError
from pipelines.dataset.garbage import collect_garbage, prune_versions
from pipelines.dataset.refilter import refilter
from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import Version, read_latest, read_outcomes, read_version, version_numbers
from pipelines.stages.sinks.ply import read_ply
from pipelines.store.storage import Storage
from tests.local_job import LocalJob

QUALITY = {"filters": [{"kind": "depth_range", "min_span": 0.2}], "max_quarantined_fraction": 1.0}
LAX, STRICT = "quality.filters.0.min_span=0.0", "quality.filters.0.min_span=1.0"


@pytest.fixture
def job(make_job) -> LocalJob:
    """Three shards: one with a flat sample and a quarantined one, one without, one of flat samples alone."""
    prompts = ["a", "FLAT", "", "b", *"cdef", "FLAT", "FLAT"]
    job = make_job(prompts, quality=QUALITY, output={"points": "ply"})
    assert job.complete().counts == {"kept": 6, "rejected": 3, "quarantined": 1}
    return job


def rows(job: LocalJob, version: Version, outcome: str = "kept") -> dict[str, dict]:
    tables = (pq.read_table(io.BytesIO(job.context.storage.read_bytes(path))) for path in version.files_of(outcome))
    return {row["id"]: row for table in tables for row in table.to_pylist()}


def objects(job: LocalJob, *folders: str) -> dict[str, str]:
    return {each.path: each.etag for folder in folders for each in job.context.storage.list(folder)}


def paths_of(version: Version, shards: Sequence[str]) -> list[str]:
    return [file.path for file in version.files if file.shard in shards]


def test_the_original_thresholds_give_the_original_version(job: LocalJob) -> None:
    uri, first, before = job.context.storage.uri, read_latest(job.context.storage), objects(job, "")
    for overrides in ([], ["quality.filters.0.min_span=0.2"], ["quality.filters=[{kind: depth_range, min_span: 0.2}]"]):
        found = refilter(uri, overrides)
        assert (found.is_new, found.version, found.rewritten, found.moved) == (False, first, (), {})
    assert objects(job, "") == before, "nothing is written"


def test_banned_words_are_found_in_stored_captions(job: LocalJob) -> None:
    found = refilter(
        job.context.storage.uri, ["quality.filters=[{kind: caption, min_characters: 1, banned: [flat, c]}]"]
    )
    assert found.version.reasons == {"caption": 4}
    assert found.version.counts == {"kept": 5, "rejected": 4, "quarantined": 1}
    (reason,) = next(r["reasons"] for r in rows(job, found.version, "rejected").values() if r["prompt"] == "c")
    assert reason == "caption: the caption says 'c', which is banned"


def test_only_shards_whose_rows_change_are_written_and_their_images_are_copied(job: LocalJob) -> None:
    storage, first = job.context.storage, read_latest(job.context.storage)
    mixed, untouched, flat = [entry.shard.id for entry in job.ledger.planned()]
    before, written = rows(job, first) | rows(job, first, "rejected"), objects(job, "data", "rejected", "pointclouds")
    found = refilter(storage.uri, [LAX])
    assert (found.is_new, found.moved, found.rewritten) == (True, {"rejected -> kept": 3}, (mixed, flat))
    assert found.without_points == 0
    second = found.version
    assert second.counts == {"kept": 9, "rejected": 0, "quarantined": 1}
    assert paths_of(second, [untouched]) == paths_of(first, [untouched])
    kept = rows(job, second)
    assert list(kept) == [f"prompts.txt:{n}/0" for n in (0, 1, 3, 4, 5, 6, 7, 8, 9)], "in the order of the plan"
    for identifier, row in kept.items():
        was = {name: value for name, value in before[identifier].items() if name != "reasons"}
        assert row == {**was, "pointcloud": was["pointcloud"] or row["pointcloud"]}
        assert storage.exists(row["pointcloud"])
    new = objects(job, "data", "rejected", "pointclouds")
    assert {path: new[path] for path in written} == written
    assert len(new) == len(written) + 2 + 3, "two tables, three point clouds"
    assert collect_garbage(storage.uri, 0).objects == ()
    assert validate(storage.uri).problems == []

    back = refilter(storage.uri, ["quality.filters.0.min_span=0.2"]).version
    assert (back.number, back.files, back.counts) == (3, first.files, first.counts)
    assert read_outcomes(storage, back).equals(read_outcomes(storage, first))
    again = refilter(storage.uri, [LAX]).version
    contents = [[(file.shard, file.outcome, file.rows) for file in version.files] for version in (again, second)]
    assert (again.number, contents[0]) == (4, contents[1])
    assert len(objects(job, "data", "rejected", "pointclouds")) == len(new) + 2 + 3, "version 2 may be pruned: copies"
    assert validate(storage.uri).problems == []
    refilter(storage.uri, ["quality.filters.0.min_span=0.2"])
    assert prune_versions(storage, 1, 0) == [1, 2, 3, 4]
    assert validate(storage.uri).problems == [], "the decisions that stand are a copy"
    assert objects(job, "data", "rejected", "pointclouds") == written, "what only the others named is gone"


def test_what_is_kept_now_has_the_point_cloud_that_a_run_would_have_made(make_job, tmp_path: Path) -> None:
    """But for the steps of the stored depth."""
    points = {"format": "ply", "normals": True, "confidence": True, "edge_threshold": 0.5}

    def quality(least: float) -> dict:
        return {**QUALITY, "filters": [{"kind": "depth_range", "min_span": least}]}

    strict = make_job(["a", "FLAT", "b"], quality=quality(1.0), output={"points": points})
    assert strict.complete().counts["rejected"] == 3
    lax = make_job(quality=quality(0.0), output={"points": points, "uri": str(tmp_path / "lax")})
    wanted = rows(lax, lax.complete())
    for identifier, row in rows(strict, refilter(strict.context.storage.uri, [LAX]).version).items():
        of_run = lax.context.storage.read_bytes(wanted[identifier]["pointcloud"])
        made = strict.context.storage.read_bytes(row["pointcloud"])
        comments, more = (data.partition(b"element")[0].decode().splitlines() for data in (of_run, made))
        assert more == [*comments, "comment from the stored depth, 16 bits of relative disparity"]
        ours, theirs = read_ply(made), read_ply(of_run)
        assert len(ours) > 900
        # dz / z = z (1 / z_near - 1 / z_far) dd, with dd half a step and z to 10 m
        np.testing.assert_allclose(ours.points, theirs.points, rtol=10 * 0.9 * 0.5 / 65535 + 1e-6)
        np.testing.assert_array_equal(ours.colours, theirs.colours)
        np.testing.assert_allclose(ours.normals, theirs.normals, atol=0.05)
        np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=5e-3)
    assert validate(strict.context.storage.uri).problems == []


def test_without_a_stored_image_there_is_no_point_cloud_and_refilter_says_so(make_job, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(tmp_path / "in" / f"{number}.png")
    strict = {**QUALITY, "filters": [{"kind": "depth_range", "min_span": 1.0}]}
    given = {"task": "depth", "quality": strict, "input": {"uri": str(tmp_path / "in")}}
    job = make_job(**given, output={"points": "ply", "rgb": "reference"})
    assert job.complete().counts["rejected"] == 2
    found = refilter(job.context.storage.uri, [LAX])
    assert (found.version.counts["kept"], found.without_points) == (2, 2)
    assert [row["pointcloud"] for row in rows(job, found.version).values()] == [None, None]
    assert validate(job.context.storage.uri).problems == []


def test_kept_rows_move_to_the_rejected_and_their_point_clouds_stay(job: LocalJob) -> None:
    storage, first = job.context.storage, read_latest(job.context.storage)
    clouds = {identifier: row["pointcloud"] for identifier, row in rows(job, first).items()}
    second = refilter(storage.uri, [STRICT]).version
    assert second.counts == {"kept": 0, "rejected": 9, "quarantined": 1}
    rejected = rows(job, second, "rejected")
    for identifier, path in clouds.items():
        assert rejected[identifier]["pointcloud"] == path
        assert rejected[identifier]["reasons"][0].startswith("depth_range: depth spans 0.9")
    assert collect_garbage(storage.uri, 0).objects == ()
    assert all(storage.exists(path) for path in clouds.values())
    assert validate(storage.uri).problems == []
    schemas = [pq.read_schema(io.BytesIO(storage.read_bytes(path))) for path in second.files_of("rejected")]
    assert all(schema.equals(schemas[-1], check_metadata=True) for schema in schemas)


def test_later_runs_and_retries_are_decided_by_the_latest_refilter(job: LocalJob, make_job, tmp_path: Path) -> None:
    from pipelines.dataset.publish import spec_in_force
    from pipelines.plan.retry import plan_retry

    storage = job.context.storage
    refilter(storage.uri, [LAX])
    (tmp_path / "more.txt").write_text("g\nFLAT\n")
    inputs = {"uri": [str(tmp_path / "prompts.txt"), str(tmp_path / "more.txt")]}
    longer = make_job(quality=QUALITY, input=inputs, output={"points": "ply"})
    version = longer.complete()
    assert (version.number, version.refilter) == (3, 2)
    assert version.counts == {"kept": 11, "rejected": 0, "quarantined": 1}
    assert version.spec.quality.filters == ({"kind": "depth_range", "min_span": 0.0},)
    assert rows(longer, version)["more.txt:1/0"]["quality"]["depth_span"] == 0.0, "its commit had rejected it"
    assert spec_in_force(longer.context.spec, version).quality.filters == ({"kind": "depth_range", "min_span": 0.0},)
    assert plan_retry(storage.uri, ["rejected", "quarantined"]).counts == {"rejected": 0, "quarantined": 1}
    version = longer.complete()
    assert version.counts == {"kept": 11, "rejected": 0, "quarantined": 1}
    assert validate(storage.uri).problems == []
    status = read_status(storage.uri)
    assert status.is_complete


def test_a_spec_files_quality_can_be_taken(job: LocalJob, tmp_path: Path) -> None:
    spec = tmp_path / "other.yaml"
    spec.write_text("task: joint\ninput: {uri: x.txt}\noutput: {uri: y}\nquality: {filters: [{kind: saturated}]}\n")
    found = refilter(job.context.storage.uri, spec_file=spec)
    assert found.moved == {"rejected -> kept": 3}
    assert [each["kind"] for each in found.version.criteria["filters"]] == ["saturated"]
    assert found.version.spec.quality.max_quarantined_fraction == 1.0


def test_what_refilter_cannot_do_is_one_sentence(job: LocalJob, make_job, tmp_path: Path) -> None:
    uri = job.context.storage.uri
    with pytest.raises(SpecError, match=r"--set model.steps cannot be changed by refilter: set quality.filters"):
        refilter(uri, ["model.steps=4"])
    with pytest.raises(SpecError, match="is no filter"):
        refilter(uri, ["quality.filters=[{kind: none}]"])
    assert version_numbers(job.context.storage) == [1]
    (tmp_path / "other").mkdir()
    unfinished = make_job(output={"uri": str(tmp_path / "other" / "out")})
    unfinished.plan()
    with pytest.raises(PermanentError, match="has no version yet: run the job to its end first"):
        refilter(unfinished.context.storage.uri, [LAX])


def test_a_score_that_was_not_computed_is_named(job: LocalJob) -> None:
    storage = job.context.storage
    version = read_latest(storage)
    path = version.files_of("kept")[0]
    table = pq.read_table(io.BytesIO(storage.read_bytes(path)))
    sink = io.BytesIO()
    pq.write_table(table.drop_columns(["phash"]), sink)
    storage.write_bytes(path, sink.getvalue())
    with pytest.raises(PermanentError, match=r"2 samples lack the perceptual hash, such as prompts.txt:0/0, because"):
        refilter(storage.uri, ["quality.filters=[{kind: near_duplicate}]"])


def test_a_score_that_could_not_be_computed_rejects_its_sample_alone(job: LocalJob) -> None:
    """As self-consistency of a constant map: some samples of the shard have it. Where none has it, nobody tried."""
    uri = job.context.storage.uri
    with pytest.raises(PermanentError, match=r"9 samples lack the score ensemble_abs_rel_spread, such as prompts"):
        refilter(uri, ["quality.filters=[{kind: ensemble_spread}]"])
    (commit, *_) = [job.ledger.read_commit(entry.shard.id) for entry in job.ledger.planned()]
    for stored in commit.objects:
        if stored.kind == "table" and stored.outcome == "kept":
            table = pq.read_table(io.BytesIO(job.context.storage.read_bytes(stored.path)))
            scores = [{**row, "depth_span": None} for row in table["quality"].to_pylist()[:1]]
            scores += table["quality"].to_pylist()[1:]
            number = table.schema.get_field_index("quality")
            sink = io.BytesIO()
            column = pa.array(scores, table.field("quality").type)
            pq.write_table(table.set_column(number, table.field("quality"), column), sink)
            job.context.storage.write_bytes(stored.path, sink.getvalue())
    found = refilter(uri, [LAX])
    table = read_outcomes(job.context.storage, found.version)
    assert found.version.counts["rejected"] == 1
    assert table.filter(pc.equal(table["outcome"], "rejected"))["reasons"].to_pylist() == [
        ["depth_range: depth_span was not computed"]
    ]


def before_version_json(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Let `act` happen right before somebody creates the version.json of a number for the first time."""
    create, left = Storage.create_bytes, [act]

    def create_bytes(self: Storage, name: str, data: bytes) -> None:
        if name == f"_versions/{number:06d}/version.json" and left:
            left.pop()()
        create(self, name, data)

    monkeypatch.setattr(Storage, "create_bytes", create_bytes)


def test_a_run_that_publishes_at_the_same_moment_does_not_undo_it(job: LocalJob, make_job, tmp_path: Path, monkeypatch):
    """The refilter finds its number taken, and decides again on top of what took it."""
    storage = job.context.storage
    (tmp_path / "more.txt").write_text("FLAT\n")
    longer = make_job(quality=QUALITY, input={"uri": str(tmp_path / "*.txt")}, output={"points": "ply"})
    longer.plan()
    longer.run()
    published = []
    before_version_json(monkeypatch, 2, lambda: published.append(longer.publish()[0].number))
    found = refilter(storage.uri, [LAX])
    assert published == [2]
    assert (found.before.number, found.version.number, found.version.refilter) == (2, 3, 3)
    assert found.version.counts == {"kept": 10, "rejected": 0, "quarantined": 1}
    assert validate(storage.uri).problems == []


def test_two_refilters_at_the_same_moment_are_as_if_one_followed_the_other(job: LocalJob, monkeypatch) -> None:
    storage = job.context.storage
    refilter(storage.uri, ["quality.filters=[{kind: depth_range, min_span: 0.3}, {kind: depth_range, min_span: 0.1}]"])
    before_version_json(monkeypatch, 3, lambda: refilter(storage.uri, ["quality.filters.0.min_span=0"]))
    last = refilter(storage.uri, ["quality.filters.1.min_span=0"]).version
    assert [each["min_span"] for each in last.criteria["filters"]] == [0, 0], "neither loses what the other set"
    assert last.number == 4


def test_the_version_that_a_refilter_goes_back_to_may_be_pruned_at_the_last_moment(
    job: LocalJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it takes from a version that is not the latest is copied before it publishes."""
    storage = job.context.storage
    lax = refilter(storage.uri, [LAX]).version
    refilter(storage.uri, ["quality.filters.0.min_span=0.2"])
    before_version_json(monkeypatch, 4, lambda: prune_versions(storage, 1, 0))
    back = refilter(storage.uri, [LAX]).version
    assert (back.number, back.counts) == (4, lax.counts)
    assert version_numbers(storage) == [3, 4]
    assert not [file.path for file in lax.files if "-v000002-" in file.path and storage.exists(file.path)]
    assert validate(storage.uri).problems == []


def test_the_version_below_may_be_pruned_after_it_was_read(job: LocalJob, make_job, tmp_path: Path, monkeypatch):
    """Then another version took its number, so what was decided on top of it is decided again."""
    storage = job.context.storage
    (tmp_path / "more.txt").write_text("FLAT\n")
    longer = make_job(quality=QUALITY, input={"uri": str(tmp_path / "*.txt")}, output={"points": "ply"})
    longer.plan()
    longer.run()

    def overtake() -> None:
        longer.publish()
        prune_versions(storage, 1, 0)

    before_version_json(monkeypatch, 2, overtake)
    found = refilter(storage.uri, [LAX]).version
    assert (found.number, found.counts["kept"]) == (3, 10)
    assert version_numbers(storage) == [2, 3]
    assert validate(storage.uri).problems == []


def test_it_needs_neither_ray_nor_torch(job: LocalJob) -> None:
    script = (
        "import sys\n"
        "from jobs.cli import main\n"
        f"code = main(['refilter', {job.context.storage.uri!r}, '--set', {LAX!r}])\n"
        "sys.exit('imported Ray' if {'ray', 'torch'} & set(sys.modules) else code)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    printed = " ".join(answer.stdout.split())
    assert "3 rejected -> kept; 2 shards rewritten" in printed
    assert "version 2 published: 9 kept, 0 rejected, 1 quarantined" in printed
    assert read_version(job.context.storage, 2).refilter == 2

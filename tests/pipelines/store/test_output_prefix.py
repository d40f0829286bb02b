"""Names of objects come from shards and numbers, so no input escapes the output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jointdit.errors import StoreError
from pipelines.dataset import card, gallery
from pipelines.dataset.validation.validate import validate
from pipelines.store.storage import Storage

IDS = [
    "../../../escaped",
    "/tmp/absolute",
    "..",
    "a/../../b",
    "..\\..\\windows",
    "%2e%2e%2f%2e%2e%2fquoted",
    "s3://other-bucket/key",
    "file:///etc/passwd",
    "nul\x00byte",
    "line\nbreak\r\n",
    "\x1b[2Jescape",
    "\u202egnp.exe",
    "\u2025/\uff0e\uff0e/fullwidth",
    "x" * 1000,
    "con",
    ".hidden",
    "trailing/",
    "$(touch /tmp/pwned) `id` ${HOME} {0} %s",
    "<script>alert(1)</script>",
]
KEPT = [name for name in IDS if "\x00" not in name]  # no id or prompt may have a NUL: that row is quarantined
OBJECT = re.compile(
    r"_job\.json|_plan/\d{6}\.parquet|_commits/[0-9a-f]{20}\.json|_versions/\d{6}/version\.json"
    r"|_versions/segments/\d{6}-[0-9a-f]{16}-[0-9a-f]{16}(-shards)?\.parquet"
    r"|(data|quarantine)/[0-9a-f]{20}-[0-9a-f]{16}\.parquet|pointclouds/[0-9a-f]{20}-[0-9a-f]{16}/\d{5}\.ply"
    r"|README\.md|stats\.json|croissant\.json|figures/\d{6}/[a-z]+\.(svg|jpg|ply)"
    r"|gallery/(index\.html|vendor/(three\.min\.js|LICENSE)|\d{6}-\d+/(index-\d{3}|rows-\d{5})\.js)"
)


@pytest.fixture
def job(make_job, tmp_path: Path):
    """A finished job whose rows have ids of every nasty kind, with point clouds."""
    rows = [{"id": name, "prompt": f"p {name}"} for name in IDS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = {"uri": str(tmp_path / "out"), "shard_rows": 8, "points": "ply"}
    return make_job(input={"uri": str(tmp_path / "rows.jsonl")}, output=output)


def test_ids_are_data_and_no_object_is_named_after_them(job, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "out")}
    version = job.complete()
    card.write(job.context.storage, job.ledger.read_job(), version)
    gallery.write(job.context.storage, version)
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "out")} == before
    names = [file.path for file in job.context.storage.list("")]
    assert [name for name in names if not OBJECT.fullmatch(name)] == []
    found = [name for file in sorted((tmp_path / "out" / "data").iterdir()) for name in pq.read_table(file)["source"]]
    assert sorted(str(name) for name in found) == sorted(KEPT), "as they were given, nothing lost, nothing doubled"
    assert validate(job.context.storage.uri).problems == []


def test_a_point_cloud_of_a_nasty_id_is_a_whole_file(job, tmp_path: Path) -> None:
    job.complete()
    files = list((tmp_path / "out" / "pointclouds").rglob("*.ply"))
    assert len(files) == len(KEPT)
    for file in files:
        header, separator, points = file.read_bytes().partition(b"\nend_header\n")
        assert separator
        lines = header.decode("ascii").split("\n")
        (count,) = [int(line.split()[2]) for line in lines if line.startswith("element vertex")]
        assert len(points) == 15 * count
        assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "data/../../outside", ".."])
def test_a_name_that_leads_out_of_a_storage_is_refused(name: str, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    for act in (storage.read_bytes, storage.delete, storage.open, lambda name: storage.write_bytes(name, b"x")):
        with pytest.raises(StoreError, match=r"leads out of it: restore the ledger from a backup\.$"):
            act(name)


def test_a_commit_that_names_files_elsewhere_is_told(job, tmp_path: Path) -> None:
    """Who may write the ledger may write anything there; a reader still does not follow it out of the output."""
    job.complete()
    (tmp_path / "elsewhere.parquet").write_bytes(b"not ours")
    (commit, *_) = sorted((tmp_path / "out" / "_commits").iterdir())
    fields = json.loads(commit.read_bytes())
    fields["objects"][0]["path"] = "../elsewhere.parquet"
    commit.write_text(json.dumps(fields))
    problems = validate(str(tmp_path / "out")).problems
    assert any("../elsewhere.parquet, which is of another shard" in problem for problem in problems)
    assert any("leads out of it" in problem for problem in problems)

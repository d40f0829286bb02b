"""Pruning of old versions: numbers stay taken, own files are deleted, later versions stay intact."""

from __future__ import annotations

from pathlib import Path

import pytest

from jointdit.errors import PermanentError
from pipelines.dataset.diff import compare
from pipelines.dataset.garbage import prune_versions
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import read_latest, read_version, version_numbers
from pipelines.store.storage import AlreadyExists
from tests.local_job import input_folder


def test_only_the_latest_versions_stay(make_job, tmp_path: Path) -> None:
    folder = input_folder(tmp_path, a="a0\na1\n", b="b0\n")
    job = make_job(input={"uri": str(folder)})
    job.complete()
    for name, text in (("a.txt", "a0 changed"), ("b.txt", "b0 changed"), ("a.txt", "a0 changed again")):
        (folder / name).write_text(f"{text}\n")
        job.complete()
    storage = job.context.storage
    own = {f.path for f in read_version(storage, 2).files} - {f.path for f in read_latest(storage).files}
    own = {path for path in own if "-v000002-" in path}
    assert own, "version 2 has a file that only it names"
    assert prune_versions(storage, 2, 0) == [1, 2]
    assert version_numbers(storage) == [3, 4]
    assert [path for path in own if storage.exists(path)] == []
    assert validate(storage.uri).problems == []
    assert prune_versions(storage, 2, 0) == []
    with pytest.raises(PermanentError, match="has no version 2: it has 3, 4"):
        compare(storage.uri, 2, 4)
    with pytest.raises(AlreadyExists):
        storage.create_bytes("_versions/000002/version.json", b"of a publisher that slept")
    (folder / "b.txt").write_text("b0 changed again\n")
    assert job.complete().number == 5
    assert validate(storage.uri).problems == []

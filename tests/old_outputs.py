"""Turn the versions of an output into those of earlier formats: all files listed, one table of outcomes."""

from __future__ import annotations

import json
from dataclasses import asdict

from pipelines.ledger.entries import sha256
from pipelines.ledger.versions import read_outcomes, read_version, version_numbers
from pipelines.store.parquet import parquet_bytes
from pipelines.store.storage import Storage


def as_earlier_format(storage: Storage, number: int) -> None:
    """Rewrite all versions in format 1 or 2. Decisions of the version before stand in each."""
    versions = [read_version(storage, each) for each in version_numbers(storage)]
    paths: dict[int, str] = {}
    for version in versions:
        folder = f"_versions/{version.number:06d}"
        paths[version.number] = f"{folder}/outcomes.parquet" if number == 1 else f"{folder}/outcomes-0123abcd.parquet"
        data = parquet_bytes(read_outcomes(storage, version))
        storage.write_bytes(paths[version.number], data)
        fields = json.loads(storage.read_bytes(f"{folder}/version.json"))
        held = version.number - 1 if version.number - 1 in paths else 0
        del fields["segments"], fields["sizes"]
        fields |= {"files": [asdict(file) for file in version.files], "outcomes_sha256": sha256(data), "held": held}
        if number == 2:
            fields |= {"outcomes": paths[version.number], "held_outcomes": paths.get(held, "")}
        storage.write_bytes(f"{folder}/version.json", json.dumps({**fields, "format": number}).encode())
    for info in storage.list("_versions/segments"):
        storage.delete(info.path)

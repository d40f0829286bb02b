"""Commits -> a published version: which samples count, and exactly which files hold them.

    _versions/000001/version.json       counts, the files of the version, what it was made from; create-only
    _versions/000001/outcomes.parquet   one row a sample: id, where it came from, where it ended; create-only
    README.md  stats.json  gallery/     about the latest version; rewritten with each

Which samples count is decided by the plan (counting.py). A table that also holds superseded samples is written anew
without their rows (bytes copied, nothing decoded). A run that finds nothing new publishes nothing.

Equal commits give an equal version, so a publisher that finds the outcomes of another, at work or dead, completes them;
where they differ from its own it takes the next number. It reads the numbers before the plan: a version that is
published in between has taken the number, so no version is older than the one before it.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jointdit.errors import PermanentError
from pipelines.counting import CountedSample, Counting
from pipelines.fingerprint import code_version
from pipelines.ledger import (
    FORMAT,
    OUTCOMES,
    Commit,
    Ledger,
    Outcome,
    StoredObject,
    new_token,
    now,
    parquet_bytes,
    parse,
    sha256,
)
from pipelines.sinks.parquet import table_bytes
from pipelines.storage import AlreadyExists, Storage

PUBLISH_ATTEMPTS = 100
OUTCOMES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("position", pa.int64()),
        ("index", pa.int32()),
        ("round", pa.int32()),
        ("shard", pa.string()),
        ("outcome", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("file", pa.string()),
    ]
)


@dataclass(frozen=True)
class VersionFile:
    """A table of a version."""

    path: str
    outcome: Outcome
    rows: int
    bytes: int
    sha256: str
    shard: str


@dataclass(frozen=True)
class Version:
    """A published version of the dataset."""

    number: int
    counts: dict[str, int]
    files: tuple[VersionFile, ...]
    superseded: int  # committed samples that do not count any more
    reasons: dict[str, int]  # of rejects, by filter
    plans: tuple[int, ...]
    outcomes_sha256: str
    created: str
    code: str
    spec: dict[str, Any]  # as the publishing run had it: quality and batch size may differ from _job.json's

    def files_of(self, outcome: Outcome) -> list[str]:
        """Paths of the tables of one outcome, in the order of the plan."""
        return [file.path for file in self.files if file.outcome == outcome]


def publish(storage: Storage, ledger: Ledger, spec: Mapping[str, Any]) -> tuple[Version, bool]:
    """The version that covers all planned shards, and whether it is new.

    Raises:
        Unfinished: a shard that counts has no commit.
    """
    taken: set[int] = set()  # numbers of publishers that died, or are at work, with other outcomes
    for _ in range(PUBLISH_ATTEMPTS):
        latest = read_latest(storage)
        planned = ledger.planned()
        if not planned:
            raise PermanentError(f"{storage.uri} has no plan: there is nothing to publish.")
        commits = ledger.read_commits({entry.shard.id for entry in planned})
        counted = list(Counting(planned).counted(commits))
        if latest is not None and _covers(storage, latest, counted):
            return latest, False
        number = latest.number + 1 if latest else 1
        while number in taken:
            number += 1
        files, file_of = _tables(storage, number, counted, commits, latest.files if latest else ())
        outcomes = parquet_bytes(_outcomes_table(counted, file_of))
        version = Version(
            number=number,
            counts={outcome: sum(c.sample.outcome == outcome for c in counted) for outcome in OUTCOMES},
            files=tuple(files),
            superseded=sum(len(commit.samples) for commit in commits.values()) - len(counted),
            reasons=dict(Counter(reason.split(":")[0] for c in counted for reason in c.sample.reasons)),
            plans=tuple(sorted({entry.plan for entry in planned})),
            outcomes_sha256=sha256(outcomes),
            created=now(),
            code=code_version(),
            spec=dict(spec),
        )
        if not _claim(storage, number, outcomes):
            taken.add(number)
            continue
        try:
            data = json.dumps({**asdict(version), "token": new_token(), "format": FORMAT}) + "\n"
            storage.create_bytes(f"_versions/{number:06d}/version.json", data.encode())
        except AlreadyExists:
            continue  # another driver published the same: the next look finds it
        return version, True
    raise PermanentError(f"other drivers keep publishing {storage.uri}: run again when they are done.")


def _claim(storage: Storage, number: int, outcomes: bytes) -> bool:
    """Write a version's outcomes; False where somebody else's are there and differ."""
    name = f"_versions/{number:06d}/outcomes.parquet"
    try:
        storage.create_bytes(name, outcomes)
    except AlreadyExists:
        return storage.read_bytes(name) == outcomes
    return True


def read_latest(storage: Storage) -> Version | None:
    """The latest published version, or None."""
    numbers = version_numbers(storage)
    return read_version(storage, numbers[-1]) if numbers else None


def version_numbers(storage: Storage) -> list[int]:
    """Numbers of the published versions, in order."""
    return [int(name.split("/")[0]) for name in storage.names("_versions", "/version.json")]


def read_version(storage: Storage, number: int) -> Version:
    """A published version. Raises FileNotFoundError where there is none of that number."""
    name = f"_versions/{number:06d}/version.json"
    fields = parse(storage.read_bytes(name), storage.uri_of(name))
    files = tuple(VersionFile(**file) for file in fields.pop("files"))
    plans = tuple(fields.pop("plans"))
    del fields["token"], fields["format"]
    return Version(files=files, plans=plans, **fields)


def read_outcomes(storage: Storage, version: Version) -> pa.Table:
    """One row a sample of a version, in (plan, position) order."""
    data = storage.read_bytes(f"_versions/{version.number:06d}/outcomes.parquet")
    return pq.read_table(io.BytesIO(data), schema=OUTCOMES_SCHEMA)


def _covers(storage: Storage, version: Version, counted: Sequence[CountedSample]) -> bool:
    table = read_outcomes(storage, version).select(["id", "shard", "outcome"])
    wanted = [(c.sample.id, c.entry.shard.id, c.sample.outcome) for c in counted]
    return wanted == list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _tables(
    storage: Storage,
    number: int,
    counted: Sequence[CountedSample],
    commits: Mapping[str, Commit],
    before: Sequence[VersionFile],
) -> tuple[list[VersionFile], dict[tuple[str, Outcome], str]]:
    """The files of a version, and the path for each (shard, outcome). `before`: the files of the last version."""
    known = {file.sha256: file.path for file in before}
    wanted: dict[str, dict[Outcome, list[str]]] = {}
    for each in counted:
        wanted.setdefault(each.entry.shard.id, {}).setdefault(each.sample.outcome, []).append(each.sample.id)
    files: list[VersionFile] = []
    for shard, outcomes in wanted.items():
        for stored in commits[shard].objects:
            if stored.kind != "table" or stored.outcome not in outcomes:
                continue
            ids = outcomes[stored.outcome]
            if len(ids) < stored.rows:
                stored = _without_superseded(storage, number, shard, stored, ids, known)
            files.append(VersionFile(stored.path, stored.outcome, stored.rows, stored.bytes, stored.sha256, shard))
    return files, {(file.shard, file.outcome): file.path for file in files}


def _without_superseded(
    storage: Storage, number: int, shard: str, stored: StoredObject, ids: Sequence[str], known: Mapping[str, str]
) -> StoredObject:
    """A copy of a table with only the rows that count; `known`, SHA-256 -> path, has those of the last version."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(stored.path)))
    data = table_bytes(table.filter(pc.is_in(table["id"], pa.array(ids))))
    digest = sha256(data)
    path = known.get(digest)
    if path is None:
        path = f"{stored.path.split('/')[0]}/{shard}-v{number:06d}-{digest[:16]}.parquet"
        storage.write_bytes(path, data)
    return StoredObject(path, len(data), digest, len(ids), stored.outcome)


def _outcomes_table(counted: Sequence[CountedSample], file_of: Mapping[tuple[str, Outcome], str]) -> pa.Table:
    records = []
    for each in counted:
        span, sample, shard = each.span, each.sample, each.entry.shard
        records.append(
            {
                "id": sample.id,
                "source": each.source,
                "uri": span.uri,
                "etag": span.etag,
                "position": sample.position,
                "index": sample.index,
                "round": shard.round,
                "shard": shard.id,
                "outcome": sample.outcome,
                "reasons": list(sample.reasons),
                "file": file_of[shard.id, sample.outcome],
            }
        )
    return pa.Table.from_pylist(records, schema=OUTCOMES_SCHEMA)

"""Commits -> a published version: which samples count, and exactly which files hold them.

    _versions/000001/version.json       counts, the files of the version, what it was made from; create-only
    _versions/000001/outcomes.parquet   one row a sample: id, where it came from, where it ended; create-only
    README.md  stats.json  gallery/     about the latest version; rewritten with each

A sample counts unless a newer version of its input file was planned, or its row id was planned again from another file.
A table that holds samples of both kinds is written anew without the superseded rows (bytes copied, nothing decoded). A
run that finds nothing new publishes nothing. Of two drivers that publish at once the second accepts the first's version
or takes the next number; a publisher that dies leaves a gap.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jointdit.errors import PermanentError
from pipelines.fingerprint import code_version
from pipelines.ledger import (
    FORMAT,
    OUTCOMES,
    Commit,
    Ledger,
    Outcome,
    PlannedShard,
    SampleOutcome,
    StoredObject,
    new_token,
    now,
    parquet_bytes,
    parse,
    sha256,
)
from pipelines.plan import current_versions, is_superseded
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


@dataclass(frozen=True)
class _Counted:
    """A sample that counts, with where it came from."""

    entry: PlannedShard
    sample: SampleOutcome

    @property
    def source(self) -> str:
        return self.sample.id.rsplit("/", 1)[0]


def publish(storage: Storage, ledger: Ledger, spec: Mapping[str, Any]) -> tuple[Version, bool]:
    """The version that covers all planned shards, and whether it is new.

    Raises:
        PermanentError: a shard that counts has no commit.
    """
    for _ in range(PUBLISH_ATTEMPTS):
        planned = ledger.planned()
        if not planned:
            raise PermanentError(f"{storage.uri} has no plan: there is nothing to publish.")
        commits = ledger.read_commits(entry.shard.id for entry in planned)
        counted = list(counted_samples(planned, commits))
        latest = read_latest(storage)
        numbers = version_numbers(storage)
        if latest is not None and _covers(storage, latest, counted):
            return latest, False
        number = max([*numbers, *_numbers_taken(storage)], default=0) + 1
        files, file_of = _tables(storage, number, counted, commits)
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
        try:
            storage.create_bytes(f"_versions/{number:06d}/outcomes.parquet", outcomes)
            data = json.dumps({**asdict(version), "token": new_token(), "format": FORMAT}) + "\n"
            storage.create_bytes(f"_versions/{number:06d}/version.json", data.encode())
        except AlreadyExists:
            continue  # another driver publishes: see whether its version covers ours
        return version, True
    raise PermanentError(f"other drivers keep publishing {storage.uri}: run again when they are done.")


def counted_samples(planned: Sequence[PlannedShard], commits: Mapping[str, Commit]) -> Iterator[_Counted]:
    """The samples that count, in (plan, position) order."""
    current = current_versions(planned)
    home: dict[str, tuple[str, str]] = {}  # row id -> the input version that was planned last for it
    for entry in planned:
        if is_superseded(entry.shard, current):
            continue
        if entry.shard.id not in commits:
            raise PermanentError(f"shard {entry.shard.id} is planned and not committed: run the job to its end first.")
        if entry.shard.round == 0:
            for sample in commits[entry.shard.id].samples:
                span = entry.shard.spans[sample.span]
                if current[span.uri] == span.etag:
                    home[_row_id(sample)] = (span.uri, span.etag)
    for entry in planned:
        if entry.shard.id in commits:
            for sample in commits[entry.shard.id].samples:
                span = entry.shard.spans[sample.span]
                if home.get(_row_id(sample)) == (span.uri, span.etag):
                    yield _Counted(entry, sample)


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


def _row_id(sample: SampleOutcome) -> str:
    return sample.id.rsplit("/", 1)[0]


def _numbers_taken(storage: Storage) -> list[int]:
    """Numbers whose outcomes were written, published or not: a publisher that died in between leaves a gap."""
    return [int(name.split("/")[0]) for name in storage.names("_versions", "/outcomes.parquet")]


def _covers(storage: Storage, version: Version, counted: Sequence[_Counted]) -> bool:
    table = read_outcomes(storage, version).select(["id", "shard", "outcome"])
    wanted = [(c.sample.id, c.entry.shard.id, c.sample.outcome) for c in counted]
    return wanted == list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _tables(
    storage: Storage, number: int, counted: Sequence[_Counted], commits: Mapping[str, Commit]
) -> tuple[list[VersionFile], dict[tuple[str, Outcome], str]]:
    """The files of a version, and the path for each (shard, outcome)."""
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
                stored = _without_superseded(storage, number, shard, stored, ids)
            files.append(VersionFile(stored.path, stored.outcome, stored.rows, stored.bytes, stored.sha256, shard))
    return files, {(file.shard, file.outcome): file.path for file in files}


def _without_superseded(
    storage: Storage, number: int, shard: str, stored: StoredObject, ids: Sequence[str]
) -> StoredObject:
    """A copy of a table with only the rows that count."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(stored.path)))
    data = table_bytes(table.filter(pc.is_in(table["id"], pa.array(ids))))
    folder = stored.path.split("/")[0]
    path = f"{folder}/{shard}-v{number:06d}-{new_token()}.parquet"
    storage.write_bytes(path, data)
    return StoredObject(path, len(data), sha256(data), len(ids), stored.outcome)


def _outcomes_table(counted: Sequence[_Counted], file_of: Mapping[tuple[str, Outcome], str]) -> pa.Table:
    records = []
    for each in counted:
        span, sample, shard = each.entry.shard.spans[each.sample.span], each.sample, each.entry.shard
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

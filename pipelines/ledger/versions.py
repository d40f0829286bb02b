"""A published version: its record, and how it is read. dataset/publish.py makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.ledger.entries import Outcome, StoredObject, parse
from pipelines.ledger.names import versions_in
from pipelines.spec.file import translate_recorded
from pipelines.store.parquet import read_parquet
from pipelines.store.storage import Storage

VERSION_FORMATS = (1, 2)  # of version.json; 2 names its outcomes, which format 1 has under a fixed name
PRUNED = "pruned.json"
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
    criteria: dict[str, Any] = field(default_factory=dict)  # what its samples are kept by, with all thresholds
    refilter: int = 0  # the version in which `jointdit refilter` set them; 0: each run's own decided at its commits
    held: int = 0  # the version whose decisions stand in this one; 0: none
    outcomes: str = ""  # path of its outcomes
    held_outcomes: str = ""  # path of the decisions that stand: outcomes of the version before, or a copy of older ones

    @property
    def paths(self) -> set[str]:
        """Of all objects that it needs: tables, point clouds that only they name, outcomes."""
        files = {path for file in self.files for path in (file.path, *(cloud.path for cloud in file.clouds))}
        return files | {self.outcomes} | ({self.held_outcomes} if self.held_outcomes else set())

    def files_of(self, outcome: Outcome) -> list[str]:
        """Paths of the tables of one outcome, in the order of the plan."""
        return [file.path for file in self.files if file.outcome == outcome]


@dataclass(frozen=True)
class Listing:
    """What one listing of `_versions` shows."""

    published: tuple[int, ...]  # numbers that have a version.json, in order
    pruned: frozenset[int]  # numbers whose version is not to be read any more (prune.py)

    @property
    def retained(self) -> list[int]:
        """Numbers of the versions that may be read, in order."""
        return [number for number in self.published if number not in self.pruned]


def version_listing(storage: Storage) -> Listing:
    """List the versions once. Names that are not of this ledger are passed over."""
    found = versions_in(storage)
    published = tuple(number for number, parts in found.items() if "version.json" in parts)
    return Listing(published, frozenset(number for number, parts in found.items() if PRUNED in parts))


def read_latest(storage: Storage) -> Version | None:
    """The latest published version, or None. It is never pruned."""
    numbers = version_listing(storage).published
    return read_version(storage, numbers[-1]) if numbers else None


def version_numbers(storage: Storage) -> list[int]:
    """Numbers of the published versions that were not pruned, in order."""
    return version_listing(storage).retained


def read_version(storage: Storage, number: int) -> Version:
    """A published version. Raises FileNotFoundError where there is none of that number."""
    name = f"_versions/{number:06d}/version.json"
    fields = parse(storage.read_bytes(name), storage.uri_of(name), VERSION_FORMATS)
    files = tuple(
        VersionFile(**{**file, "clouds": tuple(StoredObject(**cloud) for cloud in file.get("clouds", ()))})
        for file in fields.pop("files")
    )
    plans = tuple(fields.pop("plans"))
    if fields["format"] == 1:
        fields["outcomes"] = _outcomes_in_format_1(number)
        fields["held_outcomes"] = _outcomes_in_format_1(fields["held"]) if fields.get("held") else ""
    del fields["token"], fields["format"]
    fields["spec"] = translate_recorded(fields["spec"])
    return Version(files=files, plans=plans, **fields)


def _outcomes_in_format_1(number: int) -> str:
    return f"_versions/{number:06d}/outcomes.parquet"


def read_outcomes(storage: Storage, version: Version) -> pa.Table:
    """One row a sample of a version, in (plan, position) order. Raises FileNotFoundError once it is pruned."""
    return _outcomes_at(storage, version.outcomes)


def verdicts(storage: Storage, version: Version) -> dict[Key, Verdict]:
    """Where each sample of a version ended, and why. Raises FileNotFoundError once it is pruned."""
    return verdicts_at(storage, version.outcomes)


def _outcomes_at(storage: Storage, path: str) -> pa.Table:
    return read_parquet(storage.read_bytes(path), OUTCOMES_SCHEMA)


def verdicts_at(storage: Storage, path: str) -> dict[Key, Verdict]:
    """As `verdicts`, of the outcomes at a path of the output."""
    columns = _outcomes_at(storage, path).select(["id", "shard", "outcome", "reasons"]).to_pydict()
    rows = zip(*columns.values(), strict=True)
    return {(identifier, shard): (outcome, tuple(reasons or ())) for identifier, shard, outcome, reasons in rows}


@dataclass(frozen=True)
class VersionFile:
    """A table of a version."""

    path: str
    outcome: Outcome
    rows: int
    bytes: int
    sha256: str
    shard: str
    clouds: tuple[StoredObject, ...] = ()  # point clouds that its rows name and no commit does


OVER_THE_SET = ("keep_best", "near_duplicate")  # reasons that need more than the sample
Key = tuple[str, str]  # sample id, shard
Verdict = tuple[Outcome, tuple[str, ...]]  # and the reasons


def is_over_the_set(outcome: Outcome, reasons: Sequence[str]) -> bool:
    """Whether a sample is rejected for nothing of its own: made again it would be rejected again."""
    return outcome == "rejected" and all(reason.split(":")[0] in OVER_THE_SET for reason in reasons)

"""The record of a published version, and how it is written and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from jointdit.errors import PermanentError
from pipelines.ledger.entries import Outcome, StoredObject, json_bytes, new_token, parse
from pipelines.ledger.names import version_object, versions_in
from pipelines.spec.file import translate_recorded
from pipelines.spec.job import JobSpec, load_spec
from pipelines.store.parquet import read_parquet
from pipelines.store.storage import Storage

VERSION_FORMATS = (1, 2)  # of version.json; format 2 names the file of its outcomes, format 1 has a fixed name
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
    reasons: dict[str, int]  # filter -> rejected samples
    plans: tuple[int, ...]
    outcomes_sha256: str
    created: str
    code: str
    recorded_spec: dict[str, Any]  # of the run that published it: quality and batch size may differ from _job.json's
    criteria: dict[str, Any] = field(default_factory=dict)  # by what its samples are kept, with all thresholds
    refilter: int = 0  # the version in which `jointdit refilter` set the criteria; 0: each run's own at its commits
    held: int = 0  # the version whose decisions stand in this one; 0: none
    outcomes: str = ""  # path of the outcomes table
    held_outcomes: str = ""  # path of the decisions that stand: outcomes of the version before, or a copy of older ones

    @cached_property
    def spec(self) -> JobSpec:
        """The recorded spec. Raises SpecError where the rules have become stricter since; all else can be read then."""
        return load_spec(self.recorded_spec)

    @property
    def paths(self) -> set[str]:
        """The paths of all objects that it needs: tables, point clouds that only it names, outcomes."""
        files = {path for file in self.files for path in (file.path, *(cloud.path for cloud in file.clouds))}
        return files | {self.outcomes} | ({self.held_outcomes} if self.held_outcomes else set())

    def files_of(self, outcome: Outcome) -> list[str]:
        """Return the paths of the tables of one outcome, in the order of the plan."""
        return [file.path for file in self.files if file.outcome == outcome]

    def to_json(self) -> dict[str, Any]:
        """Return the fields ready for JSON."""
        return {"spec" if name == "recorded_spec" else name: value for name, value in asdict(self).items()}

    def to_bytes(self) -> bytes:
        """Return the content of version.json. A new token makes it differ from that of any other publisher."""
        return json_bytes({**self.to_json(), "token": new_token(), "format": VERSION_FORMATS[-1]})


@dataclass(frozen=True)
class Listing:
    """The versions of an output, from one listing of `_versions`."""

    published: tuple[int, ...]  # numbers that have a version.json, in order
    pruned: frozenset[int]  # numbers of versions that must not be read any more

    @property
    def retained(self) -> list[int]:
        """Numbers of the versions that may be read, in order."""
        return [number for number in self.published if number not in self.pruned]


def version_listing(storage: Storage) -> Listing:
    """List the versions once."""
    parts = versions_in(storage)
    published = tuple(number for number in parts if "version.json" in parts[number])
    return Listing(published, frozenset(number for number in parts if PRUNED in parts[number]))


def read_latest(storage: Storage) -> Version | None:
    """Return the latest published version, or None. The latest version is never pruned."""
    numbers = version_listing(storage).published
    return read_version(storage, numbers[-1]) if numbers else None


def require_latest(storage: Storage) -> Version:
    """Return the latest published version. Raises PermanentError where there is none."""
    version = read_latest(storage)
    if version is None:
        raise PermanentError(f"{storage.uri} has no version yet: run the job to its end first.")
    return version


def version_numbers(storage: Storage) -> list[int]:
    """Return the numbers of the published versions that were not pruned, in order."""
    return version_listing(storage).retained


def read_version(storage: Storage, number: int) -> Version:
    """Return a published version. Raises FileNotFoundError where there is none of that number."""
    name = version_object(number, "version.json")
    fields = parse(storage.read_bytes(name), storage.uri_of(name), VERSION_FORMATS)
    files = tuple(
        VersionFile(**{**file, "clouds": tuple(StoredObject(**cloud) for cloud in file.get("clouds", ()))})
        for file in fields.pop("files")
    )
    plans = tuple(fields.pop("plans"))
    if fields["format"] == 1:
        fields["outcomes"] = version_object(number, "outcomes.parquet")
        fields["held_outcomes"] = version_object(fields["held"], "outcomes.parquet") if fields.get("held") else ""
    del fields["token"], fields["format"]
    spec = translate_recorded(fields.pop("spec"))
    return Version(files=files, plans=plans, recorded_spec=spec, **fields)


def read_outcomes(storage: Storage, version: Version) -> pa.Table:
    """Return a table with one row per sample of a version, in (plan, position) order.

    Raises FileNotFoundError once the version is pruned.
    """
    return _outcomes_at(storage, version.outcomes)


def verdicts(storage: Storage, version: Version) -> dict[Key, Verdict]:
    """Map each sample of a version to its outcome and reasons. Raises FileNotFoundError once it is pruned."""
    return verdicts_at(storage, version.outcomes)


def _outcomes_at(storage: Storage, path: str) -> pa.Table:
    return read_parquet(storage.read_bytes(path), OUTCOMES_SCHEMA)


def verdicts_at(storage: Storage, path: str) -> dict[Key, Verdict]:
    """Like `verdicts`, of the outcomes table at a path of the output."""
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


OVER_THE_SET = ("keep_best", "near_duplicate")  # filters that compare samples with each other
Key = tuple[str, str]  # sample id, shard
Verdict = tuple[Outcome, tuple[str, ...]]  # and the reasons


def is_over_the_set(outcome: Outcome, reasons: Sequence[str]) -> bool:
    """Return whether a sample is rejected only by dataset-wide rules, so that regenerating it cannot help."""
    return outcome == "rejected" and all(reason.split(":")[0] in OVER_THE_SET for reason in reasons)

"""The record of a published version, and how it is written and read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jointdit.errors import PermanentError
from pipelines.ledger.entries import Outcome, StoredObject, json_bytes, new_token, parse
from pipelines.ledger.names import version_object, versions_in
from pipelines.ledger.segments import Segment, Segments, VersionFile
from pipelines.spec.file import translate_recorded
from pipelines.spec.job import JobSpec, load_spec
from pipelines.store.parquet import read_parquet
from pipelines.store.storage import Storage

VERSION_FORMATS = (1, 2, 3)  # of version.json; formats 1 and 2 list all files, and have one table of outcomes
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
class Size:
    """The tables of one outcome in a version."""

    files: int = 0
    rows: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Version:
    """A published version of the dataset."""

    number: int
    counts: dict[str, int]
    superseded: int  # committed samples that do not count
    reasons: dict[str, int]  # filter -> rejected samples
    plans: tuple[int, ...]
    created: str
    code: str
    recorded_spec: dict[str, Any]  # of the run that published it: quality and batch size may differ from _job.json's
    criteria: dict[str, Any] = field(default_factory=dict)  # by what its samples are kept, with all thresholds
    is_partial: bool = False  # whether it was published before all planned samples were made
    left_out: int = 0  # planned samples that a whole version has and it has not
    withheld: int = 0  # of these, made ones that wait for others of their rows, because of keep_best
    refilter: int = 0  # the version in which `jointdit refilter` set the criteria; 0: each run's own at its commits
    sizes: dict[str, Size] = field(default_factory=dict)  # by outcome
    segments: tuple[Segment, ...] = ()  # oldest first
    listed: tuple[VersionFile, ...] = ()  # the files of a version of format 1 or 2, which has no segments
    outcomes: str = ""  # path of its outcomes table
    outcomes_sha256: str = ""
    held: int = 0  # the version whose decisions stand in this one; 0: none
    held_outcomes: str = ""  # path of these decisions
    storage: Storage | None = field(default=None, compare=False, repr=False)

    @cached_property
    def spec(self) -> JobSpec:
        """The recorded spec. Raises SpecError where the rules have become stricter since; all else can be read then."""
        return load_spec(self.recorded_spec)

    @property
    def has_segments(self) -> bool:
        """Whether it is of format 3. A version without samples has no segment, and no outcomes table."""
        return not self.outcomes and not self.listed

    @cached_property
    def content(self) -> Segments:
        """Its segments, ready to be read."""
        assert self.storage is not None, "a version that was not read from an output has no segments to read"
        return Segments(self.storage, self.segments)

    @property
    def own_paths(self) -> set[str]:
        """The paths of the objects that describe it: segments, or outcomes."""
        described = {path for segment in self.segments for path in segment.paths}
        return described | {path for path in (self.outcomes, self.held_outcomes) if path}

    def iter_files(self) -> Iterator[VersionFile]:
        """Yield its tables in the order of the plan."""
        return iter(self.listed) if self.listed or not self.segments else self.content.files()

    @cached_property
    def files(self) -> tuple[VersionFile, ...]:
        """All its tables, in memory: of a million shards about a gigabyte. `iter_files` has no such limit."""
        return tuple(self.iter_files())

    def paths(self) -> Iterator[str]:
        """Yield the paths of all objects that it needs: tables, point clouds that only it names, what describes it."""
        for file in self.iter_files():
            yield file.path
            yield from (cloud.path for cloud in file.clouds)
        yield from self.own_paths

    def files_of(self, outcome: Outcome) -> list[str]:
        """Return the paths of the tables of one outcome."""
        return [file.path for file in self.iter_files() if file.outcome == outcome]

    def with_files(self, files: Sequence[VersionFile]) -> Version:
        """Return a version that consists of these tables."""
        return replace(self, listed=tuple(files), segments=(), sizes=sizes_of(files))

    def size_of(self, outcome: Outcome) -> Size:
        """Return the number, rows and bytes of the tables of one outcome."""
        return self.sizes.get(outcome, Size())

    def to_json(self) -> dict[str, Any]:
        """Return the fields of version.json."""
        record = {part.name: getattr(self, part.name) for part in fields(self) if part.name not in NOT_RECORDED}
        record["spec"] = record.pop("recorded_spec")
        return {**record, "sizes": sizes_json(self.sizes), "segments": [asdict(each) for each in self.segments]}

    def to_bytes(self) -> bytes:
        """Return the content of version.json. A new token makes it differ from that of any other publisher."""
        return json_bytes({**self.to_json(), "token": new_token(), "format": VERSION_FORMATS[-1]})


NOT_RECORDED = ("storage", "listed", "outcomes", "outcomes_sha256", "held", "held_outcomes")


def sizes_json(sizes: dict[str, Size]) -> dict[str, dict[str, int]]:
    """Return sizes by outcome ready for JSON."""
    return {outcome: asdict(size) for outcome, size in sizes.items()}


def sizes_of(files: Sequence[VersionFile]) -> dict[str, Size]:
    """Return the sizes of some tables by outcome."""
    sums = {outcome: Counter[str]() for outcome in dict.fromkeys(file.outcome for file in files)}
    for file in files:
        sums[file.outcome].update(files=1, rows=file.rows, bytes=file.bytes)
    return {outcome: Size(**total) for outcome, total in sums.items()}


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
        raise PermanentError(
            f"{storage.uri} has no version yet: run the job to its end first, or publish what is made."
        )
    return version


def version_numbers(storage: Storage) -> list[int]:
    """Return the numbers of the published versions that were not pruned, in order."""
    return version_listing(storage).retained


def read_version(storage: Storage, number: int) -> Version:
    """Return a published version. Raises FileNotFoundError where there is none of that number."""
    name = version_object(number, "version.json")
    record = parse(storage.read_bytes(name), storage.uri_of(name), VERSION_FORMATS)
    record["recorded_spec"] = translate_recorded(record.pop("spec"))
    record["plans"] = tuple(record.pop("plans"))
    if record["format"] < 3:
        _read_old(record, number)
    else:
        record["segments"] = tuple(Segment(**segment) for segment in record.pop("segments"))
        record["sizes"] = {outcome: Size(**size) for outcome, size in record.pop("sizes").items()}
    del record["token"], record["format"]
    return Version(**record, storage=storage)


def _read_old(record: dict[str, Any], number: int) -> None:
    """Turn the record of a version of format 1 or 2 into the fields of a Version."""
    record["listed"] = tuple(
        VersionFile(**{**file, "clouds": tuple(StoredObject(**cloud) for cloud in file.get("clouds", ()))})
        for file in record.pop("files")
    )
    record["sizes"] = sizes_of(record["listed"])
    if record["format"] == 1:
        record["outcomes"] = version_object(number, "outcomes.parquet")
        record["held_outcomes"] = version_object(record["held"], "outcomes.parquet") if record.get("held") else ""


def outcome_tables(storage: Storage, version: Version, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns of OUTCOMES_SCHEMA for the samples of a version, part by part in bounded memory.

    Raises FileNotFoundError once the version is pruned.
    """
    if not version.has_segments:
        yield _outcomes_at(storage, version.outcomes).select(list(columns))
        return
    read = [name for name in columns if name != "source"] + (["id"] if "source" in columns else [])
    for table in version.content.samples(list(dict.fromkeys(read))):
        if "source" in columns:
            table = table.append_column("source", pc.replace_substring_regex(table["id"], "/[^/]*$", ""))
        yield table.select(list(columns))


def read_outcomes(storage: Storage, version: Version) -> pa.Table:
    """Return a table with one row per sample of a version, in (plan, position) order, in memory.

    Raises FileNotFoundError once the version is pruned.
    """
    if not version.has_segments:
        return _outcomes_at(storage, version.outcomes)
    columns = [*OUTCOMES_SCHEMA.names, "plan", "place"]
    tables = list(outcome_tables(storage, version, columns))
    table = pa.concat_tables(tables) if tables else pa.schema([*OUTCOMES_SCHEMA, *ORDER]).empty_table()
    number = pa.array(range(len(table)), pa.int64())  # the sort must be stable
    table = table.append_column("number", number).sort_by([(name, "ascending") for name in ("plan", "place", "number")])
    return table.select(OUTCOMES_SCHEMA.names)


ORDER = (pa.field("plan", pa.int32()), pa.field("place", pa.int64()))


def verdicts_at(storage: Storage, path: str) -> dict[Key, Verdict]:
    """Map the samples in the outcomes table of a version of format 1 or 2 to their outcome and reasons."""
    table = _outcomes_at(storage, path)
    columns = (table[name].to_pylist() for name in ("id", "shard", "outcome", "reasons"))
    rows = zip(*columns, strict=True)
    return {(identifier, shard): (outcome, tuple(reasons or ())) for identifier, shard, outcome, reasons in rows}


def _outcomes_at(storage: Storage, path: str) -> pa.Table:
    return read_parquet(storage.read_bytes(path), OUTCOMES_SCHEMA)


OVER_THE_SET = ("keep_best", "near_duplicate")  # filters that compare samples with each other
Key = tuple[str, str]  # sample id, shard
Verdict = tuple[Outcome, tuple[str, ...]]  # and the reasons


def is_over_the_set(outcome: Outcome, reasons: Sequence[str]) -> bool:
    """Return whether a sample is rejected only by dataset-wide rules, so that regenerating it cannot help."""
    return outcome == "rejected" and all(reason.split(":")[0] in OVER_THE_SET for reason in reasons)

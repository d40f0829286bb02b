"""The records of the ledger: job, planned shards, objects, sample outcomes and commits."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from jointdit.errors import PermanentError, StoreError
from pipelines.ledger.carried import CarriedRows
from pipelines.model.fingerprint import Fingerprint
from pipelines.records import RowKey, Shard

FORMAT = 1
Outcome = Literal["kept", "rejected", "quarantined"]
OUTCOMES: tuple[Outcome, ...] = ("kept", "rejected", "quarantined")
FOLDERS: dict[Outcome, str] = {"kept": "data", "rejected": "rejected", "quarantined": "quarantine"}
OBJECT_FOLDERS = (*FOLDERS.values(), "pointclouds")
LETTERS = dict(zip("krq", OUTCOMES, strict=True))


class Unfinished(PermanentError):
    """A planned shard has no commit."""


@dataclass(frozen=True)
class Job:
    """The content of `_job.json`: what the output was started with."""

    spec: dict[str, Any]  # as the user gave it
    fingerprint: Fingerprint
    code: str
    created: str
    single_writer: bool = False
    resolved: dict[str, Any] = field(default_factory=dict)  # the spec with the defaults of that code
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)  # spec field -> source and terms of its weights
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A shard and its place in the plan. Decisions over the whole dataset follow the order of (plan, position)."""

    shard: Shard
    samples_per_row: int
    plan: int
    position: int
    indices: tuple[int, ...] = ()  # sample indices of each row; default: the first `samples_per_row`
    retry: int = 0  # above 0: its samples supersede the same samples of earlier shards
    carried: tuple[CarriedRows, ...] = field(default=(), compare=False)  # rows of its files that were made before
    moved: Mapping[RowKey, tuple[str, int]] = field(default_factory=dict, compare=False)  # row -> etag, position now

    def __post_init__(self) -> None:
        if not self.indices:
            object.__setattr__(self, "indices", tuple(range(self.samples_per_row)))
        assert len(self.indices) == self.samples_per_row, f"{self.shard.id}: {self.indices} for {self.samples_per_row}"

    @property
    def samples(self) -> int:
        """How many samples it must account for."""
        return self.shard.rows * self.samples_per_row

    @property
    def is_first(self) -> bool:
        """Whether it plans its rows for the first time: neither regeneration nor a retry."""
        return self.shard.round == 0 and self.retry == 0


@dataclass(frozen=True)
class StoredObject:
    """An object that a commit names, as it was written."""

    path: str  # relative to the output
    bytes: int
    sha256: str
    rows: int
    outcome: Outcome
    kind: Literal["table", "points"] = "table"


@dataclass(frozen=True)
class SampleOutcome:
    """Where one sample ended. (span, position, index) identifies it even where its id could not be read."""

    id: str
    span: int  # index into the spans of the shard
    position: int  # row number in the file
    index: int  # sample index within the row
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    content: str = ""  # hash of what was read of the row (stages/readers/row_contents.py); empty if it is unknown


@dataclass(frozen=True)
class Commit:
    """The content of `_commits/<shard>.json`: the one successful attempt of a shard."""

    shard: str
    token: str
    objects: tuple[StoredObject, ...]
    samples: tuple[SampleOutcome, ...]
    code: str = ""
    host: str = ""
    finished: str = ""
    seconds: float = 0.0  # duration of the finish task
    counts: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        tally = Counter(sample.outcome for sample in self.samples)
        object.__setattr__(self, "counts", {outcome: tally[outcome] for outcome in OUTCOMES})

    def to_bytes(self) -> bytes:
        """Return the commit as JSON, with the samples as columns."""
        letters = {outcome: letter for letter, outcome in LETTERS.items()}
        samples = {
            "id": [s.id for s in self.samples],
            "span": [s.span for s in self.samples],
            "position": [s.position for s in self.samples],
            "index": [s.index for s in self.samples],
            "outcome": "".join(letters[s.outcome] for s in self.samples),
            "reasons": {str(i): list(s.reasons) for i, s in enumerate(self.samples) if s.reasons},
            "content": [s.content for s in self.samples],
        }
        return json_bytes({**asdict(self), "samples": samples, "format": FORMAT})

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Commit:
        """Parse what `to_bytes` wrote. Raises StoreError for anything else."""
        fields = parse(data, name)
        try:
            columns = fields["samples"]
            contents = columns.get("content") or [""] * len(columns["id"])  # earlier versions did not write it
            names = ("id", "span", "position", "index", "outcome")
            rows = zip(*(columns[name] for name in names), contents, strict=True)
            samples = tuple(
                SampleOutcome(i, s, p, x, LETTERS[o], tuple(columns["reasons"].get(str(n), ())), c)
                for n, (i, s, p, x, o, c) in enumerate(rows)
            )
            objects = tuple(StoredObject(**stored) for stored in fields["objects"])
            rest = {key: fields[key] for key in ("shard", "token", "code", "host", "finished", "seconds")}
            return cls(objects=objects, samples=samples, **rest)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{name} is damaged ({type(error).__name__}: {error}): restore it from a backup."
            ) from error


def new_token() -> str:
    """Return a random token that identifies one attempt."""
    return secrets.token_hex(8)


def now() -> str:
    """Return the UTC time for people to read. Clocks of two machines are never compared."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def json_bytes(fields: dict[str, Any]) -> bytes:
    """Return fields as one line of JSON."""
    return (json.dumps(fields) + "\n").encode()


def parse(data: bytes, name: str, formats: Sequence[int] = (FORMAT,)) -> dict[str, Any]:
    """Parse a ledger object. Raises StoreError where it is damaged, PermanentError where its format is unknown."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{name} is not valid JSON: restore it from a backup.") from error
    if not isinstance(fields, dict) or fields.get("format") not in formats:
        stored = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
        known = " and ".join(map(str, formats))
        raise PermanentError(
            f"{name} has format {stored!r} and this version reads {known}: use the version that wrote it."
        )
    return fields

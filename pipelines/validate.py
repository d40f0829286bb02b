"""The whole account again, from the files alone: nothing lost, nothing doubled, nothing damaged.

It trusts no count that a run wrote down. Every object that a commit or the latest version names is read, its size and
SHA-256 compared, its rows counted, its pictures decoded, its points counted; the samples are recomputed from the plan.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jointdit.errors import JointDiTError
from pipelines.finish import FOLDERS
from pipelines.ledger import OUTCOMES, Commit, Ledger, PlannedShard, StoredObject, sha256
from pipelines.plan import current_versions, is_superseded
from pipelines.publish import Version, counted_samples, read_latest, read_outcomes
from pipelines.sinks.parquet import data_schema
from pipelines.spec import JobSpec, load_spec
from pipelines.storage import Storage

READERS = 4  # tables at once; each is held in memory whole
MOST_PROBLEMS = 200  # more of one dataset help nobody


@dataclass
class Validation:
    """What `jointdit validate` found. `problems` is empty for a dataset that is whole."""

    output: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what is untidy and harms nothing
    version: int | None = None
    counts: dict[str, int] = field(default_factory=dict)  # samples of the latest version
    files: int = 0
    bytes: int = 0
    pictures: int = 0
    pointclouds: int = 0


def validate(uri: str) -> Validation:
    """Recount a dataset. Raises StoreError where there is no job at all, or the store cannot be reached."""
    storage = Storage(uri)
    ledger = Ledger(storage)
    job = ledger.read_job()
    spec = load_spec(job.spec)
    found = Validation(storage.uri)
    planned, version = ledger.planned(), read_latest(storage)
    commits = _read_commits(ledger, planned, found)
    _check_commits(planned, commits, found)
    if version is None:
        found.problems.append("no version is published: the job has not run to its end.")
    else:
        found.version, found.counts = version.number, dict(version.counts)
        _check_version(storage, ledger, planned, commits, version, found)
    _check_objects(storage, spec, commits, version, found)
    _note_orphans(storage, commits, version, found)
    del found.problems[MOST_PROBLEMS:]
    return found


def _read_commits(ledger: Ledger, planned: Iterable[PlannedShard], found: Validation) -> dict[str, Commit]:
    commits: dict[str, Commit] = {}
    known = {entry.shard.id for entry in planned}
    for shard in sorted(ledger.committed()):
        if shard not in known:
            found.problems.append(f"_commits/{shard}.json commits a shard that no plan holds.")
            continue
        try:
            commit = ledger.read_commit(shard)
        except JointDiTError as error:
            found.problems.append(str(error))
            continue
        if commit is not None:
            commits[shard] = commit
    return commits


def _check_commits(planned: Iterable[PlannedShard], commits: Mapping[str, Commit], found: Validation) -> None:
    """Each planned sample of a committed shard ends exactly once."""
    for entry in planned:
        commit = commits.get(entry.shard.id)
        if commit is None:
            continue
        wanted = {
            (number, position)
            for number, span in enumerate(entry.shard.spans)
            for position in range(span.start, span.stop)
        }
        rows = Counter((sample.span, sample.position) for sample in commit.samples)
        lost = sum(max(0, entry.samples_per_row - rows[row]) for row in wanted)
        extra = sum(max(0, n - (entry.samples_per_row if row in wanted else 0)) for row, n in rows.items())
        if lost:
            found.problems.append(f"shard {entry.shard.id}: {lost} of {entry.samples} planned samples are lost.")
        if extra:
            found.problems.append(
                f"shard {entry.shard.id}: {extra} samples more than its {entry.samples} planned ones."
            )


def _check_version(
    storage: Storage,
    ledger: Ledger,
    planned: list[PlannedShard],
    commits: Mapping[str, Commit],
    version: Version,
    found: Validation,
) -> None:
    """The version's outcomes are the committed samples that count, each id once, and its files hold exactly them."""
    name = f"_versions/{version.number:06d}/outcomes.parquet"
    try:
        intact = sha256(storage.read_bytes(name)) == version.outcomes_sha256
    except FileNotFoundError:
        found.problems.append(f"{name} is missing.")
        return
    if not intact:
        found.problems.append(f"{name} has another SHA-256 than version.json says.")
        return
    outcomes = read_outcomes(storage, version).select(["id", "outcome", "file"]).to_pylist()
    doubled = [identifier for identifier, count in Counter(row["id"] for row in outcomes).items() if count > 1]
    found.problems += [
        f"sample {identifier} occurs more than once in version {version.number}." for identifier in doubled
    ]
    counted = Counter(row["outcome"] for row in outcomes)
    if {outcome: counted[outcome] for outcome in OUTCOMES} != version.counts:
        found.problems.append(
            f"version {version.number} counts {version.counts} and its outcomes hold {dict(counted)}."
        )

    in_plans = [entry for entry in planned if entry.plan in version.plans]
    current = current_versions(in_plans)
    pending = [e for e in in_plans if e.shard.id not in commits and not is_superseded(e.shard, current)]
    for entry in pending:
        found.problems.append(
            f"shard {entry.shard.id}: {entry.samples} samples of version {version.number} have no commit."
        )
    if not pending:
        wanted = Counter((each.sample.id, each.sample.outcome) for each in counted_samples(in_plans, commits))
        have = Counter((row["id"], row["outcome"]) for row in outcomes)
        found.problems += [
            f"sample {i} is {o} in its commit and not so in version {version.number}." for i, o in wanted - have
        ]
        found.problems += [f"sample {i} is {o} in version {version.number} and in no commit." for i, o in have - wanted]
    by_file: dict[str, Counter[str]] = {file.path: Counter() for file in version.files}
    for row in outcomes:
        by_file.setdefault(row["file"], Counter())[row["id"]] += 1
    for path, ids in by_file.items():
        found.problems += _ids_differ(storage, path, ids)
    later = [entry for entry in planned if entry.plan not in version.plans]
    if later:
        found.notes.append(f"{len(later)} shards were planned after version {version.number} and are not part of it.")


def _ids_differ(storage: Storage, path: str, wanted: Counter[str]) -> Iterator[str]:
    try:
        with storage.open(path) as file:
            have = Counter(pq.read_table(file, columns=["id"])["id"].to_pylist())
    except (FileNotFoundError, pa.ArrowInvalid):
        return  # reported with the objects
    for identifier in wanted - have:
        yield f"{path}: sample {identifier} is lost."
    for identifier in have - wanted:
        yield f"{path}: sample {identifier} is there and should not be."


def _check_objects(
    storage: Storage, spec: JobSpec, commits: Mapping[str, Commit], version: Version | None, found: Validation
) -> None:
    objects = [stored for commit in commits.values() for stored in commit.objects]
    named = {stored.path for stored in objects}
    rewritten = [file for file in version.files if file.path not in named] if version else []
    objects += [StoredObject(f.path, f.bytes, f.sha256, f.rows, f.outcome) for f in rewritten]
    with ThreadPoolExecutor(READERS) as pool:
        for stored, (problems, pictures) in zip(
            objects, pool.map(lambda o: _check_object(storage, spec, o), objects), strict=True
        ):
            found.problems += problems
            found.files += 1
            found.bytes += stored.bytes
            found.pictures += pictures
            found.pointclouds += stored.kind == "points"


def _check_object(storage: Storage, spec: JobSpec, stored: StoredObject) -> tuple[list[str], int]:
    """(problems, pictures decoded) of one object."""
    try:
        data = storage.read_bytes(stored.path)
    except FileNotFoundError:
        return [f"{stored.path} is named by a commit and missing."], 0
    if len(data) != stored.bytes:
        return [f"{stored.path} has {len(data)} bytes, its commit says {stored.bytes}."], 0
    if sha256(data) != stored.sha256:
        return [f"{stored.path} has another SHA-256 than its commit says."], 0
    if stored.kind == "points":
        return list(_check_ply(stored, data)), 0
    return _check_table(storage, spec, stored, data)


def _check_table(storage: Storage, spec: JobSpec, stored: StoredObject, data: bytes) -> tuple[list[str], int]:
    try:
        table = pq.read_table(io.BytesIO(data))
    except pa.ArrowInvalid as error:
        return [f"{stored.path} is not a readable Parquet file ({error})."], 0
    problems: list[str] = []
    if table.num_rows != stored.rows:
        problems.append(f"{stored.path} has {table.num_rows} rows, its commit says {stored.rows}.")
    # Scores and points are recorded and may change between runs of one job; the other columns may not.
    wanted = {
        f.name: f.type for f in data_schema(spec, stored.outcome) if f.name not in ("quality", "points", "colors")
    }
    have = {f.name: f.type for f in table.schema}
    for name, kind in wanted.items():
        if have.get(name) != kind:
            problems.append(f"{stored.path}: column {name} is {have.get(name, 'missing')}, the schema says {kind}.")
    if problems or stored.outcome == "quarantined":
        return problems, 0
    pictures = 0
    for row in table.select(["id", "width", "height", "rgb", "depth", "pointcloud"]).to_pylist():
        for column in ("rgb", "depth"):
            if row[column] is None or row[column]["bytes"] is None:
                continue  # output.rgb: reference
            pictures += 1
            problems += _check_picture(stored.path, row, column)
        if row["pointcloud"] is not None and not storage.exists(row["pointcloud"]):
            problems.append(f"{stored.path}: sample {row['id']} names {row['pointcloud']}, which is missing.")
    return problems, pictures


def _check_picture(path: str, row: Mapping[str, object], column: str) -> Iterator[str]:
    struct = row[column]
    assert isinstance(struct, dict)
    try:
        with Image.open(io.BytesIO(struct["bytes"])) as image:
            image.load()
            size, mode = image.size, image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        yield f"{path}: {column} of sample {row['id']} cannot be decoded ({type(error).__name__})."
        return
    if size != (row["width"], row["height"]):
        stated = f"{row['width']} x {row['height']}"
        yield f"{path}: {column} of sample {row['id']} is {size[0]} x {size[1]}, its row says {stated}."
    if column == "depth" and not mode.startswith("I"):
        yield f"{path}: depth of sample {row['id']} has mode {mode} and not 16 bits."


def _check_ply(stored: StoredObject, data: bytes) -> Iterator[str]:
    header, separator, body = data.partition(b"end_header\n")
    lines = header.decode("ascii", "replace").splitlines()
    counts = [int(line.split()[-1]) for line in lines if line.startswith("element vertex ")]
    if not separator or lines[:1] != ["ply"] or len(counts) != 1:
        yield f"{stored.path} is not a PLY file of points."
        return
    size = 15  # bytes a point: float32 xyz, uint8 rgb
    if counts[0] != stored.rows or len(body) != size * counts[0]:
        yield f"{stored.path} says {counts[0]} points, holds {len(body) / size:g}, and its commit says {stored.rows}."
    elif not np.isfinite(np.frombuffer(body, np.uint8).reshape(-1, size)[:, :12].copy().view("<f4")).all():
        yield f"{stored.path} has points that are not finite."


def _note_orphans(storage: Storage, commits: Mapping[str, Commit], version: Version | None, found: Validation) -> None:
    """Objects of attempts that lost or died: untidy, and no harm to anybody who reads the version's files."""
    named = {stored.path for commit in commits.values() for stored in commit.objects}
    named |= {file.path for file in version.files} if version else set()
    for folder in (*FOLDERS.values(), "pointclouds"):
        orphans = [each for each in storage.list(folder) if each.path not in named]
        if orphans:
            size = sum(each.size for each in orphans)
            found.notes.append(f"{folder}/ has {len(orphans)} objects ({size} bytes) that no commit names.")

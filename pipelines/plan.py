"""Inputs -> shards with stable ids. Only `_plan` is dispatched; a listing of the input only proposes.

A plan file holds every row of the input versions it names, so one (uri, etag) is planned once or not at all. A changed
file is a new input version: its shards come in a later plan file and supersede the old version's in the next published
version. So does a row whose file was moved: the same row id, planned later, supersedes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from jointdit.errors import InputError
from pipelines.fingerprint import Fingerprint, digest, fingerprint_of
from pipelines.ledger import Commit, Ledger, PlannedShard
from pipelines.model import ModelIdentity, identify
from pipelines.readers import check_columns, count_rows, find_duplicate_ids, list_files
from pipelines.records import Shard, SourceFile, Span
from pipelines.spec import JobSpec
from pipelines.storage import AlreadyExists, Storage

APPEND_ATTEMPTS = 100


@dataclass(frozen=True)
class Proposal:
    """What a listing of the input adds to the plan."""

    number: int  # of the plan file it would become
    shards: tuple[Shard, ...]
    changed: tuple[str, ...] = ()  # uris whose new version supersedes a planned one
    removed: tuple[str, ...] = ()  # planned uris that the input no longer lists; what they gave stays


def extend_plan(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger, proposal: Proposal) -> Proposal:
    """Append a proposal to the ledger's plan; where another driver was first, its plan file is subtracted.

    Raises:
        InputError: no rows, a missing column, duplicate ids.
    """
    for _ in range(APPEND_ATTEMPTS):
        if not proposal.shards:
            return proposal
        number = proposal.number
        try:
            count = spec.input.samples_per_row
            ledger.append_plan(number, [PlannedShard(s, count, number, i) for i, s in enumerate(proposal.shards)])
            return proposal
        except AlreadyExists:
            proposal = propose(spec, fingerprint, ledger)
    raise InputError(f"other drivers keep extending the plan of {ledger.storage.uri}: run again when they are done.")


def propose(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger) -> Proposal:
    """Shards for the input versions that are not planned yet."""
    planned = ledger.planned()
    number = max((entry.plan for entry in planned), default=0) + 1
    versions = {(span.uri, span.etag) for entry in planned for span in entry.shard.spans}
    planned_uris = {uri for uri, _ in versions}
    listed = list_files(spec.input, spec.task)
    listed_uris = {file.uri for file in listed}
    removed = tuple(sorted(planned_uris - listed_uris))
    new = [file for file in listed if (file.uri, file.etag) not in versions]
    if not new:
        return Proposal(number, (), removed=removed)
    check_columns(new, spec.input, spec.task)
    counts = [(file, count_rows(file, spec.input)) for file in new]
    if not planned and not any(rows for _, rows in counts):
        raise InputError(f"input.uri {', '.join(spec.input.uri)} has no rows: give at least one.")
    if duplicates := find_duplicate_ids(listed, spec.input, spec.task):
        examples = ", ".join(repr(identifier) for identifier in duplicates[:3])
        raise InputError(f"the input has rows with the same id, such as {examples}: give each row an id of its own.")
    shards = tuple(cut_shards(counts, spec.output.shard_rows, digest(fingerprint)))
    return Proposal(number, shards, tuple(sorted(file.uri for file in new if file.uri in planned_uris)), removed)


def cut_shards(counts: Iterable[tuple[SourceFile, int]], shard_rows: int, fingerprint_digest: str) -> Iterator[Shard]:
    """Shards of at most `shard_rows` rows. Small files share one whole; a larger file is cut and shares with none."""
    pack: list[Span] = []
    for file, rows in counts:
        if pack and sum(span.rows for span in pack) + rows > shard_rows:
            yield make_shard(pack, 0, fingerprint_digest)
            pack = []
        if rows > shard_rows:
            for start in range(0, rows, shard_rows):
                stop = min(start + shard_rows, rows)
                yield make_shard([Span(file.uri, file.etag, file.relative_path, start, stop)], 0, fingerprint_digest)
        elif rows:
            pack.append(Span(file.uri, file.etag, file.relative_path, 0, rows))
    if pack:
        yield make_shard(pack, 0, fingerprint_digest)


def make_shard(
    spans: Sequence[Span], round_: int, fingerprint_digest: str, samples_per_row: int | None = None
) -> Shard:
    """A shard whose id depends on input versions, row ranges, round and fingerprint alone."""
    key = [[span.uri, span.etag, span.start, span.stop] for span in spans]
    text = json.dumps([key, round_, samples_per_row, fingerprint_digest])
    return Shard(hashlib.sha256(text.encode()).hexdigest()[:20], tuple(spans), round_)


def extend_with_regeneration(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger) -> int:
    """Plan new samples for what committed shards rejected; returns how many.

    A rejected sample of round r < quality.regenerate gets one new sample in round r + 1, with an index and so a seed of
    its own. It is planned from commits alone, so it resumes like everything else.
    """
    if spec.quality.regenerate == 0:
        return 0
    for _ in range(APPEND_ATTEMPTS):
        shards = _regeneration(spec, fingerprint, ledger)
        if not shards:
            return 0
        try:
            ledger.append_plan(shards[0].plan, shards)
            return sum(entry.samples for entry in shards)
        except AlreadyExists:
            continue
    raise InputError(f"other drivers keep extending the plan of {ledger.storage.uri}: run again when they are done.")


def _regeneration(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger) -> list[PlannedShard]:
    planned = ledger.planned()
    number = max((entry.plan for entry in planned), default=0) + 1
    current = current_versions(planned)
    regenerated = {
        (span.uri, span.etag, position, entry.shard.round)
        for entry in planned
        if entry.shard.round > 0
        for span in entry.shard.spans
        for position in range(span.start, span.stop)
    }
    sources = [entry for entry in planned if entry.shard.round < spec.quality.regenerate]
    commits = ledger.read_commits(entry.shard.id for entry in sources)
    rows: dict[tuple[int, int], list[Span]] = {}  # (round, how many samples a row lost) -> rows
    for entry in sources:
        if entry.shard.id in commits:
            round_ = entry.shard.round + 1
            for span, count in _rejected_rows(entry.shard, commits[entry.shard.id]):
                is_planned = (span.uri, span.etag, span.start, round_) in regenerated
                if current[span.uri] == span.etag and not is_planned:
                    rows.setdefault((round_, count), []).append(span)
    shards: list[PlannedShard] = []
    for (round_, count), spans in sorted(rows.items(), key=lambda item: item[0]):
        for start in range(0, len(spans), spec.output.shard_rows):
            part = spans[start : start + spec.output.shard_rows]
            shard = make_shard(part, round_, digest(fingerprint), count)
            shards.append(PlannedShard(shard, count, number, len(shards)))
    return shards


def _rejected_rows(shard: Shard, commit: Commit) -> Iterator[tuple[Span, int]]:
    """(one row, how many of its samples were rejected) for each row of a committed shard that lost some."""
    lost = Counter((sample.span, sample.position) for sample in commit.samples if sample.outcome == "rejected")
    for (index, position), count in lost.items():
        yield replace(shard.spans[index], start=position, stop=position + 1), count


def current_versions(planned: Iterable[PlannedShard]) -> dict[str, str]:
    """uri -> the etag planned last, which supersedes the earlier ones."""
    return {span.uri: span.etag for entry in planned for span in entry.shard.spans if entry.shard.round == 0}


def is_superseded(shard: Shard, current: dict[str, str]) -> bool:
    """Whether nothing of a shard counts any more, because each of its files has a newer planned version."""
    return all(current[span.uri] != span.etag for span in shard.spans)


@dataclass(frozen=True)
class PlanPreview:
    """What a run would do. Bytes are estimates from the sizes of pictures, and exclude what a worker's layers need."""

    name: str
    task: str
    output: str
    committed_shards: int
    committed_samples: int
    pending_shards: int  # planned or new, not committed
    pending_samples: int
    new_shards: int  # of the pending: not in the plan yet
    new_rows: int
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    output_bytes: int  # for the pending samples
    weights_bytes: int  # a worker, in the spec's dtype
    in_flight_bytes: int  # a worker's shards between read and finish, in Ray's object store


RGB_BYTES_PER_PIXEL = {"png": 1.7, "jpeg": 0.3, "webp": 0.2}  # measured on rendered scenes
DEPTH_BYTES_PER_PIXEL = 1.2
POINT_BYTES = 15  # float32 xyz, uint8 rgb


def preview(spec: JobSpec) -> PlanPreview:
    """What a run of this spec would do. Reads input and ledger, writes nothing, starts no Ray.

    Raises:
        SpecError, InputError, ModelError, StoreError: what the run itself would raise before its first shard.
    """
    model = identify(spec.model)
    fingerprint = fingerprint_of(spec, model)
    ledger = Ledger(Storage(spec.output.uri))
    ledger.check_job(fingerprint)
    proposal = propose(spec, fingerprint, ledger)
    planned, committed = ledger.planned(), ledger.committed()
    current = current_versions(planned)
    done = [entry for entry in planned if entry.shard.id in committed]
    open_ = [e for e in planned if e.shard.id not in committed and not is_superseded(e.shard, current)]
    new_rows = sum(shard.rows for shard in proposal.shards)
    pending = sum(entry.samples for entry in open_) + new_rows * spec.input.samples_per_row
    return PlanPreview(
        name=spec.name,
        task=spec.task,
        output=spec.output.uri,
        committed_shards=len(done),
        committed_samples=sum(entry.samples for entry in done),
        pending_shards=len(open_) + len(proposal.shards),
        pending_samples=pending,
        new_shards=len(proposal.shards),
        new_rows=new_rows,
        changed=proposal.changed,
        removed=proposal.removed,
        output_bytes=round(pending * _sample_bytes(spec, model)),
        weights_bytes=model.bytes * (2 if spec.model.dtype == "float32" else 1),  # 16 bits on disk
        in_flight_bytes=spec.resources.shards_in_flight * _shard_bytes(spec, model),
    )


def _sample_bytes(spec: JobSpec, model: ModelIdentity) -> float:
    copied = spec.output.rgb == "copy"
    a_pixel = (RGB_BYTES_PER_PIXEL[spec.output.image_format] if copied else 0) + DEPTH_BYTES_PER_PIXEL
    return model.height * model.width * (a_pixel + (POINT_BYTES if spec.output.points.format != "none" else 0))


def _shard_bytes(spec: JobSpec, model: ModelIdentity) -> int:
    arrays = 2 * (3 + 4)  # uint8 rgb and float32 disparity, in and out
    return spec.output.shard_rows * spec.input.samples_per_row * model.height * model.width * arrays

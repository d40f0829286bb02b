"""Inputs -> shards with stable ids. Only `_plan` is dispatched; a listing of the input only proposes.

A plan file holds every row of the input versions it names, so an input version is planned whole or not at all. A
changed file is a new input version: its shards come in a later plan file and supersede the old version's in the next
published version (counting.py). A file that is gone is reported, and what it gave stays; input_changes.py tells what is
planned for files that were moved or are back.

Plan files are create-only and numbered by what the proposer had read. Who meets another's file of that number reads it,
lists the input anew and proposes only what is left: drivers that list different inputs at once never plan a row twice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from jointdit.errors import InputError, RowError
from pipelines.counting import CountedSample, Counting
from pipelines.fingerprint import Fingerprint, digest, fingerprint_of
from pipelines.input_changes import PlannedInput, end_of, restored_files, unread_moves, with_distinct_paths
from pipelines.ledger import Ledger, PlannedShard, SampleOutcome
from pipelines.memory import MemoryBound, MemoryNeed, memory_shown
from pipelines.model import ModelIdentity, check_scorers, identify_job
from pipelines.publish import read_latest, spec_in_force
from pipelines.quality import load_scores, rejects_input
from pipelines.readers import FORMATS, check_columns, count_rows, list_files, suffix_of
from pipelines.readers.duplicates import find_duplicate_ids
from pipelines.readers.opening import check_unchanged
from pipelines.records import Shard, SourceFile, Span
from pipelines.spec import JobSpec
from pipelines.storage import AlreadyExists, Storage

APPEND_ATTEMPTS = 100
LISTING_ATTEMPTS = 5


@dataclass(frozen=True)
class Proposal:
    """What a listing of the input adds to the plan."""

    number: int  # of the plan file it would become
    shards: tuple[Shard, ...]
    changed: tuple[str, ...] = ()  # uris whose new version supersedes a planned one
    removed: tuple[str, ...] = ()  # planned uris that the input no longer lists; what they gave stays
    moved: tuple[tuple[str, str], ...] = ()  # (planned uri that is gone, its new one), before all its rows were read
    restored: tuple[str, ...] = ()  # planned uris whose rows count again, in place of those of a file that is gone


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
    """Shards for the input versions that are not planned yet.

    Raises:
        InputError: no rows, a missing column, duplicate ids, a file that keeps changing.
    """
    for _ in range(LISTING_ATTEMPTS):
        try:
            return _propose(spec, fingerprint, ledger)
        except _Changed as error:
            changed = error
    raise InputError(f"{changed} keeps changing while its rows are counted: run again when it is written.")


class _Changed(Exception):
    """A file that is another version than the one that was listed."""


def _propose(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger) -> Proposal:
    tables = ledger.plan_tables()  # before the input is listed: whoever extends it in between makes this proposal fail
    number, planned = max(tables, default=0) + 1, PlannedInput.of(tables)
    listed = with_distinct_paths(list_files(spec.input, spec.reading), planned)
    removed = planned.removed(listed)
    moved = unread_moves(ledger, planned.moves(listed, removed), listed)
    stays = tuple(uri for uri in removed if uri not in moved)
    new = [file for file in listed if not planned.is_current(file)]
    again = restored_files(ledger, planned, listed, stays)
    if not new and not again and not moved:
        return Proposal(number, (), removed=stays)
    check_columns(new, spec.input, spec.reading)
    counts = [(file, _count(file, spec)) for file in [*new, *again]]
    if not tables and not any(rows for _, rows in counts):
        raise InputError(f"input.uri {', '.join(spec.input.uri)} has no rows: give at least one.")
    if duplicates := find_duplicate_ids(listed, spec.input):
        examples = ", ".join(repr(identifier) for identifier in duplicates[:3])
        raise InputError(f"the input has rows with the same id, such as {examples}: give each row an id of its own.")
    emptied = [Span(f.uri, f.etag, f.relative_path, 0, 0) for f, rows in counts if not rows and f.uri in planned.files]
    emptied += [end_of(uri, planned) for uri in moved]
    shards = [make_shard([span], 0, digest(fingerprint)) for span in emptied]  # their old rows count no more
    shards += cut_shards(counts, spec.output.shard_rows, digest(fingerprint))
    changed = tuple(sorted(file.uri for file in new if file.uri in planned.files))
    return Proposal(number, tuple(shards), changed, stays, tuple(moved.items()), tuple(file.uri for file in again))


def _count(file: SourceFile, spec: JobSpec) -> int:
    """The rows of a file as it was listed. Raises _Changed where they may be those of another version."""
    rows = count_rows(file, spec.input)
    if suffix_of(file.uri) in FORMATS:  # else it is one row, whatever it holds
        try:
            check_unchanged(file.uri, file.etag)
        except (RowError, FileNotFoundError):
            raise _Changed(file.uri) from None
    return rows


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
    spans: Sequence[Span],
    round_: int,
    fingerprint_digest: str,
    samples_per_row: int | None = None,
    indices: Sequence[int] = (),
    retry: int = 0,
) -> Shard:
    """A shard whose id depends on input versions, row ranges, round and fingerprint alone.

    Of a round above 0 also on `samples_per_row`; `indices` and `retry` where they are not what follows from these.
    """
    key: list[object] = [[[span.uri, span.etag, span.start, span.stop] for span in spans]]
    key += [round_, samples_per_row, fingerprint_digest]
    if indices:
        key += [list(indices), retry]
    return Shard(hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20], tuple(spans), round_)


def id_of(entry: PlannedShard, fingerprint_digest: str, samples_per_row: int) -> str:
    """The id that a planned shard must have. `samples_per_row` is the job's."""
    spans, round_, indices = entry.shard.spans, entry.shard.round, entry.indices
    first = round_ * samples_per_row
    if entry.retry or indices != tuple(range(first, first + len(indices))):
        return make_shard(spans, round_, fingerprint_digest, len(indices), indices, entry.retry).id
    return make_shard(spans, round_, fingerprint_digest, len(indices) if round_ else None).id


def next_number(planned: Sequence[PlannedShard]) -> int:
    """The number of the plan file that comes after these."""
    return max((entry.plan for entry in planned), default=0) + 1


def append(ledger: Ledger, propose_more: Callable[[], Sequence[PlannedShard]]) -> list[PlannedShard]:
    """Append what a function proposes from the ledger as it is; asked again where another driver was first."""
    for _ in range(APPEND_ATTEMPTS):
        shards = list(propose_more())
        if not shards:
            return []
        try:
            ledger.append_plan(shards[0].plan, shards)
            return shards
        except AlreadyExists:
            continue
    raise InputError(f"other drivers keep extending the plan of {ledger.storage.uri}: run again when they are done.")


def extend_with_regeneration(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger) -> int:
    """Plan new samples for what committed shards rejected; returns how many.

    A rejected sample of round r < quality.regenerate gets one new sample in round r + 1, with an index and so a seed of
    its own; not where a filter rejected what the input gave, which no seed changes. It is planned from commits alone,
    so it resumes like everything else.
    """
    if spec.quality.regenerate == 0:
        return 0
    return sum(entry.samples for entry in append(ledger, lambda: _regeneration(spec, fingerprint, ledger)))


def _regeneration(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger) -> list[PlannedShard]:
    planned = ledger.planned()
    number, per_row = next_number(planned), spec.input.samples_per_row
    have: Counter[tuple[str, str, int, int]] = Counter()  # (uri, etag, row position, round) -> samples planned for it
    for entry in planned:
        if entry.shard.round and not entry.retry:
            for span in entry.shard.spans:
                for position in range(span.start, span.stop):
                    have[span.uri, span.etag, position, entry.shard.round] += entry.samples_per_row
    lost: Counter[tuple[Span, int]] = Counter()  # (a row, round) -> samples it lost in the round before
    commits = ledger.read_commits({entry.shard.id for entry in planned})
    for each in Counting(planned).counted(commits, unfinished=True):
        if each.entry.shard.round < spec.quality.regenerate and is_worth_a_seed(each.sample, spec.task):
            lost[row_of(each), each.entry.shard.round + 1] += 1
    rows: dict[tuple[int, tuple[int, ...]], list[Span]] = {}  # (round, indices) -> rows
    for (row, round_), count in lost.items():
        first = round_ * per_row
        indices = range(first + have[row.uri, row.etag, row.start, round_], first + count)
        if indices:
            rows.setdefault((round_, tuple(indices)), []).append(row)
    shards: list[PlannedShard] = []
    for (round_, indices_), spans in sorted(rows.items(), key=lambda item: item[0]):
        for part in cut_rows(spans, spec.output.shard_rows):
            shard = Shard("", part, round_)
            entry = PlannedShard(shard, len(indices_), number, len(shards), indices_)
            shards.append(with_id(entry, digest(fingerprint), per_row))
    return shards


def is_worth_a_seed(sample: SampleOutcome, task: str) -> bool:
    """Whether a sample was rejected for something that another seed may change."""
    kinds = {reason.split(":")[0] for reason in sample.reasons}
    return sample.outcome == "rejected" and not any(rejects_input(kind, task) for kind in kinds)


def with_id(entry: PlannedShard, fingerprint_digest: str, samples_per_row: int) -> PlannedShard:
    """The entry with the id it must have. `samples_per_row` is the job's."""
    return replace(entry, shard=replace(entry.shard, id=id_of(entry, fingerprint_digest, samples_per_row)))


def row_of(counted: CountedSample) -> Span:
    """The one row that a sample comes from."""
    return replace(counted.span, start=counted.sample.position, stop=counted.sample.position + 1)


def cut_rows(rows: Sequence[Span], shard_rows: int) -> Iterator[tuple[Span, ...]]:
    """Single rows, in order, in parts of at most so many."""
    for start in range(0, len(rows), shard_rows):
        yield tuple(rows[start : start + shard_rows])


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
    round: int  # the last one planned
    regenerate: int  # rounds that there may be
    regenerated_samples: int  # with new seeds, for what is rejected by now; of the pending
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[tuple[str, str], ...]
    restored: tuple[str, ...]
    output_bytes: int  # for the pending samples
    weights_bytes: int  # a worker, in the spec's dtype
    in_flight_bytes: int  # a worker's shards between read and finish, in Ray's object store
    memory: MemoryNeed | MemoryBound | None = None  # of a worker's GPU; None for a task without the whole model
    sources: tuple[tuple[str, str, str], ...] = ()  # field of the spec, where its weights are, their licence
    scores: tuple[tuple[str, str], ...] = ()  # kinds of scores that cost a model, and what a sample of them costs


RGB_BYTES_PER_PIXEL = {"png": 1.7, "jpeg": 0.3, "webp": 0.2}  # measured on rendered scenes
DEPTH_BYTES_PER_PIXEL = 1.2
POINT_BYTES = 15  # float32 xyz, uint8 rgb


def preview(spec: JobSpec) -> PlanPreview:
    """What a run of this spec would do. Reads input and ledger, writes nothing, starts no Ray.

    Raises:
        SpecError, InputError, ModelError, StoreError: what the run itself would raise before its first shard.
    """
    ledger = Ledger(Storage(spec.output.uri))
    model = identify_job(spec, ledger.recorded_sources())
    fingerprint = fingerprint_of(spec, model)
    if ledger.check_job(fingerprint):
        spec = spec_in_force(spec, read_latest(ledger.storage))
    scorers = check_scorers(spec)
    memory = memory_shown(spec, model, scorers)
    wanted = load_scores(spec.quality.filters, spec.quality.scores, spec.task)
    proposal = propose(spec, fingerprint, ledger)
    planned, committed = ledger.planned(), ledger.committed()
    counting = Counting(planned)
    done = [entry for entry in planned if entry.shard.id in committed]
    open_ = [e for e in planned if e.shard.id not in committed and not counting.is_superseded(e)]
    new_rows = sum(shard.rows for shard in proposal.shards)
    seeds = _regeneration(spec, fingerprint, ledger) if planned and spec.quality.regenerate else []
    regenerated = sum(entry.samples for entry in seeds)
    pending = sum(entry.samples for entry in open_) + new_rows * spec.input.samples_per_row + regenerated
    return PlanPreview(
        name=spec.name,
        task=spec.task,
        output=spec.output.uri,
        committed_shards=len(done),
        committed_samples=sum(entry.samples for entry in done),
        pending_shards=len(open_) + len(proposal.shards) + len(seeds),
        pending_samples=pending,
        new_shards=len(proposal.shards),
        new_rows=new_rows,
        round=max((entry.shard.round for entry in planned), default=0),
        regenerate=spec.quality.regenerate,
        regenerated_samples=regenerated,
        changed=proposal.changed,
        removed=proposal.removed,
        moved=proposal.moved,
        restored=proposal.restored,
        output_bytes=round(pending * _sample_bytes(spec, model)),
        weights_bytes=model.bytes * (2 if spec.model.dtype == "float32" else 1) + scorers,  # 16 bits on disk
        in_flight_bytes=spec.resources.shards_in_flight * _shard_bytes(spec, model),
        memory=memory,
        sources=tuple((each.field, str(each), str(each.terms)) for each in model.pins),
        scores=tuple((score.kind, score.cost()) for score in wanted),
    )


def _sample_bytes(spec: JobSpec, model: ModelIdentity) -> float:
    copied = spec.output.rgb == "copy"
    a_pixel = (RGB_BYTES_PER_PIXEL[spec.output.image_format] if copied else 0) + DEPTH_BYTES_PER_PIXEL
    points = spec.output.points
    return model.height * model.width * (a_pixel + POINT_BYTES * (points.as_files + points.as_columns))


def _shard_bytes(spec: JobSpec, model: ModelIdentity) -> int:
    arrays = 2 * (3 + 4)  # uint8 rgb and float32 disparity, in and out
    return spec.output.shard_rows * spec.input.samples_per_row * model.height * model.width * arrays

"""Propose shards with stable ids for the input.

Only `_plan` is dispatched; a listing of the input only proposes. A plan file plans or carries every row of the input
versions that it names, so an input version is planned completely or not at all. A changed file is a new input version:
rows that were made and have not changed are carried (carry.py), shards of all others are in a later plan file, and the
next published version has these rows alone (ledger/counting.py). A removed file is reported, and its samples stay.
input_changes.py decides about files that were moved or restored.

Plan files are create-only, with numbers that follow from what the proposer had read. A driver that finds another
driver's file of that number reads it, lists the input again and proposes only what is left. So drivers that list
different inputs at the same time never plan a row twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jointdit.errors import InputError, RowError
from pipelines.ledger.carried import CarriedRows
from pipelines.ledger.counted import Uncovered
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import read_latest
from pipelines.model.fingerprint import Fingerprint, digest
from pipelines.plan.carry import NO_ROWS, ChangedFiles, FileChange, PlannedChange, RowCounts, count_listed, whole_file
from pipelines.plan.duplicate_ids import find_duplicate_ids
from pipelines.plan.input_changes import (
    PlannedInput,
    end_of,
    restored_files,
    unread_moves,
    with_distinct_paths,
)
from pipelines.plan.sample import NO_SAMPLE, InputSample, sample_files
from pipelines.plan.shards import APPEND_ATTEMPTS, cut_shards, cut_spans, make_shard
from pipelines.records import Shard, SourceFile, Span
from pipelines.spec.job import JobSpec
from pipelines.stages.context import RunContext
from pipelines.stages.readers import FORMATS, check_columns, count_rows, list_files, suffix_of
from pipelines.stages.readers.opening import check_unchanged
from pipelines.store.storage import AlreadyExists

LISTING_ATTEMPTS = 5


@dataclass(frozen=True)
class Proposal:
    """The additions to the plan that a listing of the input gives."""

    number: int  # of the plan file that it would become
    shards: tuple[Shard, ...]
    changed: tuple[str, ...] = ()  # uris whose new version supersedes a planned one
    removed: tuple[str, ...] = ()  # planned uris that are not listed any more; their samples stay
    moved: tuple[tuple[str, str], ...] = ()  # (planned uri that is gone, uri under which its rows count)
    restored: tuple[str, ...] = ()  # planned uris whose rows count again, in place of those of a removed file
    sample: InputSample = NO_SAMPLE  # of the files that are not planned yet, if it was asked for
    carried: tuple[CarriedRows, ...] = ()  # rows of changed files that are not made again; the first shard names them
    changes: tuple[FileChange, ...] = ()  # what each changed file costs
    rows: RowCounts = NO_ROWS  # of the whole listed input


def extend_plan(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger, proposal: Proposal) -> Proposal:
    """Append a proposal to the plan. If another driver was first, propose again without what it planned.

    Raises:
        InputError: no rows, a missing column, duplicate ids.
    """
    for _ in range(APPEND_ATTEMPTS):
        if not proposal.shards:
            return proposal
        number = proposal.number
        try:
            count = spec.input.samples_per_row
            entries = [PlannedShard(s, count, number, i) for i, s in enumerate(proposal.shards)]
            entries[0] = replace(entries[0], carried=proposal.carried)
            ledger.append_plan(number, entries)
            return proposal
        except AlreadyExists:
            proposal = propose(spec, fingerprint, ledger)
    raise InputError(f"other drivers keep extending the plan of {ledger.storage.uri}: run again when they are done.")


def propose(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger, context: RunContext | None = None) -> Proposal:
    """Return shards for the input versions that are not planned yet.

    Args:
        context: reads a sample of the rows of new files, before all rows are counted. None: no row is read.

    Raises:
        InputError: no rows, a missing column, duplicate ids, a file that keeps changing, a sample whose rows all fail.
    """
    for _ in range(LISTING_ATTEMPTS):
        try:
            return _propose(spec, fingerprint, ledger, context)
        except _Changed as error:
            changed = error
    raise InputError(f"{changed} keeps changing while its rows are counted: run again when it is written.")


class _Changed(Exception):
    """A file has another version than the one that was listed."""


def _propose(spec: JobSpec, fingerprint: Fingerprint, ledger: Ledger, context: RunContext | None) -> Proposal:
    tables = ledger.plan_tables()  # before the input is listed: a plan that grows in between makes this proposal fail
    number, planned = max(tables, default=0) + 1, PlannedInput.of(tables)
    listed = with_distinct_paths(list_files(spec.input, spec.reading), planned)
    removed = planned.removed(listed)
    moved = unread_moves(ledger, planned.moves(listed, removed), listed)
    stays = tuple(uri for uri in removed if uri not in moved)
    new = [file for file in listed if not planned.is_current(file)]
    again = restored_files(ledger, planned, listed, stays)
    if not new and not again and not moved:
        return Proposal(number, (), removed=stays, rows=count_listed(tables, listed, (), {}))
    check_columns(new, spec.input, spec.reading)
    sample = NO_SAMPLE if context is None else sample_files(context, new, lambda file: _count(file, spec))
    if spec.quality.max_quarantined_fraction < 1.0:
        sample.check()
    unplanned = [file for file in new if file.uri not in planned.files]
    counts = {file.uri: _count(file, spec) for file in unplanned}
    if not tables and not any(counts.values()):
        raise InputError(f"input.uri {', '.join(spec.input.uri)} has no rows: give at least one.")
    if duplicates := find_duplicate_ids(listed, spec.input):
        examples = ", ".join(repr(identifier) for identifier in duplicates[:3])
        raise InputError(f"the input has rows with the same id, such as {examples}: give each row an id of its own.")
    changed = [file for file in new if file.uri in planned.files]
    moved |= planned.moved_with_folder([*new, *again], stays)
    took = {planned.files[uri].relative_path for uri in moved if not planned.files[uri].is_plain}
    plans: list[PlannedChange] = []
    spans: list[Span] = []
    if changed or again or took:
        work = Uncovered.since(ledger, read_latest(ledger.storage), is_partial=True)
        files = ChangedFiles(work, number, spec, [*new, *again])
        plans = [files.plan(file, lambda file: _count(file, spec)) for file in [*changed, *again]]
        spans = [span for plan in plans for span in plan.spans]
        taking = [file for file in unplanned if file.relative_path in took]  # ids that are not those of row numbers
        spans += files.with_unused_ids(span for file in taking for span in whole_file(file, counts[file.uri]))
    carried = tuple(plan.carried for plan in plans if plan.carried.total)
    emptied = [file for file, plan in zip([*changed, *again], plans, strict=True) if not plan.change.rows]
    ends = [_empty(file, planned) for file in emptied]
    ends += [end_of(uri, planned) for uri in moved]
    plain = [(file, counts[file.uri]) for file in unplanned if file.relative_path not in took]
    recipe = digest(fingerprint)
    shards = [make_shard([_empty(rows, planned) for rows in carried], 0, recipe)] if carried else []
    shards += [make_shard([span], 0, recipe) for span in ends]  # so that their old rows no longer count
    shards += [*cut_shards(plain, spec.output.shard_rows, recipe), *cut_spans(spans, spec.output.shard_rows, recipe)]
    return Proposal(
        number=number,
        shards=tuple(shards),
        changed=tuple(sorted(file.uri for file in changed)),
        removed=tuple(uri for uri in stays if uri not in moved),
        moved=tuple(moved.items()),
        restored=tuple(file.uri for file in again),
        sample=sample,
        carried=carried,
        changes=tuple(plan.change for plan in plans[: len(changed)]),
        rows=count_listed(tables, listed, [plan.change for plan in plans], counts),
    )


def _empty(file: SourceFile | CarriedRows, planned: PlannedInput) -> Span:
    """Return the span that plans a version of a file without planning a row of it."""
    return Span(file.uri, file.etag, planned.files[file.uri].relative_path, 0, 0)


def _count(file: SourceFile, spec: JobSpec) -> int:
    """Return the rows of a file as it was listed. Raises _Changed where it may have another version by now."""
    rows = count_rows(file, spec.input)
    if suffix_of(file.uri) in FORMATS:  # any other file is one row
        try:
            check_unchanged(file.uri, file.etag)
        except (RowError, FileNotFoundError):
            raise _Changed(file.uri) from None
    return rows

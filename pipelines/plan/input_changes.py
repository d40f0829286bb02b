"""How the listed input differs from the planned one, beyond new and changed files.

    default ids   "<relative path>:<row number>" belongs to one file. If two files would share it, the path of the later
                  one is extended, and a file keeps the path with which it was first planned
    moved         a file was removed before all its rows were read, and a listed file has its content, or had it before
                  it was edited: the rows count only under the name of the listed file. So they do where a file was
                  moved with its folder, and keeps the path of its default ids (carry.py)
    restored      a file is back unchanged, after a file with the same row ids had replaced its rows and was removed: it
                  is planned again, so that its own rows count

Content is compared by ETag: the store's, or the size and modification time of a local file, both of which a move keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import pyarrow as pa

from jointdit.errors import StoreError
from pipelines.ledger.counting import Counting, row_id
from pipelines.ledger.entries import Commit, PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.plan_tables import PlannedFile, files_of, owners_of
from pipelines.records import SourceFile, Span
from pipelines.store.errors import TransientError
from pipelines.store.explain import explained
from pipelines.store.storage import for_input

MOVED = "moved:"  # prefix of the ETag of a version without rows, which ends a file that was moved


@dataclass(frozen=True)
class PlannedInput:
    """The planned input: the version of each file that was planned last."""

    files: Mapping[str, PlannedFile]  # by uri
    tables: Mapping[int, pa.Table]  # plan files by number

    @classmethod
    def of(cls, tables: Mapping[int, pa.Table]) -> Self:
        """Return the input of some plan files, by number."""
        return cls(files_of(tables), tables)

    def is_current(self, file: SourceFile) -> bool:
        """Return whether a listed file is planned in its current version."""
        planned = self.files.get(file.uri)
        return planned is not None and planned.etag == file.etag

    def removed(self, listed: Iterable[SourceFile]) -> list[str]:
        """Return the planned files that are not listed, sorted, without those that were moved."""
        removed = self.files.keys() - {file.uri for file in listed}
        return sorted(uri for uri in removed if not self.files[uri].etag.startswith(MOVED))

    def moves(self, listed: Sequence[SourceFile], removed: Iterable[str]) -> dict[str, str]:
        """Map planned files that no longer exist to a listed file that has their content, or had it.

        A file that had the content was moved away and back, and was edited in between or afterwards.
        """
        etags = {uri: self.files[uri].etag for uri in removed}
        if not etags:
            return {}
        of_etag = {file.etag: file.uri for file in listed}
        unknown = set(etags.values()) - of_etag.keys()
        if unknown:
            current = {file.uri for file in listed}
            for etag, owners in owners_of(self.tables, unknown).items():
                of_etag.update((etag, uri) for uri in owners if uri in current)
        return {uri: of_etag[etag] for uri, etag in etags.items() if etag in of_etag and is_gone(uri)}

    def moved_with_folder(self, files: Iterable[SourceFile], removed: Iterable[str]) -> dict[str, str]:
        """Map planned files that no longer exist to one of `files` that has their path, and their content or had it.

        Such a file keeps its default ids (`with_distinct_paths`), so its rows replace those of the file in its old
        place. They do so only while it has the same rows under the same ids: not once it has changed, nor if the
        ids of the file in its old place were not those of its row numbers.
        """
        owners = {file.relative_path: file for file in files}
        moved = {}
        for uri in removed:
            file, owner = self.files[uri], owners.get(self.files[uri].relative_path)
            if owner is not None and (owner.uri in self.files or not file.is_plain):
                had = owner.etag == file.etag or owner.uri in owners_of(self.tables, [file.etag]).get(file.etag, ())
                if had and is_gone(uri):
                    moved[uri] = owner.uri
        return moved


def with_distinct_paths(listed: Sequence[SourceFile], planned: PlannedInput) -> list[SourceFile]:
    """Return the listed files with unique relative paths, so that no two rows share a default id.

    A folder that was moved as a whole keeps its paths: its files have the content of planned files that are gone.
    """
    owners = {file.relative_path: uri for uri, file in planned.files.items()}
    new = Counter(file.relative_path for file in listed if file.uri not in planned.files)
    distinct = []
    for file in listed:
        path = file.relative_path
        if file.uri in planned.files:
            path = planned.files[file.uri].relative_path
        else:
            owner = owners.get(path)
            if owner is not None and planned.files[owner].etag == file.etag and is_gone(owner):
                owner = None  # the same file under another address
            if owner is not None or new[path] > 1:
                path = next(longer for longer in _longer_paths(file) if longer not in owners and longer not in new)
            owners[path] = file.uri
        distinct.append(file if path == file.relative_path else replace(file, relative_path=path))
    return distinct


def _longer_paths(file: SourceFile) -> Iterable[str]:
    """Yield ends of a file's address, from its relative path with one more folder up to the address itself."""
    parts = file.uri.partition("://")[2].split("/") if "://" in file.uri else file.uri.strip("/").split("/")
    for count in range(file.relative_path.count("/") + 2, len(parts) + 1):
        yield "/".join(parts[-count:])
    yield file.uri


def is_gone(uri: str) -> bool:
    """Return whether a file of the input no longer exists; False where the store does not answer."""
    try:
        fs, path = for_input(uri)
        with explained(uri):
            fs.info(path)
    except FileNotFoundError:
        return True
    except (StoreError, TransientError, ValueError):
        return False
    return False


def unread_moves(ledger: Ledger, moves: Mapping[str, str], listed: Sequence[SourceFile]) -> dict[str, str]:
    """Return the moves of files with rows that were never read: their shards have no commit, or quarantined them.

    A file stays if its content is not listed any more and rows without an id of their own were read from it, because
    nothing else holds these rows.
    """
    if not moves:
        return {}
    counting = Counting(ledger.planned())
    entries = _entries_of(counting, moves)
    commits = ledger.read_commits(entry.shard.id for entry in entries)
    etags = {file.etag for file in listed}
    return {
        uri: to
        for uri, to in moves.items()
        if not all(_was_read(entry, uri, commits.get(entry.shard.id)) for entry in entries)
        and (counting.versions[uri].etag in etags or not _has_default_ids(entries, uri, commits))
    }


def restored_files(
    ledger: Ledger, planned: PlannedInput, listed: Sequence[SourceFile], removed: Sequence[str]
) -> list[SourceFile]:
    """Return the listed and planned files some of whose rows count as those of a later file that is gone.

    Reads the commits of the files in question, and only if a removed file was planned after a listed one.
    """
    last = max((planned.files[uri].plan for uri in removed), default=0)
    candidates = [file for file in listed if planned.is_current(file) and planned.files[file.uri].plan < last]
    if not candidates:
        return []
    counting = Counting(ledger.planned())
    uris = {file.uri for file in candidates}
    entries = _entries_of(counting, {*uris, *removed})
    commits = ledger.read_commits(entry.shard.id for entry in entries)
    row_versions = counting.row_versions(commits)
    lost: dict[str, set[str]] = {}  # file -> removed files that its rows count as
    for entry in entries:
        if entry.is_first and (commit := commits.get(entry.shard.id)):
            for sample in commit.samples:
                span = entry.shard.spans[sample.span]
                version = row_versions.get(row_id(sample), ("", ""))
                has_row = span.uri in uris and counting.has_row(entry, span, sample.position)
                if has_row and (at := version[0]) in removed:
                    lost.setdefault(span.uri, set()).add(at)
    gone = {uri: is_gone(uri) for uri in set().union(*lost.values())}
    return [file for file in candidates if any(gone[uri] for uri in lost.get(file.uri, ()))]


def end_of(uri: str, planned: PlannedInput) -> Span:
    """Return a version without rows, so that the rows of a moved file no longer count."""
    file = planned.files[uri]
    return Span(uri, f"{MOVED}{file.etag}", file.relative_path, 0, 0)


def _entries_of(counting: Counting, uris: Collection[str]) -> list[PlannedShard]:
    """Return the shards with rows of the current versions of some files."""
    return [
        entry
        for entry in counting.planned
        if any(span.uri in uris and counting.is_current(entry, span) for span in entry.shard.spans)
    ]


def _was_read(entry: PlannedShard, uri: str, commit: Commit | None) -> bool:
    """Return whether a shard's rows of a file were read, by its commit: a missing file quarantines them all."""
    spans = {n for n, span in enumerate(entry.shard.spans) if span.uri == uri and span.rows}
    read = {sample.span for sample in commit.samples if sample.outcome != "quarantined"} if commit else set()
    return spans <= read


def _has_default_ids(entries: Sequence[PlannedShard], uri: str, commits: Mapping[str, Commit]) -> bool:
    """Return whether any row of a file was read that has no id of its own."""
    for entry in entries:
        for sample in commits[entry.shard.id].samples if entry.shard.id in commits else ():
            span = entry.shard.spans[sample.span]
            is_default = row_id(sample) == f"{span.relative_path}:{sample.position}"
            if span.uri == uri and sample.outcome != "quarantined" and is_default:
                return True
    return False

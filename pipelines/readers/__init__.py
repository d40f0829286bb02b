"""Readers: input files of any kind -> rows, each of them exactly once, good or bad.

    list_files -> check_columns -> count_rows, find_duplicate_ids      the plan's view: no pixel is read
    read_rows(file, start, stop)                                       a shard's view: arrays

What is read, by task; names of columns come from `input.columns`, and everything goes through fsspec:

    format     rows                     joint    depth   depth-to-image
    .txt       lines                    prompt
    .jsonl     lines                    prompt   image   depth, prompt   image and depth are paths
    .csv       records after a header   prompt   image   depth, prompt   image and depth are paths
    .parquet   rows                     prompt   image   depth, prompt   bytes, {bytes, path}, path; depth lists too
    .tar       keys (WebDataset)        prompt   image   depth, prompt   see webdataset.py
    a folder   files                             image   depth, prompt   the prompt of a.png is the text of a.txt

.txt, .jsonl and .csv may end in .gz. A path is relative to the folder of its table, or absolute in the same kind of
store. A prompt that a row does not bring is `input.prompt`; without that the row is bad. What depth maps may be is
told in depth_maps.py, pictures in pictures.py.

A row's id is its id column, where there is one, else "<relative path>:<row number>", also for a row that cannot be read
so far. Whatever is wrong with a row makes it a BadRow and leaves its neighbours alone; a file that is damaged, gone or
changed since it was planned gives BadRows for all its rows that could not be read. The store's own faults raise
TransientError or StoreError: they are no property of a row.

To add a format: write a module with `count`, `lacking` and `rows` (the protocol `Format` in rows.py), name its suffix
in FORMATS here and in listing.py, and add it to the table-driven tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jointdit.errors import InputError, RowError
from pipelines.readers import csv_records, json_lines, parquet_rows, single_files, text_lines, webdataset
from pipelines.readers.listing import list_files, suffix_of
from pipelines.readers.opening import check_unchanged
from pipelines.readers.rows import Format, build_row, default_id, read_id, wanted_columns
from pipelines.records import BadRow, Row, SourceFile, Span

if TYPE_CHECKING:
    from pipelines.spec import InputSpec

__all__ = ["check_columns", "count_rows", "find_duplicate_ids", "list_files", "read_rows"]

FORMATS: dict[str, Format] = {
    ".txt": text_lines,
    ".txt.gz": text_lines,
    ".jsonl": json_lines,
    ".jsonl.gz": json_lines,
    ".csv": csv_records,
    ".csv.gz": csv_records,
    ".parquet": parquet_rows,
    ".tar": webdataset,
}


def format_of(file: SourceFile | Span) -> Format:
    """The format of a listed file: what is no table is a single picture or map."""
    return FORMATS.get(suffix_of(file.uri), single_files)


def count_rows(file: SourceFile, spec_input: InputSpec) -> int:
    """Rows of one file. Raises InputError for a table that is damaged as a whole or gone."""
    try:
        return format_of(file).count(file)
    except (RowError, FileNotFoundError) as error:
        raise _as_input_error(error, file) from error


def check_columns(files: Sequence[SourceFile], spec_input: InputSpec, task: str) -> None:
    """Raise InputError where a file lacks a column that the task needs, naming those it has.

    The id column is needed only where the spec names it; the prompt column is not where `input.prompt` stands in for
    it.
    """
    wanted = wanted_columns(spec_input, task)
    if "id" not in spec_input.columns.model_fields_set:
        del wanted["id"]
    if spec_input.prompt is not None:
        wanted.pop("prompt", None)
    for file in files:
        try:
            lacking, names = format_of(file).lacking(file, wanted)
        except (RowError, FileNotFoundError) as error:
            raise _as_input_error(error, file) from error
        if lacking:
            has = f"it has {', '.join(names)}" if names else "files of this kind have no columns"
            raise InputError(
                f"{file.uri} has no column {wanted[lacking[0]]!r} for input.columns.{lacking[0]}: {has}; correct "
                "input.columns."
            )


def find_duplicate_ids(files: Sequence[SourceFile], spec_input: InputSpec, task: str, limit: int = 5) -> list[str]:
    """Up to `limit` row ids that occur twice, in reading order. Reads the id column of tables, and no more.

    Keeps 12 bytes of hash an id. Rows whose id cannot be read are left out: they are quarantined by their default ids.
    """
    column = spec_input.columns.id
    seen: set[bytes] = set()
    duplicates: list[str] = []

    def note(text: str) -> bool:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        if digest in seen:
            duplicates.append(text)
        seen.add(digest)
        return len(duplicates) >= limit

    for file in files:
        source = format_of(file)
        try:
            if source.lacking(file, {"id": column})[0]:
                # The default ids of two files are all equal or all different.
                if note(default_id(file, 0)):
                    return duplicates
                continue
            for raw in source.rows(file, 0, source.count(file), {"id": column}):
                try:
                    text = read_id(raw.values["id"]) if "id" in raw.values else default_id(file, raw.position)
                except RowError:
                    continue
                if not raw.error and note(text):
                    return duplicates
        except (RowError, FileNotFoundError) as error:
            raise _as_input_error(error, file) from error
    return duplicates


def read_rows(
    file: SourceFile | Span, start: int, stop: int, spec_input: InputSpec, task: str
) -> Iterator[Row | BadRow]:
    """Exactly one Row or BadRow for each of the rows [start, stop), in order. Raises TransientError and StoreError."""
    position, reason = start, "row is not in the file any more."
    try:
        check_unchanged(file.uri, file.etag)
        for raw in format_of(file).rows(file, start, stop, wanted_columns(spec_input, task)):
            assert raw.position == position, f"{file.uri} gave row {raw.position} where {position} was due"
            position += 1
            yield build_row(raw, file, spec_input, task)
    except RowError as error:
        reason = str(error)
    except FileNotFoundError:
        reason = f"{file.uri} does not exist any more."
    for missing in range(position, stop):
        yield BadRow(default_id(file, missing), file.uri, missing, reason)


def _as_input_error(error: Exception, file: SourceFile) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{file.uri} does not exist any more: it was listed a moment ago.")
    return InputError(f"{str(error).rstrip('.')}: repair the file or take it out of input.uri.")

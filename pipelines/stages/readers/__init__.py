"""Readers: input files of any format become rows, each read exactly once.

    list_files -> check_columns -> count_rows, plan/duplicate_ids.py   for planning: no pixel is read
    read_rows(file, ranges)                                            for a shard: arrays; each file is read once

What each task reads. Column names come from `input.columns`, and all files are opened through fsspec:

    format     rows                     joint    depth   depth-to-image
    .txt       lines                    prompt
    .jsonl     lines                    prompt   image   depth, prompt   image and depth are paths
    .csv       records after a header   prompt   image   depth, prompt   image and depth are paths
    .parquet   rows                     prompt   image   depth, prompt   bytes, {bytes, path}, path; depth lists too
    .tar       keys (WebDataset)        prompt   image   depth, prompt   see webdataset.py
    a folder   files                             image   depth, prompt   the prompt of a.png is the text of a.txt

.txt, .jsonl and .csv may end in .gz. A path is relative to the folder of its table, or absolute in the same kind of
store. A row without a prompt uses `input.prompt`; without that the row is bad. depth_maps.py says which depth maps are
accepted, images.py which images.

The id of a row is its id column if there is one, else "<relative path>:<row number>". A row that could not be read so
far has the default id too. Whatever is wrong with a row makes it a BadRow and does not affect other rows. A file that
is damaged, missing or changed since it was planned gives BadRows for all rows that could not be read. Faults of the
store raise TransientError or StoreError, because they are no property of a row. An address in a row that cannot be read
is the row's fault, unless the table cannot be read any more either (row_addresses.py).

Text is UTF-8, with or without a byte order mark. Other encodings are refused where they can be detected, and no id or
prompt may have a NUL. Ambiguous input is refused: a key or column that occurs twice, a quote that is not closed.

Ids, keys and prompts are data: no object name is made from them, so nothing in them can escape the output. Paths in a
table may name any image that this user may read in the same kind of store. Therefore run untrusted tables as a user who
may read only their folder. Sizes are limited before anything is decompressed: 1 GiB per image or member (opening.py),
16 MiB per line (text_lines.py), 80 million pixels or numbers (images.py), 1,000 characters per id and 100,000 per
prompt (rows.py).

To add a format: write a module with `count`, `missing_fields` and `rows` (the protocol `Format` in rows.py), add its
suffix to FORMATS here and to listing.py, and add it to the table-driven tests.
"""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from jointdit.errors import InputError, RowError, StoreError
from pipelines.records import BadRow, Row, SourceFile, Span
from pipelines.stages.readers import csv_records, json_lines, parquet_rows, single_files, text_lines, webdataset
from pipelines.stages.readers.listing import list_files, suffix_of
from pipelines.stages.readers.opening import check_unchanged
from pipelines.stages.readers.row_addresses import check_reachable
from pipelines.stages.readers.row_contents import content_of, has_paths
from pipelines.stages.readers.rows import Format, RawRow, build_row, columns_of, default_id, read_id
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.safe_text import mask_secrets, printable, shortened

if TYPE_CHECKING:
    from pipelines.spec.job import InputSpec

__all__ = ["FORMATS", "check_columns", "count_rows", "list_files", "read_rows", "suffix_of"]

SHOWN_COLUMNS = 20
ASKED_ROWS = 256  # whose paths are looked up at once
VANISHED = "does not exist any more"
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
    """Return the format of a listed file. A file that is no table is a single image or depth map."""
    return FORMATS.get(suffix_of(file.uri), single_files)


def is_comparable(file: SourceFile | Span) -> bool:
    """Return whether rows of a file have a content hash, so that a changed file costs only its changed rows."""
    return format_of(file) not in (single_files, webdataset)


def count_rows(file: SourceFile, spec_input: InputSpec) -> int:
    """Return the number of rows of a file. Raises InputError for a table that is damaged as a whole or missing."""
    try:
        return format_of(file).count(file)
    except (RowError, FileNotFoundError) as error:
        raise as_input_error(error, file) from error


def check_columns(files: Sequence[SourceFile], spec_input: InputSpec, task: str) -> None:
    """Raise InputError where a file lacks a column that the task needs. The message names the columns that it has.

    The id column is required only if the spec names it, and the prompt column only without `input.prompt`.
    """
    fields = columns_of(spec_input, task)
    if "id" not in spec_input.columns.model_fields_set:
        del fields["id"]
    if spec_input.prompt is not None:
        fields.pop("prompt", None)
    for file in files:
        try:
            missing, names = format_of(file).missing_fields(file, fields)
        except (RowError, FileNotFoundError) as error:
            raise as_input_error(error, file) from error
        if missing:
            shown = ", ".join(shortened(name) for name in names[:SHOWN_COLUMNS])
            more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
            has = f"it has {shown}{more}" if names else "files of this kind have no columns"
            raise InputError(
                f"{printable(file.uri)} has no column {fields[missing[0]]!r} for input.columns.{missing[0]}: {has}; "
                "correct input.columns."
            )


def read_rows(
    file: SourceFile | Span, wanted: Sequence[range], spec_input: InputSpec, task: str
) -> Iterator[Row | BadRow]:
    """Yield one Row or BadRow for each row of some ranges, in order. The file is opened and read once.

    Args:
        wanted: row numbers, as sorted, disjoint ranges.

    Raises:
        TransientError, StoreError: a fault of the store, not of a row.
    """
    planned, reason = chain.from_iterable(wanted), "row is not in the file any more."
    try:
        check_unchanged(file.uri, file.etag)
        for raw in format_of(file).rows(file, wanted, columns_of(spec_input, task)):
            content = content_of(raw, file, task) if is_comparable(file) else ""  # of paths, before they are read
            row = build_row(raw, file, spec_input, task)
            position = next(planned)
            assert raw.position == position, f"{file.uri} gave row {raw.position} where {position} was due"
            if isinstance(row, BadRow) and has_paths(raw):
                content = ""  # what is at the path may be to blame
            yield replace(row, content=content) if content else row
    except RowError as error:
        reason = str(error)
    except FileNotFoundError:
        reason = f"{file.uri} {VANISHED}."
    except StoreError as error:
        if format_of(file) is not single_files:
            raise
        check_reachable(posixpath.dirname(file.uri))  # a refusal of this image alone makes one bad row
        reason = str(error)
    for missing in planned:
        yield BadRow(default_id(file, missing), file.uri, missing, printable(mask_secrets(reason)))


def read_contents(file: SourceFile, spec_input: InputSpec, task: str) -> Iterator[tuple[int, str, str]]:
    """Yield (position, id, content hash) of each row of a table, in order, without decoding anything.

    The id is empty where the row has none of its own, and the hash where something cannot be read.

    Raises:
        RowError: the file is damaged as a whole, or gone.
        TransientError, StoreError: the store fails.
    """
    source = format_of(file)
    try:
        rows = source.rows(file, [range(source.count(file))], columns_of(spec_input, task))
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            asked: deque[tuple[int, str, Future[str]]] = deque()  # rows with paths, each of which costs a request
            for raw in rows:
                if has_paths(raw):
                    asked.append((raw.position, _own_id(raw), pool.submit(content_of, raw, file, task)))
                while asked and (len(asked) == ASKED_ROWS or not has_paths(raw)):
                    position, identifier, content = asked.popleft()
                    yield position, identifier, content.result()
                if not has_paths(raw):
                    yield raw.position, _own_id(raw), content_of(raw, file, task)
            for position, identifier, content in asked:
                yield position, identifier, content.result()
    except FileNotFoundError:
        raise RowError(f"{file.uri} {VANISHED}.") from None


def _own_id(raw: RawRow) -> str:
    """Return the id that a row has of its own; empty if it has none."""
    if raw.error or "id" not in raw.values:
        return ""
    try:
        return read_id(raw.values["id"])
    except RowError:
        return ""


def as_input_error(error: Exception, file: SourceFile) -> InputError:
    """Return the InputError for a file that cannot be read while the input is planned."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{printable(file.uri)} {VANISHED}: it was listed a moment ago.")
    return InputError(f"{printable(str(error)).rstrip('.')}: repair the file or take it out of input.uri.")

"""Readers: input files of any kind -> rows, each of them exactly once, good or bad.

    list_files -> check_columns -> count_rows, duplicates.py           the plan's view: no pixel is read
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
told in depth_maps.py, images in images.py.

A row's id is its id column, where there is one, else "<relative path>:<row number>", also for a row that cannot be read
so far. Whatever is wrong with a row makes it a BadRow and leaves its neighbours alone; a file that is damaged, gone or
changed since it was planned gives BadRows for all its rows that could not be read. The store's own faults raise
TransientError or StoreError: they are no property of a row. What is wrong with an address that a row gives is the
row's, unless the table cannot be read any more either (row_addresses.py).

Text is UTF-8, with or without a byte order mark; other encodings are refused where they can be told, and no id or
prompt has a NUL. What could be read in two ways (a key or column that is there twice, a quote that is not closed) is
refused.

Ids, keys and prompts are data: no name of an object is made from them, so nothing in them can leave the output. Paths
in a table may name any image that this user may read in the same kind of store: run tables of strangers as a user who
may read their folder and no other. Sizes are bounded before anything is unpacked: 1 GiB an image or member
(opening.py), 16 MiB a line (text_lines.py), 80 million pixels or numbers (images.py), 1,000 characters an id and
100,000 a prompt (rows.py).

To add a format: write a module with `count`, `lacking` and `rows` (the protocol `Format` in rows.py), name its suffix
in FORMATS here and in listing.py, and add it to the table-driven tests.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jointdit.errors import InputError, RowError, StoreError
from pipelines.records import BadRow, Row, SourceFile, Span
from pipelines.stages.readers import csv_records, json_lines, parquet_rows, single_files, text_lines, webdataset
from pipelines.stages.readers.listing import list_files, suffix_of
from pipelines.stages.readers.opening import check_unchanged
from pipelines.stages.readers.row_addresses import check_reachable, shortened
from pipelines.stages.readers.rows import Format, build_row, default_id, wanted_columns
from pipelines.store.safe_text import mask_secrets, printable

if TYPE_CHECKING:
    from pipelines.spec.job import InputSpec

__all__ = ["FORMATS", "check_columns", "count_rows", "list_files", "read_rows", "suffix_of"]

SHOWN_COLUMNS = 20
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
    """The format of a listed file: what is no table is a single image or map."""
    return FORMATS.get(suffix_of(file.uri), single_files)


def count_rows(file: SourceFile, spec_input: InputSpec) -> int:
    """Rows of one file. Raises InputError for a table that is damaged as a whole or gone."""
    try:
        return format_of(file).count(file)
    except (RowError, FileNotFoundError) as error:
        raise as_input_error(error, file) from error


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
            raise as_input_error(error, file) from error
        if lacking:
            shown = ", ".join(shortened(name) for name in names[:SHOWN_COLUMNS])
            more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
            has = f"it has {shown}{more}" if names else "files of this kind have no columns"
            raise InputError(
                f"{printable(file.uri)} has no column {wanted[lacking[0]]!r} for input.columns.{lacking[0]}: {has}; "
                "correct input.columns."
            )


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
    except StoreError as error:
        if format_of(file) is not single_files:
            raise
        check_reachable(posixpath.dirname(file.uri))  # an image that is refused alone is one bad row
        reason = str(error)
    for missing in range(position, stop):
        yield BadRow(default_id(file, missing), file.uri, missing, printable(mask_secrets(reason)))


def as_input_error(error: Exception, file: SourceFile) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{printable(file.uri)} does not exist any more: it was listed a moment ago.")
    return InputError(f"{printable(str(error)).rstrip('.')}: repair the file or take it out of input.uri.")

"""Folders of images or depth maps: each file is one row.

The prompt of a depth map `a.png` is the text of `a.txt` beside it, if that exists.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence

from pipelines.records import SourceFile, Span
from pipelines.stages.readers.row_addresses import fetch_for_row
from pipelines.stages.readers.rows import RawRow


def count(file: SourceFile | Span) -> int:
    """Return one, whatever the file holds."""
    return 1


def missing_fields(file: SourceFile | Span, fields: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """An image has no id column. Whether its prompt exists is checked when it is read, one row at a time."""
    return [name for name in fields if name == "id"], []


def rows(file: SourceFile | Span, wanted: Sequence[range], fields: Mapping[str, str]) -> Iterator[RawRow]:
    """Yield the one row: its own address as image or depth, and its prompt."""
    if not any(0 in positions for positions in wanted):
        return
    values: dict[str, str] = {name: file.uri for name in fields if name in ("image", "depth")}
    if "prompt" in fields:
        try:
            beside = posixpath.splitext(file.uri)[0] + ".txt"
            values["prompt"] = fetch_for_row(beside, "prompt", file.uri).decode("utf-8-sig").strip()
        except FileNotFoundError:
            pass
        except UnicodeDecodeError:
            yield RawRow(0, error="the .txt file beside it is not valid UTF-8 text.")
            return
    yield RawRow(0, values)

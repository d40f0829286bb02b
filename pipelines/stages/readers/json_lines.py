"""JSON lines (.jsonl, .jsonl.gz): one object a line. Blank lines are rows too, and bad ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from jointdit.errors import RowError
from pipelines.records import SourceFile, Span
from pipelines.stages.readers.row_addresses import shown
from pipelines.stages.readers.rows import RawRow
from pipelines.stages.readers.text_lines import index_lines, read_lines

LOOKED_AT = 100  # rows whose keys count as the file's columns: JSON lines have no header


class DuplicateKey(ValueError):
    """An object names a key twice, and one of the values would be lost."""


def load_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, for an object with one key twice too, and RecursionError."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise DuplicateKey(f"the key {shown(twice)} is there twice: keep one of them")
    return found


def count(file: SourceFile | Span) -> int:
    """Lines of the file."""
    return index_lines(file.uri, file.etag).rows


def lacking(file: SourceFile | Span, wanted: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Fields that none of the first rows has; nothing is lacking where no row can be read."""
    names: dict[str, None] = {}
    for _, line in read_lines(file, 0, LOOKED_AT):
        record = _parse(line)
        if isinstance(record, dict):
            names.update(dict.fromkeys(record))
    return [name for name, column in wanted.items() if names and column not in names], list(names)


def rows(file: SourceFile | Span, start: int, stop: int, wanted: Mapping[str, str]) -> Iterator[RawRow]:
    """Each line's object; a missing key is a missing value."""
    for number, line in read_lines(file, start, stop):
        record = _parse(line)
        if isinstance(record, dict):
            yield RawRow(number, {name: record[column] for name, column in wanted.items() if column in record})
        else:
            yield RawRow(number, error=record)


def _parse(line: bytes | RowError) -> dict[str, object] | str:
    """The object of a line, or what is wrong with it."""
    if isinstance(line, RowError):
        return str(line)
    if not line.strip():
        return "line is blank, not a JSON object: take it out."
    try:
        record = load_json(line.decode("utf-8"))  # of bytes, json.loads would guess the encoding
    except UnicodeDecodeError:
        return "line is not valid UTF-8 text: write it again as UTF-8."
    except DuplicateKey as error:
        return f"line holds an object in which {error}."
    except json.JSONDecodeError as error:
        return f"line is not valid JSON ({error.msg} at column {error.colno})."
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        return f"line is not usable JSON ({error})."
    return record if isinstance(record, dict) else "line is valid JSON but not an object: give one {...} a line."

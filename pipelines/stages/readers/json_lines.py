"""JSON lines (.jsonl, .jsonl.gz): one object per line. Blank lines are bad rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jointdit.errors import RowError
from pipelines.records import SourceFile, Span
from pipelines.stages.readers.rows import RawRow
from pipelines.stages.readers.text_lines import count_lines, read_lines
from pipelines.store.safe_text import quoted

LOOKED_AT = 100  # rows whose keys count as the columns of the file, because JSON lines have no header


class DuplicateKey(ValueError):
    """An object that has a key twice, so that one of the values would be lost."""


def load_json(text: str) -> Any:
    """Parse a JSON text. Raises ValueError (DuplicateKey for a repeated key) and RecursionError."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise DuplicateKey(f"the key {quoted(twice)} is there twice: keep one of them")
    return record


def count(file: SourceFile | Span) -> int:
    """Return the number of lines."""
    return count_lines(file)


def missing_fields(file: SourceFile | Span, fields: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return fields that none of the first rows has; none where no row can be read."""
    names: dict[str, None] = {}
    for _, line in read_lines(file, [range(LOOKED_AT)]):
        record = _parse(line)
        if isinstance(record, dict):
            names.update(dict.fromkeys(record))
    return [name for name, column in fields.items() if names and column not in names], list(names)


def rows(file: SourceFile | Span, wanted: Sequence[range], fields: Mapping[str, str]) -> Iterator[RawRow]:
    """Yield the object of each line. A missing key is a missing value."""
    for number, line in read_lines(file, wanted):
        record = _parse(line)
        if isinstance(record, dict):
            yield RawRow(number, {name: record[column] for name, column in fields.items() if column in record})
        else:
            yield RawRow(number, error=record)


def _parse(line: bytes | RowError) -> dict[str, object] | str:
    """Return the object of a line, or what is wrong with it."""
    if isinstance(line, RowError):
        return str(line)
    if not line.strip():
        return "line is blank, not a JSON object: take it out."
    try:
        record = load_json(line.decode("utf-8"))  # json.loads would guess the encoding of bytes
    except UnicodeDecodeError:
        return "line is not valid UTF-8 text: write it again as UTF-8."
    except DuplicateKey as error:
        return f"line holds an object in which {error}."
    except json.JSONDecodeError as error:
        return f"line is not valid JSON ({error.msg} at column {error.colno})."
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        return f"line is not usable JSON ({error})."
    return record if isinstance(record, dict) else "line is valid JSON but not an object: give one {...} per line."

"""Result tables in Markdown and JSON; a table accepts rows of one protocol only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jointdit.errors import InputError


@dataclass(frozen=True)
class Column:
    """Name of a value, as in the rows, and its format, such as ".3f" or ".0%"."""

    name: str
    form: str = ".3f"


@dataclass(frozen=True)
class ResultRow:
    """Values of one method by column name, their source and protocol. None and NaN mean no value."""

    method: str
    values: Mapping[str, float | None]
    source: str
    protocol: str


@dataclass
class ResultTable:
    """Comparable results: all rows were measured by `protocol`."""

    title: str
    protocol: str
    columns: Sequence[Column]
    rows: list[ResultRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, row: ResultRow) -> None:
        """Append a row. Raises InputError for a row of another protocol, or with values without a column."""
        if row.protocol != self.protocol:
            raise InputError(
                f"{row.method} was measured by another protocol ({row.protocol}) than table {self.title!r}: "
                "give it a table of its own."
            )
        unknown = set(row.values) - {column.name for column in self.columns}
        if unknown:
            raise InputError(f"{row.method} has values without a column in table {self.title!r}: {sorted(unknown)}.")
        self.rows.append(row)

    def measured(self, method: str, values: Mapping[str, float | None], source: str = "this run") -> None:
        """Append values that this run measured."""
        self.add(ResultRow(method, values, source, self.protocol))

    def markdown(self) -> str:
        """Return a heading, the protocol, the table and the notes."""
        head = ["", *(column.name for column in self.columns), "source"]
        ruler = ["---", *(["---:"] * len(self.columns)), "---"]
        body = [[row.method, *self._cells(row), row.source] for row in self.rows]
        lines = [f"### {self.title}", "", f"Protocol: {self.protocol}.", ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (head, ruler, *body)]
        lines += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON; missing values are null."""
        rows = [
            {
                "method": row.method,
                "values": {column.name: _finite(row.values.get(column.name)) for column in self.columns},
                "source": row.source,
            }
            for row in self.rows
        ]
        return {"title": self.title, "protocol": self.protocol, "rows": rows, "notes": self.notes}

    def _cells(self, row: ResultRow) -> list[str]:
        values = ((_finite(row.values.get(column.name)), column.form) for column in self.columns)
        return ["" if value is None else format(value, form) for value, form in values]

    def text_rows(self) -> list[list[str]]:
        """Return method and formatted values of each row, for a terminal."""
        return [[row.method, *self._cells(row)] for row in self.rows]


def markdown_report(title: str, tables: Iterable[ResultTable], closing: str = "") -> str:
    """Return all tables of a report as Markdown."""
    parts = [f"# {title}\n", *(table.markdown() for table in tables)]
    return "\n".join([*parts, closing] if closing else parts)


def without_nan(value: Any) -> Any:
    """Replace every float that JSON cannot represent by None, in values, lists and dictionaries."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)

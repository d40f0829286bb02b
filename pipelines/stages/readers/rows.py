"""What a file format yields, and how it becomes a row: RawRow -> Row with arrays, or BadRow.

A format (one module each: text_lines, json_lines, csv_records, parquet_rows, webdataset, single_files) only finds
values. What a value means, and all that can be wrong with it, is decided here, in the same way for every format.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jointdit.errors import RowError
from pipelines.records import BadRow, Row, SourceFile, Span
from pipelines.stages.readers.depth_maps import decode_depth
from pipelines.stages.readers.images import decode_image
from pipelines.stages.readers.row_addresses import stored_value
from pipelines.store.safe_text import mask_secrets, printable, quoted

if TYPE_CHECKING:
    from pipelines.spec.job import InputSpec

MAX_ID_CHARACTERS = 1000  # an id is stored in commits, tables and point clouds
MAX_PROMPT_CHARACTERS = 100_000  # text encoders truncate at some thousands
NEEDED = {
    "joint": ("prompt",),
    "depth": ("image",),
    "depth-to-image": ("depth", "prompt"),
    "encode": ("image", "depth", "prompt"),
    "prepare": ("image", "prompt"),
}


@dataclass(frozen=True)
class RawRow:
    """Values by field (id, prompt, image, depth) as the format stores them. A field that is missing is not in `values`.

    image: bytes, a path, or a struct {bytes, path}; depth: those, or nested lists of numbers.
    """

    position: int
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""  # one sentence where the row could not be read


class Format(Protocol):
    """A file format. `fields` maps the fields that are read to their names in the file."""

    def count(self, file: SourceFile | Span) -> int:
        """Return the number of rows. Raises RowError where the file as a whole is damaged."""

    def missing_fields(self, file: SourceFile | Span, fields: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """Return (fields that the file lacks, names that it has)."""

    def rows(self, file: SourceFile | Span, wanted: Sequence[range], fields: Mapping[str, str]) -> Iterator[RawRow]:
        """Yield one RawRow for each row of sorted, disjoint ranges, in order. The file is opened and read once."""


def columns_of(spec_input: InputSpec, task: str) -> dict[str, str]:
    """Return the fields that a task reads, with the names that the spec gives them."""
    return {name: getattr(spec_input.columns, name) for name in ("id", *NEEDED[task])}


def default_id(file: SourceFile | Span, position: int) -> str:
    """Return the id of a row without one: "<relative path>:<row number>"."""
    return f"{file.relative_path}:{position}"


def check_unique(file: SourceFile | Span, names: Sequence[str], fields: Mapping[str, str]) -> None:
    """Raise RowError where a file has two columns of a wanted name."""
    for column in fields.values():
        if names.count(column) > 1:
            raise RowError(f"{file.uri} has {names.count(column)} columns named {column!r}.")


def build_row(raw: RawRow, file: SourceFile | Span, spec_input: InputSpec, task: str) -> Row | BadRow:
    """Decode and check what the task needs. A row with any fault becomes a BadRow."""
    row_id = default_id(file, raw.position)
    try:
        if raw.error:
            raise RowError(raw.error)
        if "id" in raw.values:
            row_id = read_id(raw.values["id"])
        needed = NEEDED[task]
        prompt = _prompt(raw.values.get("prompt"), spec_input.prompt) if "prompt" in needed else None
        rgb, rgb_bytes, depth, valid = None, None, None, None
        if "image" in needed:
            data = stored_value(raw.values.get("image"), "image", file.uri)
            if isinstance(data, list):
                raise RowError("image is a list of numbers: give encoded bytes or a path.")
            rgb, as_is = decode_image(data)
            rgb_bytes = data if as_is else None
        if "depth" in needed:
            assert spec_input.depth is not None, "the spec requires input.depth for this task"
            depth, valid = decode_depth(stored_value(raw.values.get("depth"), "depth", file.uri), spec_input.depth)
        if rgb is not None and depth is not None and valid is not None:
            _check_pair(rgb, depth, valid)
    except RowError as error:
        trace = mask_secrets(traceback.format_exc()) if error.__cause__ else ""
        return BadRow(row_id, file.uri, raw.position, printable(mask_secrets(str(error))), trace)
    return Row(row_id, file.uri, raw.position, prompt, rgb, depth, valid, rgb_bytes)


def _check_pair(rgb: NDArray[np.uint8], depth: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
    """Check a training pair. It needs depth at every pixel: a filled hole would be a label without a measurement."""
    if depth.shape != rgb.shape[:2]:
        sizes = f"{depth.shape[1]} x {depth.shape[0]} and the image {rgb.shape[1]} x {rgb.shape[0]}"
        raise RowError(f"depth map is {sizes} pixels: give both at one size.")
    if not valid.all():
        share = 1 - float(valid.mean())
        raise RowError(
            f"depth map has no value (NaN, or depth.invalid) at {share:.2%} of its pixels: training needs whole maps."
        )


def read_id(value: Any) -> str:
    """Return the value of an id column as text. Raises RowError for what is no id."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"id is {quoted(value)}: give text or a whole number.")
    text = str(value)
    if not text.strip():
        raise RowError("id is empty: give text or a whole number.")
    if len(text) > MAX_ID_CHARACTERS:
        raise RowError(f"id has {len(text)} characters, more than the limit of {MAX_ID_CHARACTERS}: shorten it.")
    return _storable(text, "id")


def _prompt(value: Any, default: str | None) -> str:
    if value is None:
        value = default
    if value is None:
        raise RowError("prompt is missing: give one in the row, or input.prompt for all rows.")
    if not isinstance(value, str):
        raise RowError(f"prompt is {quoted(value)}: give text.")
    if not value.strip():
        raise RowError("prompt is empty: say what the image shows.")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise RowError(
            f"prompt has {len(value)} characters, more than the limit of {MAX_PROMPT_CHARACTERS}: shorten it."
        )
    return _storable(value, "prompt")


def _storable(text: str, name: str) -> str:
    if "\0" in text:
        raise RowError(f"{name} holds a NUL character, as UTF-16 text read as UTF-8 does: write it again as UTF-8.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{name} is not valid UTF-8 text: write it again as UTF-8.") from error
    return text

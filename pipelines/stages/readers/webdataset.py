"""WebDataset archives (.tar, not compressed): members with one key are a row.

`photos/0001.jpg` has the key `photos/0001` and the extension `jpg`. Fields are found as follows, with `columns` of the
spec:
    image   the extension `<columns.image>`, `<columns.image>.png`..., else the first image extension
    depth   the extension `<columns.depth>`, `<columns.depth>.png`..., else npy, png, tif or tiff
    prompt  the key `<columns.prompt>` of the member `json`, else the member `<columns.prompt>` or `txt`
    id      the key `<columns.id>` of the member `json`; `columns.id: __key__` uses the row's key

One pass over the headers finds the positions of the members, and each process caches them. Rows are then read from
their positions. Nothing is extracted to a disk: names are keys and never paths, and links, devices and folders are
ignored.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, BinaryIO, cast

from jointdit.errors import RowError
from pipelines.records import SourceFile, Span
from pipelines.stages.readers.depth_maps import DEPTH_MAP_SUFFIXES
from pipelines.stages.readers.images import DECODE_ERRORS, IMAGE_SUFFIXES
from pipelines.stages.readers.json_lines import LOOKED_AT, DuplicateKey, load_json
from pipelines.stages.readers.opening import check_bytes, open_input
from pipelines.stages.readers.rows import RawRow
from pipelines.store.safe_text import reason_of

EXTENSIONS = {
    "image": tuple(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES),
    "depth": tuple(suffix.lstrip(".") for suffix in DEPTH_MAP_SUFFIXES),
}
MAX_HEADER_BYTES = 1 << 20  # of long names and other extended headers, which are read in full
Place = tuple[int, int]  # offset and size in bytes
Members = dict[str, Place]  # by extension


class _Headers:
    """The stream that tarfile reads headers from. A header that claims to be huge is damaged."""

    def __init__(self, stream: BinaryIO, uri: str) -> None:
        self.stream, self.uri = stream, uri
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise RowError(f"{self.uri} is damaged: a member header claims {size} bytes.")
        return self.stream.read(size)


@lru_cache(maxsize=64)
def _index(uri: str, etag: str) -> tuple[tuple[str, Members], ...]:
    """Return (key, members) of each row of one version of an archive. A truncated archive ends with its last member."""
    index: list[tuple[str, Members]] = []
    with open_input(uri) as stream:
        length = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        try:
            with tarfile.open(fileobj=cast(BinaryIO, _Headers(stream, uri)), mode="r:") as archive:
                for member in archive:
                    if member.size < 0 or member.issparse():
                        raise RowError(f"{uri} is damaged: its member {member.name!r} is sparse or of a negative size.")
                    folder, _, name = member.name.rpartition("/")
                    stem, dot, extension = name.partition(".")
                    if member.isfile() and stem and dot:
                        key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
                        if not index or index[-1][0] != key or extension in index[-1][1]:
                            index.append((key, {}))
                        index[-1][1][extension] = (member.offset_data, member.size)
                    if member.offset_data + member.size > length:
                        return tuple(index)
                rest = archive.offset
        except RowError:
            raise
        except (tarfile.TarError, EOFError) as error:
            if not index:
                raise RowError(f"{uri} is not a readable tar archive ({error}).") from error
        except DECODE_ERRORS as error:
            raise RowError(f"{uri} is damaged ({reason_of(error)}).") from error
        else:
            # tarfile takes a damaged header for the end of the archive, and rows after it would be lost silently.
            stream.seek(rest)
            block = stream.read(tarfile.BLOCKSIZE)
            if len(block) == tarfile.BLOCKSIZE and any(block):
                raise RowError(f"{uri} is damaged: the member header at byte {rest} cannot be read.")
    return tuple(index)


def count(file: SourceFile | Span) -> int:
    """Return the number of rows. Raises RowError for what is no tar archive."""
    return len(_index(file.uri, file.etag))


def missing_fields(file: SourceFile | Span, fields: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return fields that none of the first rows has; none where no row can be read."""
    names: dict[str, None] = {}
    missing = list(fields)
    with open_input(file.uri, random_access=True) as stream:
        for key, members in _index(file.uri, file.etag)[:LOOKED_AT]:
            try:
                about = _about(stream, members)
            except RowError:
                continue
            names.update(dict.fromkeys([*members, *about]))
            missing = [name for name in missing if _find(name, fields[name], key, members, about) is None]
            if not missing:
                break
    return missing if names else [], list(names)


def rows(file: SourceFile | Span, start: int, stop: int, fields: Mapping[str, str]) -> Iterator[RawRow]:
    """Yield rows by number."""
    with open_input(file.uri, random_access=True) as stream:
        for position, (key, members) in enumerate(_index(file.uri, file.etag)[start:stop], start):
            try:
                yield RawRow(position, _values(stream, key, members, fields))
            except RowError as error:
                yield RawRow(position, error=str(error))


def _values(stream: BinaryIO, key: str, members: Members, fields: Mapping[str, str]) -> dict[str, Any]:
    about = _about(stream, members)
    values = {}
    for name, column in fields.items():
        value = _find(name, column, key, members, about)
        if isinstance(value, tuple):
            value = _read(stream, value)
            if name == "prompt":
                value = _text(value).strip()
        if value is not None:
            values[name] = value
    return values


def _find(name: str, column: str, key: str, members: Members, about: Mapping[str, Any]) -> Any:
    """Return the value of a field, the position of the member that holds it, or None."""
    if name in ("id", "prompt"):
        if column in about:
            return about[column]
        if name == "id":
            return key if column == "__key__" else None
        return members.get(column) or members.get("txt")
    kinds = EXTENSIONS[name]
    candidates = (column, *(f"{column}.{kind}" for kind in kinds), *kinds)
    return next((members[extension] for extension in candidates if extension in members), None)


def _about(stream: BinaryIO, members: Members) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        about = load_json(_text(_read(stream, members["json"])))
    except DuplicateKey as error:
        raise RowError(f"member json holds an object in which {error}.") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"member json is not valid JSON ({error}).") from error
    if not isinstance(about, dict):
        raise RowError("member json is not an object.")
    return about


def _read(stream: BinaryIO, place: Place) -> bytes:
    offset, size = place
    check_bytes(size, "archive member")
    stream.seek(offset)
    data = stream.read(size)
    if len(data) != size:
        raise RowError(f"archive ends inside a member: {len(data)} of {size} bytes are there.")
    return data


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError("member is not valid UTF-8 text.") from error

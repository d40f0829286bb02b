"""WebDataset archives (.tar, not compressed): members with one key are a row.

`photos/0001.jpg` has the key `photos/0001` and the extension `jpg`. Fields are found as follows, with `columns` of the
spec:
    image   the extension `<columns.image>`, `<columns.image>.png`..., else the first image extension
    depth   the extension `<columns.depth>`, `<columns.depth>.png`..., else npy, png, tif or tiff
    prompt  the key `<columns.prompt>` of the member `json`, else the member `<columns.prompt>` or `txt`
    id      the key `<columns.id>` of the member `json`; `columns.id: __key__` uses the row's key

The members of a row are read with their headers, in one pass over the archive. Nothing is extracted to a disk: names
are keys and never paths, and links, devices and folders are ignored.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple, cast

from jointdit.errors import RowError
from pipelines.records import SourceFile, Span
from pipelines.stages.readers.depth_maps import DEPTH_MAP_SUFFIXES
from pipelines.stages.readers.images import DECODE_ERRORS, IMAGE_SUFFIXES
from pipelines.stages.readers.json_lines import LOOKED_AT, DuplicateKey, load_json
from pipelines.stages.readers.opening import check_bytes, open_input
from pipelines.stages.readers.row_offsets import RowOffsets, Scan
from pipelines.stages.readers.rows import RawRow
from pipelines.store.safe_text import reason_of

EXTENSIONS = {
    "image": tuple(suffix.lstrip(".") for suffix in IMAGE_SUFFIXES),
    "depth": tuple(suffix.lstrip(".") for suffix in DEPTH_MAP_SUFFIXES),
}
MAX_HEADER_BYTES = 1 << 20  # of long names and other extended headers, which are read in full


class Member(NamedTuple):
    """The bytes of a member, or why they cannot be read. Members that no field needs have neither."""

    data: bytes = b""
    error: str = ""


Members = dict[str, Member]  # by extension
Group = tuple[str, Members]  # a row: its key and members


@dataclass
class _Archive:
    """What this process knows about one version of an archive."""

    offsets: RowOffsets = field(default_factory=lambda: RowOffsets(1))  # of the first header of each row
    headers: dict[str, str] = field(default_factory=dict)  # global pax headers, which hold for all following members


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
def _archive(uri: str, etag: str) -> _Archive:
    return _Archive()


class _Scan:
    """Reads the rows of an archive from a header on. Of wanted rows, the members with needed extensions are read."""

    def __init__(
        self, stream: BinaryIO, uri: str, archive: _Archive, wanted: Sequence[range], needed: Collection[str]
    ) -> None:
        self._stream, self._uri, self._archive = stream, uri, archive
        self._wanted, self._needed = wanted, needed
        self._length = stream.seek(0, io.SEEK_END)

    def __call__(self, number: int, offset: int) -> Iterator[tuple[Group, int]]:
        """Yield (row, offset of the next). A truncated archive ends with its last member.

        Raises:
            RowError: it is no archive, or damaged at or after the next row.
        """
        self._stream.seek(offset)
        group: Group = ("", {})
        try:
            headers = cast(BinaryIO, _Headers(self._stream, self._uri))
            archive: Any = tarfile.TarFile(fileobj=headers, pax_headers=self._archive.headers)
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile would keep all of them
                if member.size < 0 or member.issparse():
                    sentence = f"its member {member.name!r} is sparse or of a negative size"
                    raise RowError(f"{self._uri} is damaged: {sentence}.")
                key, extension = _split(member)
                if key:
                    if group[1] and (group[0] != key or extension in group[1]):
                        yield group, member.offset
                        number, group = number + 1, ("", {})
                    group = (key, group[1])
                    group[1][extension] = self._read(member, number, extension)
                if member.offset_data + member.size > self._length:
                    break
                if group[1] and archive.offset == self._archive.offsets.at_or_after(number + 1):
                    yield group, archive.offset
                    number, group = number + 1, ("", {})
            else:
                self._check_end(archive.offset)
        except RowError:
            raise
        except (tarfile.TarError, EOFError) as error:
            if number == 0 and not group[1]:
                raise RowError(f"{self._uri} is not a readable tar archive ({error}).") from error
        except DECODE_ERRORS as error:
            raise RowError(f"{self._uri} is damaged ({reason_of(error)}).") from error
        if group[1]:
            yield group, self._length

    def _read(self, member: tarfile.TarInfo, number: int, extension: str) -> Member:
        if extension not in self._needed or not _holds(self._wanted, number):
            return Member()
        try:
            check_bytes(member.size, "archive member")
        except RowError as error:
            return Member(error=str(error))
        self._stream.seek(member.offset_data)
        data = self._stream.read(member.size)
        if len(data) != member.size:
            return Member(error=f"archive ends inside a member: {len(data)} of {member.size} bytes are there.")
        return Member(data)

    def _check_end(self, offset: int) -> None:
        """Raise RowError where a damaged header ends the archive for tarfile: rows after it would be lost silently."""
        self._stream.seek(offset)
        block = self._stream.read(tarfile.BLOCKSIZE)
        if len(block) == tarfile.BLOCKSIZE and any(block):
            raise RowError(f"{self._uri} is damaged: the member header at byte {offset} cannot be read.")


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    """Return (key of the row, extension in lower case) of a member; an empty key where it belongs to no row."""
    folder, _, name = member.name.rpartition("/")
    stem, dot, extension = name.partition(".")
    if not (member.isfile() and stem and dot):
        return "", ""
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _holds(wanted: Sequence[range], number: int) -> bool:
    """Return whether a number is in one of sorted, disjoint ranges."""
    place = bisect_right(wanted, number, key=lambda positions: positions.start)
    return place > 0 and number in wanted[place - 1]


@contextlib.contextmanager
def _open_rows(
    file: SourceFile | Span, archive: _Archive, wanted: Sequence[range] = (), needed: Collection[str] = ()
) -> Iterator[tuple[BinaryIO, Scan[Group]]]:
    with open_input(file.uri) as stream:
        yield stream, _Scan(stream, file.uri, archive, wanted, needed)


def _rows(
    file: SourceFile | Span, wanted: Sequence[range], needed: Collection[str]
) -> Iterator[tuple[int, str, Members]]:
    """Yield (number, key, members) of rows."""
    archive = _archive(file.uri, file.etag)
    for number, (key, members) in archive.offsets.read(wanted, lambda: _open_rows(file, archive, wanted, needed)):
        yield number, key, members


def count(file: SourceFile | Span) -> int:
    """Return the number of rows. Raises RowError for what is no tar archive."""
    archive = _archive(file.uri, file.etag)
    return archive.offsets.count(lambda: _open_rows(file, archive))


def missing_fields(file: SourceFile | Span, fields: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return fields that none of the first rows has; none where no row can be read."""
    names: dict[str, None] = {}
    missing = list(fields)
    for _, key, members in _rows(file, [range(LOOKED_AT)], ("json",)):
        try:
            about = _about(members)
        except RowError:
            continue
        names.update(dict.fromkeys([*members, *about]))
        missing = [name for name in missing if _find(name, fields[name], key, members, about) is None]
        if not missing:
            break
    return missing if names else [], list(names)


def rows(file: SourceFile | Span, wanted: Sequence[range], fields: Mapping[str, str]) -> Iterator[RawRow]:
    """Yield rows by number."""
    for position, key, members in _rows(file, wanted, _extensions(fields)):
        try:
            yield RawRow(position, _values(key, members, fields))
        except RowError as error:
            yield RawRow(position, error=str(error))


def _extensions(fields: Mapping[str, str]) -> set[str]:
    """Return the extensions of members that may hold a value of these fields."""
    extensions = {"json"}
    for name, column in fields.items():
        extensions.update(_candidates(name, column))
    return extensions


def _candidates(name: str, column: str) -> tuple[str, ...]:
    """Return the extensions of members that may hold a field, in order of preference; json is none of them."""
    if name == "id":
        return ()
    if name == "prompt":
        return (column, "txt")
    kinds = EXTENSIONS[name]
    return (column, *(f"{column}.{kind}" for kind in kinds), *kinds)


def _values(key: str, members: Members, fields: Mapping[str, str]) -> dict[str, Any]:
    about = _about(members)
    values = {}
    for name, column in fields.items():
        value = _find(name, column, key, members, about)
        if isinstance(value, Member):
            value = _data(value)
            if name == "prompt":
                value = _text(value).strip()
        if value is not None:
            values[name] = value
    return values


def _find(name: str, column: str, key: str, members: Members, about: Mapping[str, Any]) -> Any:
    """Return the value of a field, the member that holds it, or None."""
    if name in ("id", "prompt") and column in about:
        return about[column]
    if name == "id":
        return key if column == "__key__" else None
    return next((members[extension] for extension in _candidates(name, column) if extension in members), None)


def _about(members: Members) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        about = load_json(_text(_data(members["json"])))
    except DuplicateKey as error:
        raise RowError(f"member json holds an object in which {error}.") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"member json is not valid JSON ({error}).") from error
    if not isinstance(about, dict):
        raise RowError("member json is not an object.")
    return about


def _data(member: Member) -> bytes:
    if member.error:
        raise RowError(member.error)
    return member.data


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError("member is not valid UTF-8 text.") from error

"""List files, folders and globs as source files, each of them an input version."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fsspec.utils import glob_translate

from jointdit.errors import InputError
from pipelines.ledger.versions import read_latest
from pipelines.records import SourceFile
from pipelines.stages.readers.depth_maps import DEPTH_MAP_SUFFIXES
from pipelines.stages.readers.images import IMAGE_SUFFIXES
from pipelines.store.addresses import impossible
from pipelines.store.explain import explained
from pipelines.store.safe_text import printable
from pipelines.store.storage import Storage, etag_of, for_input, uri_of

if TYPE_CHECKING:
    from pipelines.spec.job import InputSpec

MAGIC = re.compile(r"[*?\[]")  # a character that makes an address a glob
TABLE_SUFFIXES = (".jsonl", ".csv", ".jsonl.gz", ".csv.gz", ".parquet", ".tar")
SUFFIXES = {
    "joint": (".txt", ".txt.gz", *TABLE_SUFFIXES),
    "depth": (*IMAGE_SUFFIXES, *TABLE_SUFFIXES),
    "depth-to-image": (*DEPTH_MAP_SUFFIXES, *TABLE_SUFFIXES),
    "encode": TABLE_SUFFIXES,
    "prepare": TABLE_SUFFIXES,
}


def list_files(spec_input: InputSpec, task: str) -> list[SourceFile]:
    """Return all files that `input.uri` names and the task can read, sorted by uri, each once.

    A folder is listed with its subfolders. In folders and globs, hidden files and files of other kinds are ignored. On
    a local disk, links to files are followed, because the folder is the user's own; links to folders are not. In a
    dataset that this system published, the kept samples of the latest version are listed.

    Raises:
        InputError: an address names nothing.
        StoreError, TransientError: the store does not answer.
    """
    files = [file for uri in spec_input.uri for file in _list_uri(uri, SUFFIXES[task])]
    files.sort(key=lambda file: file.uri)
    return [file for number, file in enumerate(files) if not number or file.uri != files[number - 1].uri]


def suffix_of(uri: str) -> str:
    """Return the suffix that decides the format, in lower case: ".jsonl", ".jsonl.gz", ".png"."""
    name = uri.rsplit("/", 1)[-1].lower()
    stem, suffix = posixpath.splitext(name)
    return posixpath.splitext(stem)[1] + suffix if suffix == ".gz" else suffix


def _list_uri(uri: str, suffixes: tuple[str, ...]) -> list[SourceFile]:
    fs, path = for_input(uri)
    kinds = ", ".join(suffixes)
    infos: Iterable[dict[str, Any]]
    with explained(uri, at_start=True):
        try:
            info = fs.info(path)
        except FileNotFoundError:
            magic = MAGIC.search(path)
            if magic is None:
                raise InputError(f"input.uri {printable(uri)} does not exist: correct the address.") from None
            prefix = path[: magic.start()].rpartition("/")[0]
            infos = _glob(fs, path)
        else:
            if info["type"] != "directory":
                if not _is_file(info):
                    raise InputError(f"input.uri {printable(uri)} is no regular file: give a file or a folder.")
                if suffix_of(path) not in suffixes:
                    raise InputError(f"input.uri {printable(uri)} is of no kind this task reads: give one of {kinds}.")
                try:
                    return [_source_file(fs, info, posixpath.dirname(path))]
                except FileNotFoundError:
                    raise InputError(
                        f"input.uri {printable(uri)} does not exist any more: correct the address."
                    ) from None
            prefix, infos = path.rstrip("/"), _published(uri) or _find(fs, path)
        files = []
        for info in infos:
            name = info["name"]
            if _is_file(info) and suffix_of(name) in suffixes and not _is_hidden(name[len(prefix) :]):
                with contextlib.suppress(FileNotFoundError):  # a local file that was deleted since it was listed
                    files.append(_source_file(fs, info, prefix))
    if not files:
        raise InputError(f"input.uri {printable(uri)} has no file that this task reads: give one of {kinds}.")
    _refuse_mixture(uri, files)
    return files


def _find(fs: Any, path: str) -> Iterator[dict[str, Any]]:
    """Yield the files in a folder and its subfolders."""
    if "s3" not in fs.protocol:
        yield from fs.find(path, detail=True).values()
        return
    yield from _list_s3(fs, f"{path.rstrip('/')}/")


def _glob(fs: Any, path: str) -> Iterator[dict[str, Any]]:
    """Yield the files that a glob matches."""
    folder, _, name = path.rpartition("/")
    if "s3" not in fs.protocol or not folder or MAGIC.search(folder) or "**" in name:
        yield from fs.glob(path, detail=True).values()
        return
    pattern = re.compile(glob_translate(path))
    for info in _list_s3(fs, f"{folder}/{MAGIC.split(name)[0]}", Delimiter="/"):
        if pattern.match(info["name"]):
            yield info


def _list_s3(fs: Any, prefix: str, **query: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a prefix. s3fs would hold the descriptions of all of them; here one page is in memory."""
    bucket, _, key = prefix.partition("/")
    request = {"Bucket": bucket, "Prefix": key, **query, **fs.req_kw}
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        for found in page.get("Contents", ()):
            yield {"name": f"{bucket}/{found['Key']}", "type": "file", "size": found["Size"], "ETag": found["ETag"]}
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _published(uri: str) -> list[dict[str, Any]]:
    """Return the tables of kept samples in the latest version, if the folder is a published dataset."""
    storage = Storage(uri)
    version = read_latest(storage)
    return [storage.fs.info(storage.path(path)) for path in version.files_of("kept")] if version else []


def _source_file(fs: Any, info: dict[str, Any], prefix: str) -> SourceFile:
    """Return a listed file as a SourceFile. Raises FileNotFoundError for a local file that is gone."""
    name = info["name"]
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise InputError(f"input.uri holds the file {name!r}, whose name is not valid UTF-8: rename it.")
    uri = uri_of(fs, name)
    if reason := impossible(name, uri.partition("://")[0] if "://" in uri else ""):
        raise InputError(f"input.uri holds {uri!r}, whose name {reason}: rename it.")
    if prefix and not name.startswith(f"{prefix.rstrip('/')}/"):  # a store that treats a//b as a/b
        raise InputError(f"input.uri {prefix} is listed by its store as {uri!r}: write the address as the store does.")
    return SourceFile(
        uri=uri,
        etag=etag_of(info),
        size_bytes=int(info["size"]),
        relative_path=name[len(prefix) :].lstrip("/") if prefix else name.lstrip("/"),
    )


def _is_file(info: dict[str, Any]) -> bool:
    # fsspec lists a link to a local file as "other".
    return info["type"] == "file" or (bool(info.get("islink")) and os.path.isfile(info["name"]))


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))


def _refuse_mixture(uri: str, files: list[SourceFile]) -> None:
    """Refuse a folder of images with a table about them: both would be read, and each image would be labelled twice."""
    table = next((file.relative_path for file in files if suffix_of(file.uri) in TABLE_SUFFIXES), None)
    if table and any(suffix_of(file.uri) in IMAGE_SUFFIXES + DEPTH_MAP_SUFFIXES for file in files):
        raise InputError(
            f"input.uri {printable(uri)} holds single images and tables ({printable(table)}): name one kind, "
            "such as folder/*.png or the table alone."
        )

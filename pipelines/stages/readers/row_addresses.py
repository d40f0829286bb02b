"""Resolve and fetch addresses that rows give.

An address that cannot be read (nothing there, no access, no such bucket, invalid name) is the fault of its row. It is
the fault of the job only if the row's own table cannot be read any more either: S3 answers 403 for a missing key where
listing is not allowed, and the same 403 for expired credentials. So the table is checked before a row is blamed.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Mapping
from typing import Any

from jointdit.errors import RowError, StoreError
from pipelines.stages.readers.opening import fetch, path_faults
from pipelines.store.addresses import normalise
from pipelines.store.explain import explained
from pipelines.store.safe_text import printable, quoted, shortened
from pipelines.store.storage import etag_of, for_input


def stored_value(value: Any, name: str, manifest: str) -> bytes | list[Any]:
    """Return the encoded bytes (or nested lists) of an image or depth value. A path is fetched.

    Raises:
        RowError: there is no such value, or its address cannot be read.
        TransientError, StoreError: the store fails, or `manifest`, the file of the row, cannot be read either.
    """
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise RowError(f"{name} is missing.")
    if isinstance(value, bytes | list):
        return value
    if not isinstance(value, str):
        raise RowError(f"{name} is {quoted(value)}: give encoded bytes or a path.")
    uri = _beside(value, name, manifest)
    try:
        return fetch_for_row(uri, name, manifest)
    except FileNotFoundError:
        raise RowError(f"{name} {shortened(uri)} does not exist, or is no file.") from None


def etag_of_path(path: str, name: str, manifest: str) -> str:
    """Return the etag of the file that a row of `manifest` names as its field `name`, with one request.

    Raises what `fetch_for_row` raises for such a path, and ValueError.
    """
    uri = _beside(path, name, manifest)
    fs, key = for_input(uri)
    with explained(uri), contextlib.nullcontext() if "://" in uri else path_faults(key):
        return etag_of(fs.info(key))


def fetch_for_row(uri: str, name: str, manifest: str) -> bytes:
    """Return the bytes at `uri`, which a row of the file `manifest` gives for its field `name`.

    Raises:
        RowError: this address alone cannot be read.
        FileNotFoundError: nothing exists there.
        TransientError, StoreError: the store fails, or `manifest` cannot be read either.
    """
    try:
        return fetch(uri)
    except RowError:
        raise
    except StoreError as error:
        check_reachable(posixpath.dirname(manifest) if uri == manifest else manifest)
        reason = str(error).removeprefix(f"{uri}: ")
        raise RowError(f"{name} {shortened(uri)} cannot be read: {printable(reason)}") from None
    except ValueError as error:  # of a library that builds a request from it
        raise RowError(f"{name} is {quoted(uri)}, which is no path.") from error


def check_reachable(uri: str) -> None:
    """Raise StoreError or TransientError where a file or folder of the input cannot be accessed."""
    with explained(uri), contextlib.suppress(FileNotFoundError):  # a missing file is reported elsewhere
        fs, path = for_input(uri)
        fs.info(path)


def _beside(path: str, name: str, manifest: str) -> str:
    """Resolve a path in a table: relative to the table's folder, or absolute in the same kind of store."""
    scheme = manifest.partition("://")[0] if "://" in manifest else ""
    if not path.strip():
        raise RowError(f"{name} is empty.")
    if "\0" in path:
        raise RowError(f"{name} is {quoted(path)}, which is no path.")
    if "://" in path:
        return _absolute(path, name, scheme)
    if not scheme:
        return posixpath.normpath(posixpath.join(posixpath.dirname(manifest), path))
    bucket, _, key = manifest.partition("://")[2].partition("/")
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(key), path))
    if path.startswith("/") or joined == ".." or joined.startswith("../"):
        raise RowError(f"{name} is {quoted(path)}, outside the bucket of its table: give a path relative to the table.")
    return f"{scheme}://{bucket}/{joined}"


def _absolute(path: str, name: str, scheme: str) -> str:
    """Normalise an address with a scheme, which must be that of the table."""
    try:
        uri = normalise(path)
    except ValueError as error:
        raise RowError(f"{name} is {quoted(path)}, which is no address this can read.") from error
    if (uri.partition("://")[0] if "://" in uri else "") != scheme:
        raise RowError(f"{name} is {quoted(path)}, in another kind of store than its table: put both in one.")
    if not scheme and not path.partition("://")[2].startswith(("/", "~")):  # a host, or a path relative to nothing
        raise RowError(f"{name} is {quoted(path)}: after file:// give an absolute path, as in file:///data/a.png.")
    return uri

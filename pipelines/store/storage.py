"""One interface to local folders and object stores, with a create-only write.

`Storage(uri)` is a folder or prefix. Names inside it are relative, with "/". It is small and picklable; each process
opens its own connection. Endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...)
or the usual AWS files.

How the create-only write works, and why (all measured):
  local    fsspec's mode="create" checks for existence and then opens: two processes both won 225 of 1,500 races, and a
           kill leaves half a file. So: temporary file, fsync, os.link to the final name (local_files.py).
  S3       pipe_file(mode="create") sends If-None-Match. open(path, "xb") does not for zero bytes, so empty objects are
           refused here. Some servers report a failed precondition as OSError errno 22. After a lost response the
           client's own retry finds its own object. So every answer but success is settled by reading back: our bytes
           mean success. s3fs sends 100 MiB and more in parts, which end with another request: the probe does not cover
           the condition there, and a lost answer to it looks like a missing upload. So objects are created in one
           request, which S3 accepts up to 5 GiB.
  GCS      pipe_file(mode="create") sends ifGenerationMatch=0 (gcsfs), in one request below 50 MiB, which holds for the
           ledger's objects. A 412 becomes FileExistsError.
  Azure    pipe_file(mode="create") is upload_blob(overwrite=False) (adlfs), which sends If-None-Match: *.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import ClientError
from fsspec.spec import AbstractFileSystem

from jointdit.errors import InputError, JointDiTError, StoreError
from pipelines.store import local_files
from pipelines.store.addresses import SCHEMES, impossible, normalise
from pipelines.store.connections import filesystem
from pipelines.store.errors import CommitFailed, CommitUnknown, TransientError
from pipelines.store.explain import explain, explained, is_unreachable, no_bucket, store_exceptions

CREATE_ATTEMPTS = 4
IN_ONE_REQUEST = {"chunksize": 5 * 2**30}
logger = logging.getLogger(__name__)


class AlreadyExists(Exception):
    """Another writer's object exists, and a create-only write left it as it is."""


@dataclass(frozen=True)
class ObjectInfo:
    """A listed object: its name in the storage, its size in bytes, and an etag that changes when it is rewritten."""

    path: str
    size: int
    etag: str
    modified: float  # seconds since 1970, by the store's clock


def for_input(uri: str) -> tuple[AbstractFileSystem, str]:
    """Return the fsspec file system of a uri and the path in it. Raises InputError for an invalid address."""
    try:
        uri = normalise(uri)
    except ValueError as error:
        raise InputError(f"{error}.") from None
    return filesystem(uri), uri.partition("://")[2] or uri


def uri_of(fs: AbstractFileSystem, path: str) -> str:
    """Return the normalised uri of a path that a file system listed."""
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return path if protocol in ("file", "local") else f"{SCHEMES[protocol]}://{path.lstrip('/')}"


def etag_of(info: dict[str, Any]) -> str:
    """Return what changes when a file changes: the store's ETag, or a local file's size and mtime in nanoseconds."""
    etag = (
        info.get("ETag")
        or info.get("etag")
        or info.get("md5Hash")
        or info.get("content_settings", {}).get("content_md5")
    )
    if etag:
        return str(etag).strip('"')
    nanoseconds = os.stat(info["name"]).st_mtime_ns
    return f"{info['size']}-{nanoseconds}"


class Storage:
    """A folder or prefix in a store. The module docstring describes its create-only write.

    Every method raises StoreError for permanent faults (bucket missing, no access, endpoint down at the start) and
    TransientError for faults that may pass; FileNotFoundError if a named object does not exist.
    """

    def __init__(self, uri: str, single_writer: bool = False) -> None:
        """`single_writer`: the user guarantees a single writer, so a store without create-only writes is allowed."""
        try:
            self.uri = normalise(uri)
        except ValueError as error:
            raise StoreError(f"{error}.") from None
        self.single_writer = single_writer
        self._fs: AbstractFileSystem | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "single_writer": self.single_writer, "_fs": None}

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of the local file system."""
        return "://" not in self.uri

    @property
    def fs(self) -> AbstractFileSystem:
        """The fsspec file system, opened in this process."""
        if self._fs is None:
            self._fs = filesystem(self.uri)
        return self._fs

    def path(self, name: str) -> str:
        """Return the file system's path of a name in this storage."""
        root = self.uri.partition("://")[2] or self.uri
        if not name:
            return root
        if name.startswith("/") or ".." in name.split("/"):  # a tampered ledger may contain one
            raise StoreError(f"{self.uri}: the name {name!r} leads out of it: restore the ledger from a backup.")
        if not self._can_name(name):
            raise StoreError(f"{self.uri}: {name!r} is no name of an object: restore the ledger from a backup.")
        return f"{root.rstrip('/')}/{name}"

    def _can_name(self, name: str) -> bool:
        """Return whether an object can have this name: it is neither collapsed, nor cut, nor impossible to encode."""
        scheme = "" if self.is_local else self.uri.partition("://")[0]
        return not {"", ".", ".."} & set(name.split("/")) and not impossible(name, scheme)

    def uri_of(self, name: str) -> str:
        """Return the full address of a name in this storage, for messages and cards."""
        return f"{self.uri.rstrip('/')}/{name}" if name else self.uri

    def read_bytes(self, name: str) -> bytes:
        """Return the whole object. Raises FileNotFoundError."""
        if self.is_local:
            with self.open(name) as file, explained(self.uri, name):
                return file.read()
        whole = {"max_concurrency": 1} if self.uri.startswith("s3://") else {}  # else s3fs asks for the size first
        with explained(self.uri, name):
            return bytes(self.fs.cat_file(self.path(name), **whole))

    def open(self, name: str) -> BinaryIO:
        """Open the object as a seekable binary file, to read columns of a Parquet file without the rest."""
        with explained(self.uri, name):
            if self.is_local:
                return local_files.open_file(self.path(name))
            file: BinaryIO = self.fs.open(self.path(name), "rb")
            return file

    def exists(self, name: str) -> bool:
        """Return whether there is an object of this name."""
        try:
            self.info(name)
        except FileNotFoundError:
            return False
        return True

    def info(self, name: str) -> ObjectInfo:
        """Return size and version of an object. Raises FileNotFoundError, also for a folder."""
        with explained(self.uri, name):
            if self.is_local:
                return self._file_info(self.path(name))
            info = self.fs.info(self.path(name))
            if info["type"] != "file":
                raise FileNotFoundError(name)
            return self._object_info(info)

    def names(self, folder: str, suffix: str = "", everything: bool = False) -> list[str]:
        """Return the names of the objects in a folder and its subfolders, relative to it, sorted.

        everything: also of local pipes, broken links and empty folders ("name/"), and of keys that cannot be used.
        """
        begin = len(self.path(folder).rstrip("/")) + 1
        if self.is_local:
            with explained(self.uri, folder):
                paths = list(self._walk(folder, temporary=False, everything=everything))
        else:
            paths = [info["name"] for info in self._find(folder, everything)]
        # An empty name is the marker that the consoles of object stores create for a folder.
        return sorted(path[begin:] for path in paths if path.endswith(suffix) and path[begin:])

    def unfinished(self, folder: str) -> list[tuple[ObjectInfo, str]]:
        """Return local temporary files, of running or killed writers, each with the name that it was to get."""
        if not self.is_local:
            return []  # an object store shows only complete objects
        with explained(self.uri, folder):
            files = sorted(self._walk_files(folder, temporary=True), key=lambda file: file.path)
        return [(file, local_files.final_name(file.path)) for file in files]

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Return all objects under a folder, sorted by name; none if the folder does not exist."""
        if self.is_local:
            with explained(self.uri, prefix):
                files = list(self._walk_files(prefix, temporary=False))
        else:
            files = [self._object_info(info) for info in self._find(prefix)]
        return sorted(files, key=lambda file: file.path)

    def _find(self, prefix: str, everything: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the objects under a prefix of an object store, as fsspec describes them.

        A key that no call can name again (such as `x?versionId=1`, which s3fs takes for a version of x) is left out.
        """
        begin = len(self.path("")) + 1
        with explained(self.uri, prefix):
            infos = self.fs.find(self.path(prefix), detail=True)
        for info in infos.values():
            if info["type"] == "file" and (everything or self._can_name(info["name"].lstrip("/")[begin:])):
                yield info

    def _walk_files(self, prefix: str, temporary: bool) -> Iterator[ObjectInfo]:
        """Yield local files under a folder. fsspec's own listing fails completely if a file vanishes meanwhile."""
        for path in self._walk(prefix, temporary):
            with contextlib.suppress(FileNotFoundError):
                yield self._file_info(path)

    def _walk(self, prefix: str, temporary: bool, everything: bool = False) -> Iterator[str]:
        """Yield paths of local files under a folder."""
        for path in local_files.walk(self.path(prefix), everything):
            if os.path.basename(path).startswith(local_files.TEMPORARY) == temporary:
                yield path

    def _file_info(self, path: str) -> ObjectInfo:
        status = local_files.stat_file(path)
        name = path[len(self.path("").rstrip("/")) + 1 :]
        return ObjectInfo(name, status.st_size, f"{status.st_size}-{status.st_mtime_ns}", status.st_mtime)

    def delete(self, name: str) -> None:
        """Remove an object, and the local folder that becomes empty. A missing object is no error."""
        with explained(self.uri, name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))
            if self.is_local and "/" in name:
                with contextlib.suppress(OSError):  # the folder holds more files
                    os.rmdir(os.path.dirname(self.path(name)))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write an object, replacing an existing one. Readers see the old bytes or the new ones, never a part."""
        final = Path(self.path(name))
        if self.is_local:
            with self._written(name), local_files.temporary_file(final, data) as temporary:
                local_files.rename(temporary, final, data)
                local_files.flush_folder(final.parent)  # a commit may name it, and commits survive a power cut
        else:
            with explained(self.uri, name):
                self.fs.pipe_file(self.path(name), data)

    def create_bytes(self, name: str, data: bytes) -> None:
        """Write an object only if its name is free. The `data` of two writers must differ, as by a token.

        Raises:
            AlreadyExists: another writer's object exists.
            CommitFailed: the store refused and nothing landed.
            CommitUnknown: whether it landed cannot be determined now.
        """
        assert data, "an empty object does not identify its writer"
        if self.is_local:
            self._create_local(name, data)
        elif self.single_writer:
            if self.exists(name):
                self._settle(name, data)
            else:
                self.write_bytes(name, data)
        else:
            self._create_remote(name, data)

    def probe(self) -> None:
        """Check at the start that the store can be reached, written and read, and refuses a second create.

        Raises:
            StoreError: bucket missing, no access, endpoint down, or a store without create-only writes.
        """
        name = f"_probe/{secrets.token_hex(8)}"
        with explained(self.uri, at_start=True):
            try:
                self._probe(name)
            except BaseException:
                with contextlib.suppress(JointDiTError, OSError):  # the first error is the one to report
                    self.delete(name)
                raise
            self.delete(name)

    def _probe(self, name: str) -> None:
        """Create, create again, read and list an object."""
        try:
            self.create_bytes(name, b"first")
        except FileNotFoundError:  # gcsfs has no other error for a missing bucket
            raise no_bucket(self.uri) from None
        if not self.single_writer and not self._refuses_second(name):
            raise StoreError(
                f"{self.uri} overwrites objects that must be created only once: "
                "use another store, or --single-writer if nothing else writes there."
            )
        try:
            is_whole = self.read_bytes(name) == b"first"
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            raise StoreError(f"{self.uri} does not return what was written: use another store.")
        if name.partition("/")[2] not in self.names("_probe"):  # some stores treat a//b as a/b
            raise StoreError(f"{self.uri} does not list what was written: give the address as the store lists it.")
        with self._written(name):
            is_flushed = not self.is_local or local_files.flush_folder(Path(self.path("_probe")))
        if not is_flushed:
            logger.warning("%s: this file system does not flush folders: a power cut may undo commits", self.uri)

    def _refuses_second(self, name: str) -> bool:
        try:
            self.create_bytes(name, b"second")
        except AlreadyExists:
            return True
        return False

    @contextlib.contextmanager
    def _written(self, name: str) -> Iterator[None]:
        """Explain errors of a local write. A writer never gets a FileNotFoundError."""
        try:
            with explained(self.uri, name):
                yield
        except FileNotFoundError:
            raise TransientError(f"{self.uri_of(name)}: its folder was removed while it was written.") from None

    def _create_local(self, name: str, data: bytes) -> None:
        final, is_in_doubt = Path(self.path(name)), False
        try:
            with self._written(name), local_files.temporary_file(final, data) as temporary:
                is_in_doubt = True
                try:
                    local_files.link(temporary, final)
                except FileExistsError:
                    raise AlreadyExists(name) from None
                except local_files.HardLinksMissing as error:
                    if not self.single_writer:
                        raise StoreError(
                            f"{self.uri}: this file system has no hard links ({error}), so nothing there can be "
                            "created only once: use another one, or --single-writer if nothing else writes there."
                        ) from None
                    if final.exists():
                        raise AlreadyExists(name) from None
                    local_files.rename(temporary, final, data)
                local_files.flush_folder(final.parent)
        except TransientError as error:
            kind = CommitUnknown if is_in_doubt else CommitFailed
            raise kind(str(error)) from error.__cause__

    def _create_remote(self, name: str, data: bytes) -> None:
        address = self.uri_of(name)
        options = IN_ONE_REQUEST if self.uri.startswith("s3://") else {}
        for attempt in range(CREATE_ATTEMPTS):
            try:
                self.fs.pipe_file(self.path(name), data, mode="create", **options)
                return
            except store_exceptions() as error:
                doubtful = error
            explanation = explain(doubtful, self.uri, name)
            if not isinstance(explanation, TransientError):
                raise explanation from None
            if is_unreachable(doubtful):
                raise CommitUnknown(str(explanation)) from doubtful
            try:
                if self._settle(name, data):
                    return
            except TransientError as error:
                raise CommitUnknown(
                    f"{address}: it may have been created, and cannot be read back."
                ) from error.__cause__
            if attempt + 1 < CREATE_ATTEMPTS:
                time.sleep(0.2 * 2**attempt)  # after a 409 of a concurrent writer, or throttling
        if isinstance(doubtful.__cause__, ClientError):
            raise CommitFailed(f"{address}: the store refused to create it ({doubtful}).") from doubtful
        raise CommitUnknown(f"{address}: the store's answer to creating it was lost.") from doubtful

    def _settle(self, name: str, data: bytes) -> bool:
        """Read an object back after a doubtful answer. Returns True if it is ours, False if there is none."""
        try:
            stored = self.read_bytes(name)
        except FileNotFoundError:
            return False
        if stored != data:
            raise AlreadyExists(name)
        return True

    def _object_info(self, info: dict[str, Any]) -> ObjectInfo:
        root = self.path("").lstrip("/") if not self.is_local else self.path("")
        name = info["name"][len(root) :].lstrip("/")
        modified = info.get("LastModified") or info.get("mtime") or info.get("last_modified") or 0.0
        seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
        return ObjectInfo(name, int(info["size"] or 0), etag_of(info), seconds)

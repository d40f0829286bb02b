"""Normalise local paths and store uris, and test whether one lies inside another."""

from __future__ import annotations

import glob
import os
from pathlib import PurePosixPath

SCHEMES = {
    "": "file",
    "file": "file",
    "local": "file",
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "abfs": "abfs",
    "az": "abfs",
}


def normalise(uri: str) -> str:
    """Return the normalised form of a uri: an absolute local path, or scheme://bucket/key without a trailing slash.

    Raises:
        ValueError: another kind of store, memory://, an address without a bucket, or an address that no store can have.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "", uri
    if not rest.strip("/") and not (rest and SCHEMES.get(scheme) == "file"):
        raise ValueError(f"{uri!r} names no folder or bucket: give a path or s3://bucket/prefix")
    if scheme == "memory":
        raise ValueError(
            "memory:// lives in one process and cannot be shared by workers: give a folder or s3://bucket/prefix"
        )
    if scheme not in SCHEMES:
        raise ValueError(f"{scheme}:// is not a supported store: give a local path, s3://, gs:// or abfs://")
    if reason := impossible(rest, scheme):
        raise ValueError(f"{uri!r} {reason}: correct the address")
    if SCHEMES[scheme] != "file" and rest.startswith("/"):
        raise ValueError(f"{uri!r} has no bucket after ://: give {scheme}://bucket/prefix")
    if SCHEMES[scheme] == "file":
        return os.path.abspath(os.path.expanduser(rest))
    return f"{SCHEMES[scheme]}://{rest.rstrip('/')}"


def impossible(path: str, scheme: str) -> str:
    """Return why no file or object can have this path, as the end of a sentence; empty where one can."""
    try:
        os.fsencode(path) if SCHEMES[scheme] == "file" else path.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if "\0" in path:
        return "has a NUL character"
    if SCHEMES[scheme] == "s3" and "?versionId=" in path:  # s3fs cuts it off and returns another object
        return "has ?versionId=, and versions of an object cannot be read"
    return ""


def is_inside(uri: str, folder: str) -> bool:
    """Return whether a normalised uri is the folder or lies in it."""
    return uri == folder or uri.startswith(folder.rstrip("/") + "/")


def overlaps(pattern: str, folder: str) -> bool:
    """Return whether a listing of `pattern` (a folder or a glob) could include files inside `folder`."""
    if not glob.has_magic(pattern):
        return is_inside(folder, pattern)
    parts, folder_parts = pattern.split("/"), folder.split("/")
    for position, part in enumerate(parts):
        if part == "**":
            return True
        if position >= len(folder_parts):
            return True  # the folder matched so far, and the glob continues inside it
        if not PurePosixPath(folder_parts[position] or "-").match(part or "-"):
            return False
    return len(parts) > len(folder_parts)

"""The files of an output as a reader of no engine sees them: a local folder, or a prefix of a bucket by botocore."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Protocol

import botocore.session

Stamp = tuple[int, str]  # size, and what changes when an object is written anew


class Objects(Protocol):
    """An output."""

    def listed(self) -> dict[str, Stamp]:
        """Every object there is, by its name in the output; local files that are being written are none."""

    def read(self, name: str) -> bytes:
        """An object's bytes."""


class LocalObjects:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def listed(self) -> dict[str, Stamp]:
        found: dict[str, Stamp] = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name.startswith(".tmp-"):
                    continue
                path = os.path.join(folder, name)
                status = os.stat(path)
                found[os.path.relpath(path, self.folder)] = status.st_size, f"{status.st_mtime_ns}-{status.st_ino}"
        return found

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


class BucketObjects:
    """A prefix of a bucket; endpoint and credentials are those of the environment."""

    def __init__(self, uri: str) -> None:
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        self.client = _client()

    def listed(self) -> dict[str, Stamp]:
        found: dict[str, Stamp] = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix):
            for each in page.get("Contents", ()):
                found[each["Key"].removeprefix(self.prefix)] = each["Size"], f"{each['ETag']}{each['LastModified']}"
        return found

    def read(self, name: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].read()
        return body


@functools.lru_cache(maxsize=1)
def _client() -> Any:
    """Of this process; those that are forked off it open connections of their own, and do not use it."""
    return botocore.session.get_session().create_client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def empty_bucket(name: str) -> str:
    """The address of a bucket of this name without objects."""
    if name in [each["Name"] for each in _client().list_buckets()["Buckets"]]:
        bucket = BucketObjects(f"s3://{name}")
        for key in bucket.listed():
            bucket.client.delete_object(Bucket=name, Key=key)
    else:
        _client().create_bucket(Bucket=name)
    return f"s3://{name}"


def objects_of(uri: str) -> Objects:
    """The objects of an output."""
    return BucketObjects(uri) if uri.startswith("s3://") else LocalObjects(Path(uri))

"""The files of an output without the engine: a local folder, or a bucket's prefix by botocore."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Protocol

import botocore.session

Stamp = tuple[int, str]  # size, and a value that changes when an object is rewritten


class Objects(Protocol):
    """The objects of an output."""

    def listed(self) -> dict[str, Stamp]:
        """Return the stamp of every object by name, without temporary local files."""

    def read(self, name: str) -> bytes:
        """Return the bytes of an object."""


class LocalObjects:
    """The objects of a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def listed(self) -> dict[str, Stamp]:
        stamps: dict[str, Stamp] = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name.startswith(".tmp-"):
                    continue
                path = os.path.join(folder, name)
                status = os.stat(path)
                stamps[os.path.relpath(path, self.folder)] = status.st_size, f"{status.st_mtime_ns}-{status.st_ino}"
        return stamps

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


class BucketObjects:
    """The objects under a prefix of a bucket, with endpoint and credentials of the environment."""

    def __init__(self, uri: str) -> None:
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        self.client = _client()

    def listed(self) -> dict[str, Stamp]:
        stamps: dict[str, Stamp] = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix):
            for item in page.get("Contents", ()):
                stamps[item["Key"].removeprefix(self.prefix)] = item["Size"], f"{item['ETag']}{item['LastModified']}"
        return stamps

    def read(self, name: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].read()
        return body


@functools.lru_cache(maxsize=1)
def _client() -> Any:
    """Return the client of this process. Forked processes do not use it."""
    return botocore.session.get_session().create_client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def empty_bucket(name: str) -> str:
    """Create or empty a bucket; return its address."""
    if name in [bucket["Name"] for bucket in _client().list_buckets()["Buckets"]]:
        bucket = BucketObjects(f"s3://{name}")
        for key in bucket.listed():
            bucket.client.delete_object(Bucket=name, Key=key)
    else:
        _client().create_bucket(Bucket=name)
    return f"s3://{name}"


def objects_of(uri: str) -> Objects:
    """Return the objects of an output."""
    return BucketObjects(uri) if uri.startswith("s3://") else LocalObjects(Path(uri))

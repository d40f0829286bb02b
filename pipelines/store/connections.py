"""Connections to stores: one fsspec file system a process, with what its scheme needs from the environment."""

from __future__ import annotations

import functools
import os
from urllib.parse import urlsplit

import fsspec
from fsspec.spec import AbstractFileSystem

from jointdit.errors import StoreError
from pipelines.store.explain import CREDENTIALS_OF

PARALLEL_REQUESTS = 16  # small objects that are read, written or deleted at once
PARALLEL_TABLES = 4  # whole tables that are held in memory at once


def filesystem(uri: str) -> AbstractFileSystem:
    """The file system of a normalised uri. Raises StoreError where its package or its account is missing."""
    scheme = urlsplit(uri).scheme
    if scheme != "s3":
        try:
            return fsspec.filesystem(scheme or "file", **({"use_listings_cache": False} if scheme else {}))
        except ImportError:
            extra = "gcs" if scheme == "gs" else "azure"
            raise StoreError(f"{scheme}:// needs a package that is not here: install jointdit[{extra}].") from None
        except ValueError as error:  # of adlfs, without an account
            raise StoreError(f"{uri}: {' '.join(str(error).split())}: {CREDENTIALS_OF[scheme]}.") from None
    names = sorted(name for name in os.environ if name.startswith("AWS_"))
    return _open_s3(tuple((name, os.environ[name]) for name in names))


@functools.lru_cache(maxsize=8)
def _open_s3(environment: tuple[tuple[str, str], ...]) -> AbstractFileSystem:
    """One connection a process and environment: fsspec's own cache would keep the credentials of an earlier one."""
    settings = dict(environment)
    fs = fsspec.filesystem(
        "s3",
        endpoint_url=settings.get("AWS_ENDPOINT_URL_S3") or settings.get("AWS_ENDPOINT_URL") or None,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={"connect_timeout": 3, "read_timeout": 60, "retries": {"mode": "standard", "max_attempts": 3}},
    )
    fs.retries = 3
    return fs

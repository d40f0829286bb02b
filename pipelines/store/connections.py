"""Connections to stores: one fsspec file system per process."""

from __future__ import annotations

import functools
import os
from urllib.parse import urlsplit

import fsspec
from fsspec.spec import AbstractFileSystem

from jointdit.errors import StoreError
from pipelines.store.explain import CREDENTIALS_OF
from pipelines.store.safe_text import reason_of

PARALLEL_REQUESTS = 16  # small objects that are read, written or deleted at once
PARALLEL_TABLES = 4  # whole tables that are held in memory at once


def filesystem(uri: str) -> AbstractFileSystem:
    """Return the file system of a normalised uri. Raises StoreError if its package or account is missing."""
    scheme = urlsplit(uri).scheme
    if scheme != "s3":
        try:
            return fsspec.filesystem(scheme or "file", **({"use_listings_cache": False} if scheme else {}))
        except ImportError:
            extra = "gcs" if scheme == "gs" else "azure"
            raise StoreError(f"{scheme}:// needs a package that is not installed: install jointdit[{extra}].") from None
        except ValueError as error:  # raised by adlfs without an account
            raise StoreError(f"{uri}: {reason_of(error)}: {CREDENTIALS_OF[scheme]}.") from None
    names = sorted(name for name in os.environ if name.startswith("AWS_"))
    return _open_s3(tuple((name, os.environ[name]) for name in names))


@functools.lru_cache(maxsize=8)
def _open_s3(environment: tuple[tuple[str, str], ...]) -> AbstractFileSystem:
    """Return one connection per process and environment. fsspec's own cache would keep outdated credentials."""
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

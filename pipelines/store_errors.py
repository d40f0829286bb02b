"""What a store's exceptions mean: one sentence, permanent or worth another try; addresses, never credentials."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
from collections.abc import Iterator

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from jointdit.errors import StoreError, TransientError
from pipelines.safe_text import mask_secrets as mask_secrets

STORE_EXCEPTIONS = (
    OSError,
    boto.BotoCoreError,
    boto.ClientError,
    ResponseParserError,
    aiohttp.ClientError,
    http.client.HTTPException,
)
NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
UNREACHABLE = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError, boto.SSLError)


def is_unreachable(error: BaseException) -> bool:
    """Whether the store was never reached, so that nothing can have landed.

    aiobotocore raises EndpointConnectionError also where an open connection was reset, after the request went out.
    """
    if isinstance(error, boto.EndpointConnectionError):
        inner = error.kwargs.get("error")
        return not isinstance(inner, aiohttp.ClientOSError) or isinstance(inner, aiohttp.ClientConnectorError)
    return isinstance(error, UNREACHABLE)


@contextlib.contextmanager
def explained(root: str, name: str = "", at_start: bool = False) -> Iterator[None]:
    """Turn what fsspec, botocore and the operating system raise for the object `name` of the storage `root` into ours.

    FileNotFoundError of a single object passes; that of a whole bucket is a StoreError. `at_start`: an endpoint that
    cannot be reached is a mistake in its address, not a passing fault, and is reported at once.
    """
    try:
        yield
    except TransientError as error:
        if at_start and error.__cause__ is not None:
            raise explain(error.__cause__, root, name, at_start=True) from error.__cause__
        raise
    except STORE_EXCEPTIONS as error:
        told = explain(error, root, name, at_start)
        raise told from (None if isinstance(told, FileNotFoundError) else error)


def explain(error: BaseException, root: str, name: str = "", at_start: bool = False) -> Exception:
    """Our exception for one of a store's: StoreError, TransientError, or FileNotFoundError for a single object."""
    code = store_code(error)
    bucket = root.partition("://")[2].split("/")[0]
    address = f"{root.rstrip('/')}/{name}" if name else root
    if isinstance(error, FileNotFoundError):
        if code == "NoSuchBucket":
            return StoreError(f"{root}: the bucket {bucket} does not exist: create it or correct the address.")
        return FileNotFoundError(address)
    if isinstance(error, NO_CREDENTIALS):
        return StoreError(
            f"{root}: no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or an AWS profile."
        )
    is_local = "://" not in root
    if isinstance(error, NotADirectoryError) or (is_local and isinstance(error, FileExistsError)):
        return StoreError(f"{root}: a file is where a folder is needed: give another place.")
    if isinstance(error, PermissionError | IsADirectoryError):
        reason = f" ({code or type(error).__name__})"
        return StoreError(f"{root}: no access{reason}: check that this user may list, read and write there.")
    if is_unreachable(error):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "the store's endpoint"
        sentence = f"{root}: {mask_secrets(endpoint)} cannot be reached: check AWS_ENDPOINT_URL and the network."
        return StoreError(sentence) if at_start else TransientError(sentence)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return StoreError(f"{root}: {os.strerror(error.errno).lower()}: make room or choose another place.")
    if isinstance(error, boto.ParamValidationError) or code in ("InvalidBucketName", "InvalidAccessPoint"):
        return StoreError(f"{root}: {bucket!r} is not a valid bucket name: correct the address.")
    return TransientError(f"{address}: the store did not answer as it should ({code or type(error).__name__}).")


def store_code(error: BaseException) -> str:
    """The store's own error code (NoSuchBucket, AccessDenied, ...), which s3fs keeps in the cause."""
    for exception in (error, error.__cause__):
        if isinstance(exception, boto.ClientError):
            return str(exception.response.get("Error", {}).get("Code", ""))
    return ""

"""Explain exceptions of stores in one sentence, as permanent or transient errors."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import sys
from collections.abc import Iterator

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from jointdit.errors import StoreError
from pipelines.store.errors import TransientError
from pipelines.store.local_files import NotRegular
from pipelines.store.safe_text import mask_secrets

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
LOCAL_FOR_GOOD = {  # permanent errors of a local file system -> what to do
    errno.ENOSPC: "make room or choose another place",
    errno.EDQUOT: "make room or choose another place",
    errno.EROFS: "make it writable or choose another place",
    errno.EFBIG: "choose another file system, or smaller shards by output.shard_rows",
    errno.EMLINK: "the folder can hold no more folders, choose another file system",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "a link leads back to itself, remove it",
    errno.EINVAL: "the file system cannot do this, choose another place",
    errno.ENOTSUP: "the file system cannot do this, choose another place",
    errno.ENOSYS: "the file system cannot do this, choose another place",
}
LOCAL_FAULTS = {  # transient errors -> what to do if they do not pass
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of this machine",
    errno.ESTALE: "the file handle is stale, mount it again",
}
CREDENTIALS_OF = {  # scheme -> how to provide credentials
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or an AWS profile",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run where Google gives an account",
    "abfs": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
}


def store_exceptions() -> tuple[type[BaseException], ...]:
    """Return what the store libraries raise. gcsfs and adlfs are optional and raise only if they are loaded."""
    exceptions: tuple[type[BaseException], ...] = STORE_EXCEPTIONS
    if gcsfs := sys.modules.get("gcsfs.retry"):
        exceptions += (gcsfs.HttpError, gcsfs.ChecksumError, sys.modules["google.auth.exceptions"].GoogleAuthError)
    if azure := sys.modules.get("azure.core.exceptions"):
        exceptions += (azure.AzureError,)
    return exceptions


def _is(error: BaseException, module: str, *names: str) -> bool:
    """Return whether an error is an exception of an optional package."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, tuple(getattr(loaded, name) for name in names))


def is_unreachable(error: BaseException) -> bool:
    """Return whether the store was never reached, so that nothing can have landed.

    aiobotocore raises EndpointConnectionError also if an open connection was reset, after the request was sent.
    """
    if isinstance(error, boto.EndpointConnectionError):
        inner = error.kwargs.get("error")
        return not isinstance(inner, aiohttp.ClientOSError) or isinstance(inner, aiohttp.ClientConnectorError)
    if isinstance(error, aiohttp.ClientConnectorError) or _is(error, "azure.core.exceptions", "ServiceRequestError"):
        return True
    return isinstance(error, UNREACHABLE)


@contextlib.contextmanager
def explained(root: str, name: str = "", at_start: bool = False) -> Iterator[None]:
    """Translate errors of fsspec, botocore and the operating system for the object `name` of the storage `root`.

    FileNotFoundError of a single object passes; that of a whole bucket becomes a StoreError. `at_start`: an endpoint
    that cannot be reached is a mistake in its address and no transient fault, so it is reported at once.
    """
    try:
        yield
    except TransientError as error:
        if at_start and error.__cause__ is not None:
            raise explain(error.__cause__, root, name, at_start=True) from error.__cause__
        raise
    except store_exceptions() as error:
        explanation = explain(error, root, name, at_start)
        raise explanation from (None if isinstance(explanation, FileNotFoundError) else error)


def explain(error: BaseException, root: str, name: str = "", at_start: bool = False) -> Exception:
    """Return StoreError, TransientError, or FileNotFoundError (for a single object) for an exception of a store."""
    code = store_code(error)
    bucket = root.partition("://")[2].split("/")[0]
    address = f"{root.rstrip('/')}/{name}" if name else root
    if isinstance(error, FileNotFoundError):
        if code == "NoSuchBucket":
            return no_bucket(root)
        return FileNotFoundError(address)
    if isinstance(error, NO_CREDENTIALS) or _is(error, "google.auth.exceptions", "DefaultCredentialsError"):
        return StoreError(f"{root}: no credentials were found: {CREDENTIALS_OF[root.partition('://')[0]]}.")
    if "://" not in root and isinstance(error, OSError):
        return _explain_local(error, root, address)
    if isinstance(error, NotADirectoryError):
        return StoreError(f"{root}: a file is where a folder is needed: give another place.")
    if code == "ContainerNotFound":
        return no_bucket(root)
    forbidden = code in ("401", "403", "AuthenticationFailed", "AuthorizationFailure") or _is_forbidden(error)
    if isinstance(error, PermissionError | IsADirectoryError) or forbidden:
        reason = f" ({code or type(error).__name__})"
        return StoreError(f"{root}: no access{reason}: check that this user may list, read and write there.")
    if is_unreachable(error):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "the store's endpoint"
        sentence = f"{root}: {mask_secrets(endpoint)} cannot be reached: check AWS_ENDPOINT_URL and the network."
        if not root.startswith("s3://"):
            sentence = f"{root}: the store cannot be reached: check the network."
        return StoreError(sentence) if at_start else TransientError(sentence)
    if isinstance(error, boto.ParamValidationError) or code in ("InvalidBucketName", "InvalidAccessPoint"):
        return StoreError(f"{root}: {bucket!r} is not a valid bucket name: correct the address.")
    return TransientError(f"{address}: the store did not answer as it should ({code or type(error).__name__}).")


def _explain_local(error: OSError, root: str, address: str) -> StoreError | TransientError:
    """Explain an error of the operating system about a local file: permanent or transient."""
    if isinstance(error, NotADirectoryError | FileExistsError):
        return StoreError(f"{root}: a file is where a folder is needed: give another place.")
    if isinstance(error, NotRegular | IsADirectoryError):
        return StoreError(f"{address} is no regular file: move it away.")
    if isinstance(error, PermissionError):
        where = error.filename if isinstance(error.filename, str) else address
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        return StoreError(f"{where}: no access ({name}): check that this user may list, read and write there.")
    code = error.errno or 0
    reason = f"{os.strerror(code).lower()} ({errno.errorcode.get(code, type(error).__name__)})"
    if code in LOCAL_FOR_GOOD:
        return StoreError(f"{address}: {reason}: {LOCAL_FOR_GOOD[code]}.")
    return TransientError(f"{address}: {reason}: {LOCAL_FAULTS.get(code, 'check the disk and the mount')}.")


def store_code(error: BaseException) -> str:
    """Return the store's own error code (NoSuchBucket, AccessDenied, 403, ...), which s3fs keeps in the cause."""
    for exception in (error, error.__cause__):
        if isinstance(exception, boto.ClientError):
            return str(exception.response.get("Error", {}).get("Code", ""))
        if exception is not None and _is(exception, "gcsfs.retry", "HttpError"):
            return str(getattr(exception, "code", None) or "")
        if exception is not None and _is(exception, "azure.core.exceptions", "HttpResponseError"):
            return str(getattr(exception, "error_code", None) or getattr(exception, "status_code", None) or "")
    return ""


def no_bucket(root: str) -> StoreError:
    """Return the error for a bucket that does not exist."""
    bucket = root.partition("://")[2].split("/")[0]
    return StoreError(f"{root}: the bucket {bucket} does not exist: create it or correct the address.")


def _is_forbidden(error: BaseException) -> bool:
    """Return whether it is gcsfs's bare OSError for status 403, or Azure's rejection of credentials."""
    bare = type(error) is OSError and error.errno is None and str(error).startswith("Forbidden:")
    return bare or _is(error, "azure.core.exceptions", "ClientAuthenticationError")

"""The errors of libraries that speak to servers, which have no common root: which they are, and one clause for each.

httpx (which huggingface_hub uses), aiohttp, botocore, urllib3 and others each have a tree of their own, and most of
these errors are no OSError. A library that is not loaded cannot have raised anything, so none is imported here.
"""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Iterator

# Module -> the roots of its errors.
ROOTS = {
    "aiohttp": ("ClientError",),
    "azure.core.exceptions": ("AzureError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "http.client": ("HTTPException",),
    "httpx": ("HTTPError", "InvalidURL", "StreamError"),
    "httpx2": ("HTTPError", "InvalidURL", "StreamError"),
    "huggingface_hub.errors": ("HfHubHTTPError", "RevisionResolutionError", "XetDownloadError"),
    "kubernetes.client.exceptions": ("OpenApiException",),
    "requests.exceptions": ("RequestException",),
    "urllib.error": ("URLError",),
    "urllib3.exceptions": ("HTTPError",),
}
OF_SYSTEM: tuple[type[Exception], ...] = (
    ConnectionError,
    TimeoutError,
    socket.gaierror,
    socket.herror,
    ssl.SSLError,
)


def network_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What the system and the loaded libraries raise when a server does not answer as it should; and `others`."""
    found = [*others, *OF_SYSTEM]
    for module, names in ROOTS.items():
        if loaded := sys.modules.get(module):
            found += [getattr(loaded, name) for name in names if hasattr(loaded, name)]
    return tuple(found)


def network_reason(error: BaseException) -> str:
    """What was wrong, in a few words; the first cause decides, which libraries wrap in errors of their own."""
    causes = list(_causes(error))
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate was refused: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "it does not speak TLS as it should"
        if isinstance(cause, socket.gaierror | socket.herror):
            return "its host name is not known"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return "no answer in time"
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return f"it answered with status {status}"
    text = " ".join(str(error).split())[:200].rstrip(".")
    return text or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from or instead of, to the first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__

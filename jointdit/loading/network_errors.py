"""Network errors of the libraries in use, which have no common base class.

httpx (used by huggingface_hub), aiohttp, botocore, urllib3 and others have error classes of their own, and most of them
are not OSErrors. This module imports none of these libraries: a library that is not loaded cannot have raised.
"""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Iterator

# Module -> base classes of its errors.
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
    """Return the network errors of the system and the loaded libraries, and `others`."""
    found = [*others, *OF_SYSTEM]
    for module, names in ROOTS.items():
        if loaded := sys.modules.get(module):
            found += [getattr(loaded, name) for name in names if hasattr(loaded, name)]
    return tuple(found)


def network_reason(error: BaseException) -> str:
    """Describe an error in a few words, by its first cause, because libraries wrap it in errors of their own."""
    causes = list(_causes(error))
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate was refused: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "the TLS handshake failed"
        if isinstance(cause, socket.gaierror | socket.herror):
            return "its host name cannot be resolved"
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
    """Iterate over the error, its cause, the cause of that, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__

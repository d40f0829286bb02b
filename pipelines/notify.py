"""Tell others of a new version: one signed POST to `notify.webhook`. That it fails is logged and changes nothing.

    X-JointDiT-Timestamp    seconds since 1970
    X-JointDiT-Signature    sha256=<hex HMAC-SHA256 of "<timestamp>." and the body>, the key in JOINTDIT_WEBHOOK_SECRET

The receiver computes the same over what it got, compares in constant time, and refuses old timestamps. Without the key
nothing is sent: nobody could tell it from a forgery.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from typing import Any

from pipelines.publish import Version

SECRET_VARIABLE = "JOINTDIT_WEBHOOK_SECRET"
ATTEMPTS, FIRST_PAUSE_SECONDS, TIMEOUT_SECONDS = 4, 1.0, 10.0
logger = logging.getLogger("pipelines")


def message_of(name: str, output: str, version: Version) -> dict[str, Any]:
    """What is told of a new version."""
    return {
        "event": "version.published",
        "name": name,
        "output": output,
        "version": version.number,
        "created": version.created,
        "counts": version.counts,
    }


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The signature header of a body that is sent at a time."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def notify(webhook: str, message: dict[str, Any], pause_seconds: float = FIRST_PAUSE_SECONDS) -> bool:
    """Whether the receiver took it; it is tried again where it may have been busy."""
    secret = os.environ.get(SECRET_VARIABLE)
    if not secret:
        logger.warning("notify.webhook is not told: set %s, the key that signs what it gets", SECRET_VARIABLE)
        return False
    body = json.dumps(message).encode()
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause_seconds * 2 ** (attempt - 1))
        reason = _post(webhook, body, secret)
        if not reason:
            return True
        if reason.startswith("4") and not reason.startswith(("408", "429")):
            break  # it will say so again
    logger.warning("notify.webhook was not told of the new version: %s", reason)
    return False


def _post(webhook: str, body: bytes, secret: str) -> str:
    """Why it did not work; empty if it did."""
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-JointDiT-Timestamp": timestamp,
        "X-JointDiT-Signature": sign(secret, timestamp, body),
    }
    request = urllib.request.Request(webhook, body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"{error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{type(error).__name__}: {error}"

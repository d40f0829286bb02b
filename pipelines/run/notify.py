"""Notify a webhook of a new version, by one signed POST.

    X-JointDiT-Timestamp    seconds since 1970
    X-JointDiT-Signature    sha256=<hex HMAC-SHA256 of "<timestamp>." and the body>, the key in JOINTDIT_WEBHOOK_SECRET

A failure is only logged. The receiver computes the same signature, compares it in constant time, and refuses old
timestamps. Without the key nothing is sent, because the receiver could not tell it from a forgery. Redirects are not
followed, because their target would get the signature.

The address may be a secret, as those of chat services are. `notify.webhook_variable` names an environment variable that
holds it, and no log line contains an address or the text of a server's answer.
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
from typing import IO, Any

from pipelines.ledger.versions import Version
from pipelines.spec.running import NotifySpec, check_webhook

SECRET_VARIABLE = "JOINTDIT_WEBHOOK_SECRET"
ADDRESS_VARIABLE = "JOINTDIT_WEBHOOK_URL"  # the name of that variable in pods
ATTEMPTS, FIRST_PAUSE_SECONDS, TIMEOUT_SECONDS = 4, 1.0, 10.0
logger = logging.getLogger("pipelines")


def message_of(name: str, output: str, version: Version) -> dict[str, Any]:
    """The body of the notification of a new version."""
    return {
        "event": "version.published",
        "name": name,
        "output": output,
        "version": version.number,
        "created": version.created,
        "counts": version.counts,
        "is_partial": version.is_partial,
        "left_out": version.left_out,
    }


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The signature header of a body, for the time at which it is sent."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def webhook_of(spec: NotifySpec) -> str | None:
    """The address to notify, from the spec or from the environment variable that it names; None if there is none."""
    if spec.webhook_variable is None:
        return spec.webhook
    address = os.environ.get(spec.webhook_variable, "")
    try:
        check_webhook(address)
    except ValueError:
        reason = "does not hold an http address" if address else "is not set"
        logger.warning("no notification was sent: notify.webhook_variable %s %s", spec.webhook_variable, reason)
        return None
    return address


def notify(webhook: str, message: dict[str, Any], pause_seconds: float = FIRST_PAUSE_SECONDS) -> bool:
    """Send a message, with retries while the receiver may be busy. Returns whether the receiver accepted it."""
    secret = os.environ.get(SECRET_VARIABLE)
    if not secret:
        logger.warning("no notification was sent: set %s, the key that signs it", SECRET_VARIABLE)
        return False
    body = json.dumps(message).encode()
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause_seconds * 2 ** (attempt - 1))
        reason, is_final = _post(webhook, body, secret)
        if not reason:
            return True
        if is_final:
            break
    logger.warning("notify.webhook was not notified of the new version: %s", reason)
    return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an answer that is not a success."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


def _post(webhook: str, body: bytes, secret: str) -> tuple[str, bool]:
    """Send a message once. Returns (why it failed, empty if it did not; whether a retry is useless)."""
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-JointDiT-Timestamp": timestamp,
        "X-JointDiT-Signature": sign(secret, timestamp, body),
    }
    try:
        request = urllib.request.Request(webhook, body, headers, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS):
            return "", True
    except urllib.error.HTTPError as error:
        error.close()
        if 300 <= error.code < 400:
            return f"it answers {error.code}, a redirect, which is not followed: give its target", True
        phrase = http.client.responses.get(error.code, "an unknown status")
        return f"{error.code} {phrase}", 400 <= error.code < 500 and error.code not in (408, 429)
    except urllib.error.URLError as error:
        cause = error.reason
        detail = cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause).__name__
        return f"{type(error).__name__}: {detail}", False
    except (OSError, http.client.HTTPException, ValueError) as error:
        return type(error).__name__, False

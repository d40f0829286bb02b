"""Tell others of a new version: one signed POST to `notify.webhook`. That it fails is logged and changes nothing.

    X-JointDiT-Timestamp    seconds since 1970
    X-JointDiT-Signature    sha256=<hex HMAC-SHA256 of "<timestamp>." and the body>, the key in JOINTDIT_WEBHOOK_SECRET

The receiver computes the same over what it got, compares in constant time, and refuses old timestamps. Without the key
nothing is sent: nobody could tell it from a forgery. A redirect is not followed: its target would get the signature.

The address may itself be a secret, as those of chat services are. `notify.webhook_variable` names a variable of the
environment that holds it, and no log line repeats an address, or what a server says.
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
ADDRESS_VARIABLE = "JOINTDIT_WEBHOOK_URL"  # as pods have it, for notify.webhook_variable
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


def webhook_of(asked: NotifySpec) -> str | None:
    """The address that a spec asks to be told, from the environment where it says so; None where there is none."""
    if asked.webhook_variable is None:
        return asked.webhook
    address = os.environ.get(asked.webhook_variable, "")
    try:
        check_webhook(address)
    except ValueError:
        found = "does not hold an http address" if address else "is not set"
        logger.warning(
            "nobody is told of the new version: notify.webhook_variable %s %s", asked.webhook_variable, found
        )
        return None
    return address


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
        reason, is_final = _post(webhook, body, secret)
        if not reason:
            return True
        if is_final:
            break
    logger.warning("notify.webhook was not told of the new version: %s", reason)
    return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect what it is, an answer that is no success."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


def _post(webhook: str, body: bytes, secret: str) -> tuple[str, bool]:
    """Why it did not work (empty if it did), and whether it would not work another time either."""
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
            return (
                f"it answers {error.code}, a redirect, which is not followed: give the address that it leads to",
                True,
            )
        phrase = http.client.responses.get(error.code, "an unknown status")
        return f"{error.code} {phrase}", 400 <= error.code < 500 and error.code not in (408, 429)
    except urllib.error.URLError as error:
        cause = error.reason
        detail = cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause).__name__
        return f"{type(error).__name__}: {detail}", False
    except (OSError, http.client.HTTPException, ValueError) as error:
        return type(error).__name__, False

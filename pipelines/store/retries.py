"""Backoff with jitter, and retries of the driver's own requests to the store."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from jointdit.errors import PermanentError
from pipelines.store.errors import TransientError
from pipelines.store.safe_text import mask_secrets

FIRST_BACKOFF_SECONDS, MOST_BACKOFF_SECONDS = 1.0, 60.0
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


def backoff_seconds(count: int) -> float:
    """Return the wait before the retry that follows the count-th fault: exponential backoff with jitter."""
    return min(MOST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(count - 1, 16)) * random.uniform(0.5, 1.5)


def patiently(call: Callable[[], Result], budget: int) -> Result:
    """Call a function of the driver that uses the store, with as many retries as a shard's tasks have.

    A call that is repeated may have landed before.

    Raises:
        PermanentError: `budget` retries met transient faults too.
    """
    for count in range(1, budget + 1):
        try:
            return call()
        except TransientError as error:
            seconds = backoff_seconds(count)
            logger.warning("%s, retrying in %.0f seconds", _sentence(error), seconds)
            time.sleep(seconds)
    try:
        return call()
    except TransientError as error:
        raise PermanentError(f"{_sentence(error)}, {budget + 1} times in a row; what is committed stays.") from error


def _sentence(error: TransientError) -> str:
    return mask_secrets(" ".join(str(error).split())).rstrip(".")

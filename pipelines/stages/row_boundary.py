"""The boundary of a row: what goes wrong with one row inside a task stays with it."""

from __future__ import annotations

import errno
import os
import socket
import traceback

from jointdit.errors import PermanentError, RowError
from pipelines.store.errors import TransientError
from pipelines.store.safe_text import mask_secrets

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)


def explain_row_failure(error: Exception, what: str) -> tuple[str, str]:
    """(one sentence, traceback) for the quarantine of a row. `what` was being done to it, "encoding" say.

    Raises:
        the error itself, where it is about the store or the job, and a MemoryError, which may be about the node: the
        shard is tried again, and the row is searched for if it goes on. TransientError where the machine has no room.
    """
    if isinstance(error, TransientError | PermanentError | MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        raise TransientError(f"{what} on {socket.gethostname()}: {os.strerror(error.errno).lower()}.") from error
    if isinstance(error, RowError):
        return mask_secrets(str(error)), mask_secrets(traceback.format_exc()) if error.__cause__ else ""
    sentence = f"{what} failed, {type(error).__name__}: {' '.join(str(error).split())}"
    return mask_secrets(sentence), mask_secrets(traceback.format_exc())

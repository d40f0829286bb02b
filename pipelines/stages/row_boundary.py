"""The boundary of a row: an error of one row quarantines that row alone."""

from __future__ import annotations

import errno
import os
import socket
import traceback

from jointdit.errors import PermanentError, RowError
from pipelines.store.errors import TransientError
from pipelines.store.safe_text import mask_secrets

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)


def explain_row_failure(error: Exception, action: str) -> tuple[str, str]:
    """Return (one sentence, traceback) for the quarantine of a row. `action` is what failed, for example "encoding".

    Raises:
        the error itself if it is about the store or the job, or a MemoryError, which may be about the node. The driver
        then retries the shard, and searches for the row if the error persists.
        TransientError: the machine has no disk space or file handles left.
    """
    if isinstance(error, TransientError | PermanentError | MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        raise TransientError(f"{action} on {socket.gethostname()}: {os.strerror(error.errno).lower()}.") from error
    if isinstance(error, RowError):
        return mask_secrets(str(error)), mask_secrets(traceback.format_exc()) if error.__cause__ else ""
    sentence = f"{action} failed, {type(error).__name__}: {' '.join(str(error).split())}"
    return mask_secrets(sentence), mask_secrets(traceback.format_exc())

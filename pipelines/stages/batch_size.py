"""The batch size of a worker, which is halved when memory is short, and raised again after a while."""

from __future__ import annotations

FIRST_WAIT = 32  # full batches before a larger size is tried
LONGEST_WAIT = 4096


class BatchSize:
    """The number of samples that a worker generates at once, from 1 to `most`.

    Memory may be short for a moment only, for example because of another process on the GPU. So after `wait` full
    batches the worker tries twice the size. The wait doubles with each further failure, up to LONGEST_WAIT batches.
    Failures in a row, down to the size that fits, count as one.
    """

    def __init__(self, most: int) -> None:
        self.most = self.current = most
        self.wait = FIRST_WAIT
        self._full = 0  # full batches since the size last changed
        self._has_failed = self._fits = False  # whether any batch failed; whether one fitted since the last failure

    def succeeded(self, size: int) -> None:
        """Note that a batch of `size` samples fitted. A batch that is not full does not show that there is memory."""
        self._fits = True
        if size < self.current:
            return
        self._full += 1
        if self.current < self.most and self._full >= self.wait:
            self.current, self._full = min(self.most, 2 * self.current), 0

    def failed(self, size: int) -> None:
        """Note that a batch of `size` samples, at least 2, did not fit."""
        if self._has_failed and self._fits:
            self.wait = min(LONGEST_WAIT, 2 * self.wait)
        self.current, self._full = size // 2, 0
        self._has_failed, self._fits = True, False

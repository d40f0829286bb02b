"""Look for the commits of shards that are about to be dispatched, one request each.

Commit names are hashes, so a listing cannot tell which ones are new, and its cost grows with all commits.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from pipelines.ledger.ledger import Ledger
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.errors import TransientError

AT_ONCE = 2 * PARALLEL_REQUESTS  # shards in one look-up
SECONDS = 5.0  # for an answer; after that the shards are dispatched without it
logger = logging.getLogger(__name__)


class CommitLookup:
    """Looks for commits in threads. Correctness rests on create-only commits, so a missing answer counts as no."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._pool = ThreadPoolExecutor(PARALLEL_REQUESTS, thread_name_prefix="commits")
        self._late: set[Future[bool]] = set()

    def committed(self, shards: Sequence[str]) -> set[str]:
        """Return those of a few shards that have a commit.

        Raises:
            StoreError: the store refuses access.
        """
        self._late = {future for future in self._late if not future.done()}
        if self._late:
            return set()  # the store hangs; do not wait for it again
        futures = {self._pool.submit(self.ledger.is_committed, shard): shard for shard in shards}
        done, self._late = wait(futures, SECONDS)
        committed, errors = set(), [f"no answer within {SECONDS:g} seconds"] if self._late else []
        for future in done:
            try:
                if future.result():
                    committed.add(futures[future])
            except TransientError as error:
                errors.append(str(error))
        if errors:
            logger.warning("some commits could not be looked for, so committed shards may be made again: %s", errors[0])
        return committed

    def close(self) -> None:
        """Drop requests that have not started."""
        self._pool.shutdown(wait=False, cancel_futures=True)

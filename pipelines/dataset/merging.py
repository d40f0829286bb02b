"""Merge small segments, so that a version has few of them however often it was extended."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.dataset.tables import PublishAttempt
from pipelines.ledger.segments import SEGMENT_ROWS, Segment, Segments, SegmentWriter
from pipelines.store.storage import Storage

SMALL_ROWS = SEGMENT_ROWS // 4
MOST_SMALL = 16  # segments; a sample is copied by few merges until its segment is no longer small


def merged(storage: Storage, segments: Sequence[Segment], attempt: PublishAttempt) -> list[Segment]:
    """Return the segments of a version, with small ones written anew as fewer once there are many.

    The live shards keep their order, and whether they replace those of an older segment.
    """
    content = Segments(storage, segments)
    small = [segment for segment, shards in content.shards if sum(shards["samples"].to_pylist()) < SMALL_ROWS]
    if len(small) <= MOST_SMALL:
        return list(segments)
    writer = SegmentWriter(storage, attempt.number, attempt.token, all(segment.hashed for segment in small))
    for shard in content.everything(small):
        writer.add(shard)
    writer.flush()
    return [*(segment for segment in segments if segment not in small), *writer.segments]

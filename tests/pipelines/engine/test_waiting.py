from __future__ import annotations

from pipelines.engine.waiting import Waiting
from pipelines.ledger.entries import PlannedShard
from pipelines.plan.shards import make_shard
from pipelines.records import Span

A, B, C, D = (
    PlannedShard(make_shard([Span("/in/a", "1", "a", n, n + 1)], 0, "f"), 1, 1, n) for n in range(4)
)  # fmt: skip


def test_shards_wait_in_their_order_and_those_after_a_fault_behind_them() -> None:
    waiting = Waiting()
    waiting.extend([A, B])
    waiting.put_back(C, due=5.0)
    waiting.put_back(D)
    assert len(waiting) == 4
    assert waiting.first(now=9.0, count=9) == [D, A, B, C]
    assert [waiting.pop() for _ in range(3)] == [D, A, B]
    assert waiting.first(now=4.0) == []
    assert waiting.next_due(now=4.0) == 5.0
    assert waiting.first(now=5.0) == [C]
    assert waiting.next_due(now=5.0) == float("inf")
    assert waiting.pop() is C
    assert not waiting


def test_all_shards_can_be_taken_at_once() -> None:
    waiting = Waiting()
    waiting.extend([A])
    waiting.put_back(B, due=1.0)
    assert waiting.clear() == [A, B]
    assert len(waiting) == 0

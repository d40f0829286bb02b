from __future__ import annotations

from pathlib import Path

import pytest

from jointdit.errors import PermanentError
from pipelines.engine.budgets import Budgets
from pipelines.engine.faults import Fault, Kind
from pipelines.engine.isolation import Crashes
from pipelines.engine.progress import Progress
from pipelines.ledger.entries import PlannedShard
from pipelines.ledger.ledger import Ledger
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.spec.job import RetriesSpec
from pipelines.store.errors import TransientError
from pipelines.store.storage import Storage

ENTRY = PlannedShard(make_shard([Span("/in/a", "1", "a", 0, 5)], 0, "f"), 1, 1, 0)
OTHER = PlannedShard(make_shard([Span("/in/a", "1", "a", 5, 9)], 0, "f"), 1, 1, 1)


@pytest.fixture
def budgets(tmp_path: Path) -> Budgets:
    retries = RetriesSpec(infrastructure=3, crash=2)
    return Budgets(retries, Crashes(Ledger(Storage(str(tmp_path))), retries), Progress())


def fault(kind: Kind) -> Fault:
    return Fault("finish", kind, TransientError(f"a {kind} fault."))


def test_each_shard_has_a_budget_for_infrastructure_faults(budgets: Budgets) -> None:
    kinds: list[Kind] = ["store", "node", "timeout"]
    for kind in kinds:
        assert not budgets.is_blamed(ENTRY, fault(kind))
        assert 0.5 <= budgets.charge(ENTRY, fault(kind)) <= 6.0
    budgets.charge(OTHER, fault("store"))
    with pytest.raises(PermanentError, match=r"met 4 infrastructure faults, more than retries.infrastructure 3"):
        budgets.charge(ENTRY, fault("device"))
    assert budgets.progress.retries == {"store": 2, "node": 1, "timeout": 1, "device": 1}
    assert budgets.crashes.records == {}, "no row is blamed for them"


def test_deaths_do_not_use_up_the_other_budget(budgets: Budgets) -> None:
    for _ in range(3):
        budgets.charge(ENTRY, fault("node"))
    assert budgets.is_blamed(ENTRY, fault("crash"))
    budgets.blame(ENTRY, fault("crash"))
    assert len(budgets.crashes.records[ENTRY.shard.id]) == 1
    assert budgets.progress.retries == {"node": 3, "crash": 1}


def test_a_shard_that_keeps_being_killed_for_memory_is_blamed(budgets: Budgets) -> None:
    assert [budgets.is_blamed(ENTRY, fault("memory")) for _ in range(4)] == [False, False, True, True]
    assert not budgets.is_blamed(ENTRY, fault("store"))
    assert not budgets.is_blamed(OTHER, fault("memory")), "each shard for itself"

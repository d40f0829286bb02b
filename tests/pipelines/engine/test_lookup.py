"""Looking for commits in a store that answers, fails or hangs."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from jointdit.errors import StoreError
from pipelines.engine import lookup
from pipelines.engine.lookup import CommitLookup
from pipelines.ledger.entries import Commit, new_token
from pipelines.ledger.ledger import Ledger
from pipelines.store.errors import TransientError
from pipelines.store.storage import Storage
from tests.chaos.proxy import FaultProxy

SHARDS = [f"{number:02x}" for number in range(40)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(Storage(str(tmp_path)))
    for shard in SHARDS[::2]:
        ledger.commit(Commit(shard, new_token(), (), ()))
    return ledger


def test_the_commits_of_some_shards_are_found(ledger: Ledger) -> None:
    assert CommitLookup(ledger).committed(SHARDS) == set(SHARDS[::2])


def test_a_store_that_fails_counts_as_no_commit(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exists = ledger.is_committed

    def flaky(shard: str) -> bool:
        if shard == SHARDS[0]:
            raise TransientError("the store answered 503.")
        return exists(shard)

    monkeypatch.setattr(ledger, "is_committed", flaky)
    with caplog.at_level(logging.WARNING):
        assert CommitLookup(ledger).committed(SHARDS) == set(SHARDS[2::2])
    assert "committed shards may be made again: the store answered 503." in caplog.text


def test_a_store_that_refuses_stops_the_run(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(shard: str) -> bool:
        raise StoreError("no access.")

    monkeypatch.setattr(ledger, "is_committed", refuse)
    with pytest.raises(StoreError, match="no access"):
        CommitLookup(ledger).committed(SHARDS)


def test_a_store_that_hangs_holds_up_the_driver_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "SECONDS", 0.2)
    answers, exists = threading.Event(), ledger.is_committed

    def hang(shard: str) -> bool:
        answers.wait()
        return exists(shard)

    monkeypatch.setattr(ledger, "is_committed", hang)
    commits = CommitLookup(ledger)
    try:
        started = time.monotonic()
        assert [commits.committed([shard]) for shard in SHARDS[:20]] == [set()] * 20
        assert time.monotonic() - started < 2.0
    finally:
        answers.set()
    while commits.committed([SHARDS[0]]) != {SHARDS[0]}:
        time.sleep(0.01)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_commit_costs_one_request_on_s3(s3, monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    """Of an object that is missing, s3fs made a listing too."""
    with FaultProxy(s3.endpoint, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        ledger = Ledger(Storage(s3.make_bucket()))
        if is_there:
            ledger.commit(Commit("aa", new_token(), (), ()))
        ledger.is_committed("bb")  # connects
        before = proxy.requests
        assert ledger.is_committed("aa") is is_there
        assert proxy.requests == before + 1

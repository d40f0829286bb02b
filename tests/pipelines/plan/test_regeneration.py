"""Rounds of regeneration are deterministic and resumable, and each sample ends once."""

from __future__ import annotations

import io
import multiprocessing
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.status import read_status
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.counting import Counting
from pipelines.ledger.entries import Commit, PlannedShard, SampleOutcome
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.versions import Version, read_outcomes
from pipelines.model.fingerprint import digest
from pipelines.plan.regeneration import extend_with_regeneration, is_worth_a_seed
from pipelines.plan.shards import make_shard
from pipelines.records import Span
from pipelines.run.rounds import pending_shards
from tests import killed_job
from tests.judged import judge
from tests.killed_job import all_rounds, run_until
from tests.local_job import LocalJob, job_in

PROMPTS = ["a", "FLAT", "FLAT"]
SECTIONS: dict[str, Any] = {
    "quality": {"filters": [{"kind": "depth_range"}], "regenerate": 2, "max_quarantined_fraction": 1.0},
    "input": {"samples_per_row": 2},
    "output": {"shard_rows": 1},
}
EXPECTED = {"prompts.txt:0/0", "prompts.txt:0/1", *(f"prompts.txt:{row}/{n}" for row in (1, 2) for n in range(6))}


def rows(job: LocalJob, version: Version) -> dict[str, dict]:
    paths = version.files_of("kept") + version.files_of("rejected")
    tables = (pq.read_table(io.BytesIO(job.context.storage.read_bytes(path))) for path in paths)
    return {row["id"]: row for table in tables for row in table.to_pylist()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The rows of the job that nothing interrupted."""
    job = job_in(tmp_path_factory.mktemp("whole"), PROMPTS, **SECTIONS)
    all_rounds(job)
    return rows(job, job.publish()[0])


@pytest.fixture(scope="module")
def processes() -> Any:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([killed_job.__name__])
    return found


STEPS = {  # three shards in round 0, two in each later one
    "before the first round is planned": ("before plan", 2),
    "within the first round": ("before commit", 5),
    "between its last sample and the second round": ("before plan", 3),
    "within the second round": ("after commit", 6),
}


@pytest.mark.slow
def test_a_job_killed_between_and_within_rounds_gives_the_rows_of_one_that_was_not(
    whole: dict[str, dict], processes: Any, tmp_path: Path
) -> None:
    """One job, killed with SIGKILL at each of these steps in turn, by a process that starts from the output alone."""
    job = job_in(tmp_path, PROMPTS, **SECTIONS)
    for name, step in STEPS.items():
        process = processes.Process(target=run_until, args=(step, str(tmp_path), SECTIONS))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"it reached the step {name}"
    all_rounds(job)
    version, _ = job.publish()
    assert version.counts == {"kept": 2, "rejected": 12, "quarantined": 0}
    table = read_outcomes(job.context.storage, version)
    assert sorted(table["id"].to_pylist()) == sorted(EXPECTED), "each sample once"
    for identifier, number in zip(table["id"].to_pylist(), table["round"].to_pylist(), strict=True):
        assert int(identifier.rsplit("/")[1]) // 2 == number, "indices go on at the round times samples_per_row"
    found = rows(job, version)
    assert len({row["seed"] for row in found.values()}) == len(EXPECTED)
    for identifier, row in whole.items():
        assert found[identifier] == row
    assert validate(job.context.storage.uri).problems == []
    status = read_status(job.context.storage.uri)
    assert [(each.number, each.samples, each.counts["rejected"]) for each in status.rounds] == [
        (0, 6, 4),
        (1, 4, 4),
        (2, 4, 4),
    ]
    assert (status.samples, status.is_complete) == (14, True)
    all_rounds(job)
    assert job.publish() == (version, False)


class Interrupted(Ledger):
    """A driver that others overtake: before it appends a plan file or commits, as often as there are `turns`."""

    turns: list[int]
    others: list[Any]

    def _yield(self) -> None:
        if self.turns and self.turns.pop():
            self.others[0]()

    def append_plan(self, number, shards):
        self._yield()
        super().append_plan(number, shards)

    def commit(self, commit):
        self._yield()
        return super().commit(commit)


def fate(row: int, index: int) -> str:
    """Where a sample ends; the model's noise depends on row and index alone, and so does this."""
    return ("rejected", "kept", "rejected", "quarantined", "rejected")[(3 * row + 2 * index) % 5]


def account(rows: int, per_row: int, rounds: int) -> dict[tuple[int, int], str]:
    """(row, index) -> outcome, of every sample that there must be."""
    found = {}
    for row in range(rows):
        count = per_row
        for number in range(rounds + 1):
            indices = range(number * per_row, number * per_row + count)
            found.update({(row, index): fate(row, index) for index in indices})
            count = sum(fate(row, index) == "rejected" for index in indices)
    return found


@pytest.fixture(scope="module")
def two_round_job(tmp_path_factory: pytest.TempPathFactory) -> LocalJob:
    return job_in(tmp_path_factory.mktemp("ledger"), PROMPTS, **SECTIONS)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 1), max_size=12), st.integers(1, 3))
def test_drivers_that_overtake_each_other_plan_and_end_each_sample_once(
    two_round_job: LocalJob, turns: list[int], rows: int
) -> None:
    """On a real disk. The order in which two drivers plan and commit is drawn; the samples must not depend on it."""
    spec, fingerprint = two_round_job.context.spec, two_round_job.context.fingerprint
    storage = two_round_job.context.storage
    for folder in ("_plan", "_commits"):
        shutil.rmtree(storage.path(folder), ignore_errors=True)
    span = Span("/in/a", "1", "a", 0, rows)
    Ledger(storage).append_plan(1, [PlannedShard(make_shard([span], 0, digest(fingerprint)), 2, 1, 0)])

    def commit(ledger: Ledger, entry: PlannedShard) -> None:
        samples = tuple(
            SampleOutcome(f"a:{position}/{index}", number, position, index, fate(position, index))
            for number, span in enumerate(entry.shard.spans)
            for position in range(span.start, span.stop)
            for index in entry.indices
        )
        ledger.commit(Commit(entry.shard.id, "token", (), samples))

    def drive(ledger: Ledger) -> None:
        while True:
            for entry in pending_shards(ledger):
                commit(ledger, entry)
            if not extend_with_regeneration(spec, fingerprint, ledger):
                return

    slow = Interrupted(storage)
    slow.turns, slow.others = turns, [lambda: drive(Ledger(storage))]
    drive(slow)
    planned = Ledger(storage).planned()
    commits = Ledger(storage).read_commits({entry.shard.id for entry in planned})
    judged = [each for each in judge(Counting(planned), commits) if each.counts]
    counted = [(each.sample.position, each.sample.index, each.sample.outcome) for each in judged]
    assert max(Counter(counted).values()) == 1
    assert {(row, index): outcome for row, index, outcome in counted} == account(rows, 2, 2)
    assert pending_shards(Ledger(storage)) == []


def test_what_no_seed_changes_gets_none(tmp_path: Path) -> None:
    """A banned caption stays banned; its flat depth alone would have got another seed."""
    filters = [{"kind": "depth_range"}, {"kind": "caption", "banned": ["flat"]}]
    prompts = ["FLAT", "FLAT", "FLATTER"]
    job = job_in(tmp_path, prompts, quality={"filters": filters, "regenerate": 1}, output={"shard_rows": 1})
    all_rounds(job)
    version, _ = job.publish()
    outcomes = read_outcomes(job.context.storage, version).to_pylist()
    assert {row["id"] for row in outcomes if row["round"]} == {"prompts.txt:2/1"}
    assert all(row["outcome"] == "rejected" for row in outcomes)


@pytest.mark.parametrize(
    ("task", "kinds", "expected"),
    [
        ("joint", ["depth_range"], True),
        ("joint", ["depth_range", "caption"], False),
        ("depth-to-image", ["depth_range"], False),
        ("depth-to-image", ["blank_picture"], True),
        ("depth-to-image", ["edge_alignment", "saturated"], True),  # of image and depth
        ("joint", ["a filter of another version"], True),
    ],
)
def test_a_seed_is_for_what_it_may_change(task: str, kinds: list[str], expected: bool) -> None:
    assert is_worth_a_seed([f"{kind}: found" for kind in kinds], task) is expected

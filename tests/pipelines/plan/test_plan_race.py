"""Two drivers that list different inputs at the same time plan each row once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.validation.validate import check_plan
from pipelines.ledger.ledger import Ledger
from pipelines.plan.propose import extend_plan, propose
from pipelines.spec.job import load_spec
from pipelines.store.storage import Storage

FINGERPRINT = {"task": "joint", "input.samples_per_row": 1}
ROUNDS = 6


def _drive(root: str, output: str, files: list[str], barrier: Any) -> None:
    """Extend the plan of one output after another, each time at the same moment as the other process."""
    for number in range(ROUNDS):
        uri = f"{output}/{number}"
        data: dict[str, Any] = {"task": "joint", "input": {"uri": [f"{root}/{name}" for name in files]}}
        spec = load_spec({**data, "output": {"uri": uri, "shard_rows": 3}})
        ledger = Ledger(Storage(uri))
        ledger.open_job(spec, FINGERPRINT)
        barrier.wait(timeout=50)
        proposal = propose(spec, FINGERPRINT, ledger)
        barrier.wait(timeout=50)
        extend_plan(spec, FINGERPRINT, ledger, proposal)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_two_drivers_never_plan_a_row_twice(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    output = str(tmp_path / "out") if kind == "local" else request.getfixturevalue("s3").make_bucket("race")
    for name, rows in (("a.txt", 2), ("b.txt", 5), ("c.txt", 1), ("d.txt", 4)):
        (tmp_path / name).write_text("".join(f"{name} {row}\n" for row in range(rows)))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    lists = (["a.txt", "b.txt", "c.txt"], ["b.txt", "c.txt", "d.txt"])
    drivers = [context.Process(target=_drive, args=(str(tmp_path), output, files, barrier)) for files in lists]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(timeout=100)
        assert driver.exitcode == 0
    for number in range(ROUNDS):
        ledger = Ledger(Storage(f"{output}/{number}"))
        planned = ledger.planned()
        assert list(check_plan(ledger.read_job(), planned)) == []
        assert ledger.plan_numbers() == [1, 2], "both had proposed number 1"
        rows = [(s.relative_path, at) for e in planned for s in e.shard.spans for at in range(s.start, s.stop)]
        assert len(rows) == len(set(rows)) == 12

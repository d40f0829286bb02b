"""A job without Ray that kills its own process with SIGKILL at a given step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from pipelines.ledger.ledger import Ledger
from pipelines.plan.regeneration import extend_with_regeneration
from pipelines.run.rounds import pending_shards
from tests.local_job import LocalJob, job_in

Step = tuple[str, int]


class DyingLedger(Ledger):
    """Kills the process before or after the n-th plan file or commit is written."""

    step: Step = ("", 0)

    def reach(self, step: str, number: int) -> None:
        if (step, number) == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def append_plan(self, number, shards):
        self.reach("before plan", number)
        super().append_plan(number, shards)
        self.reach("after plan", number)

    def commit(self, commit):
        number = 1 + len(self.committed())
        self.reach("before commit", number)
        winner = super().commit(commit)
        self.reach("after commit", number)
        return winner


def all_rounds(job: LocalJob) -> None:
    """Run everything between plan and publish."""
    job.plan()
    while True:
        for entry in pending_shards(job.ledger):
            job.run_shard(entry)
        if not extend_with_regeneration(job.context.spec, job.context.fingerprint, job.ledger):
            return


def run_until(step: Step, folder: str, sections: dict[str, Any]) -> None:
    """Run a job until it kills itself at a step; finish tasks commit with a ledger of their own."""
    from pipelines.stages import finish

    DyingLedger.step = step
    finish.Ledger = DyingLedger
    job = job_in(Path(folder), **sections)
    job.ledger = DyingLedger(job.context.storage)
    all_rounds(job)

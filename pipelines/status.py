"""How far a job is, from its ledger alone: no Ray, no input, no pixels."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.ledger import OUTCOMES, Ledger
from pipelines.plan import current_versions, is_superseded
from pipelines.publish import Version, read_latest
from pipelines.storage import Storage


@dataclass(frozen=True)
class Status:
    """The state of a job."""

    output: str
    name: str
    task: str
    created: str
    plans: int
    shards: int  # that count: those that newer input supersedes are left out
    committed_shards: int
    samples: int
    committed_samples: int
    counts: dict[str, int]  # of the committed samples
    round: int  # the last one planned
    crashes: dict[str, int]  # shard -> how often it took a process down
    latest: Version | None

    @property
    def is_complete(self) -> bool:
        """Whether every planned shard is committed and published."""
        return self.committed_shards == self.shards and self.latest is not None


def read_status(uri: str) -> Status:
    """The state of the job at an output address. Raises StoreError where there is none."""
    storage = Storage(uri)
    ledger = Ledger(storage)
    job = ledger.read_job()
    planned = ledger.planned()
    current = current_versions(planned)
    counting = [entry for entry in planned if not is_superseded(entry.shard, current)]
    commits = ledger.read_commits(entry.shard.id for entry in counting)
    return Status(
        output=storage.uri,
        name=str(job.spec["name"]),
        task=str(job.spec["task"]),
        created=job.created,
        plans=len({entry.plan for entry in planned}),
        shards=len(counting),
        committed_shards=len(commits),
        samples=sum(entry.samples for entry in counting),
        committed_samples=sum(len(commit.samples) for commit in commits.values()),
        counts={outcome: sum(commit.counts[outcome] for commit in commits.values()) for outcome in OUTCOMES},
        round=max((entry.shard.round for entry in planned), default=0),
        crashes={shard: len(ledger.crashes(shard)) for shard in sorted(ledger.shards_with_crashes())},
        latest=read_latest(storage),
    )

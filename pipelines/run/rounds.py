"""Rounds of a run: generate pending shards, then new samples for rejected ones."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import pyarrow as pa

from pipelines.engine.limits import Limits
from pipelines.engine.progress import Progress
from pipelines.ledger.entries import Commit, PlannedShard, new_token, now
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.resume import Remaining, read_remaining, remember_commits
from pipelines.model.fingerprint import code_version
from pipelines.plan.regeneration import extend_with_regeneration
from pipelines.stages.context import RunContext
from pipelines.store.retries import patiently


@dataclass(frozen=True)
class Stopped:
    """The limit at which a run stopped, and what it left to the next run."""

    reason: str
    shards: int
    samples: int


def generate_all(
    context: RunContext,
    ledger: Ledger,
    progress: Progress,
    limits: Limits,
    worker_class: type | None,
    remaining: Remaining | None = None,
) -> list[PlannedShard]:
    """Commit every pending shard, round after round. Returns the shards that a limit left.

    Ray is started only if there is a shard to make. The commits are listed at most once a round.
    remaining: what the ledger has left to make, if it was just read.
    """
    patience = context.spec.retries.infrastructure
    pending = patiently(lambda: shards_to_make(ledger, remaining), patience)
    if not pending:
        pending = patiently(lambda: next_round(context, ledger), patience)
    if not pending or limits.stopped or limits.is_reached(progress.usage):
        return pending

    from pipelines.engine.cluster import connect, plan_workers

    with connect():
        from pipelines.engine.dispatch import Dispatcher
        from pipelines.engine.flow import Flow
        from pipelines.engine.ray_executor import RayExecutor
        from pipelines.engine.workers import WorkerPool
        from pipelines.stages.generate import GenerationWorker

        executor, resources = RayExecutor(), context.spec.resources
        context_ref, plan = executor.put(context), plan_workers(resources)
        pool = WorkerPool(executor, context_ref, plan, worker_class or GenerationWorker, resources.start_seconds)
        dispatcher = Dispatcher(Flow(executor, context, context_ref, ledger, pool, progress), limits)
        try:
            while pending and not limits.stopped:
                chosen = limits.choose(pending)
                number = max(entry.shard.round for entry in chosen or pending)
                progress.begin_round(number, sum(e.samples for e in chosen if e.shard.round == number))
                dispatcher.run(chosen)
                remember_commits(ledger, pa.array(sorted(dispatcher.take_committed()), pa.string()))
                pending = patiently(lambda: next_round(context, ledger), patience)
        finally:
            dispatcher.close()
            progress.usage += pool.usage()
            pool.close()
    return pending


def count_left(ledger: Ledger, reason: str) -> Stopped:
    """Count what a stopped run leaves to the next one."""
    left = shards_to_make(ledger)
    return Stopped(reason, len(left), sum(entry.samples for entry in left))


def next_round(context: RunContext, ledger: Ledger) -> list[PlannedShard]:
    """Plan new samples for rejected ones. Returns the shards to make then."""
    extend_with_regeneration(context.spec, context.fingerprint, ledger)
    return shards_to_make(ledger)


def shards_to_make(ledger: Ledger, remaining: Remaining | None = None) -> list[PlannedShard]:
    """Return the pending shards with samples, and commit those without: their files have lost all rows.

    The ledger is read, unless `remaining` was just read: another driver may plan shards at any moment.
    """
    left = []
    for entry in (remaining or read_remaining(ledger)).pending:
        if entry.samples:
            left.append(entry)
        else:
            ledger.commit(Commit(entry.shard.id, new_token(), (), (), code_version(), socket.gethostname(), now()))
    return left


def pending_shards(ledger: Ledger) -> list[PlannedShard]:
    """The planned shards without a commit, except those that newer input supersedes (ledger/resume.py)."""
    return read_remaining(ledger).pending

"""Rounds of a run: generate every pending shard, plan new samples for what was rejected, and again."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from pipelines.engine.limits import Limits
from pipelines.engine.progress import Progress
from pipelines.ledger.entries import Commit, PlannedShard, new_token, now
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.resume import read_remaining
from pipelines.model.fingerprint import code_version
from pipelines.plan.regeneration import extend_with_regeneration
from pipelines.stages.context import RunContext
from pipelines.store.retries import patiently


@dataclass(frozen=True)
class Stopped:
    """Why a run stopped at a limit, and what it left to the next one."""

    reason: str
    shards: int
    samples: int


def generate_all(
    context: RunContext, ledger: Ledger, progress: Progress, limits: Limits, worker_class: type | None
) -> list[PlannedShard]:
    """Commit every pending shard, round after round; returns those that a limit left.

    Ray is started only if there is one to make.
    """
    patience = context.spec.retries.infrastructure
    pending = patiently(lambda: shards_to_make(ledger), patience)
    if not pending:
        pending = patiently(lambda: next_round(context, ledger), patience)
    if not pending or limits.stopped or limits.look(progress.usage):
        return pending

    from pipelines.engine.cluster import connect, plan_workers

    with connect():
        import ray

        from pipelines.engine.dispatch import Dispatcher
        from pipelines.engine.workers import WorkerPool
        from pipelines.stages.generate import GenerationWorker

        context_ref = ray.put(context)
        resources = context.spec.resources
        workers = plan_workers(resources)
        pool = WorkerPool(context_ref, workers, worker_class or GenerationWorker, resources.start_seconds)
        try:
            dispatcher = Dispatcher(context, context_ref, ledger, pool, progress, limits)
            while pending and not limits.stopped:
                chosen = limits.choose(pending)
                number = max(entry.shard.round for entry in chosen or pending)
                progress.begin_round(number, sum(e.samples for e in chosen if e.shard.round == number))
                dispatcher.run(chosen)
                pending = patiently(lambda: next_round(context, ledger), patience)
        finally:
            progress.usage += pool.usage()
            pool.close()
    return pending


def what_is_left(ledger: Ledger, reason: str) -> Stopped:
    """What a run that stopped leaves to the next one."""
    left = shards_to_make(ledger)
    return Stopped(reason, len(left), sum(entry.samples for entry in left))


def next_round(context: RunContext, ledger: Ledger) -> list[PlannedShard]:
    """Plan new samples for what was rejected; the shards to make then."""
    extend_with_regeneration(context.spec, context.fingerprint, ledger)
    return shards_to_make(ledger)


def shards_to_make(ledger: Ledger) -> list[PlannedShard]:
    """Pending shards with samples; those of files that lost all their rows are committed here: there is nothing to do.

    Looked for each time, because another driver may plan them at any moment.
    """
    left = []
    for entry in pending_shards(ledger):
        if entry.samples:
            left.append(entry)
        else:
            ledger.commit(Commit(entry.shard.id, new_token(), (), (), code_version(), socket.gethostname(), now()))
    return left


def pending_shards(ledger: Ledger) -> list[PlannedShard]:
    """Plan minus commits, minus what newer input supersedes (resume.py)."""
    return read_remaining(ledger).pending

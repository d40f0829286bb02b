"""The spine: plan -> pending -> dispatch -> commit -> publish. Start reading here.

`run_job` is all that `jointdit run` does. It can be killed at any moment and started again, here or elsewhere, also
while another one runs: what is planned and committed is read from the output, and nothing else is remembered. Its lease
(lease.py) only lets others know that it is at work. A wrong address is told at once, so what a run asks of the store
before it has its lease is asked once; all that follows is idempotent, and waits for a store that is busy (patience.py).
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console

from pipelines.dataset import about
from pipelines.dataset.decisions import Criteria
from pipelines.dataset.garbage import prune_versions
from pipelines.dataset.publish import PUBLISH_ATTEMPTS, publish, spec_in_force
from pipelines.engine.limits import Limits
from pipelines.engine.progress import Progress
from pipelines.engine.usage import Usage, profile_of
from pipelines.ledger.entries import Unfinished
from pipelines.ledger.lease import Heartbeat
from pipelines.ledger.ledger import Ledger, open_output
from pipelines.ledger.resume import drop_roll_up, read_remaining
from pipelines.ledger.versions import Version, read_latest
from pipelines.model.fingerprint import code_version, fingerprint_of
from pipelines.model.identity import check_job_weights, check_scorers, identify_job, with_guidance
from pipelines.model.memory import check_memory
from pipelines.plan.propose import extend_plan, propose
from pipelines.run.notify import message_of, notify, webhook_of
from pipelines.run.report import keep_report, report_of
from pipelines.run.rounds import Stopped, generate_all, what_is_left
from pipelines.spec.job import JobSpec
from pipelines.stages.context import RunContext
from pipelines.store.retries import patiently

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """What a run did."""

    output: str
    version: Version | None  # None where it stopped: a version has all that is planned
    is_new: bool  # False: everything was there already
    committed_before: int  # shards
    committed_now: int
    samples_now: int
    seconds: float
    counts_now: dict[str, int]
    removed: tuple[str, ...]  # planned inputs that are gone from input.uri; what they gave stays
    usage: Usage
    stopped: Stopped | None
    report: str  # address of what is kept of it; empty where no worker was needed
    profile: dict[str, float] | None = None  # seconds by step, where it was asked for (profile.py)


def run_job(
    spec: JobSpec,
    *,
    single_writer: bool = False,
    until: datetime | None = None,
    worker_class: type | None = None,
    console: Console | None = None,
    profile: bool = False,
) -> RunSummary:
    """Bring a job to its next published version, or as far as its limits let it: the spec's budget, and `until`.

    worker_class: replaces GenerationWorker (pipelines/stages/generate.py), for another model behind the same methods.
    profile: workers time the steps of their calls, and summary and report say where the time went.

    Raises:
        PermanentError and its kinds: one sentence; what is committed stays, and running again goes on from there.
    """
    storage = open_output(spec.output.uri, single_writer)
    ledger = Ledger(storage)
    model = identify_job(spec, ledger.recorded_sources())
    spec, fingerprint = with_guidance(spec, model), fingerprint_of(spec, model)
    known = ledger.check_job(fingerprint)
    latest = read_latest(storage) if known else None
    asked, spec = spec, spec_in_force(spec, latest)
    proposal = propose(spec, fingerprint, ledger)  # bad input is found before anything is written
    if not known:
        check_job_weights(spec, model.pins)  # and so is a checkpoint that does not fit
    scorers = check_scorers(spec)
    if spec.resources.gpu_memory_gb is not None:
        check_memory(spec, model, scorers)
    storage.probe()
    ledger.open_job(spec, fingerprint, model.recorded())
    patience = spec.retries.infrastructure
    context = RunContext(
        *(spec, storage, model.height, model.width, model.weights, fingerprint, code_version()), profile, model.pins
    )
    progress = Progress(console)
    limits = Limits(spec.budget, spec.price, until)
    with Heartbeat(storage, note=progress.note):
        first = proposal
        proposal = patiently(lambda: extend_plan(spec, fingerprint, ledger, first), patience)
        committed_before = patiently(lambda: read_remaining(ledger), patience).committed
        with progress:
            if latest is not None and Criteria.of(asked.quality) != Criteria.of(spec.quality):
                progress.note(
                    f"quality.filters and keep_best are those of version {latest.refilter}, which `jointdit refilter` "
                    f"set for the whole dataset; for the spec's: jointdit refilter {storage.uri} --spec <the spec>."
                )
            for uri in proposal.removed:
                progress.note(f"{uri} is not in the input any more; what it gave stays in the dataset.")
            for uri, to in proposal.moved:
                progress.note(f"{uri} was moved to {to} before all its rows were read; they count under the new name.")
            for uri in proposal.restored:
                progress.note(f"{uri} is back in place of a later file with the same row ids; its rows count again.")
            try:
                version, is_new = generate_and_publish(context, ledger, progress, limits, worker_class)
            except BaseException as error:
                keep_report(storage, report_of(spec, progress, None, f"{type(error).__name__}: {error}", profile))
                raise
        number = version.number if version is not None else None
        report = keep_report(storage, report_of(spec, progress, number, limits.stopped, profile))
        patiently(lambda: about.refresh(storage, ledger), patience)
        if version is not None and spec.output.retain_versions is not None:
            retain = spec.output.retain_versions
            patiently(lambda: prune_versions(storage, retain), patience)
        stopped = patiently(lambda: what_is_left(ledger, limits.stopped), patience) if version is None else None
    if version is not None and is_new and (webhook := webhook_of(spec.notify)):
        notify(webhook, message_of(spec.name, storage.uri, version))
    return RunSummary(
        output=storage.uri,
        version=version,
        is_new=is_new,
        committed_before=committed_before,
        committed_now=progress.shards,
        samples_now=progress.counts.total(),
        seconds=progress.seconds,
        counts_now=dict(progress.counts),
        removed=proposal.removed,
        usage=progress.usage,
        stopped=stopped,
        report=report,
        profile=profile_of(progress.seconds_of, progress.usage) if profile and progress.usage.held_seconds else None,
    )


def generate_and_publish(
    context: RunContext,
    ledger: Ledger,
    progress: Progress,
    limits: Limits | None = None,
    worker_class: type | None = None,
) -> tuple[Version | None, bool]:
    """The version of all that is planned, and whether it is new; what others plan until the last moment is made too.

    None where a limit stopped it before all was made.
    """
    spec, limits = context.spec, limits or Limits()
    for _ in range(PUBLISH_ATTEMPTS):
        if generate_all(context, ledger, progress, limits, worker_class):
            return None, False
        with contextlib.suppress(Unfinished):
            return patiently(lambda: publish(context.storage, ledger, spec), spec.retries.infrastructure)
        logger.info("the plan has grown since the last of its shards was committed")
        patiently(lambda: drop_roll_up(context.storage), spec.retries.infrastructure)
    raise Unfinished(f"other drivers keep extending the plan of {context.storage.uri}: run again when they are done.")

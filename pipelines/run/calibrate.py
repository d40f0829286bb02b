"""Measure scores on a sample of a job's input and propose thresholds for its filters.

The sample is a job of its own in a folder of its own, by default beside the output. Read, worker and finish are those
of `jointdit run`, on Ray, and a killed calibration can be resumed. It has no point clouds, no second round and no
version, because only its scores are used. They are written to calibration.json, from which `quality.calibration` takes
quantiles (spec/quantiles.py), and the proposed thresholds to calibration.yaml, to be copied into the spec.

Rows are drawn from the whole input by the job's seed. Their samples have the same ids and seeds as in the job, so they
are equal to its samples, pixel for pixel.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.console import Console

from jointdit.errors import InputError, PermanentError, SpecError
from pipelines.dataset.decisions import tables_in
from pipelines.dataset.scored import read_scores
from pipelines.engine.limits import Limits
from pipelines.engine.progress import Progress
from pipelines.ledger.entries import PlannedShard, now
from pipelines.ledger.ledger import Ledger, open_output
from pipelines.model.fingerprint import Fingerprint, digest
from pipelines.plan.shards import cut_rows, make_shard
from pipelines.quality import FILTERS, load_filters
from pipelines.quality.filter import Limit
from pipelines.records import Span
from pipelines.run.opening import open_job
from pipelines.run.rounds import generate_all
from pipelines.spec.file import apply_overrides, read_yaml
from pipelines.spec.job import JobSpec, load_spec
from pipelines.spec.quantiles import Calibration, value_of, without_quantiles
from pipelines.stages.readers import check_columns, count_rows, list_files
from pipelines.store.connections import PARALLEL_REQUESTS
from pipelines.store.storage import AlreadyExists, Storage

SNIPPET = "calibration.yaml"


@dataclass(frozen=True)
class Proposal:
    """A threshold that would reject about a given fraction of the samples of the job."""

    kind: str
    limit: Limit
    value: float | int
    quantile: float
    now: float | int | None  # the spec's threshold, or the default of a filter that the spec names without one
    rejected: int  # calibrated samples that `now`, or the default, rejects


@dataclass(frozen=True)
class Calibrated:
    """The result of `jointdit calibrate`."""

    uri: str  # the folder with calibration.json
    calibration: Calibration
    proposals: tuple[Proposal, ...]
    snippet: str  # YAML


def load_to_calibrate(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Load a job spec whose thresholds may be quantiles of a calibration that does not exist yet. Raises SpecError."""
    data = apply_overrides(read_yaml(path), overrides)
    return load_spec({**data, "quality": without_quantiles(data.get("quality", {}))})


def calibrate(
    spec: JobSpec,
    samples: int = 64,
    uri: str | None = None,
    reject: float = 0.05,
    *,
    worker_class: type | None = None,
    console: Console | None = None,
) -> Calibrated:
    """Generate about `samples` samples of a job, write their scores to `uri`, and propose thresholds.

    uri: <output>-calibration by default. reject: the fraction of samples that each threshold is to reject.

    Raises:
        SpecError: the task has no scores. InputError: no rows. PermanentError: the folder holds another sample.
    """
    if spec.task == "encode":
        raise SpecError("task encode writes latents, which have no scores: there is nothing to calibrate.")
    sample = _sample_job(spec, uri or f"{spec.output.uri}-calibration")
    job = open_job(sample, open_output(sample.output.uri))
    job.check_model()
    shards = _plan(job.spec, samples, digest(job.fingerprint))
    context, storage = job.begin(), job.ledger.storage
    _append(job.ledger, shards)
    with (progress := Progress(console)):
        generate_all(context, job.ledger, progress, Limits(), worker_class)
    calibration = _measure(storage, job.ledger, shards, job.fingerprint)
    calibration.write(storage)
    proposals = propose_thresholds(spec, calibration, reject)
    snippet = render(storage.uri, calibration, proposals)
    storage.write_bytes(SNIPPET, snippet.encode())
    return Calibrated(storage.uri, calibration, proposals, snippet)


def propose_thresholds(spec: JobSpec, calibration: Calibration, reject: float) -> tuple[Proposal, ...]:
    """Propose a threshold per score of the spec's filters; without filters, per measured score of all filters."""
    filters = {loaded.kind: loaded for loaded in load_filters(spec.quality.filters)}
    proposals = []
    for kind in filters or FILTERS:
        for limit in FILTERS[kind].limits():
            if scores := calibration.scores.get(limit.score):
                fraction = reject if limit.is_lower else 1 - reject
                value = value_of(FILTERS[kind], limit, calibration.quantile(limit.score, fraction))
                default = FILTERS[kind].model_fields[limit.field].default
                current = getattr(filters[kind], limit.field) if kind in filters else None
                bound = default if current is None else current
                rejected = sum(score < bound if limit.is_lower else score > bound for score in scores)
                proposals.append(Proposal(kind, limit, value, fraction, current, rejected))
    return tuple(proposals)


def render(uri: str, calibration: Calibration, proposals: Sequence[Proposal]) -> str:
    """The section `quality` of a spec with the proposed thresholds, as YAML."""
    lines = [
        f"# {calibration.samples} samples, {calibration.created}. A threshold can also be {{quantile: 0.05}} of them.",
        "quality:",
        f"  calibration: {json.dumps(uri, ensure_ascii=False)}",
        "  filters:" if proposals else "  filters: []",
    ]
    for kind, of_kind in groupby(proposals, key=lambda proposal: proposal.kind):
        lines.append(f"  - kind: {kind}")
        for proposal in of_kind:
            value = f"    {proposal.limit.field}: {_number(proposal.value)}"
            lines.append(f"{value:<36}# quantile {proposal.quantile:g} of {proposal.limit.score}")
    return "\n".join(lines) + "\n"


def _number(value: float | int) -> str:
    """A number that YAML reads back as a number: it takes 1e-05 for a text, and 1.0e-05 for a number."""
    text = f"{value:.6g}"
    return text if "e" not in text or "." in text else text.replace("e", ".0e")


def _sample_job(spec: JobSpec, uri: str) -> JobSpec:
    """The job of the sample. It is validated again, because its output must not lie inside the input either.

    Of the output only `points.calibrate` changes scores, so other settings may change between two calibrations.
    """
    given = spec.as_given()
    quality = {**given.get("quality", {}), "regenerate": 0, "max_quarantined_fraction": 1.0}
    output = {"uri": uri, "points": {"calibrate": given["output"].get("points", {}).get("calibrate")}}
    return load_spec({**given, "name": f"{spec.name} (calibration)", "output": output, "quality": quality})


def _plan(spec: JobSpec, samples: int, fingerprint_digest: str) -> list[PlannedShard]:
    """Cut the drawn rows into shards of at most one batch, so that all workers get some."""
    listed = list_files(spec.input, spec.reading)
    check_columns(listed, spec.input, spec.reading)
    counts = [count_rows(file, spec.input) for file in listed]
    per_row = spec.input.samples_per_row
    places = draw(sum(counts), math.ceil(samples / per_row), spec.seed)
    if not places:
        raise InputError(f"input.uri {', '.join(spec.input.uri)} has no rows: give at least one.")
    ends = np.cumsum(counts)
    rows = []
    for place in places:
        number = int(np.searchsorted(ends, place, side="right"))
        file, position = listed[number], place - int(ends[number] - counts[number])
        rows.append(Span(file.uri, file.etag, file.relative_path, position, position + 1))
    parts = cut_rows(rows, max(1, spec.model.batch_size // per_row))
    shards = (make_shard(part, 0, fingerprint_digest) for part in parts)
    return [PlannedShard(shard, per_row, 1, position) for position, shard in enumerate(shards)]


def draw(rows: int, count: int, seed: int) -> list[int]:
    """Draw `count` of `rows` row numbers, in order; all of them if there are no more."""
    return sorted(random.Random(seed).sample(range(rows), min(rows, count)))


def _append(ledger: Ledger, shards: Sequence[PlannedShard]) -> None:
    try:
        ledger.append_plan(1, shards)
    except AlreadyExists:
        if [entry.shard.id for entry in ledger.planned()] != [entry.shard.id for entry in shards]:
            raise PermanentError(
                f"{ledger.storage.uri} holds another sample, of other input or another size: give another folder with "
                "-o, or remove this one."
            ) from None


def _measure(storage: Storage, ledger: Ledger, shards: Sequence[PlannedShard], fingerprint: Fingerprint) -> Calibration:
    ids = [entry.shard.id for entry in shards]
    commits = ledger.read_commits(ids)
    tables = [path for commit in commits.values() for _, path in tables_in(commit)]
    scores: dict[str, list[float]] = {}
    samples = 0
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        for found in pool.map(partial(read_scores, storage), tables):
            samples += len(found)
            for name, score in (item for each in found for item in each.items()):
                if score is not None and math.isfinite(score):
                    scores.setdefault(name, []).append(score)
    quarantined = sum(commit.counts["quarantined"] for commit in commits.values())
    ordered = {name: sorted(values) for name, values in scores.items()}
    return Calibration(samples, quarantined, ordered, fingerprint, now())

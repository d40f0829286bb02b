"""Preview of a run, for `jointdit plan`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.ledger.counting import Counting
from pipelines.ledger.reports import MeasuredRate, read_rate
from pipelines.model.identity import ModelIdentity, check_scorers
from pipelines.model.memory import MemoryBound, MemoryNeed, memory_shown
from pipelines.plan.carry import FileChange, RowCounts
from pipelines.plan.propose import propose
from pipelines.plan.regeneration import plan_regeneration
from pipelines.plan.sample import NO_SAMPLE, InputSample, sample_planned
from pipelines.quality import load_scores
from pipelines.run.opening import open_job
from pipelines.spec.job import JobSpec
from pipelines.stages.read import HELD_BYTES
from pipelines.store.storage import Storage

RGB_BYTES_PER_PIXEL = {"png": 1.7, "jpeg": 0.3, "webp": 0.2}  # measured on rendered scenes
DEPTH_BYTES_PER_PIXEL = 1.2
POINT_BYTES = 15  # float32 xyz, uint8 rgb


@dataclass(frozen=True)
class PlanPreview:
    """The shards, samples, bytes and cost of a run.

    Bytes are estimates from image sizes, without a worker's activations. Hours and cost are those of the pending
    samples at the measured rate; None without one, and without a price.
    """

    name: str
    task: str
    output: str
    committed_shards: int
    committed_samples: int
    pending_shards: int  # planned or new, not committed
    pending_samples: int
    new_shards: int  # pending ones that are not in the plan yet
    new_rows: int
    round: int  # the last planned one
    regenerate: int  # the most rounds that the spec allows
    regenerated_samples: int  # pending ones with new seeds, for samples that are rejected by now
    rows: RowCounts  # of the listed input, compared with what was planned and made
    changed: tuple[str, ...]
    changes: tuple[FileChange, ...]  # what each of them costs
    removed: tuple[str, ...]
    moved: tuple[tuple[str, str], ...]
    restored: tuple[str, ...]
    output_bytes: int  # for the pending samples
    weights_bytes: int  # per worker, in the spec's dtype
    in_flight_bytes: int  # per worker in Ray's object store, for its shards between read and finish
    memory: MemoryNeed | MemoryBound | None = None  # on a worker's GPU; None for a task without the whole model
    sources: tuple[tuple[str, str, str], ...] = ()  # field of the spec, where its weights are, their licence
    scores: tuple[tuple[str, str], ...] = ()  # kinds of scores that need a model, and their cost per sample
    sample: InputSample = NO_SAMPLE  # rows that were read, of new or else of planned input
    rate: MeasuredRate | None = None  # of earlier runs of this output
    gpu_hours: float | None = None  # for the pending samples
    cpu_hours: float | None = None  # where the rate is of CPUs
    cost: float | None = None
    currency: str = ""
    notes: tuple[str, ...] = ()  # on settings that do not apply to what is published


def preview(spec: JobSpec) -> PlanPreview:
    """Preview a run of this spec. Reads the input and the ledger, writes nothing, and does not start Ray.

    Raises:
        SpecError, InputError, ModelError, StoreError: as the run would before its first shard.
        InputError: of a kind of new input, all sampled rows would be quarantined.
    """
    job = open_job(spec, Storage(spec.output.uri))
    spec, ledger, model = job.spec, job.ledger, job.model
    scorer_bytes = check_scorers(spec)
    scores = load_scores(spec.quality.filters, spec.quality.scores, spec.task)
    memory = memory_shown(spec, model, scorer_bytes)
    context = job.context()
    proposal = propose(spec, job.fingerprint, ledger, context)
    planned, committed = ledger.planned(), ledger.committed()
    counting = Counting(planned)
    done = [entry for entry in planned if entry.shard.id in committed]
    open_ = [e for e in planned if e.shard.id not in committed and not counting.is_superseded(e)]
    new = [shard for shard in proposal.shards if shard.rows]
    new_rows = sum(shard.rows for shard in new)
    seeds = plan_regeneration(spec, job.fingerprint, ledger) if planned and spec.quality.regenerate else []
    regenerated = sum(entry.samples for entry in seeds)
    pending = sum(entry.samples for entry in open_) + new_rows * spec.input.samples_per_row + regenerated
    sample = proposal.sample
    if not sample.kinds:
        unmoved = (entry for entry in open_ if entry.is_first or not counting.moved(entry))
        sample = sample_planned(context, (span for entry in unmoved for span in entry.shard.spans))
    largest = max((shard.rows for shard in (*new, *(entry.shard for entry in (*open_, *seeds)))), default=0)
    rate = read_rate(ledger.storage)
    hours = rate.hours_for(pending) if rate is not None else None
    price = 0.0 if rate is None else spec.price.gpu_hour if rate.device == "GPU" else spec.price.cpu_hour
    return PlanPreview(
        name=spec.name,
        task=spec.task,
        output=spec.output.uri,
        committed_shards=len(done),
        committed_samples=sum(entry.samples for entry in done),
        pending_shards=len(open_) + len(new) + len(seeds),
        pending_samples=pending,
        new_shards=len(new),
        new_rows=new_rows,
        round=max((entry.shard.round for entry in planned), default=0),
        regenerate=spec.quality.regenerate,
        regenerated_samples=regenerated,
        rows=proposal.rows,
        changed=proposal.changed,
        changes=proposal.changes,
        removed=proposal.removed,
        moved=proposal.moved,
        restored=proposal.restored,
        output_bytes=round(pending * _sample_bytes(spec, model, sample)),
        weights_bytes=model.bytes * (2 if spec.model.dtype == "float32" else 1) + scorer_bytes,  # 16 bits on disk
        in_flight_bytes=spec.resources.shards_in_flight * _shard_bytes(spec, model, sample, largest),
        memory=memory,
        sources=tuple((pin.field, str(pin), str(pin.terms)) for pin in model.pins),
        scores=tuple((score.kind, score.cost()) for score in scores),
        sample=sample,
        rate=rate,
        gpu_hours=hours if rate is not None and rate.device == "GPU" else None,
        cpu_hours=hours if rate is not None and rate.device == "CPU" else None,
        cost=hours * price if hours is not None and price else None,
        currency=spec.price.currency,
        notes=job.notes,
    )


def _sample_bytes(spec: JobSpec, model: ModelIdentity, sample: InputSample) -> float:
    copied = spec.output.rgb == "copy"
    bytes_per_pixel = (RGB_BYTES_PER_PIXEL[spec.output.image_format] if copied else 0) + DEPTH_BYTES_PER_PIXEL
    points = spec.output.points
    pixels: float = model.height * model.width
    if spec.task != "encode" and sample.row_pixels:
        pixels = sample.row_pixels  # a sample has the size of its source
    return pixels * (bytes_per_pixel + POINT_BYTES * (points.as_files + points.as_columns))


def _shard_bytes(spec: JobSpec, model: ModelIdentity, sample: InputSample, rows: int) -> int:
    """Return the bytes of a shard's rows as read, up to the limit of the read task, and of the model's arrays."""
    pixels = sample.row_pixels if spec.task == "prepare" else model.height * model.width  # teachers get whole images
    arrays = 2 * (3 + 4) * pixels  # uint8 rgb and float32 disparity, in and out
    return round(min(rows * sample.row_bytes, HELD_BYTES) + rows * spec.input.samples_per_row * arrays)

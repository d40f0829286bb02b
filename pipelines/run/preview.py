"""Preview of a run, for `jointdit plan`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.ledger.counting import Counting
from pipelines.model.identity import ModelIdentity, check_scorers
from pipelines.model.memory import MemoryBound, MemoryNeed, memory_shown
from pipelines.plan.propose import propose
from pipelines.plan.regeneration import plan_regeneration
from pipelines.quality import load_scores
from pipelines.run.opening import open_job
from pipelines.spec.job import JobSpec
from pipelines.store.storage import Storage

RGB_BYTES_PER_PIXEL = {"png": 1.7, "jpeg": 0.3, "webp": 0.2}  # measured on rendered scenes
DEPTH_BYTES_PER_PIXEL = 1.2
POINT_BYTES = 15  # float32 xyz, uint8 rgb


@dataclass(frozen=True)
class PlanPreview:
    """The shards, samples and bytes of a run. Bytes are estimates from image sizes, without a worker's activations."""

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
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    moved: tuple[tuple[str, str], ...]
    restored: tuple[str, ...]
    output_bytes: int  # for the pending samples
    weights_bytes: int  # per worker, in the spec's dtype
    in_flight_bytes: int  # per worker in Ray's object store, for its shards between read and finish
    memory: MemoryNeed | MemoryBound | None = None  # on a worker's GPU; None for a task without the whole model
    sources: tuple[tuple[str, str, str], ...] = ()  # field of the spec, where its weights are, their licence
    scores: tuple[tuple[str, str], ...] = ()  # kinds of scores that need a model, and their cost per sample


def preview(spec: JobSpec) -> PlanPreview:
    """Preview a run of this spec. Reads the input and the ledger, writes nothing, and does not start Ray.

    Raises:
        SpecError, InputError, ModelError, StoreError: as the run would before its first shard.
    """
    job = open_job(spec, Storage(spec.output.uri))
    spec, ledger, model = job.spec, job.ledger, job.model
    scorer_bytes = check_scorers(spec)
    scores = load_scores(spec.quality.filters, spec.quality.scores, spec.task)
    memory = memory_shown(spec, model, scorer_bytes)
    proposal = propose(spec, job.fingerprint, ledger)
    planned, committed = ledger.planned(), ledger.committed()
    counting = Counting(planned)
    done = [entry for entry in planned if entry.shard.id in committed]
    open_ = [e for e in planned if e.shard.id not in committed and not counting.is_superseded(e)]
    new_rows = sum(shard.rows for shard in proposal.shards)
    seeds = plan_regeneration(spec, job.fingerprint, ledger) if planned and spec.quality.regenerate else []
    regenerated = sum(entry.samples for entry in seeds)
    pending = sum(entry.samples for entry in open_) + new_rows * spec.input.samples_per_row + regenerated
    return PlanPreview(
        name=spec.name,
        task=spec.task,
        output=spec.output.uri,
        committed_shards=len(done),
        committed_samples=sum(entry.samples for entry in done),
        pending_shards=len(open_) + len(proposal.shards) + len(seeds),
        pending_samples=pending,
        new_shards=len(proposal.shards),
        new_rows=new_rows,
        round=max((entry.shard.round for entry in planned), default=0),
        regenerate=spec.quality.regenerate,
        regenerated_samples=regenerated,
        changed=proposal.changed,
        removed=proposal.removed,
        moved=proposal.moved,
        restored=proposal.restored,
        output_bytes=round(pending * _sample_bytes(spec, model)),
        weights_bytes=model.bytes * (2 if spec.model.dtype == "float32" else 1) + scorer_bytes,  # 16 bits on disk
        in_flight_bytes=spec.resources.shards_in_flight * _shard_bytes(spec, model),
        memory=memory,
        sources=tuple((pin.field, str(pin), str(pin.terms)) for pin in model.pins),
        scores=tuple((score.kind, score.cost()) for score in scores),
    )


def _sample_bytes(spec: JobSpec, model: ModelIdentity) -> float:
    copied = spec.output.rgb == "copy"
    bytes_per_pixel = (RGB_BYTES_PER_PIXEL[spec.output.image_format] if copied else 0) + DEPTH_BYTES_PER_PIXEL
    points = spec.output.points
    return model.height * model.width * (bytes_per_pixel + POINT_BYTES * (points.as_files + points.as_columns))


def _shard_bytes(spec: JobSpec, model: ModelIdentity) -> int:
    bytes_per_pixel = 2 * (3 + 4)  # uint8 rgb and float32 disparity, in and out
    return spec.output.shard_rows * spec.input.samples_per_row * model.height * model.width * bytes_per_pixel

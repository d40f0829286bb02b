"""Which settings may change between the runs of one output.

    PIXELS    decide pixels, ids or seeds: the fingerprint (model/fingerprint.py) refuses another value
    WRITTEN   decide what is written of these pixels: `check_written` refuses another value
    VERSION   decide or describe a version: another value applies from the next one on (run/opening.py says so)
    FREE      any run may have another value

Each key of the spec is in exactly one set, by its path. A key of a section that may be null has its own entry too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jointdit.errors import SpecError
from pipelines.spec.job import JobSpec

PIXELS = (
    "task",
    "seed",
    "model.name",
    "model.base",
    "model.adapter",
    "model.components",
    "model.base_loras.path",
    "model.base_loras.scale",
    "model.revision",
    "model.dtype",
    "model.steps",
    "model.scheduler",
    "model.guidance",
    "model.condition_refresh",
    "model.height",
    "model.width",
    "model.resize",
    "model.quantization.quant_backend",
    "model.quantization.quant_kwargs",
    "model.quantization.components_to_quantize",
    "model.vae_tiling",
    "input.columns.id",
    "input.columns.prompt",
    "input.columns.image",
    "input.columns.depth",
    "input.samples_per_row",
    "input.prompt",
    "input.depth.kind",
    "input.depth.scale",
    "input.depth.invalid",
    "input.depth.max",
    "buckets",
    "teachers",
    "captioner",
    "caption_length",
)
WRITTEN = (
    "model.license",  # the card names the licences that were recorded when the job was started
    "output.image_format",
    "output.rgb",
    "output.points.format",
    "output.points.z_near",
    "output.points.z_far",
    "output.points.fov_degrees",
    "output.points.calibrate.model",
    "output.points.calibrate.revision",
    "output.points.edge_threshold",
    "output.points.normals",
    "output.points.confidence",
    "output.points.voxel",
    "output.points.outliers.neighbours",
    "output.points.outliers.ratio",
)
DESCRIPTIONS = ("name", "output.license", "output.gallery_rows")
VERSION = (*DESCRIPTIONS, "quality.filters", "quality.keep_best")
FREE = (
    "model.compile",
    "model.batch_size",
    "model.offload",
    "model.vae_slicing",
    "input.uri",
    "output.uri",
    "output.shard_rows",
    "output.retain_versions",
    "output.publish_every",
    "quality.scores",  # null in the rows of runs that did not measure them
    "quality.calibration",
    "quality.calibrated",
    "quality.regenerate",
    "quality.max_quarantined_fraction",
    "retries.infrastructure",
    "retries.crash",
    "resources.workers",
    "resources.device",
    "resources.gpus_per_worker",
    "resources.gpu_memory_gb",
    "resources.task_labels",
    "resources.shards_in_flight",
    "resources.in_flight_gb",
    "resources.start_seconds",
    "resources.stall_seconds",
    "resources.straggler_factor",
    "resources.straggler_seconds",
    "budget.max_rows",
    "budget.max_gpu_hours",
    "budget.max_cost",
    "price.gpu_hour",
    "price.cpu_hour",
    "price.currency",
    "notify.webhook",
    "notify.webhook_variable",
)
# Rows record whether these were given or assumed (stages/sinks/geometry.py); the first two only together.
SOURCES = {
    "output.points.z_near": ("output.points.z_near", "output.points.z_far"),
    "output.points.z_far": ("output.points.z_near", "output.points.z_far"),
    "output.points.fov_degrees": ("output.points.fov_degrees",),
}
MISSING = object()


class Change(NamedTuple):
    """A setting that a spec asks for with another value than was recorded, both as text."""

    key: str
    recorded: str
    asked: str


def check_written(given: Mapping[str, Any], resolved: Mapping[str, Any], spec: JobSpec, output: str) -> None:
    """Check that a spec writes samples as the job of its output does.

    Args:
        given: the recorded spec as the user gave it; resolved: with the defaults of the code that recorded it. Keys
            that did not exist then are not compared.

    Raises:
        SpecError: a setting of WRITTEN differs. The message names each with both values.
    """
    if found := changes(WRITTEN, given, resolved, spec):
        pairs = ", ".join(f"{key} ({recorded} there, {asked} here)" for key, recorded, asked in found)
        raise SpecError(
            f"output.uri {output} already holds a job that writes its samples in another way, by {pairs}: choose "
            "another output, or use its values."
        )


def changes(keys: Sequence[str], given: Mapping[str, Any], resolved: Mapping[str, Any], spec: JobSpec) -> list[Change]:
    """Return which of these settings differ between a recorded spec, as in `check_written`, and a spec."""
    asked, asked_given = spec.model_dump(mode="json"), spec.as_given()
    found = []
    for key in keys:
        there, here = _value(resolved, key), _value(asked, key)
        if there is MISSING or here is MISSING:
            continue
        sources = _source(given, key), _source(asked_given, key)
        if there != here or sources[0] != sources[1]:
            found.append(Change(key, _shown(there, sources[0]), _shown(here, sources[1])))
    return found


def _source(given: Mapping[str, Any], key: str) -> str:
    """Return what rows record as the source of a setting; empty for most settings."""
    if key not in SOURCES:
        return ""
    return "assumed" if any(_value(given, each) is MISSING for each in SOURCES[key]) else "given"


def _shown(value: Any, source: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text}, {source}" if source else text


def _value(spec: Mapping[str, Any], key: str) -> Any:
    """Return the value at a path of keys: None below a section that is null, MISSING where there is no such key."""
    value: Any = spec
    for part in key.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value

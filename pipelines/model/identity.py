"""The identity of a job's weights, read by the driver without torch.

The driver pins the weights (weights/pins.py). The pins go to every worker, which loads those files alone (loading.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jointdit.errors import ModelError, SpecError
from pipelines.model.metric_depth import check_calibrator
from pipelines.model.weights.headers import header_folders, read_file
from pipelines.model.weights.pins import Pin, identity_of, pin
from pipelines.model.weights.selection import ENCODERS, Role
from pipelines.quality import load_scores
from pipelines.spec.job import EncodeSpec, JobSpec, ModelSpec, PrepareSpec
from pipelines.spec.weights_address import parse_address

logger = logging.getLogger(__name__)
FLUX_GUIDANCE = 3.5  # what the authors sample with
FLUX_SIZE = 512  # pixels: what the published adapter was trained at (DESIGN: 512 x 512)
SOURCE_FIELDS = ("name", "base", "adapter", "components")
Recorded = Mapping[str, Mapping[str, Any]]  # field of the spec -> what an earlier pin kept with the job


@dataclass(frozen=True)
class ModelIdentity:
    """What the driver must know about a model without loading it."""

    weights: str  # SHA-256 over all its files, or the hub's commit
    bytes: int  # of the files
    height: int  # pixels, from the spec or the checkpoint's own
    width: int
    pins: tuple[Pin, ...] = ()  # what a worker loads
    depth_guidance: float = FLUX_GUIDANCE  # the checkpoint's own for task depth

    def recorded(self) -> dict[str, dict[str, Any]]:
        """What of the pins is kept with the job, by field."""
        return {each.field: each.recorded() for each in self.pins}


def identify(model: ModelSpec, recorded: Recorded | None = None) -> ModelIdentity:
    """Pin the weights and read the checkpoint's own size.

    Raises:
        ModelError: a path that does not exist or holds no checkpoint, a hub name that cannot be read.
    """
    pins = pin_model(model, recorded or {})
    index = _index(next((each for each in pins if each.field == "model.name"), None))
    return ModelIdentity(
        weights=_joined(pins),
        bytes=sum(each.bytes for each in pins),
        height=model.height or index.get("default_height") or FLUX_SIZE,
        width=model.width or index.get("default_width") or FLUX_SIZE,
        pins=pins,
        depth_guidance=index.get("default_depth_guidance", FLUX_GUIDANCE),
    )


def with_guidance(spec: JobSpec, model: ModelIdentity) -> JobSpec:
    """The spec with its guidance said: where it is left out, the checkpoint's own for the task."""
    if spec.model.guidance is not None:
        return spec
    guidance = model.depth_guidance if spec.task == "depth" else FLUX_GUIDANCE
    return spec.model_copy(update={"model": spec.model.model_copy(update={"guidance": guidance})})


def identify_job(spec: JobSpec, recorded: Recorded | None = None) -> ModelIdentity:
    """As `identify`, of the models that the spec's task runs.

    recorded: of the output's job, so that a hub name without a revision stays at the commit that the job began with.
    Raises ModelError.
    """
    recorded = recorded or {}
    if isinstance(spec, EncodeSpec):
        assert spec.model.name is not None, "the spec says so"
        one = pin(
            "model.name",
            spec.model.name,
            "components",
            revision=spec.model.revision,
            recorded=recorded.get("model.name"),
        )
        index = _index(one)
        height, width = (index.get(f"default_{side}") or FLUX_SIZE for side in ("height", "width"))
        size = spec.model.height or height, spec.model.width or width
        return ModelIdentity(_encoders_weights(one), one.bytes, *size, pins=(one,))
    if isinstance(spec, PrepareSpec):
        from pipelines.model.teachers import check_teacher

        names = weight_names(spec)
        for name in names.values():
            check_teacher(name)
        pins = tuple(pin(field, name, "model", recorded=recorded.get(field)) for field, name in names.items())
        size = FLUX_SIZE, FLUX_SIZE  # for the plan's estimates: images keep their own size
        digest = hashlib.sha256("\n".join(each.weights for each in pins).encode()).hexdigest()
        return ModelIdentity(digest, sum(each.bytes for each in pins), *size, pins=pins)
    return identify(spec.model, recorded)


def pin_model(model: ModelSpec, recorded: Recorded, *, remote_only: bool = False) -> tuple[Pin, ...]:
    """A pin for each source of the model; remote_only: only for those that are to be downloaded. Raises ModelError."""
    roles: dict[str, Role] = {"name": "pipeline", "base": "pipeline", "adapter": "adapter", "components": "components"}
    if model.components is not None:
        roles["base"] = "transformer"
    pins = []
    for field in SOURCE_FIELDS:
        value = getattr(model, field)
        if value is None or (remote_only and parse_address(value).kind == "local"):
            continue
        revision = model.revision if field in ("name", "base") else None
        known = recorded.get(f"model.{field}")
        found = pin(f"model.{field}", value, roles[field], revision=revision, recorded=known)
        if model.license is not None and field in ("name", "base"):
            found = replace(found, terms=replace(found.terms, license=model.license, told_by="model.license"))
        pins.append(found)
    return tuple(pins)


def encoders_hash(name: str) -> str:
    """SHA-256 over the files of VAE, text encoders and tokenizers; of a hub name, the hub's commit."""
    return _encoders_weights(pin("model.name", name, "components"))


def check_job_weights(spec: JobSpec, pins: Sequence[Pin]) -> None:
    """As `check_weights`, of the models that the spec's task runs. Raises ModelError."""
    if isinstance(spec, EncodeSpec):
        from jointdit.loading.checkpoint_files import folder_tensor_shapes

        with header_folders(pins) as (folder,):
            for part in ("vae", "text_encoder", "text_encoder_2"):
                folder_tensor_shapes(folder / part)
    elif not isinstance(spec, PrepareSpec):  # teachers were checked as they were identified
        check_weights(spec.model, pins)


def check_weights(model: ModelSpec, pins: Sequence[Pin] | None = None) -> None:
    """Check a checkpoint by the headers of its files, wherever it is, without loading or downloading it.

    Raises:
        ModelError: what is missing, misshapen, or not safetensors, with its file.
    """
    from jointdit.loading.checkpoint_check import check_checkpoint

    pins = pin_model(model, {}) if pins is None else pins
    with header_folders(pins) as places:
        found = {each.field.removeprefix("model."): place for each, place in zip(pins, places, strict=True)}
        whole = found.get("base") or found["name"]
        check_checkpoint(whole, found.get("adapter"), found.get("components"))


def check_scorers(spec: JobSpec) -> int:
    """Check by their files the models that scores need beside the job's own; returns the bytes of their weights.

    The one that puts depth in metres is among them. A hub name is left to the workers, and counts 0 bytes.

    Raises:
        SpecError, ModelError: settings or files that no worker could measure with.
    """
    calibrate = spec.output.points.calibrate
    if calibrate is None and any(each.get("kind") == "metric_fit" for each in spec.quality.filters):
        raise SpecError("quality.filters names metric_fit, which needs output.points.calibrate: add it, or remove it.")
    size = 0 if calibrate is None else check_calibrator(calibrate)
    for each in load_scores(spec.quality.filters, spec.quality.scores, spec.task):
        try:
            each.check()
        except ModelError as error:
            raise ModelError(f"quality, {each.kind}: {error}") from error
        folder = Path(each.weights() or "")
        size += sum(path.stat().st_size for path in folder.glob("*.safetensors")) if each.weights() else 0
    return size


def computed_on(device: str, model: ModelSpec) -> ModelSpec:
    """The section with the type that the device computes fast; a log line says where that is another one."""
    import torch

    from jointdit.loading.cpu_dtype import fast_dtype, slow_note

    wanted = getattr(torch, model.dtype)
    if (dtype := fast_dtype(device, wanted)) == wanted:
        return model
    logger.warning("%s", slow_note(wanted))
    return model.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})


def _joined(pins: Sequence[Pin]) -> str:
    digest = hashlib.sha256("\n".join(each.weights for each in pins).encode()).hexdigest()
    return digest if len(pins) > 1 else pins[0].weights


def _encoders_weights(one: Pin) -> str:
    if one.address.kind == "hub":
        return one.weights
    return identity_of(tuple(file for file in one.files if file.name.split("/")[0] in ENCODERS))


def weight_names(spec: PrepareSpec) -> dict[str, str]:
    """Field of the spec -> the model that it names."""
    names = {f"teachers.{number}": name for number, name in enumerate(spec.teachers)}
    return names if spec.captioner is None else {**names, "captioner": spec.captioner}


def _index(one: Pin | None) -> dict[str, Any]:
    """model_index.json of a pin of model.name; empty where there is none."""
    data = read_file(one, "model_index.json") if one is not None else None
    if one is None or data is None:
        return {}
    try:
        index: Any = json.loads(data)
    except ValueError:  # no JSON, or no text
        index = None
    if not isinstance(index, dict):
        raise ModelError(f"{one.field} {one.value}: model_index.json is not a JSON object: save the pipeline again.")
    for name in ("default_height", "default_width"):
        if name in index and not (type(index[name]) is int and index[name] > 0):
            raise ModelError(f"{one.field} {one.value}: {name} in model_index.json is {index[name]!r}: give pixels.")
    guidance = index.get("default_depth_guidance", FLUX_GUIDANCE)
    if type(guidance) not in (int, float) or not 0 <= guidance < math.inf:
        raise ModelError(
            f"{one.field} {one.value}: default_depth_guidance in model_index.json is {guidance!r}: "
            "give a number that is not negative."
        )
    return index

"""The identity of a job's weights, read by the driver without torch.

The driver pins the weights (weights/pins.py) and sends the pins to all workers, which load exactly those files
(loading.py).
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
from jointdit.loading.adapter_flags import parse_flags
from pipelines.model.metric_depth import check_calibrator
from pipelines.model.schedule import FLUX_DEV, BaseSampling, sampling_of
from pipelines.model.weights.headers import local_headers, read_file
from pipelines.model.weights.pins import LORA_FIELD, Pin, identity_of, pin
from pipelines.model.weights.selection import ENCODERS, Role, beside_adapter
from pipelines.quality import load_scores
from pipelines.spec.job import EncodeSpec, JobSpec, ModelSpec, PrepareSpec
from pipelines.spec.weights_address import parse_address

logger = logging.getLogger(__name__)
FLUX_GUIDANCE = 3.5  # the authors' guidance scale
FLUX_SIZE = 512  # pixels, the training size of the published adapter
SOURCE_FIELDS = ("name", "base", "adapter", "components")
Recorded = Mapping[str, Mapping[str, Any]]  # field of the spec -> record of an earlier pin in the job


@dataclass(frozen=True)
class ModelIdentity:
    """Properties of a model that the driver needs."""

    weights: str  # SHA-256 over all its files, or the hub's commit
    bytes: int  # of the files
    height: int  # pixels, from the spec or the checkpoint
    width: int
    pins: tuple[Pin, ...] = ()  # the files that workers load
    depth_guidance: float = FLUX_GUIDANCE  # of the checkpoint, for task depth
    depth_transform: str = "none"  # of the adapter
    sampling: BaseSampling = FLUX_DEV  # of the base, where it is not FLUX.1-dev's

    def recorded(self) -> dict[str, dict[str, Any]]:
        """Return the records of the pins for the job, by field."""
        return {each.field: each.recorded() for each in self.pins}


def identify(model: ModelSpec, recorded: Recorded | None = None) -> ModelIdentity:
    """Pin the weights and read the checkpoint's default size.

    Raises:
        ModelError: a path does not exist or is not a checkpoint, or a hub name cannot be read.
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
        depth_transform=_depth_transform(pins),
        sampling=sampling_of(pins),
    )


def with_guidance(spec: JobSpec, model: ModelIdentity) -> JobSpec:
    """Return the spec with a guidance scale; the default is the checkpoint's for the task."""
    if spec.model.guidance is not None:
        return spec
    guidance = model.depth_guidance if spec.task == "depth" else FLUX_GUIDANCE
    return spec.model_copy(update={"model": spec.model.model_copy(update={"guidance": guidance})})


def identify_job(spec: JobSpec, recorded: Recorded | None = None) -> ModelIdentity:
    """Identify the models of the spec's task, as `identify`.

    recorded: the records in the output's job; a hub name without a revision keeps the commit of the job's start.
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
        tokens = BaseSampling(text_tokens=sampling_of((one,)).text_tokens)
        return ModelIdentity(_encoders_weights(one), one.bytes, *size, pins=(one,), sampling=tokens)
    if isinstance(spec, PrepareSpec):
        from pipelines.model.teachers import check_teacher

        names = weight_names(spec)
        for name in names.values():
            check_teacher(name)
        pins = tuple(pin(field, name, "model", recorded=recorded.get(field)) for field, name in names.items())
        size = FLUX_SIZE, FLUX_SIZE  # only for the plan's estimates, because images keep their size
        digest = hashlib.sha256("\n".join(each.weights for each in pins).encode()).hexdigest()
        return ModelIdentity(digest, sum(each.bytes for each in pins), *size, pins=pins)
    return identify(spec.model, recorded)


def pin_model(model: ModelSpec, recorded: Recorded, *, remote_only: bool = False) -> tuple[Pin, ...]:
    """Pin each source of the model; remote_only: only those that must be downloaded. Raises ModelError."""
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
        pinned = pin(f"model.{field}", value, roles[field], revision=revision, recorded=known)
        if model.license is not None and field in ("name", "base"):
            pinned = replace(pinned, terms=replace(pinned.terms, license=model.license, told_by="model.license"))
        pins.append(pinned)
    for number, lora in enumerate(model.base_loras):
        if not (remote_only and parse_address(lora.path).kind == "local"):
            field = f"{LORA_FIELD}{number}"
            pins.append(pin(field, lora.path, "adapter", recorded=recorded.get(field)))
    return tuple(pins)


def encoders_hash(name: str) -> str:
    """Return the SHA-256 over the files of VAE, text encoders and tokenizers, or the commit of a hub name."""
    return _encoders_weights(pin("model.name", name, "components"))


def check_job_weights(spec: JobSpec, pins: Sequence[Pin]) -> None:
    """Check the models of the spec's task, as `check_weights`. Raises ModelError."""
    if isinstance(spec, EncodeSpec):
        from jointdit.loading.checkpoint_files import folder_tensor_shapes

        with local_headers(pins) as (folder,):
            for part in ("vae", "text_encoder", "text_encoder_2"):
                folder_tensor_shapes(folder / part)
    elif not isinstance(spec, PrepareSpec):  # `identify_job` has checked teachers
        check_weights(spec.model, pins)


def check_weights(model: ModelSpec, pins: Sequence[Pin] | None = None) -> None:
    """Check a checkpoint from the headers of its files, without loading or downloading it.

    Raises:
        ModelError: a file or tensor is missing, has the wrong shape, or is not safetensors; the message names it.
    """
    from jointdit.loading.checkpoint_check import check_checkpoint

    pins = pin_model(model, {}) if pins is None else pins
    with local_headers(pins) as places:
        paths = {each.field.removeprefix("model."): place for each, place in zip(pins, places, strict=True)}
        whole = paths.get("base") or paths["name"]
        loras = [path for field, path in paths.items() if field.startswith("base_loras.")]
        check_checkpoint(whole, paths.get("adapter"), paths.get("components"), loras)


def check_scorers(spec: JobSpec) -> int:
    """Check the files of the models of scores and of calibration; returns the bytes of their weights.

    Hub names are checked by the workers, and count 0 bytes.

    Raises:
        SpecError, ModelError: settings or files are invalid.
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
    """Return the section with a dtype that the device computes fast; log a warning if it changes."""
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
    """Map fields of the spec to the models that they name."""
    names = {f"teachers.{number}": name for number, name in enumerate(spec.teachers)}
    return names if spec.captioner is None else {**names, "captioner": spec.captioner}


def _depth_transform(pins: Sequence[Pin]) -> str:
    """Read the depth transform of the adapter: from the JSON beside it, or the config of a checkpoint.

    Raises ModelError if it is not supported.
    """
    for each in pins:
        if each.field == "model.adapter" and each.single is not None:
            name = beside_adapter(each.single)
            if (data := read_file(each, name)) is not None:
                return parse_flags(data, f"{each.field} {each.value}: {name}")
        if each.field == "model.name" and (data := read_file(each, "transformer/config.json")) is not None:
            config = _parsed(data)
            return str(config.get("depth_transform", "none"))
    return "none"


def _parsed(data: bytes) -> dict[str, Any]:
    """Parse a config; empty if it is no JSON object, because `check_weights` says what is wrong with it."""
    try:
        config: Any = json.loads(data)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _index(one: Pin | None) -> dict[str, Any]:
    """Read model_index.json of a pin of model.name; empty if there is none. Raises ModelError."""
    data = read_file(one, "model_index.json") if one is not None else None
    if one is None or data is None:
        return {}
    try:
        index: Any = json.loads(data)
    except ValueError:  # not JSON, or not text
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

"""From `spec.model` to weights: what identifies them (driver, without torch), and the loaded pipeline (a worker)."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jointdit.errors import ModelError, SpecError
from pipelines.metres import check_calibrator
from pipelines.quality import load_scores
from pipelines.spec import EncodeSpec, JobSpec, ModelSpec, PrepareSpec

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline

FLUX_SIZE = 512  # pixels: what the published adapter was trained at (DESIGN: 512 x 512)
CHUNK_BYTES = 1 << 22
TEXTS_KEPT = 16  # of a worker: a row's samples lie together; 64 MB of T5-XXL's states
ENCODERS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
SOURCE_FIELDS = ("name", "base", "adapter")


@dataclass(frozen=True)
class ModelIdentity:
    """What the driver must know about a model without loading it."""

    weights: str  # SHA-256 over all its files, or the hub's commit
    bytes: int  # of the files; 0 for a hub name that is not downloaded yet
    height: int  # pixels, from the spec or the checkpoint's own
    width: int


def identify(model: ModelSpec) -> ModelIdentity:
    """Hash the weights and read the checkpoint's own size.

    Raises:
        ModelError: a path that does not exist or holds no checkpoint.
    """
    parts = [
        _identify_source(f"model.{field}", value)
        for field in SOURCE_FIELDS
        if (value := getattr(model, field)) is not None
    ]
    digest = hashlib.sha256("\n".join(weights for weights, _ in parts).encode()).hexdigest()
    index = _index(model)
    return ModelIdentity(
        weights=digest if len(parts) > 1 else parts[0][0],
        bytes=sum(size for _, size in parts),
        height=model.height or index.get("default_height") or FLUX_SIZE,
        width=model.width or index.get("default_width") or FLUX_SIZE,
    )


def identify_job(spec: JobSpec) -> ModelIdentity:
    """As `identify`, of the models that the spec's task runs. Raises ModelError."""
    if isinstance(spec, EncodeSpec):
        assert spec.model.name is not None, "the spec says so"
        identity = identify(spec.model)
        return replace(identity, weights=encoders_hash(spec.model.name))
    if isinstance(spec, PrepareSpec):
        from pipelines.teachers import check_teacher

        names = {f"teachers.{number}": name for number, name in enumerate(spec.teachers)}
        if spec.captioner is not None:
            names["captioner"] = spec.captioner
        for name in names.values():
            check_teacher(name)
        parts = [_identify_source(field, name) for field, name in names.items()]
        digest = hashlib.sha256("\n".join(weights for weights, _ in parts).encode()).hexdigest()
        size = FLUX_SIZE, FLUX_SIZE  # for the plan's estimates: pictures keep their own size
        return ModelIdentity(digest, sum(size for _, size in parts), *size)
    return identify(spec.model)


def encoders_hash(name: str) -> str:
    """SHA-256 over the files of VAE, text encoders and tokenizers; of a hub name, the hub's commit."""
    folder = checkpoint_folder(name)
    if not folder.is_dir():
        return _identify_source("model.name", name)[0]
    files_of_parts = [path for part in ENCODERS for path in (folder / part).rglob("*") if path.is_file()]
    found = sorted(path for path in files_of_parts if _decides_pixels(path.relative_to(folder)))
    return _hash_files(folder, found)[0]


def check_job_weights(spec: JobSpec) -> None:
    """As `check_weights`, of the models that the spec's task runs. Raises ModelError."""
    if isinstance(spec, EncodeSpec):
        from jointdit.checkpoint_files import folder_tensor_shapes

        folder = checkpoint_folder(spec.model.name or "")
        if folder.is_dir():
            for part in ("vae", "text_encoder", "text_encoder_2"):
                folder_tensor_shapes(folder / part)
    elif not isinstance(spec, PrepareSpec):  # teachers were checked as they were identified
        check_weights(spec.model)


def check_weights(model: ModelSpec) -> None:
    """Check a local checkpoint by the headers of its files, without loading it; a hub name is left to the workers.

    Raises:
        ModelError: what is missing, misshapen, or not safetensors, with its file.
    """
    from jointdit.checkpoint_check import check_checkpoint

    name = model.base or model.name
    assert name is not None, "the spec has one of the two"
    folder = checkpoint_folder(name)
    if folder.is_dir():
        check_checkpoint(folder, model.adapter)


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


def load_pipeline(model: ModelSpec, device: str) -> JointDiTPipeline:
    """Load the model on a device ("cpu", "cuda"), or beside it where the spec offloads it.

    Raises:
        ModelError: a checkpoint that does not fit, or a machine that can not compile its blocks.
    """
    import torch

    from jointdit import JointDiTPipeline
    from jointdit.offload import place

    options: dict[str, Any] = {"torch_dtype": getattr(torch, model.dtype)}
    if model.quantization is not None:
        options["quantization"] = model.quantization.wanted()
    if model.name is not None:
        pipe = JointDiTPipeline.from_pretrained(model.name, **options)
    else:
        pipe = JointDiTPipeline.from_pretrained(base=model.base, adapter=model.adapter, **options)
    pipe.set_progress_bar_config(disable=True)
    if model.vae_tiling:
        pipe.vae.enable_tiling()
    if model.vae_slicing:
        pipe.vae.enable_slicing()
    place(pipe, device, model.offload)
    pipe.keep_texts(TEXTS_KEPT)
    if model.compile:
        _check_compiler(device)
        # Blocks alone: two kinds, each compiled once, in place of a program for the whole network.
        pipe.transformer.compile_repeated_blocks()
    return pipe


def _check_compiler(device: str) -> None:
    """Compile one addition: a missing compiler would otherwise come up with the first batch, as the rows' fault."""
    import torch

    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model.compile is true, and torch.compile does not work on {device} here ({reason}): install a C++ "
            "compiler (and Triton for a GPU), or set it to false."
        ) from error


def checkpoint_folder(name: str) -> Path:
    """The folder of a model name: the packaged checkpoint for "tiny"."""
    return Path(str(files("jointdit"))) / "tiny" / "checkpoint" if name == "tiny" else Path(name)


def _index(model: ModelSpec) -> dict[str, Any]:
    if model.name is None:
        return {}
    path = checkpoint_folder(model.name) / "model_index.json"
    try:
        index: Any = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:  # no JSON, or no text
        index = None
    if not isinstance(index, dict):
        raise ModelError(f"model.name {model.name}: {path.name} is not a JSON object: save the pipeline again.")
    for name in ("default_height", "default_width"):
        if name in index and not (type(index[name]) is int and index[name] > 0):
            raise ModelError(f"model.name {model.name}: {name} in {path.name} is {index[name]!r}: give pixels.")
    return index


def _identify_source(field: str, value: str) -> tuple[str, int]:
    """(SHA-256 or hub commit, bytes) of one folder, file or hub name."""
    path = checkpoint_folder(value)
    if path.is_file():
        return _hash_files(path.parent, [path])
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _decides_pixels(p.relative_to(path)))
        if not any(p.suffix == ".safetensors" for p in found):
            raise ModelError(
                f"{field} {value} is a folder without weights: give one with model_index.json and .safetensors."
            )
        return _hash_files(path, found)
    if path.is_absolute():
        advice = (
            "the adapter's safetensors file" if field == "model.adapter" else "a checkpoint folder, a hub name, or tiny"
        )
        raise ModelError(f"{field} {value} does not exist: give {advice}.")
    return _hub_commit(field, value), 0


def _decides_pixels(relative: Path) -> bool:
    """Weights, configurations and tokenizers; not the model card, pictures, or hidden files."""
    hidden = any(part.startswith(".") for part in relative.parts)
    return not hidden and relative.suffix in (".safetensors", ".json", ".txt", ".model")


def _hash_files(root: Path, paths: list[Path]) -> tuple[str, int]:
    with ThreadPoolExecutor(8) as pool:  # hashlib lets go of the interpreter lock
        digests = list(pool.map(_hash_file, paths))
    lines = [f"{path.relative_to(root)} {digest}" for path, digest in zip(paths, digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest(), sum(path.stat().st_size for path in paths)


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _hub_commit(field: str, name: str) -> str:
    """The commit a hub name stands for: asked from the hub, or from its local cache where the hub cannot be reached."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        sha = HfApi().model_info(name, timeout=10).sha
        assert sha is not None, "the hub names a commit for every model"
        return sha
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError):
        cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs" / "main"
        if cached.is_file():
            return cached.read_text().strip()
        raise ModelError(
            f"{field} {name} is no folder here, and no model of the hub that can be reached: correct the name."
        ) from None

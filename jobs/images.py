"""One image at a time, in this process, without Ray: what `jointdit generate`, `depth` and `restyle` do.

Each sample becomes <name>.png, <name>.disparity.png (16 bit, 65535 nearest) and <name>.ply. Depth range and field of
view of the points are the assumptions of `output.points` in a job spec.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from jointdit.errors import InputError, RowError, SpecError
from jointdit.geometry.depth import (
    depth_range,
    disparity_from_depth,
    encode_depth_png,
    fit_to_model,
    intrinsics_from_fov,
    restore_size,
)
from pipelines.model.identity import identify
from pipelines.model.loading import load_pipeline
from pipelines.records import Row, Sample, SampleResult
from pipelines.spec.file import first_sentence
from pipelines.spec.job import DepthMaps, ModelSpec, PointsSpec
from pipelines.stages.readers.depth_maps import decode_depth
from pipelines.stages.readers.images import decode_image
from pipelines.stages.sinks.geometry import Geometry, point_cloud
from pipelines.stages.sinks.ply import describe, ply_bytes

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
    from jointdit.pipeline import JointDiTOutput

POINTS = PointsSpec()
NAME_BYTES = 180  # of a file system's 255: seed and ending follow


@dataclass(frozen=True)
class Sampling:
    """Which weights and how they are sampled; height and width in pixels, None for the checkpoint's own."""

    model: str
    seed: int
    steps: int
    guidance: float | None
    height: int | None
    width: int | None

    def load(self) -> tuple[JointDiTPipeline, int, int]:
        """The pipeline, on the GPU where there is one, and (height, width) in pixels.

        Raises:
            SpecError: a size that is not a multiple of 16, or height without width.
            ModelError: no such checkpoint, or one that does not fit.
        """
        try:
            settings = {"height": self.height, "width": self.width, "steps": self.steps, "guidance": self.guidance}
            spec = ModelSpec.model_validate({"name": self.model, **settings})
        except ValidationError as error:
            raise SpecError(first_sentence(error, ModelSpec)) from None
        identity = identify(spec)

        import diffusers
        import torch
        import transformers

        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        return load_pipeline(spec, "cuda" if torch.cuda.is_available() else "cpu"), identity.height, identity.width


class DepthMap(NamedTuple):
    """An input depth map, (H, W): disparity in [0, 1], where it has measurements, and its range in metres if metric."""

    disparity: NDArray[np.float32]
    valid: NDArray[np.bool_]
    range_metres: tuple[float, float] | None


def generate_images(prompt: str, samples: int, folder: Path, sampling: Sampling) -> Iterator[Path]:
    """Images with depth from a prompt, with seeds `seed`, `seed + 1`, ...; yields each file as it is written."""
    _refuse_file(folder)
    _refuse_empty(prompt)
    pipe, height, width = sampling.load()
    for seed in range(sampling.seed, sampling.seed + samples):
        out = pipe(
            prompt=prompt,
            task="joint",
            seeds=[seed],
            height=height,
            width=width,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
        )
        _refuse_not_finite(out)
        name = f"{_name_of(prompt)}-{seed}"
        yield _write_image(folder, name, out.rgb[0])
        yield from _write_depth(folder, name, out.rgb[0], out.disparity[0])


def estimate_depth(images: Sequence[Path], folder: Path, sampling: Sampling) -> Iterator[Path]:
    """Depth of images of any size, at their own size; yields each file as it is written.

    Raises:
        InputError: a file is missing or no image, or two would write to the same name. Nothing is written then.
    """
    _refuse_file(folder)
    stems = [image.stem for image in images]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise InputError(f"two of the images are called {twice}: label them into different folders.")
    pictures = [_read_image(image) for image in images]
    pipe, height, width = sampling.load()
    for stem, picture in zip(stems, pictures, strict=True):
        fitted, mapping = fit_to_model(picture, height, width)
        out = pipe(
            image=[fitted],
            task="depth",
            seeds=[sampling.seed],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
        )
        _refuse_not_finite(out)
        yield from _write_depth(folder, stem, picture, restore_size(out.disparity[0], mapping))


def restyle_depth(
    path: Path,
    kind: Literal["disparity", "metric"] | None,
    prompt: str,
    samples: int,
    folder: Path,
    sampling: Sampling,
) -> Iterator[Path]:
    """Images of a depth map's geometry, at its own size; yields each file as it is written.

    Raises:
        InputError: the file is missing or no depth map, or its kind is not clear. Nothing is written then.
    """
    _refuse_file(folder)
    _refuse_empty(prompt)
    depth = _read_depth(path, kind)
    pipe, height, width = sampling.load()
    fitted, mapping = fit_to_model(depth.disparity, height, width)
    for seed in range(sampling.seed, sampling.seed + samples):
        out = pipe(
            prompt=prompt,
            disparity=[fitted],
            task="depth-to-image",
            seeds=[seed],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
        )
        _refuse_not_finite(out)
        name, picture = f"{_name_of(prompt)}-{seed}", restore_size(out.rgb[0], mapping)
        yield _write_image(folder, name, picture)
        yield from _write_depth(folder, name, picture, depth.disparity, depth)


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the results.")


def _refuse_empty(prompt: str) -> None:
    if not prompt.strip():
        raise InputError("the prompt is empty: say what the image shows.")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError("the prompt is not valid Unicode: give it in UTF-8.") from None


def _refuse_not_finite(out: JointDiTOutput) -> None:
    if not out.finite.all():
        raise RowError("the model's output is not finite: try another --seed, and check the checkpoint.")


def _read_image(path: Path) -> NDArray[np.uint8]:
    try:
        return decode_image(_read(path))[0]
    except RowError as error:
        raise InputError(f"{path}: {error}") from error


def _read_depth(path: Path, kind: Literal["disparity", "metric"] | None) -> DepthMap:
    if kind is None and path.suffix.lower() != ".png":
        raise InputError(f"{path}: what its numbers are is not clear: give --kind disparity (near is high) or metric.")
    # A disparity of ours has no holes and uses 0 for the farthest point; in metric maps 0 is a hole everywhere.
    meaning = DepthMaps(kind=kind or "disparity", invalid=0.0 if kind == "metric" else None)
    try:
        values, valid = decode_depth(_read(path), meaning)
        disparity = disparity_from_depth(values, valid, meaning.kind)
    except RowError as error:
        raise InputError(f"{path}: {error}") from error
    return DepthMap(disparity, valid, depth_range(values, valid) if meaning.kind == "metric" else None)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the path of a file.") from None


def _name_of(prompt: str) -> str:
    """The prompt's letters and digits, of any script, as a file's name: other prompts have other names."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", prompt.lower())).strip("-")
    words = words[:60].encode()[:NAME_BYTES].decode(errors="ignore")
    return words.rstrip("-") or "picture"


def _write_image(folder: Path, name: str, rgb: NDArray[np.uint8]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    Image.fromarray(rgb).save(path)
    return path


def _write_depth(
    folder: Path, name: str, rgb: NDArray[np.uint8], disparity: NDArray[np.float32], source: DepthMap | None = None
) -> Iterator[Path]:
    """Write a sample's disparity and points; `source` is the depth map it was made from."""
    known = source.range_metres if source else None
    valid = source.valid if source and not source.valid.all() else None
    height, width = disparity.shape
    geometry = Geometry(
        intrinsics=intrinsics_from_fov(POINTS.fov_degrees, width, height),
        intrinsics_source="assumed",
        z_near=known[0] if known else POINTS.z_near,
        z_far=known[1] if known else POINTS.z_far,
        range_source="given" if known else "assumed",
    )
    sample = Sample(name, Row(name, "", 0, depth_valid=valid), index=0, round=0, seed=0)
    cloud = point_cloud(SampleResult(sample, rgb, disparity), geometry, POINTS)
    folder.mkdir(parents=True, exist_ok=True)
    disparity_file, points_file = folder / f"{name}.disparity.png", folder / f"{name}.ply"
    disparity_file.write_bytes(encode_depth_png(disparity, valid))
    yield disparity_file
    points_file.write_bytes(ply_bytes(cloud, describe(name, geometry, POINTS)))
    yield points_file

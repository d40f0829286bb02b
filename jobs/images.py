"""`jointdit generate`, `depth` and `restyle`: one image at a time, in this process, without Ray.

Each sample becomes <name>.png, <name>.disparity.png (16 bit, 65535 nearest) and <name>.ply. Depth range and field of
view of the points are the defaults of `output.points` in a job spec.
"""

from __future__ import annotations

import hashlib
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
from pipelines.stages.readers.depth_maps import StoredMap, read_stored, to_depth
from pipelines.stages.readers.images import IMAGE_SUFFIXES, decode_image
from pipelines.stages.sinks.geometry import Geometry, point_cloud
from pipelines.stages.sinks.ply import describe, ply_bytes

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
    from jointdit.sampling.output import JointDiTOutput

POINTS = PointsSpec()
NAME_BYTES = 180  # of a file system's 255: digest, seed and suffix follow
DISPARITY_SUFFIX = ".disparity.png"


@dataclass(frozen=True)
class Sampling:
    """Weights and sampling options. Height and width are in pixels; None stands for the checkpoint's own size."""

    model: str
    seed: int
    steps: int
    guidance: float | None
    height: int | None
    width: int | None

    def load(self) -> tuple[JointDiTPipeline, int, int]:
        """Load the pipeline, on a GPU if there is one; return it with height and width in pixels.

        Raises:
            SpecError: the size is not a multiple of 16, or only one of height and width is given.
            ModelError: the checkpoint is missing or does not fit.
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
    """An input depth map, (H, W): disparity in [0, 1], valid pixels, and the range in metres if it is metric."""

    disparity: NDArray[np.float32]
    valid: NDArray[np.bool_]
    range_metres: tuple[float, float] | None


def generate_images(prompt: str, samples: int, folder: Path, sampling: Sampling) -> Iterator[Path]:
    """Generate images with depth, with seeds `seed`, `seed + 1`, ...; yield each file after it is written."""
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
    """Estimate the depth of images and of folders of images, at their own size; yield each file after it is written.

    The results of a folder keep its subfolders.

    Raises:
        InputError: a file is missing or no image, a folder has no images, or two images would have the same results.
            Nothing is written then.
    """
    _refuse_file(folder)
    files: dict[str, Path] = {}
    for image, name in _list_images(images):
        if name in files:
            raise InputError(f"two of the images are called {name}: write their results to different folders.")
        files[name] = image
        _read_image(image)  # all are checked before the model is loaded
    pipe, height, width = sampling.load()
    for name, image in files.items():
        rgb = _read_image(image)
        fitted, mapping = fit_to_model(rgb, height, width)
        out = pipe(
            image=[fitted],
            task="depth",
            seeds=[sampling.seed],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
        )
        _refuse_not_finite(out)
        yield from _write_depth(folder, name, rgb, restore_size(out.disparity[0], mapping))


@dataclass(frozen=True)
class DepthOptions:
    """What the numbers of a depth map mean; None: not given.

    kind: `disparity` (near is high) or `metric`. scale: stored value x scale = metres. invalid: this stored value marks
    a hole. max: larger values, in metres or disparity, are holes.
    """

    kind: Literal["disparity", "metric"] | None = None
    scale: float | None = None
    invalid: float | None = None
    max: float | None = None


def restyle_depth(
    path: Path,
    options: DepthOptions,
    prompt: str,
    samples: int,
    folder: Path,
    sampling: Sampling,
) -> Iterator[Path]:
    """Generate images with a depth map's geometry, at its own size; yield each file after it is written.

    Raises:
        InputError: the file is missing or no depth map, or options are missing that it does not state. Nothing is
            written then.
    """
    _refuse_file(folder)
    _refuse_empty(prompt)
    depth = _read_depth(path, options)
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
        name, rgb = f"{_name_of(prompt)}-{seed}", restore_size(out.rgb[0], mapping)
        yield _write_image(folder, name, rgb)
        yield from _write_depth(folder, name, rgb, depth.disparity, depth)


def _list_images(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield each image with the name of its results; a folder stands for the images in it and in its subfolders."""
    for path in paths:
        if not path.is_dir():
            yield path, path.stem
            continue
        files = [
            file
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            if not file.name.endswith(DISPARITY_SUFFIX)  # written by an earlier call
            if not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        if not files:
            raise InputError(f"{path} has no images: give a folder with {', '.join(IMAGE_SUFFIXES)} files.")
        for file in files:
            yield file, str(file.relative_to(path).with_suffix(""))


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the results.")


def _refuse_empty(prompt: str) -> None:
    if not prompt.strip():
        raise InputError("the prompt is empty: describe what the image shows.")
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


def _read_depth(path: Path, options: DepthOptions) -> DepthMap:
    data = _read(path)
    try:
        stored = read_stored(data)
        meaning = _meaning_of(stored, options)
        values, valid = to_depth(stored, meaning)
        disparity = disparity_from_depth(values, valid, meaning.kind)
    except (InputError, RowError) as error:
        raise InputError(f"{path}: {error}") from error
    return DepthMap(disparity, valid, depth_range(values, valid) if meaning.kind == "metric" else None)


def _meaning_of(stored: StoredMap, options: DepthOptions) -> DepthMaps:
    """Return what the numbers of a depth file mean. Raises InputError if neither the file nor an option says so."""
    if stored.note is not None:
        if options != DepthOptions(kind=options.kind):
            raise InputError("its text chunk says what its numbers are: leave out --scale, --invalid and --max.")
        return DepthMaps(kind=options.kind or "disparity", invalid=None)
    if options.kind is None:
        raise InputError(
            "the kind of depth is not stated in the file: give --kind disparity (near is high) or --kind metric."
        )
    if options.kind == "metric" and stored.holds_integers and options.scale is None:
        raise InputError(
            "it holds integers, which are metres only with --scale: 0.001 for millimetres (NYU, ScanNet), 0.0002 for "
            "TUM, 0.00390625 for KITTI, 1 for metres."
        )
    # 0 is the farthest point of a disparity map, and marks a hole in a metric one.
    invalid = options.invalid if options.invalid is not None else (0.0 if options.kind == "metric" else None)
    try:
        return DepthMaps(kind=options.kind, scale=options.scale or 1.0, invalid=invalid, max=options.max)
    except ValidationError as error:
        raise InputError(first_sentence(error, DepthMaps)) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the path of a file.") from None


def _name_of(prompt: str) -> str:
    """Return a file name of the prompt's letters and digits, of any script.

    A digest follows where they are not the whole prompt, so that different prompts have different files.
    """
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", prompt.lower())).strip("-")
    words = words[:60].encode()[:NAME_BYTES].decode(errors="ignore").rstrip("-")
    if words and words.replace("-", " ") == prompt:
        return words
    return f"{words or 'image'}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


def _write_image(folder: Path, name: str, rgb: NDArray[np.uint8]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    Image.fromarray(rgb).save(path)
    return path


def _write_depth(
    folder: Path, name: str, rgb: NDArray[np.uint8], disparity: NDArray[np.float32], source: DepthMap | None = None
) -> Iterator[Path]:
    """Write a sample's disparity and points; `source` is the input depth map, if there is one."""
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
    disparity_file, points_file = folder / f"{name}{DISPARITY_SUFFIX}", folder / f"{name}.ply"
    disparity_file.parent.mkdir(parents=True, exist_ok=True)
    disparity_file.write_bytes(encode_depth_png(disparity, valid))
    yield disparity_file
    points_file.write_bytes(ply_bytes(cloud, describe(name, geometry, POINTS)))
    yield points_file

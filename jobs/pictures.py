"""One picture at a time, in this process, without Ray: what `jointdit generate`, `depth` and `restyle` do.

Each sample becomes <name>.png, <name>.disparity.png (16 bit, 65535 nearest) and <name>.ply. Depth range and field of
view of the points are the assumptions of `output.points` in a job spec.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from jointdit.depth import disparity_from_depth, encode_depth_png, fit_to_model, restore_size
from jointdit.errors import InputError, RowError, SpecError
from pipelines.model import identify, load_pipeline
from pipelines.readers.depth_maps import decode_depth
from pipelines.readers.pictures import decode_picture
from pipelines.spec import DepthMaps, ModelSpec, PointsSpec
from pipelines.spec_file import first_sentence

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline


@dataclass(frozen=True)
class Sampling:
    """Which weights and how they are sampled; height and width in pixels, None for the checkpoint's own."""

    model: str
    seed: int
    steps: int
    guidance: float
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

        import torch

        return load_pipeline(spec, "cuda" if torch.cuda.is_available() else "cpu"), identity.height, identity.width


def generate_pictures(prompt: str, samples: int, folder: Path, sampling: Sampling) -> Iterator[Path]:
    """Pictures with depth from a prompt, with seeds `seed`, `seed + 1`, ...; yields each file as it is written."""
    if not prompt.strip():
        raise InputError("the prompt is empty: say what the picture shows.")
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
        yield from _write(folder, f"{_name_of(prompt)}-{seed}", out.rgb[0], out.disparity[0])


def estimate_depth(images: Sequence[Path], folder: Path, sampling: Sampling) -> Iterator[Path]:
    """Depth of pictures of any size, at their own size; yields each file as it is written.

    Raises:
        InputError: a file is missing or no picture, or two would write to the same name. Nothing is written then.
    """
    stems = [image.stem for image in images]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise InputError(f"two of the pictures are called {twice}: label them into different folders.")
    pictures = [_read_picture(image) for image in images]
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
        disparity = restore_size(out.disparity[0], mapping)
        yield from _write(folder, stem, picture, disparity, keep_picture=False)


def restyle_depth(
    depth: Path,
    kind: Literal["disparity", "metric"] | None,
    prompt: str,
    samples: int,
    folder: Path,
    sampling: Sampling,
) -> Iterator[Path]:
    """Pictures of a depth map's geometry, at its own size; yields each file as it is written.

    Raises:
        InputError: the file is missing or no depth map, or its kind is not clear. Nothing is written then.
    """
    if not prompt.strip():
        raise InputError("the prompt is empty: say what the picture shows.")
    disparity = _read_disparity(depth, kind)
    pipe, height, width = sampling.load()
    fitted, mapping = fit_to_model(disparity, height, width)
    for seed in range(sampling.seed, sampling.seed + samples):
        out = pipe(
            prompt=prompt,
            disparity=[fitted],
            task="depth-to-image",
            seeds=[seed],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
        )
        picture = restore_size(out.rgb[0], mapping)
        yield from _write(folder, f"{_name_of(prompt)}-{seed}", picture, disparity)


def _read_picture(path: Path) -> NDArray[np.uint8]:
    try:
        return decode_picture(_read(path))[0]
    except RowError as error:
        raise InputError(f"{path}: {error}") from error


def _read_disparity(path: Path, kind: Literal["disparity", "metric"] | None) -> NDArray[np.float32]:
    if kind is None and path.suffix.lower() != ".png":
        raise InputError(f"{path}: what its numbers are is not clear: give --kind disparity (near is high) or metric.")
    # A disparity of ours has no holes and uses 0 for the farthest point; in metric maps 0 is a hole everywhere.
    meaning = DepthMaps(kind=kind or "disparity", invalid=0.0 if kind == "metric" else None)
    try:
        values, valid = decode_depth(_read(path), meaning)
        return disparity_from_depth(values, valid, meaning.kind)
    except RowError as error:
        raise InputError(f"{path}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the path of a file.") from None


def _name_of(prompt: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:60].rstrip("-") or "picture"


def _write(
    folder: Path, name: str, rgb: NDArray[np.uint8], disparity: NDArray[np.float32], keep_picture: bool = True
) -> Iterator[Path]:
    from pipelines.sinks.ply import encode_points

    folder.mkdir(parents=True, exist_ok=True)
    if keep_picture:
        picture_file = folder / f"{name}.png"
        Image.fromarray(rgb).save(picture_file)
        yield picture_file
    disparity_file = folder / f"{name}.disparity.png"
    disparity_file.write_bytes(encode_depth_png(disparity))
    yield disparity_file
    points_file = folder / f"{name}.ply"
    points_file.write_bytes(encode_points(rgb, disparity, PointsSpec()))
    yield points_file

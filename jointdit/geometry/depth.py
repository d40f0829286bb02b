"""Depth conventions: relative disparity, 16-bit PNG, metres, points, and model sizes.

    source image or map --fit_to_model--> model size --(the model)--> model size --restore_size--> source size
    disparity in [0, 1] --encode_depth_png--> 16-bit PNG         --metric_depth--> metres --unproject--> points

Relative disparity is an affine function of inverse depth, per image: 1 is the nearest pixel, 0 the farthest. It has no
unit.

Pixel convention: pixel (column u, row v) covers [u, u + 1) x [v, v + 1), its centre is at (u + 0.5, v + 0.5), and the
principal point of a centred camera is (width / 2, height / 2). In Open3D and OpenCV the centre of pixel u is at u, so
their cx is ours minus 0.5.

Camera convention: pinhole, x right, y down, z forward. Depth is z, not the length of the ray; metric means metres.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jointdit.errors import InputError, RowError
from jointdit.geometry.png_note import note_for

ResizeMode = Literal["fit", "crop", "stretch"]
DepthKind = Literal["metric", "disparity"]

# zlib's level. At 512 x 512 with a model's noise, the default 6 takes 119 ms for 281 kB, this 14 ms for 290 kB.
DEPTH_PNG_LEVEL = 2
NEAREST_16BIT = 65535
MODEL_MULTIPLE = 16  # VAE factor 8 times the 2x2 packing of the transformer


class Intrinsics(NamedTuple):
    """Pinhole intrinsics in pixels; the principal point is measured from the image's upper left corner."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True)
class SizeMapping:
    """Mapping from a source to the model's size: window of the source -> content -> padding, in whole pixels.

    The window is the whole source, except in mode `crop`. A point (u, v) of the source is at
    ((u - window_left) * scale_x + pad_left, (v - window_top) * scale_y + pad_top) in the model's image.
    """

    source_width: int
    source_height: int
    window_left: int
    window_top: int
    window_width: int
    window_height: int
    content_width: int
    content_height: int
    pad_left: int
    pad_top: int
    model_width: int
    model_height: int

    @property
    def scale_x(self) -> float:
        return self.content_width / self.window_width

    @property
    def scale_y(self) -> float:
        return self.content_height / self.window_height

    def intrinsics_to_model(self, source: Intrinsics) -> Intrinsics:
        """Convert intrinsics of the whole source to intrinsics of the model's image."""
        return Intrinsics(
            source.fx * self.scale_x,
            source.fy * self.scale_y,
            (source.cx - self.window_left) * self.scale_x + self.pad_left,
            (source.cy - self.window_top) * self.scale_y + self.pad_top,
        )

    def intrinsics_to_window(self, model: Intrinsics) -> Intrinsics:
        """Convert intrinsics of the model's image to those of the results of `restore_size` and `source_window`."""
        return Intrinsics(
            model.fx / self.scale_x,
            model.fy / self.scale_y,
            (model.cx - self.pad_left) / self.scale_x,
            (model.cy - self.pad_top) / self.scale_y,
        )


# --- sizes ----------------------------------------------------------------------------------------------------------


def plan_fit(source_height: int, source_width: int, height: int, width: int, mode: ResizeMode = "fit") -> SizeMapping:
    """Return the mapping from a source of any size to at most (height, width) pixels, both multiples of 16.

    fit: the whole source with its aspect, as large as the box allows, padded on both sides to multiples of 16; the
    result can be smaller than the box in one direction, so images of different aspect have different sizes. crop: the
    largest centred window with the box's aspect, exactly (height, width). stretch: the whole source, exactly (height,
    width). Raises InputError if the box is not a multiple of 16, and RowError if the source is empty.
    """
    if mode not in get_args(ResizeMode):
        raise InputError(f"resize mode is {mode!r}: use one of {', '.join(get_args(ResizeMode))}.")
    if height < MODEL_MULTIPLE or width < MODEL_MULTIPLE or height % MODEL_MULTIPLE or width % MODEL_MULTIPLE:
        raise InputError(f"model size is {width} x {height}: give a width and a height that are multiples of 16.")
    if source_height < 1 or source_width < 1:
        raise RowError(f"image is {source_width} x {source_height} pixels: it is empty.")

    left, top, window_width, window_height = 0, 0, source_width, source_height
    content_width, content_height = width, height
    if mode == "crop":
        scale = max(width / source_width, height / source_height)
        window_width = min(source_width, max(1, round(width / scale)))
        window_height = min(source_height, max(1, round(height / scale)))
        left, top = (source_width - window_width) // 2, (source_height - window_height) // 2
    elif mode == "fit":
        scale = min(width / source_width, height / source_height)
        content_width = min(width, max(1, round(source_width * scale)))
        content_height = min(height, max(1, round(source_height * scale)))
    model_width = math.ceil(content_width / MODEL_MULTIPLE) * MODEL_MULTIPLE
    model_height = math.ceil(content_height / MODEL_MULTIPLE) * MODEL_MULTIPLE
    return SizeMapping(
        source_width=source_width,
        source_height=source_height,
        window_left=left,
        window_top=top,
        window_width=window_width,
        window_height=window_height,
        content_width=content_width,
        content_height=content_height,
        pad_left=(model_width - content_width) // 2,
        pad_top=(model_height - content_height) // 2,
        model_width=model_width,
        model_height=model_height,
    )


def working_size(shape: tuple[int, ...], long_side: int | None) -> tuple[int, int]:
    """Return (height, width), multiples of 16, for an image (H, W) whose longer side becomes `long_side` pixels."""
    scale = 1.0 if long_side is None else long_side / max(shape)
    height, width = (math.ceil(round(size * scale) / MODEL_MULTIPLE) * MODEL_MULTIPLE for size in shape)
    return max(height, MODEL_MULTIPLE), max(width, MODEL_MULTIPLE)


def fit_to_model(
    array: NDArray[Any], height: int, width: int, mode: ResizeMode = "fit"
) -> tuple[NDArray[Any], SizeMapping]:
    """Resize an image (H, W, 3) uint8 or a map (H, W) float32 to the model's size; also return the mapping.

    Images are resampled with Lanczos, maps linearly (disparity stays in [0, 1]), both with anti-aliasing and without a
    shift of pixel centres. Padding repeats the edge. See `plan_fit` for the modes.
    """
    mapping = plan_fit(array.shape[0], array.shape[1], height, width, mode)
    content = _resample(source_window(array, mapping), mapping.content_height, mapping.content_width)
    pad_y = (mapping.pad_top, mapping.model_height - mapping.content_height - mapping.pad_top)
    pad_x = (mapping.pad_left, mapping.model_width - mapping.content_width - mapping.pad_left)
    return np.pad(content, (pad_y, pad_x, (0, 0))[: array.ndim], mode="edge"), mapping


def restore_size(array: NDArray[Any], mapping: SizeMapping) -> NDArray[Any]:
    """Invert `fit_to_model`: remove the padding and resample to the source's size.

    In mode `crop` the result has the size of the cropped window; `source_window` gives that part of the source.
    """
    if array.shape[:2] != (mapping.model_height, mapping.model_width):
        found = f"{array.shape[1]} x {array.shape[0]}"
        raise RowError(f"array is {found} pixels: its mapping expects {mapping.model_width} x {mapping.model_height}.")
    content = array[
        mapping.pad_top : mapping.pad_top + mapping.content_height,
        mapping.pad_left : mapping.pad_left + mapping.content_width,
    ]
    return _resample(content, mapping.window_height, mapping.window_width)


def source_window(array: NDArray[Any], mapping: SizeMapping) -> NDArray[Any]:
    """Return the part of a source array that the model's image shows: all of it, except in mode `crop`."""
    return array[
        mapping.window_top : mapping.window_top + mapping.window_height,
        mapping.window_left : mapping.window_left + mapping.window_width,
    ]


def _resample(array: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        if array.shape[:2] == (height, width):
            return array.copy()
        image = Image.fromarray(np.ascontiguousarray(array))
        return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    if array.dtype == np.float32 and array.ndim == 2:
        rows = _resample_axis0(array.astype(np.float64), height)
        return np.ascontiguousarray(_resample_axis0(rows.T, width).T, dtype=np.float32)
    raise RowError(f"array is {array.dtype} of shape {array.shape}: give uint8 (H, W, 3) or float32 (H, W).")


def _resample_axis0(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Interpolate linearly between pixel centres; when shrinking, average that over each new pixel.

    A ramp keeps its position. Pillow's sampled kernels move it by up to 0.08 pixels (measured) at ratios that are not
    whole numbers.
    """
    old_size = len(values)
    if size == old_size:
        return values.copy()
    ratio = old_size / size
    padded = np.concatenate([values[:1], values, values[-1:]])  # centres at -0.5, 0.5, ..., found + 0.5
    if size > old_size:
        index, share = _split((np.arange(size) + 0.5) * ratio + 0.5)
        return padded[index] * (1.0 - share) + padded[index + 1] * share
    trapezoids = (padded[:-1] + padded[1:]) / 2
    integral = np.concatenate([np.zeros_like(values[:1]), np.cumsum(trapezoids, axis=0, dtype=np.float64)])
    index, share = _split(np.arange(size + 1) * ratio + 0.5)
    until = integral[index] + padded[index] * share + (padded[index + 1] - padded[index]) * share**2 / 2
    return (until[1:] - until[:-1]) / ratio


def _split(at: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    index = at.astype(np.int64)
    return index, (at - index)[:, None]


# --- the 16-bit image ---------------------------------------------------------------------------------------------


def encode_depth_png(disparity: NDArray[np.float32], valid: NDArray[np.bool_] | None = None) -> bytes:
    """Encode relative disparity (H, W) in [0, 1] as a 16-bit greyscale PNG, 65535 nearest. Deterministic.

    With `valid`, holes are written as 0 and valid pixels as at least 1, so that a hole differs from the farthest
    point. A text chunk says what the numbers are. Raises RowError if values are not finite or are outside [0, 1].
    """
    if disparity.ndim != 2 or disparity.size == 0:
        raise RowError(f"disparity has shape {disparity.shape}: give one map (H, W).")
    inside = disparity if valid is None else np.where(valid, disparity, 0.0)
    if not np.isfinite(inside).all():
        raise RowError("disparity holds NaN or infinite values: it cannot be written.")
    low, high = float(inside.min()), float(inside.max())
    if low < 0.0 or high > 1.0:
        raise RowError(f"disparity ranges over [{low:.4g}, {high:.4g}]: normalise it to [0, 1].")
    levels = np.rint(inside.astype(np.float64) * NEAREST_16BIT).astype(np.uint16)
    if valid is not None:
        levels = np.where(valid, np.maximum(levels, 1), 0).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(
        buffer, format="PNG", compress_level=DEPTH_PNG_LEVEL, pnginfo=note_for(valid is not None)
    )
    return buffer.getvalue()


def decode_depth_png(data: bytes) -> NDArray[np.float32]:
    """Decode a PNG of `encode_depth_png` to disparity (H, W) float32 in [0, 1].

    Raises RowError for other images; 8-bit maps have lost the precision of far depth.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RowError(f"depth image cannot be decoded as PNG ({error}): give a 16-bit greyscale PNG.") from error
    if image.mode != "I;16":
        raise RowError(f"depth image has mode {image.mode}: give a 16-bit greyscale PNG.")
    return (np.asarray(image).astype(np.float64) / NEAREST_16BIT).astype(np.float32)


def grey_image(disparity: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Show disparity (H, W) in [0, 1] as an 8-bit grey image (H, W, 3); near is bright, NaN is black."""
    return np.repeat(np.rint(np.nan_to_num(disparity) * 255).astype(np.uint8)[..., None], 3, axis=2)


# --- relative disparity and metres ----------------------------------------------------------------------------------


def disparity_from_depth(
    depth: NDArray[np.float32], valid: NDArray[np.bool_] | None = None, kind: DepthKind = "metric"
) -> NDArray[np.float32]:
    """Convert a depth map (H, W) to relative disparity (H, W) in [0, 1], 1 nearest. Holes are filled; mask them after.

    metric: z in any linear unit; it is inverted. disparity: any affine function of 1/z with near high. Filled values
    are means of valid pixels, so they do not change the minimum or maximum. Raises RowError for a map without valid
    pixels, with z <= 0, or with a constant value.
    """
    inside = _valid_mask(depth, valid)
    values = depth.astype(np.float64)
    if kind == "metric":
        if (values[inside] <= 0).any():
            raise RowError(
                "depth map holds z <= 0 outside its invalid value: check input.depth kind, scale and invalid."
            )
        values = 1.0 / np.where(inside, values, 1.0)
    low, high = float(values[inside].min()), float(values[inside].max())
    if high == low:
        raise RowError(
            "depth map is constant: it has no relative disparity; check input.depth kind, scale and invalid."
        )
    if not inside.all():
        values = fill_holes(values, inside)
    return np.clip((values - low) / (high - low), 0.0, 1.0).astype(np.float32)


def depth_range(depth: NDArray[np.float32], valid: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Return (z_near, z_far) of the valid pixels of a metric map; `metric_depth` needs them to restore its depth."""
    inside = _valid_mask(depth, valid)
    return float(depth[inside].min()), float(depth[inside].max())


def metric_depth(disparity: NDArray[np.float32], z_near: float, z_far: float) -> NDArray[np.float32]:
    """Return depth z = 1 / (A + B d), (H, W) in metres, with A = 1/z_far and B = 1/z_near - 1/z_far.

    z_near and z_far (metres) are the depths of the nearest and the farthest pixel. Raises InputError unless
    0 < z_near < z_far.
    """
    if not (math.isfinite(z_near) and math.isfinite(z_far) and 0 < z_near < z_far):
        raise InputError(f"depth range is z_near = {z_near:g}, z_far = {z_far:g}: give 0 < z_near < z_far, in metres.")
    far, span = 1.0 / z_far, 1.0 / z_near - 1.0 / z_far
    return (1.0 / (far + span * disparity.astype(np.float64))).astype(np.float32)


def fill_holes(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fill holes of a map (H, W) with means of the valid pixels around them (pull-push).

    The map is halved by averages over valid pixels until it has no hole; holes are filled on the way back. Valid
    pixels do not change. Source: Gortler et al., The Lumigraph, 1996, section 3.4.
    """
    assert values.shape == valid.shape
    assert valid.any()
    if valid.all():
        return values
    height, width = values.shape
    even = ((0, height % 2), (0, width % 2))
    blocks = (math.ceil(height / 2), 2, math.ceil(width / 2), 2)
    weight = np.pad(valid.astype(np.float64), even).reshape(blocks).sum(axis=(1, 3))
    total = np.pad(np.where(valid, values, 0.0), even).reshape(blocks).sum(axis=(1, 3))
    coarse = fill_holes(total / np.maximum(weight, 1.0), weight > 0)
    return np.where(valid, values, coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width])


def _valid_mask(depth: NDArray[np.float32], valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    if depth.ndim != 2 or (valid is not None and valid.shape != depth.shape):
        raise RowError(f"depth map has shape {depth.shape}: give one map (H, W) and a mask of the same shape.")
    inside = np.isfinite(depth) if valid is None else valid & np.isfinite(depth)
    if not inside.any():
        raise RowError("depth map has no valid pixel: check input.depth scale and invalid.")
    return inside


# --- points ---------------------------------------------------------------------------------------------------------


def intrinsics_from_fov(fov_vertical_deg: float, width: int, height: int) -> Intrinsics:
    """Return intrinsics with square pixels and a centred principal point from a vertical field of view in degrees."""
    if not 0.0 < fov_vertical_deg < 180.0:
        raise InputError(f"vertical field of view is {fov_vertical_deg:g} degrees: give a value between 0 and 180.")
    focal = 0.5 * height / math.tan(math.radians(fov_vertical_deg) / 2)
    return Intrinsics(focal, focal, width / 2, height / 2)


def unproject(depth: NDArray[np.float32], fx: float, fy: float, cx: float, cy: float) -> NDArray[np.float32]:
    """Return the point at each pixel's centre, (H, W, 3) float32: x right, y down, z forward, in the unit of depth."""
    height, width = depth.shape
    z = depth.astype(np.float64)
    x = (np.arange(width) + 0.5 - cx) / fx * z
    y = ((np.arange(height) + 0.5 - cy) / fy)[:, None] * z
    return np.stack([x, y, z], axis=-1).astype(np.float32)


def depth_jumps(depth: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the relative jump of depth around each pixel (H, W): farthest over nearest in the 3x3 window, minus one.

    It is infinite if the window has a hole or z <= 0.
    """
    known = np.isfinite(depth) & (depth > 0)
    far = _window3(np.where(known, depth, np.inf), np.maximum).astype(np.float64)
    near = _window3(np.where(known, depth, np.inf), np.minimum).astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf / inf where a whole window is unknown
        return np.where(np.isfinite(far), far / near - 1.0, np.inf)


def depth_edges(depth: NDArray[np.float32], relative_jump: float) -> NDArray[np.bool_]:
    """Return a mask (H, W) of pixels whose jump of depth in the 3x3 window exceeds `relative_jump`.

    Unprojected, such pixels lie between two surfaces. A pixel with a hole or z <= 0 in its window is an edge. See
    `depth_jumps`.
    """
    return ~(depth_jumps(depth) <= relative_jump)


def _window3(array: NDArray[Any], reduce: np.ufunc) -> NDArray[Any]:
    padded = np.pad(array, 1, mode="edge")
    rows = reduce(reduce(padded[:-2], padded[1:-1]), padded[2:])
    result: NDArray[Any] = reduce(reduce(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
    return result

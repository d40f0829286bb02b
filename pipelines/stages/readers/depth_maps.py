"""Decode depth maps into float32 (H, W) with a mask of valid pixels.

Accepted: PNG with 16-bit grey (8-bit grey too), TIFF with 16-bit or float grey, NumPy .npy of any real number type, and
nested lists of numbers in tables. Coloured maps are refused, because their colours are no measurements.

    value = stored * input.depth.scale      metric: metres, z along the optical axis; disparity: near is high
    hole  = stored == input.depth.invalid, or not finite in float32, or value > input.depth.max, or (metric) <= 0

PNGs that this package writes say that they are relative disparity (jointdit/geometry/png_note.py).
"""

from __future__ import annotations

import io
import tokenize
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from PIL import Image

from jointdit.errors import RowError
from jointdit.geometry.png_note import DepthNote, read_note
from pipelines.spec.base import FARTHEST, NEAREST
from pipelines.stages.readers.images import DECODE_ERRORS, MAX_PIXELS, check_pixels, open_checked
from pipelines.store.safe_text import reason_of

if TYPE_CHECKING:
    from pipelines.spec.job import DepthMaps

NPY_MAGIC = b"\x93NUMPY"
DEPTH_MAP_SUFFIXES = (".npy", ".png", ".tif", ".tiff")


def decode_depth(stored: bytes | list[Any], meaning: DepthMaps) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return (depth in the units of `meaning` with 0 in holes, valid), each (H, W).

    Raises RowError for what cannot be decoded, is not one grey map, has no valid pixel, is constant, or is outside the
    range of distances in metres.
    """
    return to_depth(read_stored(stored), meaning)


def to_depth(stored: StoredMap, meaning: DepthMaps) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return depth and valid pixels of a decoded file, and raise RowError, as `decode_depth`."""
    raw, note = stored.values, stored.note
    if note is not None and meaning.kind == "metric":
        raise RowError("depth map is relative disparity, as its text chunk says, not metres: set kind to disparity.")
    valid = np.isfinite(raw)
    if note is not None and note.has_holes:
        valid &= raw != 0
    if meaning.invalid is not None:
        valid &= raw != meaning.invalid
    with np.errstate(over="ignore", invalid="ignore"):
        depth = (raw * meaning.scale).astype(np.float32)
    valid &= np.isfinite(depth)
    if meaning.kind == "metric":
        valid &= depth > 0
    if meaning.max is not None:
        valid &= depth <= meaning.max
    if not valid.any():
        raise RowError("depth map has no valid pixel: check input.depth scale and invalid.")
    depth = np.where(valid, depth, np.float32(0))
    lowest, highest = float(depth[valid].min()), float(depth[valid].max())
    if meaning.kind == "metric" and (lowest < NEAREST or highest > FARTHEST):
        raise RowError(
            f"depth map lies between {lowest:g} and {highest:g} metres, which is not plausible: "
            "check input.depth scale and invalid."
        )
    if lowest == highest:
        raise RowError(f"depth map is constant at {lowest:g} and has no relative disparity: take it out.")
    return depth, valid


class StoredMap(NamedTuple):
    """A decoded depth file, and what it says of itself."""

    values: NDArray[np.float64]  # (H, W), as stored
    holds_integers: bool  # which are metres only with a scale
    note: DepthNote | None = None  # of a PNG that this package wrote


def read_stored(stored: bytes | list[Any]) -> StoredMap:
    """Decode a file or a list of numbers without an interpretation. Raises RowError as `decode_depth`."""
    holds_integers, note = False, None
    if isinstance(stored, list):
        try:
            array = np.asarray(stored, dtype=np.float64)
        except (ValueError, TypeError, OverflowError) as error:
            raise RowError("depth map is a list whose rows are not numbers of one length: give (H, W).") from error
    elif not stored:
        raise RowError("depth map has zero bytes: copy it again.")
    elif stored.startswith(NPY_MAGIC):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that Python 2 wrote
            array, holds_integers = _decode_npy(stored)
    else:
        array, holds_integers, note = _decode_image(stored)
    array = np.squeeze(array, axis=tuple(axis for axis in (0, -1) if array.ndim == 3 and array.shape[axis] == 1))
    if array.ndim != 2 or array.size == 0:
        raise RowError(f"depth map has shape {array.shape}: give one map (H, W).")
    return StoredMap(array, holds_integers, note)


def _decode_npy(data: bytes) -> tuple[NDArray[np.float64], bool]:
    stream = io.BytesIO(data)
    try:
        shape, dtype = _npy_header(stream)
        check_pixels(int(np.prod(shape[:-1], dtype=object)), int(shape[-1]) if shape else 1, "depth map")
        if dtype.kind not in "iuf":
            raise RowError(f"depth map holds {dtype}: give real numbers.")
        stream.seek(0)
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return np.load(stream, allow_pickle=False).astype(np.float64), dtype.kind in "iu"
    except RowError:
        raise
    except (*DECODE_ERRORS, tokenize.TokenError) as error:  # NumPy reads the header as Python literals
        reason = reason_of(error, 80)
        raise RowError(f"depth map cannot be decoded as .npy ({reason}): save it again with numpy.save.") from error


def _npy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy_format.read_magic(stream)
    read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    try:
        shape, _, dtype = read_header(stream)
    except MemoryError:  # raised by Python's parser for a deeply nested header
        raise ValueError("its header is no description of an array") from None
    return shape, dtype


def _decode_image(data: bytes) -> tuple[NDArray[np.float64], bool, DepthNote | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = open_checked(data, ("PNG", "TIFF"))
            image.load()
        except RowError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise RowError(
                f"depth map has more than {MAX_PIXELS // 10**6} million pixels, the limit: scale it."
            ) from None
        except DECODE_ERRORS as error:
            reason = reason_of(error)
            raise RowError(f"depth map cannot be decoded as PNG, TIFF or .npy ({reason}): save it again.") from error
    if image.mode not in ("L", "F") and not image.mode.startswith("I"):
        raise RowError(f"depth map has mode {image.mode}: give one grey channel of 16 bits, not colours.")
    return np.asarray(image).astype(np.float64), image.mode != "F", read_note(image)

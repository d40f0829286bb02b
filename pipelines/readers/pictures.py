"""Encoded pictures of any kind -> uint8 RGB (H, W, 3) as a viewer shows them.

EXIF rotation is applied; transparency is laid on white; 16-bit grey is scaled, CMYK, palette and grey are converted; of
animations and multi-page files the first frame is taken; colour profiles are not applied. Formats that run code or
other programs (EPS, PDF, WMF) are not opened.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jointdit.errors import RowError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".avif")
MAX_PIXELS = 80_000_000  # a row above it is quarantined before it is decoded; below the size Pillow itself warns at
DECODE_ERRORS = (
    OSError,  # truncated, unidentified
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
ORIENTATION = 0x0112


def decode_picture(data: bytes) -> tuple[NDArray[np.uint8], bool]:
    """The picture (H, W, 3), and whether the encoded bytes show exactly it, so that they can be copied as they are.

    Raises RowError for what cannot be decoded and for more than MAX_PIXELS pixels.
    """
    if not data:
        raise RowError("picture has zero bytes.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            check_pixels(*image.size)
            as_is = (
                image.format in ("PNG", "JPEG", "WEBP")
                and image.mode == "RGB"  # grey would be shown as two-dimensional by some readers
                and "transparency" not in image.info
                and getattr(image, "n_frames", 1) == 1
            )
            image.load()
            turned = image.getexif().get(ORIENTATION, 1) != 1
            rgb = np.asarray(_as_rgb(ImageOps.exif_transpose(image) if turned else image))
        except RowError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise RowError(
                f"picture has more than {MAX_PIXELS // 10**6} million pixels, the limit: scale it."
            ) from None
        except DECODE_ERRORS as error:
            raise RowError(f"picture cannot be decoded ({_reason(error)}).") from error
    return rgb, as_is and not turned


def check_pixels(width: int, height: int) -> None:
    """Raise RowError above MAX_PIXELS, from a header alone: a small file can unpack to gigabytes."""
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise RowError(f"picture is {width} x {height} pixels, more than the limit of {limit} million: scale it.")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, in the 32-bit container of some formats
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise RowError(
                f"picture has grey values from {values.min()} to {values.max()}: give 8 or 16 bits a channel."
            )
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise RowError("picture holds floating point values, whose white is unknown: give 8 or 16 bits a channel.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known picture format"
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Encoded images of any kind -> uint8 RGB (H, W, 3) as a viewer shows them.

EXIF rotation and colour profiles are applied (to sRGB); transparency is laid on white; 16-bit grey is scaled, CMYK,
palette and grey are converted; of animations and multi-page files the first frame is taken. Formats that run code or
other programs (EPS, PDF, WMF) are not opened.

A small file can unpack to gigabytes, so sizes are checked in the headers, before anything is unpacked: MAX_PIXELS for
the image and for each tile of a TIFF; the text and the profile of a PNG by Pillow's own limits, 1 MiB a chunk and
64 MiB a file.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from jointdit.errors import RowError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".avif")
MAX_PIXELS = 80_000_000  # a row above it is quarantined before it is decoded; below the size Pillow itself warns at
# What decoders raise at damaged data, found by feeding them millions of damaged files. A MemoryError may be the node's:
# the shard is tried again, and a row is blamed only if it goes on (row_boundary.py).
DECODE_ERRORS = (
    OSError,  # truncated, unidentified
    SyntaxError,  # PNG chunks
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,  # AVIF
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
ORIENTATION = 0x0112
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
TO_8_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def decode_image(data: bytes) -> tuple[NDArray[np.uint8], bool]:
    """The image (H, W, 3), and whether the encoded bytes show exactly it, so that they can be copied as they are.

    Raises RowError for what cannot be decoded and for more than MAX_PIXELS pixels.
    """
    if not data:
        raise RowError("image has zero bytes: copy it again.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = open_checked(data, FORMATS)
            as_is = (
                image.format in ("PNG", "JPEG", "WEBP")
                and image.mode == "RGB"  # grey would be shown as two-dimensional by some readers
                and "transparency" not in image.info
                and getattr(image, "n_frames", 1) == 1
            )
            image.load()
            turned = image.getexif().get(ORIENTATION, 1) != 1
            converted = _in_srgb(image)
            as_is = as_is and converted is image
            rgb = np.asarray(_as_rgb(ImageOps.exif_transpose(converted) if turned else converted))
        except RowError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise RowError(f"image has more than {MAX_PIXELS // 10**6} million pixels, the limit: scale it.") from None
        except UnidentifiedImageError:
            raise RowError(f"image is of no known image format: give one of {', '.join(FORMATS)}.") from None
        except DECODE_ERRORS as error:
            raise RowError(f"image cannot be decoded ({_reason(error)}): copy or save it again.") from error
    return rgb, as_is and not turned


def open_checked(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """The image with its header read and nothing unpacked. Raises RowError above MAX_PIXELS, and DECODE_ERRORS."""
    image = Image.open(io.BytesIO(data), formats=formats)
    check_pixels(*image.size)
    tags = getattr(image, "tag_v2", {})
    if TILE_WIDTH in tags and TILE_LENGTH in tags:  # a tile is unpacked whole, however small the image is
        check_pixels(int(tags[TILE_WIDTH]), int(tags[TILE_LENGTH]))
    return image


def check_pixels(width: int, height: int, what: str = "picture") -> None:
    """Raise RowError above MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise RowError(f"{what} is {width} x {height} pixels, more than the limit of {limit} million: scale it.")


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _in_srgb(image: Image.Image) -> Image.Image:
    """The image with its colour profile applied; the same object where there is none, or none that can be used."""
    data = image.info.get("icc_profile")
    if not data or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if ImageCms.getProfileDescription(profile).startswith("sRGB"):
            return image
        colours = image.convert("RGB") if image.mode == "RGBA" else image
        converted = ImageCms.profileToProfile(colours, profile, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # damaged, or of another kind of colour: viewers pass over it
        return image
    assert converted is not None
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    if ORIENTATION in image.getexif():
        converted.info["exif"] = image.getexif().tobytes()
    return converted


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, in the 32-bit container of some formats
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise RowError(f"image has grey values from {values.min()} to {values.max()}: give 8 or 16 bits a channel.")
        image = Image.fromarray(TO_8_BITS[values])
    elif image.mode == "F":
        raise RowError("image holds floating point values, whose white is unknown: give 8 or 16 bits a channel.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

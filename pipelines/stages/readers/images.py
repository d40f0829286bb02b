"""Decode images of any format into uint8 RGB (H, W, 3), as a viewer shows them.

EXIF rotation and colour profiles are applied (to sRGB), and transparency is composited on white. 16-bit grey is scaled;
CMYK, palette and grey are converted. Animations and multi-page files give their first frame. Formats that run code or
other programs (EPS, PDF, WMF) are not opened.

A small file can decompress to gigabytes, so sizes are checked in the headers first: MAX_PIXELS for the image and for
each tile of a TIFF, and Pillow's own limits for the text and the profile of a PNG, 1 MiB per chunk and 64 MiB per file.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from jointdit.errors import RowError
from pipelines.store.safe_text import reason_of

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".avif")
MAX_PIXELS = 80_000_000  # larger images are quarantined before they are decoded; Pillow itself warns at a larger size
# What decoders raise for damaged data, found with millions of damaged files. A MemoryError is not among them, because
# it may be the node's: the shard is retried, and a row is blamed only if the error repeats (row_boundary.py).
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
TO_8_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def decode_image(data: bytes) -> tuple[NDArray[np.uint8], bool]:
    """Return the image (H, W, 3), and whether its encoded bytes show exactly it, so that they can be copied.

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
                and image.mode == "RGB"  # some readers return grey as two-dimensional
                and "transparency" not in image.info
                and getattr(image, "n_frames", 1) == 1
            )
            image.load()
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            converted = _in_srgb(image)
            as_is = as_is and converted is image
            rgb = np.asarray(_as_rgb(ImageOps.exif_transpose(converted) if turned else converted))
        except RowError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise RowError(f"image has more than {MAX_PIXELS // 10**6} million pixels, the limit: scale it.") from None
        except UnidentifiedImageError:
            raise RowError(f"image has an unknown format: give one of {', '.join(FORMATS)}.") from None
        except DECODE_ERRORS as error:
            raise RowError(f"image cannot be decoded ({reason_of(error)}): copy or save it again.") from error
    return rgb, as_is and not turned


def open_checked(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Read the header of an image. Raises RowError above MAX_PIXELS, and DECODE_ERRORS."""
    image = Image.open(io.BytesIO(data), formats=formats)
    check_pixels(*image.size)
    tags = getattr(image, "tag_v2", {})
    tile = (ExifTags.Base.TileWidth, ExifTags.Base.TileLength)
    if tile[0] in tags and tile[1] in tags:  # a tile is decompressed in full, however small the image is
        check_pixels(int(tags[tile[0]]), int(tags[tile[1]]))
    return image


def check_pixels(width: int, height: int, name: str = "image") -> None:
    """Raise RowError above MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise RowError(f"{name} is {width} x {height} pixels, more than the limit of {limit} million: scale it.")


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _in_srgb(image: Image.Image) -> Image.Image:
    """Apply the colour profile. Returns the same object where there is none, or none that can be used."""
    data = image.info.get("icc_profile")
    if not data or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if ImageCms.getProfileDescription(profile).startswith("sRGB"):
            return image
        colours = image.convert("RGB") if image.mode == "RGBA" else image
        converted = ImageCms.profileToProfile(colours, profile, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # damaged, or of another colour space: viewers ignore it
        return image
    assert converted is not None
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    if ExifTags.Base.Orientation in image.getexif():
        converted.info["exif"] = image.getexif().tobytes()
    return converted


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; some formats use a 32-bit container
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

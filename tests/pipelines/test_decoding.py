"""Pictures and depth maps of every awkward kind: decoded as a viewer shows them, or one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from jointdit.errors import RowError
from pipelines.readers.depth_maps import decode_depth
from pipelines.readers.pictures import MAX_PIXELS, decode_picture
from pipelines.spec import DepthMaps

RGB = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int, chunks: bytes = b"") -> bytes:
    """A PNG whose header claims a size that its data does not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + body + chunk(b"IEND", b"")


# --- pictures ---


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "WEBP"])
def test_lossless_pictures_come_out_exactly(kind: str) -> None:
    rgb, as_is = decode_picture(encoded(Image.fromarray(RGB), kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(rgb, RGB)
    assert as_is == (kind in ("PNG", "WEBP"))  # what every viewer of a dataset can show is copied as it is


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    left_top = np.zeros((16, 32, 3), np.uint8)
    left_top[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb, as_is = decode_picture(encoded(Image.fromarray(left_top), "JPEG", quality=95, exif=exif))
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    assert rgb.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    bright = np.argwhere(rgb[..., 0] > 128).mean(axis=0) > np.array(rgb.shape[:2]) / 2
    assert tuple(bright.astype(int)) == corner
    assert as_is == (orientation == 1)


def test_transparency_is_laid_on_white() -> None:
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    rgba[0, 0] = (10, 20, 30, 0)
    rgb, as_is = decode_picture(encoded(Image.fromarray(rgba)))
    assert rgb[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(rgb[1:], RGB[1:])
    assert not as_is


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    rgb, _ = decode_picture(encoded(image, transparency=1))
    assert rgb.tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    rgb, as_is = decode_picture(encoded(Image.fromarray(grey)))
    assert rgb[0, :, 0].tolist() == [0, 1, 128, 255]
    assert not as_is


def test_cmyk_grey_and_bilevel_become_rgb() -> None:
    cmyk, _ = decode_picture(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"))
    assert cmyk[0, 0, 0] > 240
    assert cmyk[0, 0, 1] < 15
    grey, as_is = decode_picture(encoded(Image.new("L", (4, 4), 77)))
    assert grey.tolist() == [[[77, 77, 77]] * 4] * 4
    assert not as_is
    bilevel, _ = decode_picture(encoded(Image.new("1", (2, 2), 1)))
    assert bilevel.min() == 255


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        rgb, as_is = decode_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert rgb[0, 0].tolist() == [255, 0, 0]
        assert not as_is


def test_a_profile_does_not_stop_a_picture() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb, _ = decode_picture(encoded(Image.fromarray(RGB), icc_profile=profile))
    np.testing.assert_array_equal(rgb, RGB)


JPEG = encoded(Image.fromarray(RGB.repeat(20, 0).repeat(20, 1)), "JPEG")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "zero bytes"),
        (b"hello, I am text", "no known picture format"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encoded(Image.fromarray(RGB))[:60], "cannot be decoded"),
        (JPEG[:4], "cannot be decoded"),
        (png_claiming(9000, 9000), "million"),
        (png_claiming(60_000, 60_000), "million"),
        (png_claiming(2**31 - 1, 2**31 - 1), "million"),
        (png_claiming(100, 100), "cannot be decoded"),
        (encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "floating point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known picture format"),
    ],
)
def test_what_is_no_picture_is_one_sentence(data: bytes, what: str) -> None:
    with pytest.raises(RowError, match=what) as caught:
        decode_picture(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_compressed_text_in_a_png_cannot_fill_the_memory() -> None:
    body = b"Comment\0\0" + zlib.compress(bytes(200 * 2**20))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    with pytest.raises(RowError, match="cannot be decoded"):
        decode_picture(png_claiming(4, 4, chunk))


def test_the_limit_of_pixels_is_below_the_size_pillow_stops_at() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS


# --- depth maps ---

METRES = np.array([[0.0, 1.5], [2.25, 4.0]])


@pytest.mark.parametrize(
    ("stored", "scale"),
    [
        (encoded(Image.fromarray((METRES * 1000).astype(np.uint16))), 0.001),
        (encoded(Image.fromarray((METRES * 20).astype(np.uint8))), 0.05),
        (encoded(Image.fromarray(METRES.astype(np.float32)), "TIFF"), 1.0),
        (encoded(Image.fromarray((METRES * 1000).astype(np.uint16)), "TIFF"), 0.001),
        (npy(METRES), 1.0),
        (npy(METRES.astype(np.float16)), 1.0),
        (npy(np.asfortranarray(METRES * 1000).astype(np.int32)), 0.001),
        (npy(METRES[..., None]), 1.0),
        (npy(METRES[None]), 1.0),
        (METRES.tolist(), 1.0),
    ],
)
def test_maps_of_every_kind_give_metres_and_the_hole(stored: bytes | list[Any], scale: float) -> None:
    depth, valid = decode_depth(stored, DepthMaps(kind="metric", scale=scale, invalid=0.0))
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, METRES, rtol=1e-6)
    assert valid.tolist() == [[False, True], [True, True]]


def test_holes_are_what_the_spec_says_and_what_cannot_be() -> None:
    stored = npy(np.array([[np.nan, np.inf, -1.0, 0.0, 65.0, 2.0, 3.0]]))
    assert decode_depth(stored, DepthMaps(kind="metric", invalid=65.0))[1].tolist() == [[False] * 5 + [True] * 2]
    valid = decode_depth(stored, DepthMaps(kind="disparity", invalid=None))[1]
    assert valid.tolist() == [[False, False, True, True, True, True, True]]


@pytest.mark.parametrize(
    ("stored", "what"),
    [
        (b"", "zero bytes"),
        (b"text", "cannot be decoded"),
        (npy(METRES)[:-9], "cannot be decoded as .npy"),
        (npy(METRES)[:12], "cannot be decoded as .npy"),
        (npy(np.array([[object()]]), allow_pickle=True), "give real numbers"),
        (npy(METRES.astype(complex)), "give real numbers"),
        (npy(METRES).replace(b"(2, 2)", b"(9999999, 99999)"), "million|decoded"),
        (npy(np.zeros((2, 2, 3))), "shape"),
        (npy(np.zeros((0, 4))), "shape"),
        (encoded(Image.fromarray(RGB)), "not colours"),
        (encoded(Image.fromarray(RGB[..., 0]))[:50], "decoded"),
        ([[1.0], [1.0, 2.0]], "one length"),
        ([1.0, 2.0], "shape"),
        ([["a"]], "one length"),
        (npy(np.zeros((4, 4))), "no valid pixel"),
        (npy(np.full((4, 4), 3.0)), "constant at 3"),
    ],
)
def test_what_is_no_map_is_one_sentence(stored: bytes | list[Any], what: str) -> None:
    with pytest.raises(RowError, match=what) as caught:
        decode_depth(stored, DepthMaps(kind="metric"))
    assert str(caught.value).endswith(".")

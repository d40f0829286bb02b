"""Images and depth maps of many kinds: decoded as a viewer shows them, or a clear error."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from jointdit.errors import RowError
from pipelines.stages.readers.images import MAX_PIXELS, decode_image

RGB = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npy_header(header: str) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(64)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int, chunks: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header claims a size that its data does not have."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + body + chunk(b"IEND", b"")


# --- images ---


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "WEBP"])
def test_lossless_images_come_out_exactly(kind: str) -> None:
    rgb, as_is = decode_image(encoded(Image.fromarray(RGB), kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(rgb, RGB)
    assert as_is == (kind in ("PNG", "WEBP"))  # what every viewer of a dataset can show is copied as it is


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int) -> None:
    left_top = np.zeros((16, 32, 3), np.uint8)
    left_top[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb, as_is = decode_image(encoded(Image.fromarray(left_top), "JPEG", quality=95, exif=exif))
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    assert rgb.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    bright = np.argwhere(rgb[..., 0] > 128).mean(axis=0) > np.array(rgb.shape[:2]) / 2
    assert tuple(bright.astype(int)) == corner
    assert as_is == (orientation == 1)


def test_transparency_is_laid_on_white() -> None:
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    rgba[0, 0] = (10, 20, 30, 0)
    rgb, as_is = decode_image(encoded(Image.fromarray(rgba)))
    assert rgb[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(rgb[1:], RGB[1:])
    assert not as_is


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    rgb, _ = decode_image(encoded(image, transparency=1))
    assert rgb.tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    rgb, as_is = decode_image(encoded(Image.fromarray(grey)))
    assert rgb[0, :, 0].tolist() == [0, 1, 128, 255]
    assert not as_is


def test_cmyk_grey_and_bilevel_become_rgb() -> None:
    cmyk, _ = decode_image(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"))
    assert cmyk[0, 0, 0] > 240
    assert cmyk[0, 0, 1] < 15
    grey, as_is = decode_image(encoded(Image.new("L", (4, 4), 77)))
    assert grey.tolist() == [[[77, 77, 77]] * 4] * 4
    assert not as_is
    bilevel, _ = decode_image(encoded(Image.new("1", (2, 2), 1)))
    assert bilevel.min() == 255


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        rgb, as_is = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert rgb[0, 0].tolist() == [255, 0, 0]
        assert not as_is


def test_grey_with_alpha_and_one_bit_with_a_transparent_colour_are_laid_on_white() -> None:
    half = Image.merge("LA", (Image.new("L", (2, 1), 0), Image.fromarray(np.array([[255, 128]], np.uint8))))
    assert decode_image(encoded(half))[0].tolist() == [[[0, 0, 0], [127, 127, 127]]]
    bilevel = Image.fromarray(np.array([[False, True]]))
    assert decode_image(encoded(bilevel, transparency=0))[0].tolist() == [[[255, 255, 255], [255, 255, 255]]]


def test_16_bits_a_channel_keep_their_upper_half() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", *(int(v) * 257 for v in RGB[y, 0])) for y in range(4))
    header = struct.pack(">IIBBBBB", 1, 4, 16, 2, 0, 0, 0)
    deep = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode_image(deep)[0], RGB[:4, :1])


def test_pages_after_the_first_are_left() -> None:
    pages = [Image.new("CMYK", (3, 2), ink) for ink in ((0, 0, 0, 255), (0, 0, 0, 0))]
    rgb, as_is = decode_image(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert rgb.tolist() == [[[0, 0, 0]] * 3] * 2
    assert not as_is


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_other_formats_are_turned_upright_too(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb, _ = decode_image(
        encoded(Image.fromarray(RGB), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    )
    np.testing.assert_array_equal(rgb, np.rot90(RGB, -1))


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_primaries() -> bytes:
    """sRGB with red and green exchanged, and a name of its own."""
    assert SRGB.count(b"rXYZ") == SRGB.count(b"gXYZ") == 1
    swapped = SRGB.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "GRBs".encode("utf-16-be"))


def test_a_profile_of_srgb_changes_nothing() -> None:
    rgb, as_is = decode_image(encoded(Image.fromarray(RGB), icc_profile=SRGB))
    np.testing.assert_array_equal(rgb, RGB)
    assert as_is


def test_another_profile_is_applied_as_viewers_do() -> None:
    red = Image.new("RGB", (4, 2), (255, 0, 0))
    rgb, as_is = decode_image(encoded(red, icc_profile=swapped_primaries()))
    assert np.abs(rgb[0, 0].astype(int) - (0, 255, 0)).max() <= 1
    assert not as_is, "the bytes alone show red to whoever passes over the profile"
    clear = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    assert decode_image(encoded(clear, icc_profile=swapped_primaries()))[0].min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, _ = decode_image(encoded(red, icc_profile=swapped_primaries(), exif=exif))
    assert turned.shape == (4, 2, 3)


def test_a_profile_that_cannot_be_used_is_passed_over() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"no profile", SRGB[:200], lab):
        np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(RGB), icc_profile=profile))[0], RGB)


JPEG = encoded(Image.fromarray(RGB.repeat(20, 0).repeat(20, 1)), "JPEG")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "zero bytes"),
        (b"hello, I am text", "image has an unknown format"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encoded(Image.fromarray(RGB))[:60], "cannot be decoded"),
        (JPEG[:4], "image has an unknown format"),
        (png_claiming(9000, 9000), "million"),
        (png_claiming(60_000, 60_000), "million"),
        (png_claiming(2**31 - 1, 2**31 - 1), "million"),
        (png_claiming(100, 100), "cannot be decoded"),
        (encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "floating point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image has an unknown format"),
    ],
)
def test_what_is_no_image_is_one_sentence(data: bytes, what: str) -> None:
    with pytest.raises(RowError, match=what) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


# --- small files that unpack to gigabytes: refused by their headers ---

MIB = 2**20
TEXT_CHUNKS = {
    "one of 8 MiB": [(b"zTXt", b"Comment\0\0", 8 * MIB)],
    "an international one of 8 MiB": [(b"iTXt", b"Comment\0\1\0\0\0", 8 * MIB)],
    "a colour profile of 8 MiB": [(b"iCCP", b"icc\0\0", 8 * MIB)],
    "100 of just under 1 MiB": [(b"zTXt", b"Comment\0\0", MIB - 1)] * 100,
}


@pytest.mark.parametrize("chunks", TEXT_CHUNKS.values(), ids=TEXT_CHUNKS)
def test_compressed_text_in_a_png_cannot_fill_the_memory(chunks: list[tuple[bytes, bytes, int]]) -> None:
    packed = {size: zlib.compress(bytes(size)) for _, _, size in chunks}
    data = encoded(Image.fromarray(RGB))
    text = b"".join(chunk(kind, head + packed[size]) for kind, head, size in chunks)
    with pytest.raises(RowError, match=r"MAX_TEXT_(CHUNK|MEMORY)"):
        decode_image(data[:33] + text + data[33:])


def claiming(kind: str, at: bytes, skip: int, size: bytes, **options: Any) -> bytes:
    """An encoded image whose bytes `skip` after `at` are replaced: its header claims another size."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), kind, **options))
    start = data.index(at) + skip
    data[start : start + len(size)] = size
    return bytes(data)


def tiled_tiff(tile: int) -> bytes:
    """A TIFF of 16 x 16 pixels in one deflated tile of `tile` x `tile`."""
    body = zlib.compress(bytes(10_000))
    fields = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 134, 325: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + body


BOMBS = {
    "JPEG": claiming("JPEG", b"\xff\xc0", 5, struct.pack(">HH", 65500, 65500)),
    "GIF": claiming("GIF", b"GIF8", 6, struct.pack("<HH", 65535, 65535)),
    "a frame of a GIF": claiming("GIF", b",\0\0\0\0\x08\0\x08\0", 5, struct.pack("<HH", 65535, 65535)),
    "BMP": claiming("BMP", b"BM", 18, struct.pack("<ii", 60_000, 60_000)),
    "PPM": b"P6 60000 60000 255\n",
    "animated WebP": claiming(
        "WEBP", b"VP8X", 12, b"\xfe\x3f\0\xfe\x3f\0", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
    ),
    "16-bit PNG": png_claiming(20_000, 20_000, bits=16, colour=0),
    "PNG just above the limit": png_claiming(8000, 10_001),
    "a tile of a TIFF": tiled_tiff(32_000),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_image_above_the_limit_of_pixels_is_refused_by_its_header(data: bytes) -> None:
    with pytest.raises(RowError, match=r"limit.* million|million pixels, the limit"):
        decode_image(data)


def test_data_beyond_the_images_size_is_not_unpacked() -> None:
    rows = zlib.compress(bytes(8 * MIB))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    rgb, _ = decode_image(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert rgb.shape == (8, 8, 3)
    assert decode_image(tiled_tiff(96))[0].shape == (16, 16, 3)


def seconds(act: Callable[[], object]) -> float:
    """The processor's time for it, the best of three."""
    times = []
    for _ in range(3):
        started = time.process_time()
        act()
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_a_thousand_frames_cost_no_more_than_the_first(kind: str) -> None:
    chance = np.random.default_rng(0)
    frames = [Image.fromarray(chance.integers(0, 256, (32, 32), dtype=np.uint8)) for _ in range(1000)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])

    def decode_all() -> None:
        with Image.open(io.BytesIO(data)) as image:
            assert image.n_frames == 1000
            for number in range(1000):
                image.seek(number)
                image.load()

    assert seconds(lambda: decode_image(data)) < seconds(decode_all) / 4


def test_the_limit_of_pixels_is_below_the_size_pillow_stops_at() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS

"""Depth maps from files and table cells: units, holes, and damage of every kind."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jointdit.errors import RowError
from jointdit.geometry.depth import encode_depth_png
from pipelines.spec.job import DepthMaps
from pipelines.stages.readers import images as pictures
from pipelines.stages.readers.depth_maps import decode_depth
from pipelines.stages.readers.images import decode_image
from tests.pipelines.stages.readers.test_decoding import (
    RGB,
    encoded,
    npy,
    npy_header,
    png_claiming,
    swapped_primaries,
    tiled_tiff,
)

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


@pytest.mark.parametrize(("values", "scale"), [([1e-9, 1.0], 1.0), ([1.0, 1e30], 1.0), ([1.0, 2.0], 1e12)])
def test_metres_that_nobody_measures_are_a_bad_row(values: list[float], scale: float) -> None:
    with pytest.raises(RowError, match=r"metres, which is not plausible: check input.depth scale and invalid\.$"):
        decode_depth(npy(np.array([values])), DepthMaps(kind="metric", scale=scale))
    decode_depth(npy(np.array([values])), DepthMaps(kind="disparity", scale=scale))


def test_holes_are_what_the_spec_says_and_what_cannot_be() -> None:
    stored = npy(np.array([[np.nan, np.inf, -1.0, 0.0, 65.0, 2.0, 3.0]]))
    assert decode_depth(npy(np.array([[1e300, 2.0, 3.0]])), DepthMaps(kind="metric"))[1].tolist() == [
        [False, True, True]
    ]
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
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (9999999, 99999)}"), "limit of 80 million"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-3, -4)}"), "decoded as .npy"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (8000, 9000)}"), "decoded as .npy"),
        (npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}"), "give real numbers"),
        (npy_header("__import__('os').abort()"), "decoded as .npy"),
        (npy_header("-" * 9000 + "1"), "decoded as .npy"),
        (npy_header("1" + "+1" * 4500), "decoded as .npy"),
        (npy_header("(" * 9000), "decoded as .npy"),
        (png_claiming(20_000, 20_000, bits=16, colour=0), "million pixels, the limit"),
        (tiled_tiff(32_000), "limit of 80 million"),
        ([[10**400, 1.0]], "one length"),
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


# --- damage of every kind ---

GREY = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (9, 7), dtype=np.uint16))
WHOLE = [
    *(encoded(Image.fromarray(RGB), kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")),
    encoded(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"),
    encoded(Image.fromarray(RGB).convert("P"), transparency=3),
    encoded(Image.fromarray(RGB), icc_profile=swapped_primaries()),
    encoded(GREY),
    encoded(GREY, "TIFF"),
    npy(METRES),
]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_damaged_is_a_row_error_and_nothing_else(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes changed, inserted, left out and cut: another exception would end the run instead of the row."""
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1_000_000)  # headers that claim millions cost seconds each
    chance, sentences = random.Random(seed), set()
    for _ in range(1000):
        data = bytearray(chance.choice(WHOLE))
        for _ in range(chance.choice([1, 1, 2, 5])):
            place = chance.randrange(min(len(data), chance.choice([40, 200, 10**6])))
            change = chance.randrange(4)
            if change == 0:
                data[place] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
            elif change == 1:
                data[place:place] = chance.randbytes(chance.choice([1, 4, 50]))
            elif change == 2 and len(data) > 60:
                del data[place : place + chance.choice([1, 4, 50])]
            elif len(data) > 60:
                data = data[: max(10, place)]
        for decode in (decode_image, lambda data: decode_depth(data, DepthMaps(kind="metric"))):
            try:
                decode(bytes(data))
            except RowError as error:
                sentences.add(str(error))
    assert len(sentences) > 50
    assert [sentence for sentence in sentences if not sentence.endswith((".", "?")) or "\n" in sentence] == []


def test_values_beyond_a_maximum_are_holes_and_our_own_maps_say_what_they_are() -> None:
    far = np.array([[1.0, 2.0, 65.535]])
    assert decode_depth(npy(far), DepthMaps(kind="metric", max=10.0))[1].tolist() == [[True, True, False]]
    disparity = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    ours = encode_depth_png(disparity, np.array([[False, True, True]]))
    values, valid = decode_depth(ours, DepthMaps(kind="disparity", invalid=None))
    assert valid.tolist() == [[False, True, True]]
    assert values[0, 2] == 65535
    assert decode_depth(encode_depth_png(disparity), DepthMaps(kind="disparity", invalid=None))[1].all()
    with pytest.raises(RowError, match="relative disparity, as its text chunk says, not metres"):
        decode_depth(ours, DepthMaps(kind="metric"))

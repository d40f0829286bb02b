"""Faults planted in clean samples, and clean samples in several styles.

Lengths are fractions of the longer side, so that a fault is the same at any size. The severity is drawn for each
sample, from just harmful to obvious.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jointdit.geometry.depth import decode_depth_png, disparity_from_depth, encode_depth_png
from jointdit.scenes import Scene
from jointdit.scenes.styles import pixel_art, toon

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """An image (H, W, 3), its relative disparity (H, W), the depth in metres behind it, and its caption."""

    rgb: NDArray[np.uint8]
    disparity: FloatArray
    depth: FloatArray
    caption: str


def pair_of(scene: Scene) -> Pair:
    """Return the pair of a rendered scene."""
    return Pair(scene.rgb, disparity_from_depth(scene.depth), scene.depth, scene.caption)


@dataclass(frozen=True)
class Fault:
    """A fault: `plant(pair, other pair, rng)` returns a faulty pair; `kind` is the filter for it."""

    name: str
    kind: str
    what: str  # description with the range of the severity
    plant: Callable[[Pair, Pair, np.random.Generator], Pair]


# --- depth ------------------------------------------------------------------------------------------------------------


def _constant(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    disparity = rng.uniform(0.1, 0.9) + rng.normal(0, rng.uniform(0, 0.01), pair.disparity.shape)
    disparity.ravel()[:2] = 0, 1
    return replace(pair, disparity=np.clip(disparity, 0, 1).astype(np.float32))


def _mostly_flat(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    disparity = rng.uniform(0, 1) + rng.normal(0, 0.003, pair.disparity.shape)
    size = round(np.sqrt(rng.uniform(0.01, 0.06)) * max(disparity.shape))
    top, left = rng.integers(0, min(disparity.shape) - size, 2)
    disparity[top : top + size, left : left + size] = rng.uniform(0, 1)
    return replace(pair, disparity=np.clip(disparity, 0, 1).astype(np.float32))


def _blurred(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    deviation = rng.uniform(0.012, 0.03) * max(pair.disparity.shape)
    return replace(pair, disparity=_gaussian(pair.disparity, deviation))


def _shifted(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.04, 0.1) * max(pair.disparity.shape)
    height, width = pair.disparity.shape
    rows = np.clip(np.arange(height) - round(length * np.sin(angle)), 0, height - 1)
    columns = np.clip(np.arange(width) - round(length * np.cos(angle)), 0, width - 1)
    return replace(pair, disparity=pair.disparity[np.ix_(rows, columns)])


def _inverted(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    if rng.random() < 0.5:
        return replace(pair, disparity=1 - pair.disparity)
    near, far = pair.depth.min(), pair.depth.max()
    return replace(pair, disparity=np.clip((pair.depth - near) / (far - near), 0, 1))


def _swapped(pair: Pair, other: Pair, _: np.random.Generator) -> Pair:
    return replace(pair, disparity=other.disparity)


def _banded(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    if rng.random() < 0.5:
        return replace(pair, disparity=(np.rint(pair.disparity * 255) / 255).astype(np.float32))
    near, far = pair.depth.min(), pair.depth.max()
    levels = np.rint((pair.depth - near) / (far - near) * 255)
    return replace(pair, disparity=disparity_from_depth(near + levels / np.float32(255) * (far - near)))


def _salted(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    disparity, hit = pair.disparity.copy(), rng.random(pair.disparity.shape) < rng.uniform(0.005, 0.05)
    disparity[hit] = rng.integers(0, 2, int(hit.sum()))
    return replace(pair, disparity=disparity)


def _rough(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    disparity = pair.disparity + rng.normal(0, rng.uniform(0.01, 0.05), pair.disparity.shape)
    return replace(pair, disparity=np.clip(disparity, 0, 1).astype(np.float32))


def _cut_off(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    nearest = np.quantile(pair.disparity, rng.uniform(0.5, 0.85))
    return replace(pair, disparity=np.minimum(pair.disparity / max(float(nearest), 1e-6), 1).astype(np.float32))


def _broken(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    disparity = pair.disparity.copy()
    disparity.ravel()[: rng.integers(1, disparity.size // 4)] = rng.choice([np.nan, np.inf])
    return replace(pair, disparity=disparity)


def _gaussian(values: FloatArray, deviation: float) -> FloatArray:
    reach = int(4 * deviation) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    for _ in range(2):
        padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0)
        values = np.ascontiguousarray((windows @ kernel).T)
    return np.clip(values, 0, 1).astype(np.float32)


# --- images ---------------------------------------------------------------------------------------------------------


def _blank(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    return replace(pair, rgb=_eight_bit(rng.uniform(0, 255, 3) + rng.normal(0, rng.uniform(0, 2), pair.rgb.shape)))


def _noisy(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    return replace(pair, rgb=_eight_bit(pair.rgb + rng.normal(0, rng.uniform(15, 40), pair.rgb.shape)))


def _pure_noise(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    return replace(pair, rgb=rng.integers(0, 256, pair.rgb.shape, dtype=np.uint8))


def _clipped(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    share = rng.uniform(0.5, 0.95)
    if rng.random() < 0.5:
        limit = np.quantile(pair.rgb.max(axis=2), 1 - share)
        return replace(pair, rgb=_eight_bit(pair.rgb * (256 / max(float(limit), 1))))
    limit = np.quantile(pair.rgb.min(axis=2), share)
    return replace(pair, rgb=_eight_bit((pair.rgb - limit) * (255 / (256 - limit))))


def _eight_bit(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# --- captions ---------------------------------------------------------------------------------------------------------


def _no_caption(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    return replace(pair, caption=str(rng.choice(["", " ", "?", "a", "\n\n"])))


def _no_language(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    return replace(pair, caption="".join(rng.choice(list("0123456789#-_/()=&. "), int(rng.integers(4, 60)))))


def _endless(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    return replace(pair, caption=" ".join([pair.caption] * int(rng.integers(60, 200))))


FAULTS: tuple[Fault, ...] = (
    Fault("constant depth", "depth_range", "one distance, noise up to 0.01, two specks", _constant),
    Fault("almost flat depth", "flat_depth", "one distance, 1 to 6 % at another", _mostly_flat),
    Fault("cut-off depth", "saturated", "the nearest 15 to 50 % at one distance", _cut_off),
    Fault("broken depth", "saturated", "NaN or infinity in 1 pixel to a quarter of the map", _broken),
    Fault("blurred depth", "flying_pixels", "Gaussian, deviation 1.2 to 3 % of the side", _blurred),
    Fault("depth banded to 8 bit", "planarity", "256 levels of disparity, or of metric depth", _banded),
    Fault("salted depth", "planarity", "0.5 to 5 % of pixels at 0 or 1", _salted),
    Fault("rough depth", "planarity", "white noise, deviation 0.01 to 0.05", _rough),
    Fault("inverted depth", "upright", "1 - disparity, or metric depth taken for disparity", _inverted),
    Fault("shifted depth", "edge_alignment", "by 4 to 10 % of the side, any direction", _shifted),
    Fault("swapped depth", "edge_alignment", "the map of another scene", _swapped),
    Fault("blank image", "blank_picture", "one colour, noise up to 2 of 255", _blank),
    Fault("noisy image", "noisy_picture", "white noise, deviation 15 to 40 of 255", _noisy),
    Fault("pure noise", "noisy_picture", "uniform in all channels", _pure_noise),
    Fault("clipped image", "clipped_picture", "50 to 95 % of pixels over- or underexposed", _clipped),
    Fault("no caption", "caption", "empty, or one character", _no_caption),
    Fault("caption without letters", "caption", "4 to 60 digits and marks", _no_language),
    Fault("endless caption", "caption", "60 to 200 times over", _endless),
)


def _jpeg(scene: Scene) -> Scene:
    buffer = io.BytesIO()
    Image.fromarray(scene.rgb).save(buffer, format="JPEG", quality=60)
    return replace(scene, rgb=np.asarray(Image.open(buffer)))


STYLES: dict[str, Callable[[Scene], Scene]] = {
    "as rendered": lambda scene: scene,
    "JPEG, quality 60": _jpeg,
    "toon": toon,
    "pixel art": pixel_art,
}
"""Styles of clean samples, by name; depth stays exact."""


def stored(pair: Pair) -> Pair:
    """Return the pair with its disparity decoded from the 16-bit PNG of a dataset."""
    return replace(pair, disparity=decode_depth_png(encode_depth_png(pair.disparity)))

"""Check whether an image shows the colours of its prompt.

The image is segmented into named colours. Shading and shadow scale a surface's colour and keep its direction in RGB,
so a pixel gets the name of the colour with the smallest angle to it. White and gray have the same direction and are
distinguished by brightness.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jointdit.scenes import COLOURS, SHAPES

NAMES = tuple(COLOURS)
UNNAMED = 255  # label of pixels that are too dark or too far from all named colours

MAX_ANGLE = np.deg2rad(17.0)  # the closest pair of names, orange and yellow, is 12.6 degrees apart
MIN_VALUE = 24  # of 255; the direction of darker pixels is noise
# Gray fully lit is 104, white in shadow on the dark half of a texture is 107.
WHITE_FROM = 106

SURFACE_MIN_SHARE = 0.15  # share of the lower half for a floor, of the upper half for a wall
OBJECT_MIN_SHARE = 0.0025  # share of the image: a quarter of the area of a small, distant sphere

_NAMED = re.compile(rf"\b({'|'.join(NAMES)}) (floor|ground|wall|sky|(?:{'|'.join(SHAPES)})s?)\b")


class NamedColour(NamedTuple):
    """A colour in a prompt, and its part: "floor", "wall" or "object"."""

    part: str
    colour: str


@dataclass(frozen=True)
class ColourReport:
    """Shares over a set of images: named colours that were found, by part and in total, and false alarms."""

    floor: float
    wall: float
    object: float
    found: float
    false_alarm: float


@dataclass(frozen=True)
class TwoObjectReport:
    """Prompts with exactly two objects: their number, share of object colours found, share of images with both."""

    prompts: int
    colours: float
    both: float


def named_colours(prompt: str) -> list[NamedColour]:
    """Return the colours of floor, wall and objects in a prompt, in order."""
    parts = {"floor": "floor", "ground": "floor", "wall": "wall", "sky": "wall"}
    return [NamedColour(parts.get(noun, "object"), colour) for colour, noun in _NAMED.findall(prompt.lower())]


def segment_colours(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Segment an image (H, W, 3) into labels (H, W): an index into NAMES, or UNNAMED."""
    pixels = rgb.astype(np.float32)
    palette = np.array([COLOURS[name] for name in NAMES], np.float32)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    cosines = pixels @ palette.T / (np.linalg.norm(pixels, axis=-1, keepdims=True) + 1e-6)
    labels = cosines.argmax(axis=-1).astype(np.uint8)
    value = pixels.max(axis=-1)
    white, gray = NAMES.index("white"), NAMES.index("gray")
    achromatic = (labels == white) | (labels == gray)
    labels[achromatic] = np.where(value[achromatic] >= WHITE_FROM, white, gray)
    labels[(cosines.max(axis=-1) < np.cos(MAX_ANGLE)) | (value < MIN_VALUE)] = UNNAMED
    return labels


def is_found(labels: NDArray[np.uint8], named: NamedColour) -> bool:
    """Whether a named colour covers enough of its region: the lower half for a floor, the upper half for a wall.

    Objects may be anywhere. For them only pixels whose whole 3x3 window has the colour count, because the blend at an
    edge between two other colours can pass through a third one.
    """
    mine = labels == NAMES.index(named.colour)
    half = len(labels) // 2
    if named.part == "floor":
        return bool(mine[half:].mean() >= SURFACE_MIN_SHARE)
    if named.part == "wall":
        return bool(mine[:half].mean() >= SURFACE_MIN_SHARE)
    return bool(_interior(mine).mean() >= OBJECT_MIN_SHARE)


def check_colours(images: Iterable[NDArray[np.uint8]], prompts: Sequence[str]) -> ColourReport:
    """Check image i for the colours of prompt i, and for other colours.

    If a prompt names k colours, an object's colour must also be one of the k most widespread ones, because an image
    with many small patches contains all colours. An unnamed colour that covers enough for an object is a false alarm.
    Prompts without named colours only add false alarms. A part that no prompt names scores NaN.
    """
    hits: dict[str, list[bool]] = {"floor": [], "wall": [], "object": []}
    false_alarms: list[bool] = []
    for image, prompt in zip(images, prompts, strict=True):
        labels, wanted = segment_colours(image), named_colours(prompt)
        colours = {named.colour for named in wanted}
        widespread = set(_most_widespread(labels, len(colours)))
        for named in wanted:
            hits[named.part].append(is_found(labels, named) and (named.part != "object" or named.colour in widespread))
        unnamed = set(NAMES) - colours
        false_alarms += [is_found(labels, NamedColour("object", colour)) for colour in sorted(unnamed)]
    return ColourReport(
        floor=_share(hits["floor"]),
        wall=_share(hits["wall"]),
        object=_share(hits["object"]),
        found=_share(hits["floor"] + hits["wall"] + hits["object"]),
        false_alarm=_share(false_alarms),
    )


def names_two_objects(prompt: str) -> bool:
    """Whether a prompt names exactly two objects with colours."""
    return sum(named.part == "object" for named in named_colours(prompt)) == 2


def check_two_objects(images: Iterable[NDArray[np.uint8]], prompts: Sequence[str]) -> TwoObjectReport:
    """Check for both object colours in images whose prompts name exactly two objects; other images are skipped.

    A colour counts as in `check_colours`. The shares are NaN without such prompts.
    """
    found: list[bool] = []
    both: list[bool] = []
    for image, prompt in zip(images, prompts, strict=True):
        if not names_two_objects(prompt):
            continue
        labels, wanted = segment_colours(image), named_colours(prompt)
        widespread = _most_widespread(labels, len({named.colour for named in wanted}))
        hits = [is_found(labels, named) and named.colour in widespread for named in wanted if named.part == "object"]
        found += hits
        both.append(all(hits))
    return TwoObjectReport(len(both), _share(found), _share(both))


def colours_kept(before: Iterable[NDArray[np.uint8]], after: Iterable[NDArray[np.uint8]]) -> dict[str, float]:
    """Return the share of each colour's pixels that keep the colour, over pairs of images (H, W, 3).

    Only pixels whose whole 3x3 window has the colour count. A colour that `before` does not contain scores NaN.
    """
    total, kept = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    for one, other in zip(before, after, strict=True):
        labels, new_labels = segment_colours(one), segment_colours(other)
        for index in range(len(NAMES)):
            inside = _interior(labels == index)
            total[index] += inside.sum()
            kept[index] += (new_labels[inside] == index).sum()
    return {name: float(k / t) if t else float("nan") for name, k, t in zip(NAMES, kept, total, strict=True)}


def _most_widespread(labels: NDArray[np.uint8], count: int) -> list[str]:
    """Return the `count` colours with the most interior pixels, in decreasing order."""
    areas = [_interior(labels == index).sum() for index in range(len(NAMES))]
    return [NAMES[index] for index in np.argsort(areas)[::-1][:count]]


def _interior(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask (H, W) whose whole 3x3 window is in the mask, without the outermost ring."""
    inside = np.zeros_like(mask)
    windows = np.lib.stride_tricks.sliding_window_view(mask, (3, 3))
    inside[1:-1, 1:-1] = windows.all(axis=(2, 3))
    return inside


def _share(hits: list[bool]) -> float:
    return float(np.mean(hits)) if hits else float("nan")

"""Are the colours that a prompt names in the image? Segmentation by the nearest colour of the scenes' vocabulary.

Shading and shadow multiply a surface's colour and leave its direction in RGB alone, so a pixel belongs to the name
whose colour has the smallest angle to it. White and gray have one direction: brightness tells them apart.
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
UNNAMED = 255  # label of pixels that are too dark or too far from every name

MAX_ANGLE = np.deg2rad(17.0)  # the closest pair of names, orange and yellow, is 12.6 degrees apart
MIN_VALUE = 24  # of 255: below it the direction is noise
# Gray fully lit is 104, white in shadow on the dark half of a texture is 107.
WHITE_FROM = 106

SURFACE_MIN_SHARE = 0.15  # of the half of the image where a floor or a wall belongs
OBJECT_MIN_SHARE = 0.0025  # of the image: a quarter of what a small sphere at the far end covers

_NAMED = re.compile(rf"\b({'|'.join(NAMES)}) (floor|ground|wall|sky|(?:{'|'.join(SHAPES)})s?)\b")


class NamedColour(NamedTuple):
    """A colour that a prompt names, and what has it: "floor", "wall" or "object"."""

    part: str
    colour: str


@dataclass(frozen=True)
class ColourReport:
    """Shares over a set of images: of the named colours found, by part and in all, and of unnamed colours found."""

    floor: float
    wall: float
    object: float
    found: float
    false_alarm: float


@dataclass(frozen=True)
class TwoObjectReport:
    """Prompts with exactly two named objects: how many, share of object colours found, share of images with both."""

    prompts: int
    colours: float
    both: float


def named_colours(prompt: str) -> list[NamedColour]:
    """The colours of floor, wall and objects in a prompt of the scenes' wording, in order."""
    parts = {"floor": "floor", "ground": "floor", "wall": "wall", "sky": "wall"}
    return [NamedColour(parts.get(noun, "object"), colour) for colour, noun in _NAMED.findall(prompt.lower())]


def segment_colours(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Image (H, W, 3) -> labels (H, W): an index into NAMES, or UNNAMED."""
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
    """Whether a named colour covers enough of where it belongs: floor the lower half, wall the upper, objects anywhere.

    Objects are counted on pixels whose whole 3x3 window has the colour: the blend along an edge between two other
    colours can pass through a third one, but only in a thin line.
    """
    mine = labels == NAMES.index(named.colour)
    half = len(labels) // 2
    if named.part == "floor":
        return bool(mine[half:].mean() >= SURFACE_MIN_SHARE)
    if named.part == "wall":
        return bool(mine[:half].mean() >= SURFACE_MIN_SHARE)
    return bool(_interior(mine).mean() >= OBJECT_MIN_SHARE)


def check_colours(images: Iterable[NDArray[np.uint8]], prompts: Sequence[str]) -> ColourReport:
    """Look for the colours of prompt i in image i, and for the colours it does not name.

    Of k colours named, an object's must also be among the k most widespread ones: in confetti every colour is found
    somewhere. A colour that is not named counts as a false alarm when it covers enough for an object. Prompts without
    any named colour add false alarms only; a part that no prompt names scores NaN.
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
    """Whether a prompt names the colours of exactly two objects."""
    return sum(named.part == "object" for named in named_colours(prompt)) == 2


def check_two_objects(images: Iterable[NDArray[np.uint8]], prompts: Sequence[str]) -> TwoObjectReport:
    """Look for both object colours in the images whose prompts name exactly two objects; the others are passed over.

    A colour counts as in `check_colours`: wide enough for an object and among the most widespread. NaN without such
    prompts.
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
    """Share of each name's pixels that still have the name after, say, a VAE; over the interiors of images (H, W, 3).

    A name that `before` does not show scores NaN.
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
    """The `count` names with the most interior pixels, the most widespread first."""
    areas = [_interior(labels == index).sum() for index in range(len(NAMES))]
    return [NAMES[index] for index in np.argsort(areas)[::-1][:count]]


def _interior(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask (H, W) whose whole 3x3 window is in it; the outermost ring is not."""
    inside = np.zeros_like(mask)
    windows = np.lib.stride_tricks.sliding_window_view(mask, (3, 3))
    inside[1:-1, 1:-1] = windows.all(axis=(2, 3))
    return inside


def _share(hits: list[bool]) -> float:
    return float(np.mean(hits)) if hits else float("nan")

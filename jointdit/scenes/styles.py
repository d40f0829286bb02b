"""Scenes in other styles, toon shading and pixel art, drawn from the renderer's buffers.

Only the image changes. Depth, labels, caption and intrinsics are kept, so depth can be scored on images that differ
from the training data. The paper shows cartoons and pixel art qualitatively.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from jointdit.geometry.depth import unproject
from jointdit.scenes.render import Scene
from jointdit.scenes.vocabulary import COLOURS, FLAT_SHAPES

TOON_BANDS = (0.55, 0.78, 1.0)  # brightness of dark, middle and lit areas, as shares of the surface's maximum
TOON_LIMITS = (0.66, 0.9)  # upper limits of the first two bands, in the same unit
INK = 20  # of 255, for outlines
CREASE = float(np.cos(np.deg2rad(25)))  # a larger angle between neighbouring normals is an edge

ART_ROWS = 32  # cells from top to bottom
ART_SHADES = (0.5, 0.75, 1.0)
DITHER = 24.0  # of 255, amplitude of the threshold matrix
BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.float32) / 16 - 15 / 32


def toon(scene: Scene) -> Scene:
    """Draw flat colours in three bands of brightness, with outlines along edges and creases."""
    value = scene.rgb.max(axis=-1).astype(np.float32)
    image = np.zeros(scene.rgb.shape, np.float32)
    outline = edges(scene)
    for label in np.unique(scene.label):
        here = scene.label == label
        inner = here & ~outline if (here & ~outline).any() else here  # pixels at edges blend two surfaces
        brightest = max(float(np.percentile(value[inner], 95)), 1.0)
        lit = inner & (value >= TOON_LIMITS[-1] * brightest)
        colour = np.median(scene.rgb[lit], axis=0)
        band = np.digitize(value[here] / brightest, TOON_LIMITS)
        image[here] = np.array(TOON_BANDS, np.float32)[band][:, None] * colour
    image[_thickened(outline, max(0, scene.depth.shape[0] // 256))] = INK
    return replace(scene, rgb=np.rint(image).astype(np.uint8))


def pixel_art(scene: Scene) -> Scene:
    """Draw large square cells in a palette of the named colours, three shades each, with ordered dithering.

    A cell has the colour of the surface that covers most of it, so edges deviate from those of depth by up to half a
    cell.
    """
    height, width = scene.label.shape
    cell = max(2, height // ART_ROWS)
    rows, columns = -(-height // cell), -(-width // cell)
    pad = ((0, rows * cell - height), (0, columns * cell - width))
    shape = (rows, cell, columns, cell)
    label = np.pad(scene.label, pad, mode="edge").reshape(shape)
    rgb = np.pad(scene.rgb, (*pad, (0, 0)), mode="edge").reshape(*shape, 3).astype(np.float32)
    names = np.unique(scene.label)
    cover = np.stack([(label == name).sum(axis=(1, 3)) for name in names])
    widest = names[cover.argmax(axis=0)][:, None, :, None] == label
    colour = (rgb * widest[..., None]).sum(axis=(1, 3)) / widest.sum(axis=(1, 3))[..., None]

    threshold = np.tile(BAYER, (-(-rows // 4), -(-columns // 4)))[:rows, :columns]
    wanted = colour + DITHER * threshold[..., None]
    palette = art_palette().astype(np.float32)
    nearest = np.square(wanted[:, :, None] - palette).sum(axis=-1).argmin(axis=-1)
    image = art_palette()[nearest].repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
    return replace(scene, rgb=np.ascontiguousarray(image))


STYLES: dict[str, Callable[[Scene], Scene]] = {"toon": toon, "pixel-art": pixel_art}


def art_palette() -> NDArray[np.uint8]:
    """Return the colours (K, 3) of pixel art."""
    colours = np.array(list(COLOURS.values()), np.float32)
    shades = np.concatenate([colours * shade for shade in ART_SHADES])
    return np.rint(shades).astype(np.uint8)


def edges(scene: Scene) -> NDArray[np.bool_]:
    """Return a mask (H, W) of pixels whose right or lower neighbour is another surface or beyond a crease."""
    normals, bends = _normals(scene), _may_crease(scene)
    found = np.zeros(scene.label.shape, bool)
    for axis in (0, 1):
        before = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
        after = tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
        crease = np.sum(normals[before] * normals[after], axis=-1) < CREASE
        found[before] |= scene.label[before] != scene.label[after]
        found[before] |= crease & bends[before] & bends[after]
    return found


def _may_crease(scene: Scene) -> NDArray[np.bool_]:
    """Return a mask (H, W) of floor, walls and flat shapes, where the 3x3 window has only one label."""
    flat = [2 + i for i, thing in enumerate(scene.objects) if thing.shape in FLAT_SHAPES]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(scene.label, 1, mode="edge"), (3, 3))
    inside = windows.min(axis=(2, 3)) == windows.max(axis=(2, 3))
    return np.asarray(inside & np.isin(scene.label, [0, 1, *flat]))


def _normals(scene: Scene) -> NDArray[np.float32]:
    """Return unit normals (H, W, 3) from the exact depth."""
    points = unproject(scene.depth, scene.fx, scene.fy, scene.cx, scene.cy).astype(np.float64)
    normals = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12
    return normals.astype(np.float32)


def _thickened(mask: NDArray[np.bool_], rings: int) -> NDArray[np.bool_]:
    for _ in range(rings):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask

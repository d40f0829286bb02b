"""Recall and false alarms of near_duplicate: `python -m jobs.tools.filtering.near_duplicates`.

Recall: each scene against a slightly changed copy. False alarms: each scene against all others, as the filter
near_duplicate compares them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from jobs.report import say
from jointdit.scenes import render_scene
from jointdit.scenes.sampling import HELD_OUT_SEED
from pipelines.dataset.near_duplicates import near_duplicates
from pipelines.quality.near_duplicate import NearDuplicate, perceptual_hash
from pipelines.store.joins import joins

FIRST_SEED = HELD_OUT_SEED + 2_000_000  # scenes outside training and evaluation
DISTANCES = (0, 2, 4, 6, 8, 10)


def _compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


def _noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    noise = np.random.default_rng(pixels.sum().astype(int)).normal(0, 6, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def _cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    edge = max(1, round(0.02 * width))
    return image.crop((edge, edge, width - edge, height - edge))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same bytes": lambda image: image,
    "JPEG of quality 40": _compressed,
    "1.5 times the size": lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2)),
    "15 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "noise, sigma 6 of 255": _noisy,
    "2 % cropped on each side": _cropped,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def measure_near_duplicates(
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="Number of scenes.")] = 500,
    size: Annotated[int, typer.Option(min=16, help="Side of an image in pixels.")] = 128,
) -> None:
    """Print recall and false alarms as a Markdown table."""
    images = [render_scene(FIRST_SEED + number, size, size).rgb for number in range(count)]
    hashes = [hash_of(image) for image in images]
    default = NearDuplicate().max_distance
    heads = [f"{distance}{' (default)' if distance == default else ''}" for distance in DISTANCES]
    say(f"{count} scenes of {size} x {size} pixels; columns: `max_distance`")
    say("")
    say(f"| image | {' | '.join(heads)} |")
    say(f"|---|{'---:|' * len(heads)}")
    for name, change in CHANGES.items():
        changed = [hash_of(np.asarray(change(Image.fromarray(image)))) for image in images]
        distances = [(one ^ other).bit_count() for one, other in zip(hashes, changed, strict=True)]
        shares = [sum(bits <= distance for bits in distances) / count for distance in DISTANCES]
        say(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    alarms = [dropped(hashes, distance) / count for distance in DISTANCES]
    say(f"| *another scene (false alarm)* | {' | '.join(f'{share:.1%}' for share in alarms)} |")


def hash_of(image: NDArray[np.uint8]) -> int:
    """Return the perceptual hash of an image (H, W, 3) as an integer."""
    return int(perceptual_hash(image), 16)


def dropped(hashes: list[int], distance: int) -> int:
    """Return how many images near_duplicate drops, in this order."""
    order = pa.array(range(len(hashes)), pa.int64())
    is_held = pa.array([False] * len(hashes))
    columns = {"order": order, "hash": pa.array(hashes, pa.uint64()), "row": order, "is_held": is_held}
    with joins() as connection:
        connection.register("samples", pa.table(columns))
        return len(near_duplicates(connection, "samples", distance, same_row_is_no_duplicate=False))


if __name__ == "__main__":
    typer.run(measure_near_duplicates)

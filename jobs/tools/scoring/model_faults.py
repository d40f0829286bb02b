"""Faults for filters that use a model: depth, captions and images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from jobs.tools.filtering.faults import FAULTS, Fault, Pair, pair_of
from jointdit.scenes import COLOURS, Scene

TILES = 8  # per side
_named = {fault.name: fault for fault in FAULTS}
DEPTH_FAULTS: tuple[Fault, ...] = tuple(
    _named[name]
    for name in ("swapped depth", "inverted depth", "shifted depth", "blurred depth", "rough depth", "cut-off depth")
)


def _another_caption(pair: Pair, other: Pair, _: np.random.Generator) -> Pair:
    return replace(pair, caption=other.caption)


def _other_colours(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    order = [str(name) for name in rng.permutation(list(COLOURS))]
    renamed = dict(zip(order, [*order[1:], order[0]], strict=True))
    return replace(pair, caption=_COLOUR.sub(lambda match: renamed[match[0]], pair.caption))


def _one_colour(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    matches = list(_COLOUR.finditer(pair.caption))
    chosen = matches[rng.integers(len(matches))]
    other = rng.choice([name for name in COLOURS if name != chosen[0]])
    return replace(pair, caption=f"{pair.caption[: chosen.start()]}{other}{pair.caption[chosen.end() :]}")


def _shuffled(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    height, width = pair.rgb.shape[0] // TILES, pair.rgb.shape[1] // TILES
    whole = pair.rgb[: TILES * height, : TILES * width]
    tiles = whole.reshape(TILES, height, TILES, width, 3).transpose(0, 2, 1, 3, 4).reshape(-1, height, width, 3)
    mixed = rng.permutation(tiles).reshape(TILES, TILES, height, width, 3).transpose(0, 2, 1, 3, 4)
    return replace(pair, rgb=np.ascontiguousarray(mixed.reshape(whole.shape)))


def _upside_down(pair: Pair, _: Pair, rng: np.random.Generator) -> Pair:
    return replace(pair, rgb=np.ascontiguousarray(pair.rgb[::-1]))


_COLOUR = re.compile(r"\b(" + "|".join(COLOURS) + r")\b")

CAPTION_FAULTS: tuple[Fault, ...] = (
    Fault("caption of another scene", "text_agreement", "", _another_caption),
    Fault("every colour in it another", "text_agreement", "", _other_colours),
    Fault("one colour in it another", "text_agreement", "", _one_colour),
    _named["blank image"],
    _named["pure noise"],
)
IMAGE_FAULTS: tuple[Fault, ...] = (
    _named["blank image"],
    _named["pure noise"],
    _named["noisy image"],
    Fault("tiles in disorder", "ensemble_spread", f"{TILES} x {TILES} tiles", _shuffled),
    Fault("upside down", "ensemble_spread", "", _upside_down),
)


def planted(faults: Sequence[Fault], scenes: Sequence[Scene]) -> Iterator[tuple[str, list[Pair]]]:
    """Yield each fault's name and one faulty pair per scene; faults that mix scenes use the previous one."""
    for number, fault in enumerate(faults):
        pairs = []
        for position, scene in enumerate(scenes):
            rng = np.random.default_rng([scene.seed, number])
            pairs.append(fault.plant(pair_of(scene), pair_of(scenes[position - 1]), rng))
        yield fault.name, pairs

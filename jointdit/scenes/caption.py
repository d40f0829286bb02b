"""The sentence that tells what is in a scene, and where."""

from __future__ import annotations

import numpy as np

from jointdit.scenes.layout import Layout, SceneObject, Surface


def describe(layout: Layout, seed: int) -> str:
    """Caption of a scene, e.g. "a large red sphere on the left, on a checkered blue floor in front of a white wall".

    The wording (order, whether size, place and texture are told) is drawn from the seed, in a stream of its own.
    """
    rng = np.random.default_rng([20250500482, seed, 1])
    told = [_object_words(o, size=rng.random() < 0.8, place=rng.random() < 0.85) for o in layout.objects]
    if rng.random() < 0.3:
        told = told[::-1]
    things = told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
    textures = rng.random() < 0.6
    floor = _surface_words(layout.floor, "floor", textures)
    wall = _surface_words(layout.wall, "wall", textures)
    if rng.random() < 0.25:
        return f"{floor} and {wall}, with {things}"
    return f"{things}, on {floor} in front of {wall}"


def _object_words(thing: SceneObject, *, size: bool, place: bool) -> str:
    words = (
        ["a", thing.size, thing.colour, thing.shape] if size else [_article(thing.colour), thing.colour, thing.shape]
    )
    if place:
        words.append("in the middle" if thing.column == "middle" else f"on the {thing.column}")
    return " ".join(words)


def _surface_words(surface: Surface, kind: str, texture: bool) -> str:
    words = [surface.texture] if texture and surface.texture != "plain" else []
    words += [surface.colour, kind]
    return f"{_article(words[0])} {' '.join(words)}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"

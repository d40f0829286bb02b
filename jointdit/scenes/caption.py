"""Captions of scenes, in varying order, with counts, sizes, places and relations."""

from __future__ import annotations

import re

import numpy as np

from jointdit.scenes.layout import Layout, Mention, SceneObject, Surface
from jointdit.scenes.vocabulary import COUNTS

LONGEST = 37  # words and commas, the limit of the tiny checkpoint's text encoder


def describe(layout: Layout, seed: int) -> str:
    """Return the caption of a scene.

    Example: "a large red sphere on the left, on a checkered blue floor in front of a white wall". The seed determines
    the wording, in a random stream of its own: the order, and whether size, place, material and texture are mentioned.
    Colours, shapes and counts are always mentioned. A caption that is too long is drawn again with fewer details.
    """
    rng = np.random.default_rng([20250500482, seed, 1])
    detail = 1.0
    while True:
        caption = _compose(layout, rng, detail)
        if detail <= 0 or len(re.findall(r"\w+|,", caption)) <= LONGEST:
            return caption
        detail -= 0.25


def _compose(layout: Layout, rng: np.random.Generator, detail: float) -> str:
    things = _things(layout, rng, detail)
    texture = rng.random() < 0.6 * detail
    floor = _surface_words(layout.floor, "ground" if layout.outdoors else "floor", texture)
    wall = _surface_words(layout.wall, "sky" if layout.outdoors else "wall", texture)
    before = "under" if layout.outdoors else "in front of"
    if layout.light_kind == "soft" and rng.random() < 0.5 * detail:
        things += " in soft light"
    order = rng.random()
    if order < 0.45:
        return f"{things}, on {floor} {before} {wall}"
    if order < 0.65:
        return f"{floor} and {wall}, with {things}"
    if order < 0.8:
        return f"{before} {wall}, {things} on {floor}"
    if order < 0.9:
        return f"{wall}, {floor}, {things}"
    return f"on {floor}, {things}, {'above it' if layout.outdoors else 'behind it'} {wall}"


def _things(layout: Layout, rng: np.random.Generator, detail: float) -> str:
    """Join the phrases of all mentions; a mention with a relation stays before the mention it refers to."""
    phrases: list[str] = []
    pending = ""
    for mention in layout.mentions:
        thing = layout.objects[mention.objects[0]]
        words = _object_words(thing, len(mention.objects), rng, detail)
        if mention.relation:
            pending = f"{words} {mention.relation} "
            continue
        phrases.append(pending + words + _place(thing, mention, rng, detail))
        pending = ""
    if rng.random() < 0.3:
        phrases.reverse()
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _object_words(thing: SceneObject, count: int, rng: np.random.Generator, detail: float) -> str:
    words = [thing.size] if rng.random() < 0.75 * detail else []
    words += [thing.material] if thing.material != "matte" and rng.random() < 0.7 * detail else []
    words += [thing.texture] if thing.texture != "plain" and rng.random() < 0.7 * detail else []
    words += [thing.colour, thing.shape if count == 1 else f"{thing.shape}s"]
    return " ".join([COUNTS[count] if count > 1 else _article(words[0]), *words])


def _place(thing: SceneObject, mention: Mention, rng: np.random.Generator, detail: float) -> str:
    if len(mention.objects) > 1 or rng.random() > 0.8 * detail:
        return ""
    return " in the middle" if thing.column == "middle" else f" on the {thing.column}"


def _surface_words(surface: Surface, kind: str, texture: bool) -> str:
    words = [surface.texture] if texture and surface.texture != "plain" else []
    words += [surface.colour, kind]
    if kind == "ground":
        return " ".join(words)
    return f"{_article(words[0])} {' '.join(words)}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"

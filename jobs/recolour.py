"""Change the colours in a caption, for other images of the same geometry."""

from __future__ import annotations

import re

from jointdit.scenes import COLOURS


def recolour(caption: str) -> str:
    """Replace each colour by the next of the vocabulary, and adjust articles."""
    names = list(COLOURS)
    following = dict(zip(names, names[1:] + names[:1], strict=True))

    def replace(match: re.Match[str]) -> str:
        colour = following[match[2]]
        article = "" if match[1] is None else "an " if colour[0] in "aeiou" else "a "
        return article + colour

    return re.sub(rf"\b(an? )?({'|'.join(names)})\b", replace, caption)

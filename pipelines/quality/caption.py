"""Rejects samples by their captions: too short, too long, no language, banned words.

Large text datasets apply such rules before any model: DataComp's basic filtering by length (Gadre et al., NeurIPS
2023), Gopher's by words with letters (Rae et al., 2021), C4's by a list of words (Raffel et al., JMLR 21, 2020).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, StringConstraints

from pipelines.quality.filter import Filter, Fraction
from pipelines.records import SampleResult

Word = Annotated[str, StringConstraints(min_length=1)]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Caption(Filter):
    """caption_words and caption_characters: the length of the caption; 0 without a caption.

    caption_letter_fraction: share of letters, of any script, among characters that are no space; 0 for an empty
    caption.

    `banned`: words and phrases. Whole words match, in any case and with any separators between them.
    """

    kind: ClassVar[str] = "caption"
    scores: ClassVar[tuple[str, ...]] = ("caption_words", "caption_characters", "caption_letter_fraction")
    looks_at: ClassVar[frozenset[str]] = frozenset({"prompt"})
    bounds: ClassVar[Mapping[str, str]] = {
        "min_words": "caption_words",
        "max_words": "caption_words",
        "min_characters": "caption_characters",
        "min_letters": "caption_letter_fraction",
    }
    reasons: ClassVar[tuple[str, ...]] = (
        "the caption has {0:.0f} words, less than {1}",
        "the caption has {0:.0f} words, more than {1}",
        "the caption has {0:.0f} characters, less than {1}",
        "{0:.3f} of the caption are letters, less than {1:g}",
    )

    min_words: Annotated[int, Field(ge=0)] = 1
    max_words: Annotated[int, Field(ge=1)] = 400  # FLUX reads 512 tokens of T5
    min_characters: Annotated[int, Field(ge=0)] = 3
    min_letters: Fraction = 0.5
    banned: Annotated[tuple[Word, ...], BeforeValidator(_as_tuple)] = ()

    @staticmethod
    def measure(result: SampleResult) -> dict[str, float]:
        caption = result.sample.row.prompt or ""
        characters = "".join(caption.split())
        letters = sum(character.isalpha() for character in characters)
        return {
            "caption_words": float(len(_words(caption))),
            "caption_characters": float(len(characters)),
            "caption_letter_fraction": letters / max(1, len(characters)),
        }

    def reject_caption(self, caption: str) -> str | None:
        words = f" {' '.join(_words(caption))} "
        for banned in self.banned:
            if f" {' '.join(_words(banned))} " in words:
                return f"the caption says {banned!r}, which is banned"
        return None


def _words(text: str) -> list[str]:
    """Return runs of letters and digits, including marks inside words, in lower case."""
    return re.findall(r"\w+(?:['’-]\w+)*", text.casefold())

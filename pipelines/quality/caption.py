"""Rejects samples by their captions: too short or long, no language at all, banned words.

Rules of the kind that large text sets apply before any model looks at them: DataComp's basic filtering by length (Gadre
et al., NeurIPS 2023), Gopher's by words with letters (Rae et al., 2021), C4's by a list of words (Raffel et al., JMLR
21, 2020).
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
    """caption_words and caption_characters: how long it is; 0 where a sample has none.

    caption_letter_fraction: letters, of any script, among its characters that are no space; 0 for a language of none.

    `banned`: words and phrases, found whole, whatever their case and what is between the words.
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

    def reject(self, scores: Mapping[str, Any]) -> str | None:
        words, characters, letters = (scores[name] for name in self.scores)
        if not words >= self.min_words:
            return f"the caption has {words:.0f} words, less than {self.min_words}"
        if not words <= self.max_words:
            return f"the caption has {words:.0f} words, more than {self.max_words}"
        if not characters >= self.min_characters:
            return f"the caption has {characters:.0f} characters, less than {self.min_characters}"
        if not letters >= self.min_letters:
            return f"{letters:.3f} of the caption are letters, less than {self.min_letters:g}"
        return None

    def reject_caption(self, caption: str) -> str | None:
        found = f" {' '.join(_words(caption))} "
        for banned in self.banned:
            if f" {' '.join(_words(banned))} " in found:
                return f"the caption says {banned!r}, which is banned"
        return None


def _words(text: str) -> list[str]:
    """Runs of letters and digits with the marks inside words, without regard to case."""
    return re.findall(r"\w+(?:['’-]\w+)*", text.casefold())

"""Rejects samples whose image does not show what their text says, by a CLIP model."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipelines.quality.foreign_model import ForeignModel
from pipelines.quality.model_scored import ScoredBatch, Scorer


class TextAgreement(ForeignModel):
    """text_agreement: 100 times the cosine of image and text: the CLIP score of one pair without its floor at 0.

    What is high depends on the CLIP model: OpenAI's models give matching photographs some 20 to 35 and others some 10
    to 20. The default rejects little. A long text is truncated at the limit of the model's text encoder.
    """

    kind: ClassVar[str] = "text_agreement"
    scores: ClassVar[tuple[str, ...]] = ("text_agreement",)
    reasons: ClassVar[tuple[str, ...]] = ("CLIP score of image and text is {0:.1f}, less than {1:g}",)
    model_kind: ClassVar[str] = "a CLIP model"

    min_score: float = Field(15.0, ge=-100, le=100)

    @classmethod
    def refusal(cls, task: str) -> str | None:
        return f"needs a text, and task {task} has none" if task in ("depth", "encode") else None

    def check(self) -> None:
        from jointdit.evaluation.features import check_clip

        super().check()
        check_clip(self.name())

    def load(self, device: str) -> Scorer:
        from jointdit.evaluation.features import load_clip, text_agreement

        clip = load_clip(self.name(), device, self.revision)

        def score(batch: ScoredBatch) -> list[dict[str, float]]:
            # One by one: these networks are small beside the job's own, and no other sample affects a score.
            texts = [result.caption or result.sample.row.prompt for result in batch.results]
            pairs = zip(batch.images(), texts, strict=True)
            return [{self.kind: text_agreement(clip, image, text)} if text else {} for image, text in pairs]

        return score

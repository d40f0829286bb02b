"""Base of filters that use a transformers model beside the job's own model."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from jointdit.errors import ModelError, SpecError
from pipelines.quality.model_scored import ModelScored


class ForeignModel(ModelScored):
    """`model` is a folder or a hub name, safetensors only; `revision` pins the commit, tag or branch of a hub name.

    Decisions from stored scores need no model, so it has a default; measuring needs one. A worker loads it once, in
    float32, beside the job's own model.
    """

    measured_with: ClassVar[tuple[str, ...]] = ("model", "revision")
    model_kind: ClassVar[str]  # which kind of model is needed

    model: str | None = Field(None, min_length=1)
    revision: str | None = Field(None, min_length=1)

    def name(self) -> str:
        """Return the model's folder or hub name. Raises SpecError if none is given."""
        if self.model is None:
            raise SpecError(f"{self.kind} needs {self.model_kind} of transformers: give model, a folder or a hub name.")
        return self.model

    def check(self) -> None:
        """Raise SpecError if no model is named, ModelError if its folder does not exist."""
        path = Path(self.name())
        if path.is_absolute() and not path.is_dir():
            raise ModelError(f"{path}: there is no such folder, give {self.model_kind} of transformers.")

    def weights(self) -> str | None:
        return self.name()

    def cost(self) -> str:
        return f"one pass of {self.name()}"

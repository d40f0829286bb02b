"""What filters share that look through a model of transformers beside the job's own."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from jointdit.errors import ModelError, SpecError
from pipelines.quality.model_scored import ModelScored


class ForeignModel(ModelScored):
    """`model` is a folder or a hub name, safetensors only; `revision` pins the commit, tag or branch of a hub name.

    To decide from stored scores no model is needed, so it has a default; to measure one must be named. A worker loads
    it in float32 beside the job's own, once.
    """

    measured_with: ClassVar[tuple[str, ...]] = ("model", "revision")
    wanted: ClassVar[str]  # what kind of model

    model: str | None = Field(None, min_length=1)
    revision: str | None = Field(None, min_length=1)

    def name(self) -> str:
        """The model's folder or hub name. Raises SpecError where none is given."""
        if self.model is None:
            raise SpecError(f"{self.kind} needs {self.wanted} of transformers: give model, a folder or a hub name.")
        return self.model

    def check(self) -> None:
        """Raise SpecError where no model is named, ModelError where its folder is not there."""
        path = Path(self.name())
        if path.is_absolute() and not path.is_dir():
            raise ModelError(f"{path}: there is no such folder, give {self.wanted} of transformers.")

    def weights(self) -> str | None:
        return self.name()

    def cost(self) -> str:
        return f"one look by {self.name()}"

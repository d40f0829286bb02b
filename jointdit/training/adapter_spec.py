"""How an adapter is trained: every number of the optimisation. Where model and data come from is not said here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jointdit.geometry.depth import MODEL_MULTIPLE

Side = Annotated[int, Field(ge=MODEL_MULTIPLE, le=8192, multiple_of=MODEL_MULTIPLE)]


class Frozen(BaseModel):
    """A section of a training spec: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OptimizerSpec(Frozen):
    """The paper's: adafactor at a constant 1e-5, neither relative steps nor scaling by the parameters' size."""

    kind: Literal["adafactor", "adamw", "muon"] = "adafactor"  # muon: matrices by Muon, the rest by AdamW
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)  # of adamw, and of muon's AdamW
    warmup: int = Field(0, ge=0)  # steps of linear rise
    decay: Literal["constant", "cosine", "linear"] = "constant"
    final: float = Field(0.05, ge=0, le=1)  # share of the learning rate that a decay ends at
    gradient_clip: float = Field(1.0, gt=0)  # largest norm of the gradient


class ValidationSpec(Frozen):
    """Depth of held-out scenes against exact depth, and a sheet of samples, every so many steps."""

    every: int = Field(1000, ge=0)  # steps; 0: never
    scenes: int = Field(32, ge=1)
    height: Side | None = None  # default: the first bucket
    width: Side | None = None
    steps: int = Field(8, ge=1)  # of sampling
    samples: int = Field(6, ge=1)  # on the sheet


class AdapterTraining(Frozen):
    """Joint conditional flow matching: base frozen, LoRA and joint connections learn."""

    steps: int = Field(gt=0)  # of the optimizer
    batch_size: int = Field(4, gt=0)  # pairs a worker has on its device at once
    accumulate: int = Field(1, gt=0)  # such batches a worker takes for one step
    # (height, width) in pixels; a pair goes to the one of the nearest aspect
    buckets: tuple[tuple[Side, Side], ...] = ((512, 512),)
    text_drop: float = Field(0.1, ge=0, le=1)  # share of captions replaced by the empty prompt
    text_drop_depth: float | None = Field(None, ge=0, le=1)  # that share where the image is cleaner than its depth
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; the adapter itself is kept in float32
    gradient_checkpointing: bool = False
    ema: float = Field(0.0, ge=0, lt=1)  # of the weights that are saved at the end; 0: the last ones
    optimizer: OptimizerSpec = OptimizerSpec()
    validation: ValidationSpec = ValidationSpec()
    checkpoint_every: int = Field(500, gt=0)  # steps
    report_every: int = Field(50, gt=0)  # steps between two lines of the log

    def pairs_a_step(self, workers: int) -> int:
        """Pairs that one step of the optimizer sees, on all workers together."""
        return self.batch_size * self.accumulate * workers

    def decides(self, workers: int) -> dict[str, object]:
        """What the numbers of a run depend on, by field: a run that is resumed must agree on it.

        How the pairs of a step are cut into batches and workers only moves rounding, and how often something is saved
        or shown moves nothing. The number of steps counts where the learning rate depends on it.
        """
        fields: dict[str, object] = {
            "training.pairs_a_step (batch_size x accumulate x workers)": self.pairs_a_step(workers),
            "training.buckets": [list(bucket) for bucket in self.buckets],
            "training.text_drop": self.text_drop,
            "training.text_drop_depth": self.text_drop_depth,
            "training.precision": self.precision,
            "training.ema": self.ema,
        }
        for name, value in self.optimizer.model_dump(mode="json").items():
            fields[f"training.optimizer.{name}"] = value
        if self.optimizer.decay != "constant":
            fields["training.steps"] = self.steps
        return fields

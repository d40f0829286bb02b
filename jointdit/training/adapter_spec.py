"""Settings of adapter training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jointdit.geometry.depth import MODEL_MULTIPLE

Side = Annotated[int, Field(ge=MODEL_MULTIPLE, le=8192, multiple_of=MODEL_MULTIPLE)]


class Frozen(BaseModel):
    """A section of a training spec: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OptimizerSpec(Frozen):
    """The optimizer. The default is the paper's: adafactor at a constant 1e-5, without relative steps or clipping."""

    kind: Literal["adafactor", "adamw", "muon"] = "adafactor"  # muon: Muon for matrices, AdamW for the rest
    learning_rate: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)  # of adamw, and of muon's AdamW
    warmup: int = Field(0, ge=0)  # steps of linear increase
    decay: Literal["constant", "cosine", "linear"] = "constant"
    final: float = Field(0.05, ge=0, le=1)  # share of the learning rate at the end of a decay
    gradient_clip: float | None = Field(None, gt=0)  # maximum norm of the gradient; None: no clipping


class ValidationSpec(Frozen):
    """Validation: depth of held-out scenes against exact depth, and a sheet of samples."""

    every: int = Field(1000, ge=0)  # steps; 0: never
    scenes: int = Field(32, ge=1)
    height: Side | None = None  # default: the first bucket
    width: Side | None = None
    steps: int = Field(8, ge=1)  # of sampling
    samples: int = Field(6, ge=1)  # on the sheet


class AdapterTraining(Frozen):
    """Joint conditional flow matching with a frozen base; LoRA and joint connections are trained."""

    steps: int = Field(gt=0)  # of the optimizer
    batch_size: int = Field(4, gt=0)  # pairs per worker and batch
    accumulate: int = Field(1, gt=0)  # batches per worker and step
    # (height, width) in pixels; a pair uses the bucket of the nearest aspect
    buckets: tuple[tuple[Side, Side], ...] = ((512, 512),)
    text_drop: float = Field(0.1, ge=0, le=1)  # share of captions replaced by the empty prompt
    text_drop_depth: float | None = Field(None, ge=0, le=1)  # that share if the image is cleaner than its depth
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; the adapter is stored in float32
    gradient_checkpointing: bool = False
    ema: float = Field(0.0, ge=0, lt=1)  # moving average of the weights that are saved; 0: none
    optimizer: OptimizerSpec = OptimizerSpec()
    validation: ValidationSpec = ValidationSpec()
    checkpoint_every: int = Field(500, gt=0)  # steps
    report_every: int = Field(50, gt=0)  # steps per line of the log

    def pairs_a_step(self, workers: int) -> int:
        """Return the number of pairs of one optimizer step, over all workers."""
        return self.batch_size * self.accumulate * workers

    def decides(self, workers: int) -> dict[str, object]:
        """Return the fields that determine the result; a resumed run must agree on them.

        The division of a step's pairs into batches and workers changes only rounding, and intervals of checkpoints and
        reports change nothing. The number of steps counts only if the learning rate depends on it.
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

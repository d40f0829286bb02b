"""The spec of `jointdit train` with `recipe: adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from jointdit.training.adapter_spec import AdapterTraining
from pipelines.spec.job import Columns, DepthMaps, InputSpec, Section
from pipelines.spec.weights_address import absolute_folder
from pipelines.store.addresses import normalise


class TrainedModel(Section):
    """The model whose adapter is trained.

    `name`: a JointDiT checkpoint (tiny, a folder, a hub name). Its adapter is trained further, or replaced by a new one
    if lora_ranks are given. `base`: a FLUX pipeline, with a published `adapter` to train further, or with a new one.
    """

    name: str | None = None
    base: str | None = None
    adapter: str | None = None
    lora_ranks: int | dict[str, int] | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the frozen base

    @model_validator(mode="before")
    @classmethod
    def _small_in_float32(cls, data: Any) -> Any:
        return {"dtype": "float32", **data} if isinstance(data, dict) and data.get("name") == "tiny" else data

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.base is None):
            raise ValueError("give either name (a JointDiT checkpoint) or base (a FLUX pipeline)")
        if self.name is not None and self.adapter is not None:
            raise ValueError("name and adapter do not go together: give base instead of name")
        if self.adapter is not None and self.lora_ranks is not None:
            raise ValueError("adapter and lora_ranks do not go together: the adapter's file determines its ranks")
        return self

    _paths = field_validator("name", "base", "adapter")(lambda value: value and absolute_folder(value))


class DataSpec(Section):
    """The source of the pairs.

    dataset: the kept samples of the latest version of an output. table: image, depth and caption columns. encoded: an
    output of task `encode`. scenes: rendered scenes.
    """

    kind: Literal["dataset", "table", "encoded", "scenes"]
    uri: tuple[str, ...] = ()
    columns: Columns = Columns()
    depth: DepthMaps | None = None
    prompt: str | None = None  # for rows without a prompt
    count: int = Field(30_720, ge=1)  # scenes

    @field_validator("uri", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list | tuple) and all(isinstance(uri, str) for uri in values):
            return tuple(normalise(uri) for uri in values)
        raise ValueError(f"must be a path, an s3:// address or a list of them, found {value!r}")

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if (self.kind == "scenes") == bool(self.uri):
            raise ValueError(f"kind {self.kind} {'takes no uri' if self.uri else 'needs uri'}")
        if self.kind == "table" and self.depth is None:
            raise ValueError(
                "kind table needs depth: give the content of the maps, kind: metric or kind: disparity, and their scale"
            )
        if self.kind != "table" and self.depth is not None:
            raise ValueError(f"kind {self.kind} takes no depth, because the content of its maps is known: remove it")
        return self

    def as_input(self) -> InputSpec:
        """Return the input section for the readers."""
        if self.kind == "dataset":
            columns = Columns(image="rgb")
            return InputSpec(
                uri=self.uri, columns=columns, prompt=self.prompt, depth=DepthMaps(kind="disparity", invalid=None)
            )
        return InputSpec(uri=self.uri, columns=self.columns, prompt=self.prompt, depth=self.depth)


class TrainingResources(Section):
    """The workers of Ray Train."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0, le=1)  # 0: train on CPU
    strategy: Literal["ddp", "fsdp"] = "ddp"
    threads: int = Field(0, ge=0)  # torch threads on CPU; 0: one per CPU of the worker
    max_failures: int = Field(3, ge=0)  # lost workers; each time training resumes from the last checkpoint


class AdapterJob(Section):
    """The spec of one adapter training."""

    recipe: Literal["adapter"]
    seed: int = Field(0, ge=0)
    output: str  # a folder that all workers can access
    model: TrainedModel
    data: DataSpec
    training: AdapterTraining
    resources: TrainingResources = TrainingResources()
    save_pipeline: bool = True  # also save a whole checkpoint folder at the end

    @field_validator("output")
    @classmethod
    def _local(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(f"must be a folder that all workers can access, found {value}: copy the result afterwards")
        return str(Path(value).expanduser().absolute())

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.resources.strategy == "fsdp" and self.training.optimizer.kind != "adamw":
            raise ValueError(
                "resources.strategy fsdp needs training.optimizer.kind adamw: the others need unsharded matrices"
            )
        return self

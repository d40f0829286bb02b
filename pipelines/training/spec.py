"""The spec of `jointdit train` with `recipe: adapter`: model, data, training, resources, one output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from jointdit.training.adapter_spec import AdapterTraining
from pipelines.spec.job import Columns, DepthMaps, InputSpec, Section
from pipelines.spec.weights_address import absolute_folder
from pipelines.store.addresses import normalise


class TrainedModel(Section):
    """Whose adapter is trained.

    `name`: a JointDiT checkpoint (tiny, a folder, a hub name), whose adapter goes on learning, or starts anew where
    lora_ranks are given. `base`: a FLUX pipeline, with a published `adapter` to go on from, or none and a new one.
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
            raise ValueError("adapter and lora_ranks do not go together: the file of the adapter says its ranks")
        return self

    _paths = field_validator("name", "base", "adapter")(lambda value: value and absolute_folder(value))


class DataSpec(Section):
    """Where the pairs come from.

    dataset: an output of this system, its latest version's kept samples. table: image, depth and caption columns.
    encoded: an output of task `encode`. scenes: rendered on the fly.
    """

    kind: Literal["dataset", "table", "encoded", "scenes"]
    uri: tuple[str, ...] = ()
    columns: Columns = Columns()
    depth: DepthMaps | None = None
    prompt: str | None = None  # for rows that bring none
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
                "kind table needs depth: say what the maps hold, kind: metric or kind: disparity, and their scale"
            )
        if self.kind != "table" and self.depth is not None:
            raise ValueError(f"kind {self.kind} takes no depth: what its maps hold is known")
        return self

    def as_input(self) -> InputSpec:
        """How the readers are told of it."""
        if self.kind == "dataset":
            columns = Columns(image="rgb")
            return InputSpec(
                uri=self.uri, columns=columns, prompt=self.prompt, depth=DepthMaps(kind="disparity", invalid=None)
            )
        return InputSpec(uri=self.uri, columns=self.columns, prompt=self.prompt, depth=self.depth)


class TrainingResources(Section):
    """Workers of Ray Train. On a cluster with GPUs each worker has one; else CPUs."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0, le=1)  # 0: train on CPU
    strategy: Literal["ddp", "fsdp"] = "ddp"
    threads: int = Field(0, ge=0)  # torch's on CPU; 0: one for each of its CPUs
    max_failures: int = Field(3, ge=0)  # workers that may be lost; each time training goes on from the last checkpoint


class AdapterJob(Section):
    """One training of an adapter."""

    recipe: Literal["adapter"]
    seed: int = Field(0, ge=0)
    output: str  # a folder that all workers see
    model: TrainedModel
    data: DataSpec
    training: AdapterTraining
    resources: TrainingResources = TrainingResources()
    save_pipeline: bool = True  # a whole checkpoint folder at the end, beside the adapter in the published layout

    @field_validator("output")
    @classmethod
    def _local(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(f"must be a folder that all workers see, found {value}: copy the result there afterwards")
        return str(Path(value).expanduser().absolute())

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.resources.strategy == "fsdp" and self.training.optimizer.kind != "adamw":
            raise ValueError(
                "resources.strategy fsdp needs training.optimizer.kind adamw: the others need matrices that it cuts up"
            )
        return self

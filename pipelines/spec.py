"""The job spec: one YAML file says what to make, from what, and where to put it.

`load_spec` gives a frozen `JobSpec` or one `SpecError` sentence. Everything but `task`, `input.uri`, `output.uri` (and
`input.depth` where depth maps are the input) has a default. `JobSpec` is one of `JointSpec`, `DepthSpec`,
`DepthToImageSpec`, chosen by `task`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from jointdit.errors import SpecError
from pipelines.addresses import is_inside, normalise, overlaps
from pipelines.quality import load_filters
from pipelines.spec_file import apply_overrides, first_sentence, read_yaml, refuse_credentials

MULTIPLE = 16  # pixels: 8 of the VAE times 2 of the patches


def _multiple_of_16(value: int) -> int:
    if value % MULTIPLE:
        lower = max(MULTIPLE, value // MULTIPLE * MULTIPLE)
        raise ValueError(f"must be a multiple of {MULTIPLE} pixels, found {value}: use {lower} or {lower + MULTIPLE}")
    return value


Pixels = Annotated[
    int, Field(ge=MULTIPLE, le=8192), BeforeValidator(lambda v: _multiple_of_16(v) if type(v) is int else v)
]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _auto_or_count(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"must be auto or a whole number of at least 1, found {value!r}")


class Section(BaseModel):
    """A part of the spec: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def absolute_folder(value: str | None) -> str | None:
    """Make a path that exists absolute, because Ray workers run in other folders; a hub name stays as it is."""
    if value is None or value == "tiny":
        return value
    path = Path(value).expanduser()
    looks_like_a_path = value.startswith(("/", ".", "~")) or value.count("/") > 1 or path.suffix == ".safetensors"
    return str(path.absolute()) if looks_like_a_path or path.exists() else value


class ModelSpec(Section):
    """Which weights, and how they are sampled.

    `name` is "tiny", a checkpoint folder or a hub name; `base` and `adapter` instead of it load FLUX and a published
    adapter. Height and width are the generated size in pixels (tasks depth and depth-to-image: the size pictures are
    brought to); left out, the checkpoint's own.
    """

    name: str | None = None
    base: str | None = None
    adapter: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    steps: int = Field(20, ge=1, le=1000)
    guidance: float = Field(3.5, ge=0)
    height: Pixels | None = None
    width: Pixels | None = None
    resize: Literal["fit", "crop", "stretch"] = "fit"
    batch_size: int = Field(8, ge=1, le=1024)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if data.get("base") is None and data.get("adapter") is None:
            data.setdefault("name", "tiny")
        if data.get("name") == "tiny":
            data.setdefault(
                "dtype", "float32"
            )  # it is small, and CPUs without bf16 units are several times slower in bf16
        return data

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.name is not None and (self.base is not None or self.adapter is not None):
            raise ValueError("give either name, or base and adapter, not both")
        if self.name is None and (self.base is None or self.adapter is None):
            missing = "base" if self.base is None else "adapter"
            raise ValueError(f"base and adapter belong together, and {missing} is missing")
        if (self.height is None) != (self.width is None):
            missing = "height" if self.height is None else "width"
            raise ValueError(f"height and width belong together, and {missing} is missing")
        return self

    _paths = field_validator("name", "base", "adapter")(absolute_folder)


class Columns(Section):
    """What the columns are called in the input. Without an `id` column rows are named by file and row number."""

    id: str = "id"
    prompt: str = "prompt"
    image: str = "image"
    depth: str = "depth"


class DepthMaps(Section):
    """What the numbers in the depth maps are. It has no default: a wrong guess inverts the world in silence."""

    kind: Literal["metric", "disparity"]
    scale: float = Field(1.0, gt=0)  # stored value x scale = metres (metric) or disparity
    invalid: float | None = 0.0  # this stored value marks a hole; null: every value is a measurement


class InputSpec(Section):
    """Where the rows come from: a file, a folder, a glob, or a list of them, local or s3://."""

    uri: tuple[str, ...]
    columns: Columns = Columns()
    samples_per_row: int = Field(1, ge=1, le=1000)
    prompt: str | None = None  # for rows that bring none
    depth: DepthMaps | None = None

    @field_validator("uri", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list | tuple) and all(isinstance(uri, str) for uri in values):
            if not values:
                raise ValueError("must name at least one file, folder or glob")
            return tuple(normalise(uri) for uri in values)
        raise ValueError(f"must be a path, an s3:// address or a list of them, found {value!r}")


class PointsSpec(Section):
    """Point clouds: z = 1 / (A + B d) from z_near to z_far (metres), a pinhole camera with this vertical field of view.

    Range and field of view (degrees) that are not given are assumptions and are recorded as such.
    """

    format: Literal["ply", "parquet", "none"] = "none"
    z_near: float = Field(1.0, gt=0)
    z_far: float = Field(10.0, gt=0)
    fov_degrees: float = Field(55.0, gt=1, lt=179)
    edge_threshold: float = Field(0.05, gt=0)  # relative jump of depth in a 3x3 window; points beyond it are dropped

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.z_near >= self.z_far:
            raise ValueError(f"z_near must be smaller than z_far, found {self.z_near:g} and {self.z_far:g}")
        return self

    @property
    def source(self) -> Literal["given", "assumed"]:
        """Where range and field of view come from, for the column `intrinsics_source`."""
        return "given" if {"z_near", "z_far", "fov_degrees"} <= self.model_fields_set else "assumed"


class OutputSpec(Section):
    """Where the dataset goes and how it is cut and encoded."""

    uri: str
    shard_rows: int = Field(256, ge=1, le=100_000)
    image_format: Literal["png", "jpeg", "webp"] = "png"
    rgb: Literal["copy", "reference"] = "copy"  # task depth: whether the corpus is copied beside its labels
    points: PointsSpec = PointsSpec()

    @field_validator("uri")
    @classmethod
    def _normalised(cls, value: str) -> str:
        return normalise(value)

    @field_validator("points", mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"format": value} if isinstance(value, str) else value


class QualitySpec(Section):
    """Filters of pipelines/quality by `kind`, rounds of new seeds for what they reject, and when to stop."""

    filters: tuple[dict[str, Any], ...] = ()
    regenerate: int = Field(0, ge=0, le=100)
    max_quarantined_fraction: Fraction = 0.05


class RetriesSpec(Section):
    """Budgets a shard: attempts after infrastructure faults, and workers it may take down."""

    infrastructure: int = Field(20, ge=0)
    crash: int = Field(3, ge=0)


class ResourcesSpec(Section):
    """How much of the cluster: `auto` takes all its GPUs, or its CPUs where it has none."""

    workers: Annotated[int | Literal["auto"], BeforeValidator(_auto_or_count)] = "auto"
    gpus_per_worker: float = Field(1.0, gt=0)
    shards_in_flight: int = Field(3, ge=1, le=16)  # a worker; more hides slower storage and costs memory
    start_seconds: float = Field(1800.0, gt=0)  # to load the model: tens of gigabytes from a cold disk take minutes
    stall_seconds: float = Field(900.0, gt=0)  # a worker with work that finishes no batch for so long is taken for dead
    # A shard that takes so many times the median of its run is started again on an idle worker, and the first commit
    # wins; never before straggler_seconds. null: never.
    straggler_factor: float | None = Field(3.0, gt=1)
    straggler_seconds: float = Field(30.0, ge=0)


class Spec(Section):
    """What all tasks share."""

    task: str
    name: str = ""
    seed: int = Field(0, ge=0, lt=2**63)
    model: ModelSpec = ModelSpec()
    input: InputSpec
    output: OutputSpec
    quality: QualitySpec = QualitySpec()
    retries: RetriesSpec = RetriesSpec()
    resources: ResourcesSpec = ResourcesSpec()

    @model_validator(mode="before")
    @classmethod
    def _named_after_output(cls, data: Any) -> Any:
        output = data.get("output") if isinstance(data, dict) else None
        if isinstance(output, dict) and isinstance(output.get("uri"), str) and not data.get("name"):
            return {**data, "name": output["uri"].rstrip("/").rsplit("/", 1)[-1]}
        return data

    @model_validator(mode="after")
    def _apart(self) -> Self:
        for uri in self.input.uri:
            if overlaps(uri, self.output.uri):
                raise ValueError(
                    f"output.uri {self.output.uri} lies inside input.uri {uri}: put the dataset beside its input"
                )
            if is_inside(uri, self.output.uri):
                raise ValueError(
                    f"input.uri {uri} lies inside output.uri {self.output.uri}: put the dataset beside its input"
                )
        return self

    @property
    def reading(self) -> str:
        """Which fields of a row are read, a key of readers' NEEDED."""
        return self.task

    def as_given(self) -> dict[str, Any]:
        """The spec ready for JSON, without what was left to defaults: given and assumed values stay told apart."""
        return self.model_dump(mode="json", exclude_unset=True)


class JointSpec(Spec):
    """Prompts -> pictures and their depth."""

    task: Literal["joint"]

    @model_validator(mode="after")
    def _no_maps(self) -> Self:
        _refuse_depth_maps(self)
        _refuse_reference(self)
        return self


class DepthSpec(Spec):
    """Pictures -> their depth, at the pictures' own size."""

    task: Literal["depth"]

    @model_validator(mode="after")
    def _no_maps(self) -> Self:
        _refuse_depth_maps(self)
        return self


class DepthToImageSpec(Spec):
    """Depth maps and prompts -> pictures of that geometry."""

    task: Literal["depth-to-image"]

    @model_validator(mode="after")
    def _has_maps(self) -> Self:
        if self.input.depth is None:
            raise ValueError("input.depth is missing: say what the depth maps hold, kind: metric or kind: disparity")
        _refuse_reference(self)
        return self


class EncodeSpec(Spec):
    """Pictures, their depth and captions -> latents and text embeddings, for training.

    `model.name`: whose VAE and text encoders: a FLUX pipeline or a JointDiT checkpoint. `buckets`: (height, width) in
    pixels; a pair goes to the one of the nearest aspect.
    """

    task: Literal["encode"]
    buckets: tuple[tuple[Pixels, Pixels], ...] = ()  # default: the model's size

    @model_validator(mode="after")
    def _has_pairs(self) -> Self:
        if self.input.depth is None:
            raise ValueError("input.depth is missing: say what the depth maps hold, kind: metric or kind: disparity")
        if self.model.name is None:
            raise ValueError("model takes only name for task encode: a pipeline whose VAE and text encoders are used")
        _refuse_sampling(self)
        _refuse_reference(self)
        return self


class PrepareSpec(Spec):
    """Pictures -> relative disparity by a teacher (the mean of several), and captions, given or by a captioner.

    `teachers` and `captioner` are folders or hub names of transformers models.
    """

    task: Literal["prepare"]
    teachers: tuple[str, ...] = Field(min_length=1)
    captioner: str | None = None  # without one the input brings captions
    caption_length: int = Field(48, ge=1, le=1000)

    @property
    def reading(self) -> str:
        """Captions are read where nobody writes them."""
        return "depth" if self.captioner is not None else "prepare"

    @field_validator("teachers", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _no_maps(self) -> Self:
        _refuse_depth_maps(self)
        _refuse_sampling(self)
        _refuse_reference(self)
        return self

    @field_validator("teachers")
    @classmethod
    def _teacher_paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(absolute_folder(name) or name for name in value)

    _captioner_path = field_validator("captioner")(absolute_folder)


def _refuse_sampling(spec: Spec) -> None:
    if spec.input.samples_per_row != 1 or spec.quality.regenerate:
        raise ValueError(
            f"input.samples_per_row must be 1 and quality.regenerate 0 for task {spec.task}: it draws nothing"
        )
    if spec.task == "encode" and (spec.quality.filters or spec.output.points.format != "none"):
        raise ValueError("output.points and quality.filters need pixels, and task encode writes latents: remove them")


def _refuse_depth_maps(spec: Spec) -> None:
    if spec.input.depth is not None:
        raise ValueError(f"input.depth describes depth maps, which task {spec.task} does not read: remove it")


def _refuse_reference(spec: Spec) -> None:
    if spec.output.rgb == "reference":
        raise ValueError(f"output.rgb: reference is for task depth, and task {spec.task} makes new pictures: remove it")


JobSpec = JointSpec | DepthSpec | DepthToImageSpec | EncodeSpec | PrepareSpec
TASKS: dict[str, type[Spec]] = {
    "joint": JointSpec,
    "depth": DepthSpec,
    "depth-to-image": DepthToImageSpec,
    "encode": EncodeSpec,
    "prepare": PrepareSpec,
}


def load_spec(source: str | os.PathLike[str] | dict[str, Any], overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job spec from a YAML file or a dict, with overrides like "model.steps=4" applied on top.

    Relative paths in it are relative to the working directory.

    Raises:
        SpecError: one sentence: the file or field, what was found, what to do.
    """
    label = "the spec" if isinstance(source, dict) else str(source)
    data = dict(source) if isinstance(source, dict) else read_yaml(Path(source))
    data = apply_overrides(data, overrides)
    refuse_credentials(data)
    task = data.get("task")
    if task is None:
        raise SpecError(f"task is missing in {label}: choose one of {', '.join(TASKS)}.")
    if not isinstance(task, str) or task not in TASKS:
        raise SpecError(f"task {task!r} in {label} is unknown: choose one of {', '.join(TASKS)}.")
    try:
        spec = TASKS[task].model_validate(as_tuples(data))
        assert isinstance(spec, JobSpec)
    except ValidationError as error:
        raise SpecError(first_sentence(error, TASKS[task])) from None
    load_filters(spec.quality.filters)
    return spec


def as_tuples(value: Any) -> Any:
    """Lists as tuples: YAML has only lists, frozen models hold tuples, and strict validation keeps the two apart."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value

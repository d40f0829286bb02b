"""The sections of a job spec: model, input, output, quality, retries, resources, budget, ... spec.py joins them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from jointdit.loading.quantization import Backend, Component, Quantization
from pipelines.quality import MODEL_FILTERS, SCORES, KeepBest
from pipelines.quality.filter import Fraction
from pipelines.spec.base import FLOAT32_MAX, Metres, Name, Pixels, Ratio, Section, Text
from pipelines.spec.running import BudgetSpec, NotifySpec, PriceSpec, ResourcesSpec, RetriesSpec
from pipelines.spec.weights_address import parse_address, spelled
from pipelines.store.addresses import normalise

__all__ = [
    "BudgetSpec",
    "CalibrateSpec",
    "Columns",
    "DepthMaps",
    "InputSpec",
    "ModelSpec",
    "NotifySpec",
    "OutliersSpec",
    "OutputSpec",
    "PointsSpec",
    "PriceSpec",
    "QualitySpec",
    "QuantizationSpec",
    "ResourcesSpec",
    "RetriesSpec",
    "Section",
    "absolute_folder",
]


def absolute_folder(value: str | None) -> str | None:
    """Make a path that exists absolute, because Ray workers run in other folders; a hub name stays as it is."""
    if value is None or value == "tiny":
        return value
    path = os.path.expanduser(value)
    looks_like_a_path = value.startswith(("/", ".", "~")) or value.count("/") > 1 or path.endswith(".safetensors")
    return str(Path(path).absolute()) if looks_like_a_path or os.path.exists(path) else value


class QuantizationSpec(Section):
    """Quantised weights, by the names of diffusers' PipelineQuantizationConfig (jointdit/loading/quantization.py).

    `quant_kwargs` of torchao: {quant_type: Int8WeightOnlyConfig}; of bitsandbytes_4bit: {bnb_4bit_quant_type: nf4}.
    """

    quant_backend: Backend
    quant_kwargs: dict[str, str | bool] = Field(default_factory=dict)
    components_to_quantize: tuple[Component, ...] = ("transformer", "text_encoder_2")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.wanted()
        return self

    def wanted(self) -> Quantization:
        """As the model takes it. Raises ModelError for settings that the backend does not have."""
        return Quantization(self.quant_backend, self.quant_kwargs, self.components_to_quantize)


class ModelSpec(Section):
    """Which weights, and how they are sampled.

    `name` is "tiny" or a checkpoint; `base` and `adapter` instead of it load FLUX and a published adapter, and
    `components` says whose VAE, text encoders and tokenizers, where the base brings none. Each is a folder, a file, a
    hub name, or lies in an object store (pipelines/spec/weights_address.py). Height and width are the generated size in
    pixels (tasks depth and depth-to-image: the size images are brought to); left out, the checkpoint's own.
    `rgb_refresh`: the half that is the task's input (the image of depth, the map of depth-to-image) is computed in
    every so many steps; 1 is exact. `compile`: blocks by torch.compile.
    """

    name: str | None = None
    base: str | None = None
    adapter: str | None = None
    components: str | None = None
    revision: str | None = Field(None, min_length=1)  # of name or base on the hub; the same as name@revision
    license: str | None = Field(None, min_length=1, max_length=200)  # of the weights, where nothing else tells it
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    steps: int = Field(20, ge=1, le=1000)
    guidance: float | None = Field(None, ge=0, le=1000)  # left out: 3.5, for task depth the checkpoint's own
    rgb_refresh: int = Field(1, ge=1, le=1000)
    compile: bool = False
    height: Pixels | None = None
    width: Pixels | None = None
    resize: Literal["fit", "crop", "stretch"] = "fit"
    batch_size: int = Field(8, ge=1, le=1024)
    quantization: QuantizationSpec | None = None
    offload: Literal["model", "group", "sequential"] | None = None  # to the host's memory (jointdit/loading/offload.py)
    vae_tiling: bool = False  # images larger than the VAE's own size in overlapping tiles
    vae_slicing: bool = False  # the VAE takes a batch one by one

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

    @model_validator(mode="after")
    def _quantised_stay_whole(self) -> Self:
        if self.compile and self.offload is not None:
            raise ValueError("compile: true is for weights that stay on the device: leave out offload, or compile")
        if self.quantization is not None and self.offload == "sequential":
            raise ValueError(
                "offload: sequential cannot move quantised weights: use model or group, or no quantization"
            )
        if self.quantization is not None and self.offload == "group" and self.quantization.quant_backend != "torchao":
            raise ValueError(
                f"offload: group does not move weights of {self.quantization.quant_backend}: use model, or torchao"
            )
        return self

    @model_validator(mode="after")
    def _whole_and_pinned(self) -> Self:
        source = "name" if self.name is not None else "base"
        address = parse_address(self.name or self.base or "")
        if self.components is not None and self.base is None:
            raise ValueError("components belong to base, and name is a whole checkpoint: remove one of them")
        if address.is_file and (self.base is None or self.components is None):
            raise ValueError(
                f"{source} is a single file, which holds the transformer alone: give base, adapter and components, "
                "a FLUX pipeline whose VAE, text encoders and tokenizers are used"
            )
        if self.revision is not None and (address.kind != "hub" or address.revision not in (None, self.revision)):
            raise ValueError(f"revision pins a {source} on the hub, once, and {source} is {self.name or self.base}")
        return self

    _paths = field_validator("name", "base", "adapter", "components")(spelled)


class Columns(Section):
    """What the columns are called in the input. Without an `id` column rows are named by file and row number."""

    id: Name = "id"
    prompt: Name = "prompt"
    image: Name = "image"
    depth: Name = "depth"


class DepthMaps(Section):
    """What the numbers in the depth maps are. It has no default: a wrong guess inverts the world in silence."""

    kind: Literal["metric", "disparity"]
    scale: float = Field(1.0, ge=1e-12, le=1e12)  # stored value x scale = metres (metric) or disparity
    invalid: float | None = Field(
        0.0, ge=-FLOAT32_MAX, le=FLOAT32_MAX
    )  # this stored value marks a hole; null: every value is a measurement


class InputSpec(Section):
    """Where the rows come from: a file, a folder, a glob, or a list of them, local or s3://."""

    uri: tuple[str, ...]
    columns: Columns = Columns()
    samples_per_row: int = Field(1, ge=1, le=1000)
    prompt: Text | None = None  # for rows that bring none
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


class OutliersSpec(Section):
    """Points whose mean distance to their nearest `neighbours` lies `ratio` standard deviations above the mean go."""

    neighbours: int = Field(20, ge=2, le=1000)
    ratio: Ratio = 3.0


class CalibrateSpec(Section):
    """A metric depth model of transformers, folder or hub name, that gives each sample its range in metres.

    `revision` pins the commit, tag or branch of a hub name.
    """

    model: str = Field(min_length=1)
    revision: str | None = Field(None, min_length=1)

    _path = field_validator("model")(absolute_folder)


class PointsSpec(Section):
    """Point clouds: z = 1 / (A + B d) from z_near to z_far (metres), a pinhole camera with this vertical field of view.

    Range and field of view (degrees) that are not given are assumptions and are recorded as such; `calibrate` fits the
    range to a metric depth model's map of each image instead.
    """

    format: Literal["ply", "parquet", "both", "none"] = "none"
    z_near: Metres = 1.0
    z_far: Metres = 10.0
    fov_degrees: float = Field(55.0, gt=1, lt=179)
    calibrate: CalibrateSpec | None = None
    edge_threshold: Ratio = 0.05  # relative jump of depth in a 3x3 window; points beyond it are dropped
    normals: bool = False
    confidence: bool = False
    voxel: Metres | None = None  # metres: one point a cube of this side
    outliers: OutliersSpec | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.z_near >= self.z_far:
            raise ValueError(f"z_near must be smaller than z_far, found {self.z_near:g} and {self.z_far:g}")
        if self.calibrate is not None and self.model_fields_set & {"z_near", "z_far"}:
            raise ValueError("calibrate finds the depth range: remove z_near and z_far, or calibrate")
        return self

    @property
    def as_files(self) -> bool:
        """Whether there is a PLY file a sample."""
        return self.format in ("ply", "both")

    @property
    def as_columns(self) -> bool:
        """Whether points are columns of the tables."""
        return self.format in ("parquet", "both")


class OutputSpec(Section):
    """Where the dataset goes and how it is cut and encoded."""

    uri: str
    shard_rows: int = Field(256, ge=1, le=100_000)
    image_format: Literal["png", "jpeg", "webp"] = "png"
    # So many published versions stay, the latest ones; null: all. A publisher may be at the last but one: two at least.
    retain_versions: int | None = Field(None, ge=2, le=1_000_000)
    rgb: Literal["copy", "reference"] = "copy"  # task depth: whether the corpus is copied beside its labels
    points: PointsSpec = PointsSpec()
    license: str = Field("other", pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$")  # of the dataset card, as the hub names it
    gallery_rows: int = Field(2000, ge=1, le=20_000)  # of a larger dataset it shows so many, spread over all files

    @field_validator("uri")
    @classmethod
    def _normalised(cls, value: str) -> str:
        return normalise(value)

    @field_validator("points", mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"format": value} if isinstance(value, str) else value


class QualitySpec(Section):
    """Filters of pipelines/quality by `kind`, rounds of new seeds for what they reject, and when to stop.

    `scores`: kinds whose scores cost a model and are to be measured without rejecting anything, as names or settings;
    the one that `keep_best` goes by is among them.
    """

    filters: tuple[dict[str, Any], ...] = ()
    scores: tuple[dict[str, Any], ...] = ()
    keep_best: KeepBest | None = None
    calibration: str | None = None  # of `jointdit calibrate`, for thresholds that are quantiles (quantiles.py)
    calibrated: tuple[dict[str, Any], ...] = ()  # what they came to; written when the spec is read
    regenerate: int = Field(0, ge=0, le=100)
    max_quarantined_fraction: Fraction = 0.05

    @field_validator("scores", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        values = [value] if isinstance(value, str | dict) else value
        if not isinstance(values, list | tuple) or not all(isinstance(each, str | dict) for each in values):
            raise ValueError(f"must be a list of kinds such as self_consistency, found {value!r}")
        return tuple({"kind": each} if isinstance(each, str) else each for each in values)

    @field_validator("filters", "scores")
    @classmethod
    def _model_paths(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        if not all(isinstance(each.get("kind", ""), str) for each in value):
            raise ValueError("must be mappings whose kind is the name of a filter, which is text")
        return tuple(
            {**each, "model": absolute_folder(each["model"])} if isinstance(each.get("model"), str) else each
            for each in value
        )

    @model_validator(mode="after")
    def _measured(self) -> Self:
        kinds = {each.get("kind") for each in (*self.filters, *self.scores)}
        wanted = [kind for kind, each in MODEL_FILTERS.items() if self.keep_best and self.keep_best.by in each.scores]
        if missing := [{"kind": kind} for kind in wanted if kind not in kinds]:
            object.__setattr__(self, "scores", (*self.scores, *missing))  # frozen, and still being built
            self.__pydantic_fields_set__.add("scores")
        return self

    @field_validator("keep_best")
    @classmethod
    def _by_a_score(cls, value: KeepBest | None) -> KeepBest | None:
        if value is not None and value.by not in SCORES:
            raise ValueError(f"by is {value.by!r}, which is no score: choose one of {', '.join(SCORES)}")
        return value

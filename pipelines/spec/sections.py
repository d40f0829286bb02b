"""The sections of a job spec that affect the samples: model, input, output, quality."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from jointdit.loading.quantization import Backend, Component, Quantization
from pipelines.quality import MODEL_FILTERS, SCORES, KeepBest
from pipelines.quality.filter import Fraction
from pipelines.spec.base import FLOAT32_MAX, Metres, Name, Pixels, Ratio, Section, Text
from pipelines.spec.durations import seconds_of
from pipelines.spec.weights_address import absolute_folder, parse_address, spelled
from pipelines.store.addresses import normalise


class QuantizationSpec(Section):
    """Quantisation, by the names of diffusers' PipelineQuantizationConfig (jointdit/loading/quantization.py).

    Examples of `quant_kwargs`: {quant_type: Int8WeightOnlyConfig} for torchao, {bnb_4bit_quant_type: nf4} for
    bitsandbytes_4bit.
    """

    quant_backend: Backend
    quant_kwargs: dict[str, str | bool] = Field(default_factory=dict)
    components_to_quantize: tuple[Component, ...] = ("transformer", "text_encoder_2")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.settings()
        return self

    def settings(self) -> Quantization:
        """Return the model's settings. Raises ModelError for settings that the backend does not have."""
        return Quantization(self.quant_backend, self.quant_kwargs, self.components_to_quantize)


class BaseLoraSpec(Section):
    """A LoRA of FLUX that is fused into the base: a style, or few steps (jointdit/loading/base_loras.py)."""

    path: str
    scale: float = Field(1.0, ge=-100, le=100)

    _path = field_validator("path")(spelled)


class ModelSpec(Section):
    """The weights, and the settings of sampling.

    `name` is "tiny" or a JointDiT checkpoint. Instead of it, `base` and `adapter` load FLUX and a published adapter;
    `components` then provides VAE, text encoders and tokenizers if the base has none, and `base_loras` are fused into
    the base. Each is a folder, a file, a hub name, or an address in an object store
    (pipelines/spec/weights_address.py). `height` and `width` are the generated
    size in pixels, default the checkpoint's; tasks depth and depth-to-image resize their input to it.
    `condition_refresh` computes the input's half of the network (the image of depth, the map of depth-to-image) in
    every n-th step; 1 is exact. `scheduler` is the solver of the sampling loop: the authors' Euler steps, or UniPC,
    which needs fewer steps for the same trajectory. `compile` compiles the blocks with torch.compile.
    """

    name: str | None = None
    base: str | None = None
    adapter: str | None = None
    components: str | None = None
    base_loras: tuple[BaseLoraSpec, ...] = Field((), max_length=100)  # fused into base, in this order
    revision: str | None = Field(None, min_length=1)  # of name or base on the hub; the same as name@revision
    license: str | None = Field(None, min_length=1, max_length=200)  # of the weights, if their source does not state it
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    steps: int = Field(20, ge=1, le=1000)
    scheduler: Literal["euler", "unipc"] = "euler"  # by the names of jointdit/sampling/solvers.py
    guidance: float | None = Field(None, ge=0, le=1000)  # default 3.5, for task depth the checkpoint's
    condition_refresh: int = Field(1, ge=1, le=1000)
    compile: bool = False
    height: Pixels | None = None
    width: Pixels | None = None
    resize: Literal["fit", "crop", "stretch"] = "fit"
    batch_size: int = Field(8, ge=1, le=1024)
    quantization: QuantizationSpec | None = None
    offload: Literal["model", "group", "sequential"] | None = None  # to the host's memory (jointdit/loading/offload.py)
    vae_tiling: bool = False  # process images larger than the VAE's size in overlapping tiles
    vae_slicing: bool = False  # process a batch one image at a time in the VAE

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
            )  # it is small, and CPUs without hardware bfloat16 are several times slower in bfloat16
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
            raise ValueError("compile: true needs weights that stay on the device: remove offload, or compile")
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
            raise ValueError("components needs base, and name is a complete checkpoint: remove one of them")
        if self.base_loras and self.base is None:
            raise ValueError("base_loras are fused into base, and name is a complete checkpoint: give base and adapter")
        if self.base_loras and self.quantization and "transformer" in self.quantization.components_to_quantize:
            raise ValueError("base_loras cannot be fused into quantised weights: do not quantise the transformer")
        if address.is_file and (self.base is None or self.components is None):
            raise ValueError(
                f"{source} is a single file, which holds only the transformer: give base, adapter and components, a "
                "FLUX pipeline with VAE, text encoders and tokenizers"
            )
        if self.revision is not None and (address.kind != "hub" or address.revision not in (None, self.revision)):
            raise ValueError(f"revision is for a {source} on the hub without one, found {self.name or self.base}")
        return self

    @property
    def label(self) -> str:
        """The names of the weights, for people."""
        loras = (f"{each.path} x {each.scale:g}" for each in self.base_loras)
        return self.name or " + ".join([str(self.base), *loras, str(self.adapter)])

    _paths = field_validator("name", "base", "adapter", "components")(spelled)


class Columns(Section):
    """Names of the columns in the input. Without an `id` column, ids are file and row number."""

    id: Name = "id"
    prompt: Name = "prompt"
    image: Name = "image"
    depth: Name = "depth"


class DepthMaps(Section):
    """The content of the depth maps. It has no default, because a wrong kind would invert the depth unnoticed."""

    kind: Literal["metric", "disparity"]
    scale: float = Field(1.0, ge=1e-12, le=1e12)  # stored value x scale = metres (metric) or disparity
    invalid: float | None = Field(
        0.0, ge=-FLOAT32_MAX, le=FLOAT32_MAX
    )  # this stored value marks a hole; null: there are no holes
    max: float | None = Field(None, gt=0, le=FLOAT32_MAX)  # larger values, after the scale, are holes; null: none are

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide values; `max`, which is newer than some outputs, only if it is given."""
        return self.model_dump(mode="json", exclude={"max"} if self.max is None else None)


class InputSpec(Section):
    """The input: a file, a folder, a glob, or a list of them, local or s3://."""

    uri: tuple[str, ...]
    columns: Columns = Columns()
    samples_per_row: int = Field(1, ge=1, le=1000)
    prompt: Text | None = None  # for rows without a prompt
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
    """Remove points whose mean distance to their nearest `neighbours` is `ratio` standard deviations above the mean."""

    neighbours: int = Field(20, ge=2, le=1000)
    ratio: Ratio = 3.0


class CalibrateSpec(Section):
    """A metric depth model of transformers, folder or hub name, that determines the range in metres of each sample.

    `revision` is the commit, tag or branch of a hub name.
    """

    model: str = Field(min_length=1)
    revision: str | None = Field(None, min_length=1)

    _path = field_validator("model")(absolute_folder)


class PointsSpec(Section):
    """Point clouds: z = 1 / (A + B d) from z_near to z_far (metres), with a pinhole camera.

    `fov_degrees` is the vertical field of view. A range or field of view that is not given is recorded as assumed.
    `calibrate` fits the range of each image to the map of a metric depth model instead.
    """

    format: Literal["ply", "parquet", "both", "none"] = "none"
    z_near: Metres = 1.0
    z_far: Metres = 10.0
    fov_degrees: float = Field(55.0, gt=1, lt=179)
    calibrate: CalibrateSpec | None = None
    edge_threshold: Ratio = 0.05  # relative jump of depth in a 3x3 window; points with a larger one are dropped
    normals: bool = False
    confidence: bool = False
    voxel: Metres | None = None  # metres; keep one point per cube of this side
    outliers: OutliersSpec | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.z_near >= self.z_far:
            raise ValueError(f"z_near must be smaller than z_far, found {self.z_near:g} and {self.z_far:g}")
        if self.calibrate is not None and self.model_fields_set & {"z_near", "z_far"}:
            raise ValueError("calibrate determines the depth range: remove z_near and z_far, or calibrate")
        return self

    @property
    def as_files(self) -> bool:
        """Whether each sample has a PLY file."""
        return self.format in ("ply", "both")

    @property
    def as_columns(self) -> bool:
        """Whether points are columns of the tables."""
        return self.format in ("parquet", "both")


def _interval(value: Any) -> Any:
    seconds = seconds_of(value) if isinstance(value, str) else None
    if value is not None and (seconds is None or not 1 <= seconds <= 365 * 86400):
        raise ValueError(
            f"must be a duration from 1s to 365d, a number with s, m, h or d such as 6h, found {repr(value)[:100]}"
        )
    return value


class OutputSpec(Section):
    """The output folder, and the format of the dataset."""

    uri: str
    shard_rows: int = Field(256, ge=1, le=100_000)
    image_format: Literal["png", "jpeg", "webp"] = "png"
    # Number of published versions to keep; null: all. At least two, because a publisher may read the previous one.
    retain_versions: int | None = Field(None, ge=2, le=1_000_000)
    # While a run goes on, publish what is committed each time this has passed: 30m, 6h, 1d. null: at its end alone.
    publish_every: Annotated[str, BeforeValidator(_interval)] | None = None
    rgb: Literal["copy", "reference"] = "copy"  # task depth: copy the input images into the dataset, or refer to them
    points: PointsSpec = PointsSpec()
    license: str = Field("other", pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$")  # of the dataset, by the hub's names
    gallery_rows: int = Field(2000, ge=1, le=20_000)  # samples in the gallery, spread over all files

    @property
    def publish_seconds(self) -> float | None:
        """`publish_every` in seconds."""
        return seconds_of(self.publish_every) if self.publish_every is not None else None

    @field_validator("uri")
    @classmethod
    def _normalised(cls, value: str) -> str:
        return normalise(value)

    @field_validator("points", mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"format": value} if isinstance(value, str) else value


class QualitySpec(Section):
    """Filters of pipelines/quality by `kind`, rounds of regeneration for rejected samples, and the quarantine limit.

    `scores`: filters whose scores need a model and are measured without rejecting samples, as names or settings. The
    score of `keep_best` is added to them.
    """

    filters: tuple[dict[str, Any], ...] = ()
    scores: tuple[dict[str, Any], ...] = ()
    keep_best: KeepBest | None = None
    calibration: str | None = None  # folder of `jointdit calibrate`, for thresholds as quantiles (quantiles.py)
    calibrated: tuple[dict[str, Any], ...] = ()  # the resolved quantiles; set when the spec is read
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

"""The job spec: one YAML file with the task, the input, the output and all settings.

`load_spec` returns a frozen `JobSpec` or raises SpecError with one sentence. All fields except `task`, `input.uri` and
`output.uri` (and `input.depth`, if depth maps are the input) have a default. `JobSpec` is one of `JointSpec`,
`DepthSpec`, `DepthToImageSpec`, `EncodeSpec` and `PrepareSpec`, selected by `task`. Their sections are in sections.py
and running.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from jointdit.errors import SpecError
from pipelines.quality import load_filters, load_scores
from pipelines.spec.base import Name, Pixels, Section
from pipelines.spec.file import (
    apply_overrides,
    first_sentence,
    read_yaml,
    refuse_credentials,
    refuse_unusable,
    shown_value,
)
from pipelines.spec.quantiles import resolve_quantiles
from pipelines.spec.running import BudgetSpec, NotifySpec, PriceSpec, ResourcesSpec, RetriesSpec
from pipelines.spec.sections import Columns, DepthMaps, InputSpec, ModelSpec, OutputSpec, PointsSpec, QualitySpec
from pipelines.spec.weights_address import spelled
from pipelines.store.addresses import is_inside, overlaps

__all__ = [
    "TASKS",
    "Columns",
    "DepthMaps",
    "DepthSpec",
    "DepthToImageSpec",
    "EncodeSpec",
    "InputSpec",
    "JobSpec",
    "JointSpec",
    "ModelSpec",
    "OutputSpec",
    "PointsSpec",
    "PrepareSpec",
    "QualitySpec",
    "ResourcesSpec",
    "RetriesSpec",
    "Section",
    "Spec",
    "load_spec",
]


class Spec(Section):
    """The fields of all tasks."""

    task: str
    name: Name = ""
    seed: int = Field(0, ge=0, lt=2**63)
    model: ModelSpec = ModelSpec()
    input: InputSpec
    output: OutputSpec
    quality: QualitySpec = QualitySpec()
    retries: RetriesSpec = RetriesSpec()
    resources: ResourcesSpec = ResourcesSpec()
    budget: BudgetSpec = BudgetSpec()
    price: PriceSpec = PriceSpec()
    notify: NotifySpec = Field(NotifySpec(), exclude=True, repr=False)  # its address may be a secret

    @model_validator(mode="before")
    @classmethod
    def _named_after_output(cls, data: Any) -> Any:
        output = data.get("output") if isinstance(data, dict) else None
        if isinstance(output, dict) and isinstance(output.get("uri"), str) and data.get("name") in (None, ""):
            return {**data, "name": output["uri"].rstrip("/").rsplit("/", 1)[-1]}
        return data

    @model_validator(mode="after")
    def _cost_has_a_price(self) -> Self:
        if self.budget.max_cost is not None and not (self.price.gpu_hour or self.price.cpu_hour):
            raise ValueError("budget.max_cost needs a price: give price.gpu_hour, or price.cpu_hour without GPUs")
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        for uri in self.input.uri:
            if overlaps(uri, self.output.uri):
                raise ValueError(
                    f"output.uri {self.output.uri} is inside input.uri {uri}: choose a folder outside the input"
                )
            if is_inside(uri, self.output.uri):
                raise ValueError(
                    f"input.uri {uri} is inside output.uri {self.output.uri}: choose a folder outside the input"
                )
        return self

    @property
    def reading(self) -> str:
        """The fields of a row that are read, a key of the readers' NEEDED."""
        return self.task

    def as_given(self) -> dict[str, Any]:
        """Return the given fields of the spec, ready for JSON, without defaults and without `notify`.

        This is the form that is written to the output.
        """
        return self.model_dump(mode="json", exclude_unset=True)

    def as_sent(self) -> dict[str, Any]:
        """Return the given fields of the spec for a run on another machine, with `notify.webhook_variable`.

        Raises:
            SpecError: the spec has the webhook's address itself, which others could read.
        """
        if self.notify.webhook is not None:
            raise SpecError(
                "notify.webhook would be readable by all users of the cluster: put its address into a variable of the "
                "cluster's environment, and give the variable's name as notify.webhook_variable."
            )
        given = self.as_given()
        return (
            {**given, "notify": self.notify.model_dump(exclude_unset=True)} if self.notify.webhook_variable else given
        )


class JointSpec(Spec):
    """Task joint: prompts -> images and their depth."""

    task: Literal["joint"]

    @model_validator(mode="after")
    def _no_maps(self) -> Self:
        _refuse_depth_maps(self)
        _refuse_reference(self)
        if self.model.condition_refresh != 1:
            raise ValueError("model.condition_refresh needs an image or a depth map as input: remove it for task joint")
        return self


class DepthSpec(Spec):
    """Task depth: images -> their depth, at the images' size."""

    task: Literal["depth"]

    @model_validator(mode="after")
    def _no_maps(self) -> Self:
        _refuse_depth_maps(self)
        return self


class DepthToImageSpec(Spec):
    """Task depth-to-image: depth maps and prompts -> images of that geometry."""

    task: Literal["depth-to-image"]

    @model_validator(mode="after")
    def _has_maps(self) -> Self:
        if self.input.depth is None:
            raise ValueError("input.depth is missing: give the content of the maps, kind: metric or kind: disparity")
        if self.input.depth.kind == "metric" and self.output.points.calibrate is not None:
            raise ValueError("output.points.calibrate is for relative depth, and the maps are metric: remove it")
        _refuse_reference(self)
        return self


class EncodeSpec(Spec):
    """Task encode: images, their depth and captions -> latents and text embeddings, for training.

    `model.name`: the FLUX pipeline or JointDiT checkpoint that provides VAE and text encoders. `buckets`: (height,
    width) in pixels; a pair uses the bucket of the nearest aspect.
    """

    task: Literal["encode"]
    buckets: tuple[tuple[Pixels, Pixels], ...] = ()  # default: the model's size

    @model_validator(mode="after")
    def _has_pairs(self) -> Self:
        if self.input.depth is None:
            raise ValueError("input.depth is missing: give the content of the maps, kind: metric or kind: disparity")
        if self.model.name is None:
            raise ValueError("model takes only name for task encode: give a pipeline with VAE and text encoders")
        _refuse_sampling(self)
        _refuse_reference(self)
        return self


class PrepareSpec(Spec):
    """Task prepare: images -> relative disparity by a teacher (or the mean of several), and captions.

    `teachers` and `captioner` are folders or hub names of transformers models.
    """

    task: Literal["prepare"]
    teachers: tuple[str, ...] = Field(min_length=1)
    captioner: str | None = None  # None: the input has captions
    caption_length: int = Field(48, ge=1, le=1000)

    @property
    def reading(self) -> str:
        """The fields of a row that are read; captions only without a captioner."""
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
        return tuple(spelled(name) or name for name in value)

    _captioner_path = field_validator("captioner")(spelled)


def _refuse_sampling(spec: Spec) -> None:
    if spec.input.samples_per_row != 1 or spec.quality.regenerate:
        raise ValueError(
            f"input.samples_per_row must be 1 and quality.regenerate 0 for task {spec.task}, which does not sample"
        )
    points, quality = spec.output.points, spec.quality
    asked = quality.filters or quality.scores or quality.keep_best
    if spec.task == "encode" and (asked or points.format != "none" or points.calibrate):
        raise ValueError(
            "output.points, quality.filters and quality.scores need images, and task encode writes latents: remove them"
        )


def _refuse_depth_maps(spec: Spec) -> None:
    if spec.input.depth is not None:
        raise ValueError(f"input.depth describes depth maps, which task {spec.task} does not read: remove it")


def _refuse_reference(spec: Spec) -> None:
    if spec.output.rgb == "reference":
        raise ValueError(f"output.rgb: reference is only for task depth, not for task {spec.task}: remove it")


JobSpec = JointSpec | DepthSpec | DepthToImageSpec | EncodeSpec | PrepareSpec
TASKS: dict[str, type[Spec]] = {
    "joint": JointSpec,
    "depth": DepthSpec,
    "depth-to-image": DepthToImageSpec,
    "encode": EncodeSpec,
    "prepare": PrepareSpec,
}


def load_spec(source: str | os.PathLike[str] | dict[str, Any], overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job spec from a YAML file or a dict, and apply overrides such as "model.steps=4".

    Relative paths are relative to the working directory.

    Raises:
        SpecError: the spec is invalid; one sentence with the file or field, what was found, what to do.
    """
    label = "the spec" if isinstance(source, dict) else str(source)
    data = dict(source) if isinstance(source, dict) else read_yaml(Path(source))
    data = dict(apply_overrides(data, overrides))
    refuse_unusable(data)
    refuse_credentials(data)
    if "quality" in data:
        data["quality"] = resolve_quantiles(data["quality"])
    task = data.get("task")
    if task is None:
        raise SpecError(f"task is missing in {label}: choose one of {', '.join(TASKS)}.")
    if not isinstance(task, str) or task not in TASKS:
        raise SpecError(f"task {shown_value(task)} in {label} is unknown: choose one of {', '.join(TASKS)}.")
    try:
        spec = TASKS[task].model_validate(data)
        assert isinstance(spec, JobSpec)
    except ValidationError as error:
        raise SpecError(first_sentence(error, TASKS[task])) from None
    load_filters(spec.quality.filters)
    load_scores(spec.quality.filters, spec.quality.scores, spec.task)
    return spec

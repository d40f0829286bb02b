"""The fingerprint of a job: all settings that its pixels depend on, and the recipe.

All runs on one output must agree on it. Other settings may change between runs. The recipe is what the code does with
the settings; a correction that changes pixels makes a new one, and an output goes on with its own:

    1  outputs that record no recipe: the VAE uses PyTorch's setting, which is TF32 in convolutions on GPUs
    2  the VAE runs in full float32
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jointdit.errors import SpecError
from pipelines.model.identity import ModelIdentity, with_guidance
from pipelines.spec.job import EncodeSpec, JobSpec, PrepareSpec

Fingerprint = dict[str, Any]
# Fingerprints keep the first name of a renamed key, so that a shard keeps its id.
RECIPE = 2
RECIPE_KEY = "model.recipe"
SPEC_KEYS = {"model.rgb_refresh": "model.condition_refresh"}


def fingerprint_of(spec: JobSpec, model: ModelIdentity, recipe: int = RECIPE) -> Fingerprint:
    """Return the name and value of each field that a sample's pixels, ids or seeds depend on."""
    extra: Fingerprint = {}  # fields of some tasks, and newer fields, which are left out at their default
    if recipe != 1 and not isinstance(spec, PrepareSpec):
        extra[RECIPE_KEY] = recipe
    if spec.model.condition_refresh != 1:
        extra["model.rgb_refresh"] = spec.model.condition_refresh
    if spec.model.base_loras:  # their files are in model.weights
        extra["model.base_loras"] = [each.scale for each in spec.model.base_loras]
    if model.depth_transform != "none":
        extra["model.depth_transform"] = model.depth_transform
    if model.sampling.schedule is not None:
        extra["model.schedule"] = model.sampling.schedule
    if model.sampling.text_tokens is not None:
        extra["model.text_tokens"] = model.sampling.text_tokens
    if spec.model.scheduler != "euler":
        extra["model.scheduler"] = spec.model.scheduler
    if isinstance(spec, EncodeSpec):
        extra["buckets"] = [list(bucket) for bucket in spec.buckets]
    if isinstance(spec, PrepareSpec):
        extra |= {"caption_length": spec.caption_length, "captioner": spec.captioner is not None}
    if spec.model.quantization is not None:
        extra["model.quantization"] = spec.model.quantization.model_dump(mode="json")
    if spec.model.vae_tiling:
        extra["model.vae_tiling"] = True
    return {
        "task": spec.task,
        "seed": spec.seed,
        "model.weights": model.weights,
        "model.dtype": spec.model.dtype,
        "model.steps": spec.model.steps,
        "model.guidance": with_guidance(spec, model).model.guidance,
        "model.height": model.height,
        "model.width": model.width,
        "model.resize": spec.model.resize,
        "input.samples_per_row": spec.input.samples_per_row,
        "input.columns": spec.input.columns.model_dump(),
        "input.prompt": spec.input.prompt,
        "input.depth": spec.input.depth.identity() if spec.input.depth else None,
        **extra,
    }


def recipe_of(recorded: Fingerprint | None, output: str = "") -> int:
    """Return the recipe of an output's recorded fingerprint; None: a new output.

    Raises SpecError if a newer version of this package has started the output.
    """
    recipe = RECIPE if recorded is None else int(recorded.get(RECIPE_KEY, 1))
    if recipe > RECIPE:
        raise SpecError(
            f"output.uri {output} holds a job of a newer version of this package (recipe {recipe}, here {RECIPE}): "
            "install that version, or choose another output."
        )
    return recipe


def digest(fingerprint: Fingerprint) -> str:
    """Return a short hash of a fingerprint, a part of each shard's id."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def check_same(recorded: Fingerprint, current: Fingerprint, output: str) -> None:
    """Raise SpecError if the output's job and this spec differ; the message names the fields."""
    fields = [name for name in {**recorded, **current} if recorded.get(name) != current.get(name)]
    if fields:
        pairs = [
            f"{SPEC_KEYS.get(name, name)} ({_short(recorded.get(name))} there, {_short(current.get(name))} here)"
            for name in fields
        ]
        raise SpecError(
            f"output.uri {output} already holds a job that differs in {', '.join(pairs)}: "
            "choose another output, or use its values."
        )


def code_version() -> str:
    """Return the installed version of this package, which is recorded with each job and commit."""
    try:
        return version("jointdit")
    except PackageNotFoundError:
        return "not installed"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if len(text) == 64 else text

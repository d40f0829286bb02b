"""The first step of a call of JointDiTPipeline: check the arguments, and find what each sample is made from.

A call makes S samples. Each prompt, image or map is for one sample, or for `num_images_per_prompt` consecutive ones; a
single one is for all. With `ensemble_size` E, the network runs for M = S E members, and E consecutive ones make a
sample; otherwise M = S.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from jointdit.denoising import check_refresh, check_task
from jointdit.errors import InputError
from jointdit.geometry.depth import SizeMapping, fit_to_model, working_size
from jointdit.pixels import read_disparities, read_images

OutputType = Literal["np", "pil", "pt", "latent"]
Generators = torch.Generator | Sequence[torch.Generator]
Callback = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class CallArguments:
    """The arguments of a call that need a check, by their names in `JointDiTPipeline.__call__`."""

    task: str
    prompt: str | Sequence[str | None] | None
    image: Any
    disparity: Any
    height: int | None
    width: int | None
    num_inference_steps: int
    condition_refresh: int
    seeds: Sequence[int] | None
    generator: Generators | None
    latents: torch.Tensor | None
    num_images_per_prompt: int
    prompt_embeds: torch.Tensor | None
    pooled_prompt_embeds: torch.Tensor | None
    ensemble_size: int
    processing_resolution: int | None
    output_uncertainty: bool
    output_type: str
    callback_on_step_end_tensor_inputs: Sequence[str]


@dataclass(frozen=True)
class CallInputs:
    """Checked inputs of a call: K distinct images or maps, S samples and M members."""

    samples: int  # S
    members: int  # M
    height: int  # of the network's pixels
    width: int
    prompts: list[str | None] | None  # one a member, None with embeddings
    text_rows: NDArray[np.int64]  # (M,) the row of prompt_embeds of each member
    images: NDArray[np.uint8] | None  # (K, H, W, 3) as given, for task depth
    maps: NDArray[np.float32] | None  # (K, H, W) as given, for task depth-to-image
    fitted: NDArray[Any] | None  # images or maps (K, height, width, ...) as the VAE reads them
    mapping: SizeMapping | None  # from the given size to the network's; None if they are the same
    condition_rows: NDArray[np.int64]  # (M,) the entry of `fitted` of each member
    seeds: list[int] | None  # one a member


def check_call(
    arguments: CallArguments, size_multiple: int, default_size: tuple[int, int], tensor_inputs: Sequence[str]
) -> CallInputs:
    """Check the arguments of a call.

    Args:
        size_multiple: height and width must be multiples of this many pixels.
        default_size: (height, width) of the checkpoint.
        tensor_inputs: the tensors that a callback may ask for.

    Raises:
        InputError: an argument is invalid; the message names it.
    """
    given = arguments
    check_task(given.task)
    _check_numbers(given, tensor_inputs)
    images = read_images(given.image) if _is_given("image", given.image, given.task, "depth") else None
    is_map = _is_given("disparity", given.disparity, given.task, "depth-to-image")
    maps = read_disparities(given.disparity) if is_map else None
    prompts = _prompts(given)
    condition = images if images is not None else maps

    lengths = {
        "prompt" if prompts is not None else "prompt_embeds": _length(prompts or given.prompt_embeds),
        "image" if images is not None else "disparity": _length(condition),
    }
    samples, by = _count(given, max(lengths.values()))
    members = samples * given.ensemble_size
    (text_rows, condition_rows) = (
        np.repeat(_rows(name, length, given.num_images_per_prompt, samples, by), given.ensemble_size)
        for name, length in lengths.items()
    )
    _check_noise(given, members)

    fitted, mapping = condition, None
    if condition is not None and given.processing_resolution is not None:
        fitted, mapping = _fit(condition, given.processing_resolution)
    height, width = _size(given, fitted, size_multiple, default_size)
    return CallInputs(
        samples=samples,
        members=members,
        height=height,
        width=width,
        prompts=None if prompts is None else [prompts[row] for row in text_rows],
        text_rows=text_rows,
        images=images,
        maps=maps,
        fitted=fitted,
        mapping=mapping,
        condition_rows=condition_rows,
        seeds=None
        if given.seeds is None
        else [int(seed) + member for seed in given.seeds for member in range(given.ensemble_size)],
    )


def _check_numbers(given: CallArguments, tensor_inputs: Sequence[str]) -> None:
    for name in ("num_inference_steps", "num_images_per_prompt", "ensemble_size"):
        if getattr(given, name) < 1:
            raise InputError(f"{name} is {getattr(given, name)}: use at least 1.")
    check_refresh(given.task, given.condition_refresh)
    if given.output_type not in get_args(OutputType):
        raise InputError(f"output_type is {given.output_type!r}: use one of {', '.join(get_args(OutputType))}.")
    if unknown := [name for name in given.callback_on_step_end_tensor_inputs if name not in tensor_inputs]:
        raise InputError(
            f"callback_on_step_end_tensor_inputs has {unknown[0]!r}: use some of {', '.join(tensor_inputs)}."
        )
    if given.ensemble_size > 1 and given.task != "depth":
        raise InputError(f"ensemble_size is {given.ensemble_size}, and task {given.task!r} has no estimate to merge.")
    if given.output_uncertainty and given.ensemble_size == 1:
        raise InputError("output_uncertainty is the spread of an ensemble: give an ensemble_size above 1.")
    if given.output_type == "latent" and given.ensemble_size > 1:
        raise InputError("output_type 'latent' has no merged estimate: use ensemble_size 1.")
    if given.processing_resolution is not None and (given.processing_resolution < 0 or given.task == "joint"):
        raise InputError(
            f"processing_resolution is {given.processing_resolution} for task {given.task!r}: give the longer side of "
            "an input in pixels, 0 for its own size, or leave it out."
        )


def _is_given(name: str, value: object, task: str, needed_by: str) -> bool:
    needed = task == needed_by
    if (value is not None) != needed:
        found = "missing" if value is None else "given"
        raise InputError(f"task {task!r} {'needs' if needed else 'does not take'} {name}, {name} is {found}.")
    return needed


def _prompts(given: CallArguments) -> list[str | None] | None:
    """Return the prompts, or None if their embeddings are given."""
    embeds, pooled = given.prompt_embeds, given.pooled_prompt_embeds
    if (embeds is None) != (pooled is None):
        missing = "prompt_embeds" if embeds is None else "pooled_prompt_embeds"
        raise InputError(f"prompt_embeds and pooled_prompt_embeds belong together, and {missing} is missing.")
    if embeds is None or pooled is None:
        prompt = given.prompt
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise InputError("prompt is empty: give at least one, None for the empty prompt.")
        return prompts
    if given.prompt is not None:
        raise InputError("prompt and prompt_embeds are both given: leave one of them out.")
    if embeds.ndim != 3 or pooled.ndim != 2 or len(embeds) != len(pooled):
        raise InputError(
            f"prompt_embeds has shape {tuple(embeds.shape)} and pooled_prompt_embeds {tuple(pooled.shape)}: give "
            "(B, T, D) and (B, P), as encode_prompt returns them."
        )
    return None


def _length(values: Any) -> int:
    return 1 if values is None else len(values)


def _count(given: CallArguments, entries: int) -> tuple[int, str]:
    """Return the number of samples, and by what it is given."""
    if given.seeds is not None:
        if len(given.seeds) == 0:
            raise InputError("seeds is empty: give one seed a sample.")
        return len(given.seeds), "seed"
    if isinstance(given.generator, list | tuple):
        if not given.generator or len(given.generator) % given.ensemble_size:
            raise InputError(
                f"generator has {len(given.generator)} entries for an ensemble_size of {given.ensemble_size}: give one "
                "a member of the ensemble of each sample."
            )
        return len(given.generator) // given.ensemble_size, "generator"
    return entries * given.num_images_per_prompt, "sample"


def _rows(name: str, length: int, num_images_per_prompt: int, samples: int, by: str) -> NDArray[np.int64]:
    """Return which entry of an input each sample uses, (S,)."""
    if length == 1:
        return np.zeros(samples, dtype=np.int64)
    if length * num_images_per_prompt != samples:
        times = "" if num_images_per_prompt == 1 else f" at num_images_per_prompt {num_images_per_prompt}"
        raise InputError(f"{name} has {length} entries but there are {samples} {by}s{times}: give one, or one a {by}.")
    return np.repeat(np.arange(length), num_images_per_prompt)


def _check_noise(given: CallArguments, members: int) -> None:
    sources = {"seeds": given.seeds, "generator": given.generator, "latents": given.latents}
    names = [name for name, value in sources.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{names[0]} and {names[1]} are both given, and each decides the noise: leave one out.")
    if given.latents is not None and (given.latents.ndim != 3 or len(given.latents) != 2 * members):
        raise InputError(
            f"latents has shape {tuple(given.latents.shape)}: give packed noise (2B, N, C) for B = {members}, first "
            "RGB, then depth."
        )


def _fit(condition: NDArray[Any], resolution: int) -> tuple[NDArray[Any], SizeMapping]:
    size = working_size(condition.shape[1:3], resolution or None)
    fitted, mappings = zip(*(fit_to_model(entry, *size) for entry in condition), strict=True)
    return np.stack(fitted), mappings[0]


def _size(
    given: CallArguments, fitted: NDArray[Any] | None, size_multiple: int, default_size: tuple[int, int]
) -> tuple[int, int]:
    """Return (height, width) in pixels from the arguments, the input or the checkpoint."""
    default = default_size if fitted is None else fitted.shape[1:3]
    size = (given.height or default[0], given.width or default[1])
    if fitted is not None and size != default:
        found = f"{default[0]} x {default[1]}"
        raise InputError(f"height x width is {size[0]} x {size[1]} but the input is {found} pixels: leave them out.")
    for name, pixels in zip(("height", "width"), size, strict=True):
        if pixels < size_multiple or pixels % size_multiple:
            advice = "" if fitted is None else ", or give processing_resolution, which resizes the input"
            raise InputError(
                f"{name} is {pixels} pixels: use a multiple of {size_multiple}, such as "
                f"{max(1, round(pixels / size_multiple)) * size_multiple}{advice}."
            )
    return size

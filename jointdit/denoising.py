"""The sampling loop of all three tasks: Euler steps from noise to latents.

The tasks differ in the noise level of each half of the batch. `joint` denoises both halves from t = 1 to 0. `depth`
keeps RGB at t = 0 with the latents of the image. `depth-to-image` keeps depth at t = 0.

`condition_refresh` > 1 computes the clean half only in every n-th step and reuses its keys and values in between. This
is faster and approximate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, get_args

import torch

from jointdit.errors import InputError
from jointdit.flow_matching import sampling_schedule
from jointdit.model.condition_cache import ConditionCache
from jointdit.model.transformer import JointDiTTransformer2DModel

Task = Literal["joint", "depth", "depth-to-image"]
TASKS: tuple[Task, ...] = get_args(Task)

# Called after each step with its index, the new latents (2B, N, C) and the predicted velocity (2B, N, C).
StepCallback = Callable[[int, torch.Tensor, torch.Tensor], None]


@torch.no_grad()
def denoise(
    model: JointDiTTransformer2DModel,
    task: Task,
    noise: tuple[torch.Tensor, torch.Tensor],
    condition: torch.Tensor | None = None,
    *,
    prompt_embeds: torch.Tensor,
    pooled_prompt_embeds: torch.Tensor,
    img_ids: torch.Tensor,
    txt_ids: torch.Tensor,
    num_inference_steps: int = 20,
    guidance_scale: float = 3.5,
    condition_refresh: int = 1,
    on_step: StepCallback | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample packed latents of RGB and depth, (B, N, C) each.

    Args:
        noise: (rgb, depth), standard normal packed latents (B, N, C) each. Latents keep this dtype between steps; the
            network runs in its own dtype.
        condition: packed latents (B, N, C) of the image for `depth`, of the depth map for `depth-to-image`, None for
            `joint`. They are restored before each step and returned unchanged (the authors' code returns them one
            Euler step off).
        prompt_embeds: (B, T, D), used for both halves; or (2B, T, D), one row for each row of the batch.
        pooled_prompt_embeds: (B, P) or (2B, P), as prompt_embeds.
        img_ids, txt_ids: position ids (N, 3) and (T, 3).
        guidance_scale: ignored by a network without guidance_embeds.
        condition_refresh: compute the clean half (RGB in `depth`, depth in `depth-to-image`) in every n-th step and
            reuse its cached keys and values in between (see model/condition_cache.py); 1 is exact.
        on_step: called after each step.

    Raises:
        InputError: the task is unknown, its condition is missing or not accepted, the number of steps is below 1, or
            condition_refresh is used with `joint`, which has no clean half.
    """
    _check_task(task, condition, num_inference_steps)
    check_refresh(task, condition_refresh)
    pairs, tokens, _ = noise[0].shape
    clean = {"joint": slice(0, 0), "depth": slice(0, pairs), "depth-to-image": slice(pairs, None)}[task]
    latents = torch.cat(noise)
    if condition is not None:
        latents[clean] = condition.to(latents)

    text = _for_both_halves(prompt_embeds, pairs).to(model.dtype)
    pooled = _for_both_halves(pooled_prompt_embeds, pairs).to(model.dtype)
    timestep = torch.empty(2 * pairs, device=latents.device)
    guidance = torch.full_like(timestep, guidance_scale) if model.config.guidance_embeds else None

    cache = None
    if condition_refresh > 1:
        cache = ConditionCache("rgb" if task == "depth" else "depth")

    schedule = sampling_schedule(num_inference_steps, tokens).tolist()
    for step, (t, t_next) in enumerate(itertools.pairwise(schedule)):
        timestep.fill_(t)
        timestep[clean] = 0
        if cache is not None:
            cache.reuse = step % condition_refresh != 0
        velocity = model(
            latents.to(model.dtype),
            timestep=timestep,
            guidance=guidance,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            img_ids=img_ids,
            txt_ids=txt_ids,
            condition_cache=cache,
        ).sample.to(latents.dtype)
        latents = latents + (t_next - t) * velocity
        if condition is not None:
            latents[clean] = condition.to(latents)
        if on_step is not None:
            on_step(step, latents, velocity)

    rgb, depth = latents.chunk(2)
    if task == "depth":
        assert condition is not None
        rgb = condition
    elif task == "depth-to-image":
        assert condition is not None
        depth = condition
    return rgb, depth


def check_task(task: str) -> None:
    """Raise InputError for an unknown task."""
    if task not in TASKS:
        raise InputError(f"task is {task!r}: use one of {', '.join(TASKS)}.")


def check_refresh(task: str, condition_refresh: int) -> None:
    """Raise InputError if condition_refresh is below 1, or above 1 for a task without a clean half."""
    if condition_refresh < 1:
        raise InputError(
            f"condition_refresh is {condition_refresh}: give at least 1, which computes both halves in every step."
        )
    if condition_refresh > 1 and task == "joint":
        raise InputError(
            f"condition_refresh is {condition_refresh}, and task 'joint' has no clean half to cache: use 1."
        )


def _check_task(task: str, condition: torch.Tensor | None, num_inference_steps: int) -> None:
    check_task(task)
    if (condition is None) != (task == "joint"):
        given = "no condition" if condition is None else "a condition"
        takes = "none" if task == "joint" else "the packed latents of its input"
        raise InputError(f"task {task!r} was given {given} but takes {takes}.")
    if num_inference_steps < 1:
        raise InputError(f"num_inference_steps is {num_inference_steps}: use at least 1.")


def _for_both_halves(text: torch.Tensor, pairs: int) -> torch.Tensor:
    return torch.cat([text, text]) if text.shape[0] == pairs else text

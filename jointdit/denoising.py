"""The one sampling loop: Euler steps from noise to latents, for all three tasks.

What differs between the tasks is the noise level each half is given: `joint` takes both halves from t = 1 to 0;
`depth` holds RGB at t = 0, where its latents are the image's; `depth-to-image` holds depth there.

`rgb_refresh` trades that clean half's part of the work for an approximation: it is computed every so many steps.
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

# Called after each step with its number, the latents (2B, N, C) after it and the velocity (2B, N, C) that led there.
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
    rgb_refresh: int = 1,
    on_step: StepCallback | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample packed latents of RGB and depth, (B, N, C) each.

    noise: standard normal (rgb, depth), packed latents (B, N, C); the trajectory keeps its dtype, the network runs in
    its own. condition: packed latents (B, N, C) of the image for `depth`, of the depth map for `depth-to-image`,
    None for `joint`. It is put back before every step and returned as it is (the authors' code returns it one Euler
    step off). prompt_embeds (B, T, D) and pooled_prompt_embeds (B, P) serve both halves (given for 2B rows, they are
    taken as they are). guidance_scale is ignored by a network without guidance_embeds. rgb_refresh: the clean half
    (RGB in `depth`, depth in `depth-to-image`) runs in every so many steps, and between them the other attends to what
    was kept of it (`condition_cache.py`); 1 is exact. Raises InputError for an unknown task, a condition that the task
    lacks or does not take, less than one step, or rgb_refresh for `joint`, which has no clean half.
    """
    _check_task(task, condition, num_inference_steps)
    check_refresh(task, rgb_refresh)
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
    if rgb_refresh > 1:
        cache = ConditionCache("rgb" if task == "depth" else "depth")

    schedule = sampling_schedule(num_inference_steps, tokens).tolist()
    for step, (t, t_next) in enumerate(itertools.pairwise(schedule)):
        timestep.fill_(t)
        timestep[clean] = 0
        if cache is not None:
            cache.reuse = step % rgb_refresh != 0
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


def check_refresh(task: str, rgb_refresh: int) -> None:
    """Raise InputError where the task can not keep its clean half for so many steps."""
    if rgb_refresh < 1:
        raise InputError(f"rgb_refresh is {rgb_refresh}: use at least 1, which computes both halves in every step.")
    if rgb_refresh > 1 and task == "joint":
        raise InputError(f"rgb_refresh is {rgb_refresh} but task 'joint' has no clean half to keep: leave it at 1.")


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

"""The sampling loop of all three tasks: from noise to latents by Euler steps, or by another solver.

The tasks differ in the noise level of each half of the batch. `joint` denoises both halves from t = 1 to 0. `depth`
keeps RGB at t = 0 with the latents of the image. `depth-to-image` keeps depth at t = 0.

`condition_refresh` > 1 computes the clean half only in every n-th step and reuses its keys and values in between. This
is faster and approximate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from jointdit.errors import InputError
from jointdit.model.condition_cache import ConditionCache
from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.sampling.solvers import Solver, default_scheduler, make_solver

Task = Literal["joint", "depth", "depth-to-image"]
TASKS: tuple[Task, ...] = get_args(Task)

# Called after each step with its index, the new latents (2B, N, C) and the predicted velocity (2B, N, C).
StepCallback = Callable[[int, torch.Tensor, torch.Tensor], None]


@dataclass
class DenoisingState:
    """The tensors of the loop after a step. The caller of `denoising_steps` may replace them between steps."""

    step: int  # of the evaluations of the network, from 0
    noise_level: float  # of the generated halves at this evaluation
    latents: torch.Tensor  # (2B, N, C)
    velocity: torch.Tensor  # (2B, N, C)
    prompt_embeds: torch.Tensor  # (2B, T, D)
    pooled_prompt_embeds: torch.Tensor  # (2B, P)

    def results(self, task: Task, condition: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return packed latents of RGB and depth, (B, N, C) each; the condition unchanged."""
        rgb, depth = self.latents.chunk(2)
        if condition is not None:
            rgb, depth = (condition, depth) if task == "depth" else (rgb, condition)
        return rgb, depth


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
    scheduler: SchedulerMixin | None = None,
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
        scheduler: of diffusers, for flow matching (see sampling/solvers.py); None is FLUX.1-dev's, with Euler steps, or
            schnell's without a shift for a network without guidance_embeds.
        on_step: called after each evaluation of the network, of which there is one a step but with Heun's method.

    Raises:
        InputError: the task is unknown, its condition is missing or not accepted, the number of steps is below 1,
            the scheduler is not supported, or condition_refresh is used with `joint`, which has no clean half.
    """
    state: DenoisingState | None = None
    for state in denoising_steps(
        model,
        task,
        noise,
        condition,
        prompt_embeds=prompt_embeds,
        pooled_prompt_embeds=pooled_prompt_embeds,
        img_ids=img_ids,
        txt_ids=txt_ids,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        condition_refresh=condition_refresh,
        scheduler=scheduler,
    ):
        if on_step is not None:
            on_step(state.step, state.latents, state.velocity)
    assert state is not None
    return state.results(task, condition)


@torch.no_grad()
def denoising_steps(
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
    scheduler: SchedulerMixin | None = None,
) -> Iterator[DenoisingState]:
    """Yield the state of the loop after each evaluation of the network. The arguments are those of `denoise`."""
    _check_task(task, condition, num_inference_steps)
    check_refresh(task, condition_refresh)
    if condition_refresh > 1 and model.is_cache_enabled:
        raise InputError(
            f"condition_refresh is {condition_refresh} and the transformer has a cache of diffusers, which would mix "
            "steps of one half with steps of both: call transformer.disable_cache(), or use condition_refresh 1."
        )
    pairs, tokens, _ = noise[0].shape
    scheduler = scheduler or default_scheduler(model.config.guidance_embeds)
    given = None if condition is None else condition.to(noise[0]).expand_as(noise[0])
    rgb: Solver | None = None if task == "depth" else make_solver(scheduler, num_inference_steps, tokens)
    depth: Solver | None = None if task == "depth-to-image" else make_solver(scheduler, num_inference_steps, tokens)
    halves = (rgb, depth)
    generated = rgb or depth
    assert generated is not None

    def with_condition(latents: torch.Tensor) -> torch.Tensor:
        if given is None:
            return latents
        return torch.cat([given, latents[pairs:]] if rgb is None else [latents[:pairs], given])

    latents = torch.cat(noise)
    state = DenoisingState(
        step=0,
        noise_level=1.0,
        latents=latents,
        velocity=torch.zeros_like(latents),
        prompt_embeds=_for_both_halves(prompt_embeds, pairs),
        pooled_prompt_embeds=_for_both_halves(pooled_prompt_embeds, pairs),
    )
    timestep = torch.empty(2 * pairs, device=latents.device)
    guidance = torch.full_like(timestep, guidance_scale) if model.config.guidance_embeds else None

    cache = None
    if condition_refresh > 1:
        cache = ConditionCache("rgb" if task == "depth" else "depth")

    model._reset_stateful_cache()  # a call that failed leaves the state of its batch
    for step, noise_level in enumerate(generated.noise_levels):
        latents = with_condition(state.latents)
        for half, solver in zip(timestep.chunk(2), halves, strict=True):
            half.fill_(0.0 if solver is None else solver.noise_levels[step])
        if cache is not None:
            cache.reuse = step % condition_refresh != 0
        with model.cache_context(
            "cond", step_index=step, num_inference_steps=len(generated.noise_levels), sigma=noise_level
        ):
            velocity = model(
                hidden_states=latents.to(model.dtype),
                timestep=timestep,
                guidance=guidance,
                encoder_hidden_states=state.prompt_embeds.to(model.dtype),
                pooled_projections=state.pooled_prompt_embeds.to(model.dtype),
                img_ids=img_ids,
                txt_ids=txt_ids,
                condition_cache=cache,
            ).sample.to(latents.dtype)
        stepped = [
            half if solver is None else solver.step(step, half_velocity, half)
            for solver, half_velocity, half in zip(halves, velocity.chunk(2), latents.chunk(2), strict=True)
        ]
        state.step, state.noise_level = step, noise_level
        state.latents, state.velocity = torch.cat(stepped), velocity
        yield state


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

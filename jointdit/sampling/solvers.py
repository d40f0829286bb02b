"""Solvers of the sampling loop: Euler steps, and diffusers' schedulers on JointDiT's noise levels.

Each generated half of the batch has a solver of its own, which holds its noise levels and, for multistep schedulers,
its history. So the halves may have different noise levels, and a half that is a condition has no solver.

The noise levels follow from the scheduler's config: `use_dynamic_shifting` shifts them by the number of image tokens,
as FLUX.1-dev does, otherwise they have a fixed `shift` (`flow_shift` in UniPC and DPM-Solver++).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from jointdit.errors import InputError
from jointdit.flow_matching import sampling_schedule, shift_noise_level

SchedulerName = Literal["euler", "unipc"]

ONE_STEP = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)
MULTISTEP = (UniPCMultistepScheduler, DPMSolverMultistepScheduler)
TIMESTEPS = 1000  # diffusers' timestep of noise level 1
# The logarithm of the signal is infinite at noise level 1, so multistep solvers begin below it, by this share of the
# first step and at most by this much. With diffusers' 1e-6, the first steps are those of a first order solver: 12 steps
# of UniPC for depth (tiny checkpoint, 64 x 64) are then further from 200 Euler steps than 20 Euler steps are.
BELOW_ONE_SHARE, BELOW_ONE_MAX = 0.1, 0.01
# Options of schedulers that change the noise levels or add noise, which these solvers do not have.
REFUSED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
    "thresholding",
    "solver_p",
)


class Solver(Protocol):
    """Steps one half of the batch from each of its noise levels to the next."""

    noise_levels: list[float]  # one for each evaluation of the network, from 1 towards 0

    def step(self, index: int, velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents (B, N, C) after evaluation `index`, in the order of noise_levels."""
        ...


class EulerSolver:
    """Steps x += (t_next - t) v, the authors' loop."""

    def __init__(self, levels: torch.Tensor) -> None:
        self._levels: list[float] = levels.tolist()
        self.noise_levels = self._levels[:-1]

    def step(self, index: int, velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents (B, N, C) at the next noise level."""
        return latents + (self._levels[index + 1] - self._levels[index]) * velocity


class SchedulerSolver:
    """Steps by a scheduler of diffusers with its noise levels replaced by ours. The scheduler itself is not changed."""

    def __init__(self, scheduler: Any, levels: torch.Tensor) -> None:
        levels = levels.clone()
        if isinstance(scheduler, MULTISTEP):
            levels[0] -= min(BELOW_ONE_SHARE * float(levels[0] - levels[1]), BELOW_ONE_MAX)
        self._scheduler = _convert(scheduler.config, type(scheduler), use_dynamic_shifting=False)
        self._scheduler.set_timesteps(len(levels) - 1)
        if self._scheduler.order == 2:
            levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
        self._scheduler.sigmas = levels
        self._scheduler.timesteps = levels[:-1] * TIMESTEPS
        self._scheduler.set_begin_index(0)
        self.noise_levels: list[float] = levels[:-1].tolist()

    def step(self, index: int, velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents (B, N, C) after this evaluation. Evaluations are given in their order."""
        stepped = self._scheduler.step(velocity, self._scheduler.timesteps[index], latents, return_dict=False)[0]
        return torch.as_tensor(stepped).to(latents.dtype)


def default_scheduler(guidance_embeds: bool = True) -> FlowMatchEulerDiscreteScheduler:
    """Return the scheduler of FLUX.1-dev, whose steps are those of the authors' loop.

    guidance_embeds: of the network; one without is taken for FLUX.1-schnell, whose noise levels are not shifted.
    """
    if not guidance_embeds:
        return FlowMatchEulerDiscreteScheduler()
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def default_text_tokens(scheduler: SchedulerMixin) -> int:
    """Return the T5 tokens of a base with this scheduler: 512 of FLUX.1-dev, 256 of schnell, which has no shift."""
    config: Any = scheduler.config
    is_shifted = config.get("use_dynamic_shifting") or config.get("flow_shift", config.get("shift", 1.0)) != 1
    return 512 if is_shifted else 256


def named_scheduler(name: SchedulerName, scheduler: SchedulerMixin | None = None) -> SchedulerMixin:
    """Return the scheduler of this name with the noise levels of another one, default FLUX.1-dev's."""
    if name not in get_args(SchedulerName):
        raise InputError(f"scheduler is {name!r}: use one of {', '.join(get_args(SchedulerName))}.")
    config = dict((scheduler or default_scheduler()).config)
    shift = config.get("shift", config.get("flow_shift", 1.0))
    if name == "euler":
        return _convert(config, FlowMatchEulerDiscreteScheduler, shift=shift)
    return _convert(
        config, UniPCMultistepScheduler, flow_shift=shift, prediction_type="flow_prediction", use_flow_sigmas=True
    )


def _convert(config: Mapping[str, Any], kind: Any, **changes: Any) -> Any:
    """Return a scheduler of this class with the settings of a config that it has, and changes of those."""
    names = inspect.signature(kind.__init__).parameters
    return kind(**{name: value for name, value in {**config, **changes}.items() if name in names})


def make_solver(scheduler: SchedulerMixin | None, num_inference_steps: int, image_tokens: int) -> Solver:
    """Return a solver of a half of the batch, for N packed image tokens. Raises InputError as check_scheduler."""
    scheduler = scheduler or default_scheduler()
    check_scheduler(scheduler)
    levels = noise_levels(scheduler, num_inference_steps, image_tokens)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return EulerSolver(levels)
    return SchedulerSolver(scheduler, levels)


def noise_levels(scheduler: SchedulerMixin, num_inference_steps: int, image_tokens: int) -> torch.Tensor:
    """Return noise levels from 1 to 0, (num_inference_steps + 1,) float32 on the CPU, by the scheduler's config."""
    config = scheduler.config
    if config.get("use_dynamic_shifting"):
        names = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
        return sampling_schedule(
            num_inference_steps, image_tokens, **{name: config[name] for name in names if name in config}
        )
    levels = torch.linspace(1, 0, num_inference_steps + 1)
    shift = config.get("shift", config.get("flow_shift", 1.0))
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        shift = scheduler.shift  # set_shift changes it after the config
    return shift_noise_level(levels, shift)


def evaluations(scheduler: SchedulerMixin | None, num_inference_steps: int) -> int:
    """Return how often the network runs: once a step, and twice a step but the last with Heun's method."""
    order = 1 if scheduler is None else int(scheduler.order)
    return order * (num_inference_steps - 1) + 1


def check_scheduler(scheduler: object) -> None:
    """Raise InputError for a scheduler that is not for flow matching, or has options that are not supported."""
    name = type(scheduler).__name__
    if not isinstance(scheduler, ONE_STEP + MULTISTEP):
        choices = ", ".join(kind.__name__ for kind in ONE_STEP + MULTISTEP)
        raise InputError(f"scheduler is {name}, which is not for flow matching: use one of {choices}.")
    config: Any = scheduler.config
    if isinstance(scheduler, MULTISTEP) and not (
        config.prediction_type == "flow_prediction" and config.use_flow_sigmas
    ):
        raise InputError(
            f"scheduler is {name} for {config.prediction_type}: make it with "
            'from_config(pipe.scheduler.config, prediction_type="flow_prediction", use_flow_sigmas=True).'
        )
    for option in REFUSED:
        if config.get(option):
            raise InputError(f"scheduler has {option}={config[option]!r}, which is not supported: leave it out.")
    if config.get("time_shift_type", "exponential") != "exponential":
        raise InputError(f"scheduler has time_shift_type={config.time_shift_type!r}: use 'exponential'.")
    if config.get("solver_type") == "bh1":
        raise InputError("scheduler has solver_type='bh1', whose last step is not finite: use 'bh2'.")
    if str(config.get("algorithm_type", "")).startswith("sde"):
        raise InputError(
            f"scheduler has algorithm_type={config.algorithm_type!r}, which adds noise: use 'dpmsolver++'."
        )

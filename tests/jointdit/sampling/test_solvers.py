"""Schedulers of diffusers on JointDiT's noise levels."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from jointdit import JointDiTPipeline, denoise
from jointdit.errors import InputError
from jointdit.flow_matching import sampling_schedule, shift_noise_level
from jointdit.model.latents import image_position_ids, text_position_ids
from jointdit.sampling.solvers import (
    check_scheduler,
    default_scheduler,
    evaluations,
    make_solver,
    named_scheduler,
    noise_levels,
)

# diffusers' DPM-Solver++ converts a tensor with numpy 1's protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FIXED = {"use_dynamic_shifting": False}
SCHEDULERS = {
    "euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "heun": FlowMatchHeunDiscreteScheduler(shift=3.0),
    "unipc": UniPCMultistepScheduler(**FLOW, flow_shift=3.0),
    "dpm++": DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0),
}


def integrate(scheduler: object, steps: int, velocity) -> torch.Tensor:
    solver = make_solver(scheduler, steps, 256)
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    for index, level in enumerate(solver.noise_levels):
        x = solver.step(index, velocity(x, level), x)
    return x


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_every_solver_finds_the_exact_flow_of_a_gaussian(name):
    """Data of standard deviation s give v = x (t - (1 - t) s^2) over x's variance, and end at s x."""
    deviation = 0.5

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        variance = (1 - t) ** 2 * deviation**2 + t**2
        return x * (t - (1 - t) * deviation**2) / variance

    found = {steps: integrate(SCHEDULERS[name], steps, velocity).item() for steps in (16, 128)}
    assert found[128] == pytest.approx(deviation, rel=0.03)
    if name != "euler":  # second order: more exact than Euler with twice the steps
        euler = integrate(SCHEDULERS["euler"], 32, velocity).item()
        assert abs(found[16] - deviation) < abs(euler - deviation)


def test_the_default_has_the_authors_levels_and_diffusers_euler_agrees():
    for tokens, steps in ((16, 4), (4096, 20)):
        levels = noise_levels(default_scheduler(), steps, tokens)
        assert torch.equal(levels, sampling_schedule(steps, tokens))
        theirs = default_scheduler()
        mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
        theirs.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)
        torch.testing.assert_close(theirs.sigmas, levels, atol=1e-6, rtol=0)


def test_a_fixed_shift_is_that_of_the_config():
    levels = noise_levels(FlowMatchEulerDiscreteScheduler(shift=1.0), 4, 4096)
    assert levels.tolist() == [1, 0.75, 0.5, 0.25, 0]
    for scheduler in SCHEDULERS.values():
        expected = shift_noise_level(torch.linspace(1, 0, 5), 3.0)
        assert torch.equal(noise_levels(scheduler, 4, 4096), expected)


def test_each_half_has_levels_and_history_of_its_own():
    scheduler = SCHEDULERS["unipc"]
    before = dict(scheduler.config)
    one, other = (make_solver(scheduler, steps, 256) for steps in (4, 8))
    assert len(one.noise_levels) == 4
    assert len(other.noise_levels) == 8
    x = torch.ones(2, 3, 4)
    assert torch.equal(one.step(0, x, x), make_solver(scheduler, 4, 256).step(0, x, x))
    assert not torch.equal(one.step(1, x, x), other.step(0, x, x))
    assert dict(scheduler.config) == before
    assert scheduler.num_inference_steps is None


def test_named_schedulers_keep_the_noise_levels():
    fixed = FlowMatchEulerDiscreteScheduler(shift=1.0)
    for source in (default_scheduler(), fixed):
        unipc = named_scheduler("unipc", source)
        check_scheduler(unipc)
        for scheduler in (unipc, named_scheduler("euler", unipc), named_scheduler("euler", source)):
            assert torch.equal(noise_levels(scheduler, 6, 1024), noise_levels(source, 6, 1024))
    with pytest.raises(InputError, match="scheduler is 'ddim': use one of euler, unipc"):
        named_scheduler("ddim")


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDIMScheduler(), "scheduler is DDIMScheduler, which is not for flow matching"),
        (UniPCMultistepScheduler(), 'prediction_type="flow_prediction", use_flow_sigmas=True'),
        (UniPCMultistepScheduler(**FLOW, solver_type="bh1"), "use 'bh2'"),
        (UniPCMultistepScheduler(**FLOW, use_karras_sigmas=True), "use_karras_sigmas=True, which is not supported"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling=True"),
        (FlowMatchEulerDiscreteScheduler(time_shift_type="linear"), "time_shift_type='linear': use 'exponential'"),
        (DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"), "which adds noise"),
    ],
)
def test_other_schedulers_are_refused(scheduler, message):
    with pytest.raises(InputError) as caught:
        make_solver(scheduler, 4, 256)
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def tiny() -> JointDiTPipeline:
    pipe = JointDiTPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("task", ["joint", "depth", "depth-to-image"])
@pytest.mark.slow
def test_twelve_steps_of_unipc_are_nearer_to_a_hundred_than_twenty_of_euler(tiny, task):
    pairs, size = 2, 64
    noise = tiny.prepare_noise(range(pairs), size, size)
    with torch.no_grad():
        states, pooled = tiny.encode_prompt(["a red sphere on the floor", "a box"])
    text = {"prompt_embeds": states, "pooled_prompt_embeds": pooled, "txt_ids": text_position_ids(states.shape[1])}
    ids = image_position_ids(size // tiny.size_multiple, size // tiny.size_multiple)

    def run(task: str, steps: int, scheduler: object = None, condition: torch.Tensor | None = None) -> torch.Tensor:
        halves = denoise(
            tiny.transformer,
            task,
            noise,
            condition,
            **text,
            img_ids=ids,
            num_inference_steps=steps,
            scheduler=scheduler,
        )
        return torch.cat(halves)

    pair = run("joint", 8).chunk(2)
    condition = {"joint": None, "depth": pair[0], "depth-to-image": pair[1]}[task]
    reference = run(task, 100, condition=condition)
    unipc = run(task, 12, named_scheduler("unipc", tiny.scheduler), condition)
    euler = run(task, 20, condition=condition)
    if condition is not None:
        kept = 0 if task == "depth" else 1
        assert torch.equal(unipc.chunk(2)[kept], condition)
    assert (unipc - reference).square().mean() < (euler - reference).square().mean()


def test_every_scheduler_runs_in_the_pipeline(small_pipeline):
    arguments = {"prompt": "a box", "seeds": [1], "num_inference_steps": 3, "output_type": "latent"}
    calls: list[int] = []
    hook = small_pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    kept, seen = small_pipeline.scheduler, {}
    try:
        for name, scheduler in SCHEDULERS.items():
            calls.clear()
            small_pipeline.scheduler = scheduler
            seen[name] = small_pipeline(**arguments).disparity
            assert len(calls) == evaluations(scheduler, 3) == (5 if name == "heun" else 3)
            assert torch.equal(small_pipeline(**arguments).disparity, seen[name]), "a call leaves no history"
    finally:
        small_pipeline.scheduler = kept
        hook.remove()
    assert all(not torch.equal(seen["euler"], seen[name]) for name in ("heun", "unipc", "dpm++"))

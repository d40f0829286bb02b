from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel

from jointdit import JointDiTTransformer2DModel, denoise
from jointdit.denoising import denoising_steps
from jointdit.errors import InputError
from jointdit.model.latents import image_position_ids

GOLDEN_NAMES = {"joint": "joint_generation", "depth": "depth_estimation", "depth-to-image": "depth_to_image"}


def task_inputs(io: dict[str, torch.Tensor], task: str) -> dict[str, object]:
    condition = {"joint": None, "depth": io["in.cond_packed_image"], "depth-to-image": io["in.cond_packed_depth"]}[task]
    return {
        "task": task,
        "noise": tuple(io["in.noise"].chunk(2)),
        "condition": condition,
        "prompt_embeds": io["in.txt"][:1],
        "pooled_prompt_embeds": io["in.y"][:1],
        "img_ids": image_position_ids(4, 4),
        "txt_ids": io["in.txt_ids"][0],
    }


@pytest.mark.parametrize("task", list(GOLDEN_NAMES))
def test_all_twenty_steps_are_the_authors(golden, task):
    io = golden.tensors("sample_a")
    name = f"out.{GOLDEN_NAMES[task]}"
    generated = {"joint": slice(0, 2), "depth": slice(1, 2), "depth-to-image": slice(0, 1)}[task]
    steps: list[int] = []

    def compare(step: int, latents: torch.Tensor, velocity: torch.Tensor) -> None:
        steps.append(step)
        where = f"{task} step {step}"
        torch.testing.assert_close(velocity, io[f"{name}.steps_velocity"][step], atol=2e-5, rtol=0, msg=where)
        after = io[f"{name}.steps_img"][step + 1] if step < 19 else io[f"{name}.packed"]
        torch.testing.assert_close(latents[generated], after[generated], atol=2e-5, rtol=0, msg=where)

    inputs = task_inputs(io, task)
    before = [noise.clone() for noise in inputs["noise"]]
    result = torch.cat(denoise(golden.network(), **inputs, on_step=compare))
    assert steps == list(range(20))
    torch.testing.assert_close(result[generated], io[f"{name}.packed"][generated], atol=2e-5, rtol=0)
    if task != "joint":
        # The authors' code returns the condition drifted by one Euler step; ours is the input itself.
        kept = {"depth": 0, "depth-to-image": 1}[task]
        assert torch.equal(result[kept], inputs["condition"][0])
    assert all(torch.equal(noise, copy) for noise, copy in zip(inputs["noise"], before, strict=True))


def test_text_for_both_halves_is_taken_as_it_is(golden):
    io, model = golden.tensors("sample_a"), golden.network()
    inputs = {**task_inputs(io, "joint"), "num_inference_steps": 2}
    once = torch.cat(denoise(model, **inputs))
    doubled = {"prompt_embeds": io["in.txt"], "pooled_prompt_embeds": io["in.y"], "img_ids": io["in.img_ids"]}
    torch.testing.assert_close(torch.cat(denoise(model, **{**inputs, **doubled})), once, atol=1e-5, rtol=0)


def test_guidance_scale_counts_and_a_network_without_it_ignores_it(golden):
    io, model = golden.tensors("sample_a"), golden.network()
    inputs = {**task_inputs(io, "joint"), "num_inference_steps": 2}
    assert not torch.allclose(
        denoise(model, **inputs)[0], denoise(model, **inputs, guidance_scale=1.0)[0], atol=1e-3, rtol=0
    )
    torch.manual_seed(0)
    flux = FluxTransformer2DModel(**{**golden.network_config("transformer_a"), "guidance_embeds": False})
    schnell = JointDiTTransformer2DModel.from_flux(flux, lora_ranks=2)
    assert torch.equal(denoise(schnell, **inputs)[0], denoise(schnell, **inputs, guidance_scale=1.0)[0])


def test_a_network_without_guidance_is_sampled_without_a_shift(golden):
    io = golden.tensors("sample_a")
    flux = FluxTransformer2DModel(**{**golden.network_config("transformer_a"), "guidance_embeds": False})
    inputs = {**task_inputs(io, "joint"), "num_inference_steps": 4}
    schnell = JointDiTTransformer2DModel.from_flux(flux, lora_ranks=2)
    assert [state.noise_level for state in denoising_steps(schnell, **inputs)] == [1.0, 0.75, 0.5, 0.25]
    dev = [state.noise_level for state in denoising_steps(golden.network(), **inputs)]
    assert dev[1:] == pytest.approx([t * 1.5876 / (1 + t * 0.5876) for t in (0.75, 0.5, 0.25)], abs=1e-3)


def test_runs_in_bfloat16_with_a_float32_trajectory(golden):
    io = golden.tensors("sample_a")
    # Guidance 1.0: 1000 is a bfloat16 number, 3500 is not.
    inputs = {**task_inputs(io, "joint"), "num_inference_steps": 4, "guidance_scale": 1.0}
    rgb, depth = denoise(golden.network(dtype=torch.bfloat16), **inputs)
    full, _ = denoise(golden.network(), **inputs)
    assert rgb.dtype == depth.dtype == torch.float32
    assert (rgb - full).abs().mean() < 0.1 * full.std()


def test_wrong_arguments_are_named(golden):
    io, model = golden.tensors("sample_a"), golden.network()
    with pytest.raises(InputError, match="task is 'normals': use one of joint, depth, depth-to-image"):
        denoise(model, **{**task_inputs(io, "joint"), "task": "normals"})
    with pytest.raises(InputError, match="'depth' was given no condition but takes the packed latents"):
        denoise(model, **{**task_inputs(io, "depth"), "condition": None})
    with pytest.raises(InputError, match="'joint' was given a condition but takes none"):
        denoise(model, **{**task_inputs(io, "depth"), "task": "joint"})
    with pytest.raises(InputError, match="num_inference_steps is 0"):
        denoise(model, **task_inputs(io, "joint"), num_inference_steps=0)

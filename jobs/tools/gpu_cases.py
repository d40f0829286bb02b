"""The cases of the GPU check: time and memory of a random network of FLUX's size.

A case is a size and a batch. A case that does not fit into memory or into the remaining time is recorded as left out,
with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from jointdit.denoising import Task, denoise
from jointdit.model.latents import decode_latents, image_position_ids, text_position_ids, unpack_latents
from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.pipeline import JointDiTPipeline
from jointdit.profiling.activations import Architecture, Call, activation_bytes
from jointdit.profiling.flops import forward_flops
from jointdit.profiling.memory import with_workspace
from jointdit.profiling.tensor_memory import TensorMemory

REPEATS = 3
PATCH = 16  # side of a token in pixels
PARITY_LIMIT = 1e-3  # mean absolute difference of disparities in [0, 1], both in float32
# Dense bfloat16 peak in TFLOP/s from NVIDIA's data sheets; the first key that is part of the device's name applies.
PEAK_TFLOPS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}


class Clock:
    """A time budget in seconds."""

    def __init__(self, budget: float) -> None:
        self.started, self.budget = time.monotonic(), budget

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds that remain."""
        return self.budget - self.spent


def random_network(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> JointDiTTransformer2DModel:
    """Create the network with random weights on the device, without a download or a copy."""
    with torch.device("meta"):
        network = torch.nn.Module.to(JointDiTTransformer2DModel(**config), dtype)
    network = network.to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return network


def random_vae(config: Mapping[str, Any], device: torch.device) -> AutoencoderKL:
    """Create the autoencoder with its initial weights, float32."""
    torch.manual_seed(0)
    with device:
        vae = AutoencoderKL.from_config(dict(config))
    return vae.eval()


def run_case(
    network: JointDiTTransformer2DModel,
    architecture: Architecture,
    size: int,
    batch: int,
    steps: int,
    clock: Clock,
    is_compiled: bool = False,
) -> dict[str, Any]:
    """Measure a forward and `steps` steps: seconds, TFLOP/s, and the share of the device's peak if it is known."""
    case: dict[str, Any] = {"size": size, "batch": batch, "compiled": is_compiled}
    if clock.left <= 0:
        return case | {"left_out": "no time is left"}
    case["steps"] = steps
    device, tokens = network.device, (size // PATCH) ** 2
    inputs = denoise_inputs(network, architecture, size, batch)

    def forward() -> None:
        denoise(network, "joint", num_inference_steps=1, **inputs)

    try:
        case["first_seconds"] = timed(forward, device)  # includes compilation
        if is_compiled and clock.left <= 0:
            return case | {"left_out": f"compilation took {case['first_seconds']:.1f} s, no time is left"}
        again = timed(forward, device) if is_compiled else case["first_seconds"]
        if again * (REPEATS + 1) > clock.left:
            return case | {"left_out": f"a forward takes {again:.1f} s, {clock.left:.0f} s are left"}
        case["forward_seconds"] = min(timed(forward, device) for _ in range(REPEATS))
        flops = forward_flops(network.config, batch, tokens, architecture.text_tokens).total
        case["forward_flops"] = flops
        case["tflops"] = flops / case["forward_seconds"] / 1e12
        peak = peak_tflops(device)
        case["flop_use"] = case["tflops"] / peak if peak else None
        if case["forward_seconds"] * steps > clock.left:
            return case | {"left_out": f"{steps} steps take longer than the {clock.left:.0f} s that are left"}
        seconds = timed(lambda: denoise(network, "joint", num_inference_steps=steps, **inputs), device)
        return case | {"steps_seconds": seconds, "pairs_per_second": batch / seconds}
    except torch.OutOfMemoryError:
        return case | {"left_out": "out of memory"}
    finally:
        release(device)


def measure_memory(
    network: JointDiTTransformer2DModel, vae: AutoencoderKL, architecture: Architecture, size: int, batch: int
) -> dict[str, Any]:
    """Measure the peak bytes of denoising and decoding without the weights, beside the estimate."""
    device = network.device
    call = Call("joint", batch, size, size, network.dtype)
    estimated = activation_bytes(architecture, call)
    if device.type == "cuda":
        estimated = with_workspace(estimated, call)
    memory: dict[str, Any] = {"size": size, "batch": batch, "estimated": estimated, "measured": {}}
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    try:
        inputs = denoise_inputs(network, architecture, size, batch)
        latents = {}

        def denoised() -> None:
            latents["rgb"], latents["depth"] = denoise(network, "joint", num_inference_steps=2, **inputs)

        kept = [*inputs["noise"], inputs["prompt_embeds"], inputs["pooled_prompt_embeds"]]
        held = sum(tensor.numel() * tensor.element_size() for tensor in kept)  # the estimate counts them in each stage
        memory["measured"]["denoise"] = peak_bytes(denoised, network, device) + held
        held += sum(tensor.numel() * tensor.element_size() for tensor in latents.values())
        unpacked = unpack_latents(latents["rgb"], size // factor, size // factor)
        with torch.no_grad():
            memory["measured"]["decode"] = peak_bytes(lambda: decode_latents(vae, unpacked), vae, device) + held
    except torch.OutOfMemoryError:
        memory["left_out"] = "out of memory"
    finally:
        release(device)
    return memory


def parity(device: torch.device, steps: int) -> dict[str, Any]:
    """Compare the tiny checkpoint in float32 on the device and on the CPU, with the same seeds.

    PyTorch's settings stay as they are in production.
    """
    ramp = np.linspace(0, 1, 128, dtype=np.float32)[:, None].repeat(128, 1)
    image = (ramp * 255).astype(np.uint8)[..., None].repeat(3, -1)
    inputs: dict[Task, dict[str, Any]] = {
        "joint": {"prompt": "a red cube on a blue floor"},
        "depth": {"image": image},
        "depth-to-image": {"prompt": "a red cube on a blue floor", "disparity": ramp},
    }
    on_device = JointDiTPipeline.from_pretrained("tiny").to(device)
    on_cpu = JointDiTPipeline.from_pretrained("tiny")
    tasks = {}
    for task, arguments in inputs.items():
        a, b = (pipe(task=task, seeds=[1], num_inference_steps=steps, **arguments) for pipe in (on_device, on_cpu))
        tasks[task] = {
            "disparity": float(np.abs(a.disparity - b.disparity).mean()),
            "rgb": float(np.abs(a.rgb.astype(float) - b.rgb).mean() / 255),
        }
    passed = all(value < PARITY_LIMIT for differences in tasks.values() for value in differences.values())
    return {"mean_differences": tasks, "limit": PARITY_LIMIT, "passed": passed}


def denoise_inputs(
    network: JointDiTTransformer2DModel, architecture: Architecture, size: int, batch: int
) -> dict[str, Any]:
    """Return random arguments of `denoise` for a square image of `size` pixels."""
    device, side = network.device, size // PATCH
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    channels, tokens = network.config.in_channels, architecture.text_tokens
    return {
        "noise": (normal(batch, side * side, channels), normal(batch, side * side, channels)),
        "prompt_embeds": normal(batch, tokens, network.config.joint_attention_dim, dtype=network.dtype),
        "pooled_prompt_embeds": normal(batch, network.config.pooled_projection_dim, dtype=network.dtype),
        "img_ids": image_position_ids(side, side, device),
        "txt_ids": text_position_ids(tokens, device),
    }


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of a call, with synchronization of the device."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def peak_bytes(run: Callable[[], Any], module: torch.nn.Module, device: torch.device) -> int:
    """Return the peak bytes of a call: of the GPU's allocator, or on a CPU of live tensors."""
    if device.type == "cuda":
        run()  # cuDNN and cuBLAS allocate their workspaces once
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with TensorMemory() as memory:
        before = memory.hold(module.parameters())
        run()
    return memory.peak - before


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Release unused memory, so that all cases start alike."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_tflops(device: torch.device) -> float | None:
    """Return the device's bfloat16 peak in TFLOP/s, or None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)

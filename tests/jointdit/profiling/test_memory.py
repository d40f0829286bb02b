"""The estimate against real tensors, and against what PyTorch's allocator on the CPU says a real call took."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from jointdit.pipeline import TINY_CHECKPOINT, JointDiTPipeline
from jointdit.profiling import RESERVED_BYTES
from jointdit.profiling.activations import Call, activation_bytes
from jointdit.profiling.memory import DECODE_WORKSPACE, estimate_memory, flux_model, read_model
from jointdit.profiling.tensor_memory import TensorMemory

PARTS = ("transformer", "text_encoder", "text_encoder_2", "vae")
SMALL = Call("joint", 1, 32, 32, torch.float32)


@pytest.fixture(scope="module")
def tiny():
    return read_model(TINY_CHECKPOINT)


@pytest.fixture(scope="module")
def pipe():
    return JointDiTPipeline.from_pretrained("tiny")


def tensor_bytes(module):
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())


def allocated_at_most(run):
    """The most that PyTorch's CPU allocator had handed out while `run` ran, beside what there was before."""
    run()  # what is made once and kept is there before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    changes = []
    open_ = list(profiled.profiler.kineto_results.experimental_event_tree())
    while open_:
        event = open_.pop()
        open_ += event.children
        if event.name == "[memory]":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    changes.sort(key=lambda change: change[0])
    return int(np.cumsum([size for _, size in changes]).max())


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
def test_weights_are_the_sum_of_the_real_tensors(tiny, dtype):
    found = estimate_memory(tiny, Call("joint", 1, 32, 32, dtype)).weights
    real = JointDiTPipeline.from_pretrained("tiny", torch_dtype=dtype)
    adapter = sum(p.numel() * p.element_size() for p in real.transformer.adapter_parameters())
    assert found["adapter"] == adapter
    assert found["transformer"] == tensor_bytes(real.transformer) - adapter
    for part in PARTS[1:]:
        assert found[part] == pytest.approx(tensor_bytes(getattr(real, part)), rel=0.05), part


@pytest.mark.parametrize(
    ("task", "batch", "height", "width", "options", "stage"),
    [
        ("joint", 1, 32, 32, {}, "denoise"),
        ("joint", 4, 96, 208, {}, "decode"),
        ("joint", 4, 96, 208, {"vae_slicing": True}, "denoise"),
        ("depth", 2, 128, 128, {}, "decode"),
        ("depth", 1, 64, 64, {"condition_refresh": 2}, "denoise"),
        ("depth-to-image", 1, 208, 96, {"vae_tiling": True}, "decode"),
    ],
)
def test_activations_are_what_a_real_call_takes(tiny, pipe, task, batch, height, width, options, stage):
    """Within 15 % of the activations alone, which says more than 15 % of weights and activations."""
    call = Call(task, batch, height, width, torch.float32, **options)
    found = estimate_memory(tiny, call)
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None].repeat(height, 0)
    given = {
        "joint": {"prompt": [f"a red cube number {i}" for i in range(batch)], "height": height, "width": width},
        "depth": {"image": (ramp * 255).astype(np.uint8)[..., None].repeat(3, -1)},
        "depth-to-image": {"prompt": "a red cube", "disparity": ramp},
    }[task]
    if "condition_refresh" in options:
        given["condition_refresh"] = options["condition_refresh"]
    pipe.vae.use_tiling, pipe.vae.use_slicing = "vae_tiling" in options, "vae_slicing" in options
    real = allocated_at_most(lambda: pipe(task=task, seeds=list(range(batch)), num_inference_steps=2, **given))
    assert found.peak_stage == stage
    tensors = activation_bytes(tiny.architecture, call)[stage]  # a CPU has no workspace of cuDNN
    assert tensors == pytest.approx(real, rel=0.15)
    workspace = DECODE_WORKSPACE if stage == "decode" and batch > 1 else 0
    assert found.activations[stage] == pytest.approx(tensors * (1 + workspace))
    assert found.peak == sum(found.weights.values()) + found.activations[stage]
    assert found.needed == found.peak + RESERVED_BYTES


def test_offloaded_weights_leave_what_is_at_work_on_the_device(tiny, pipe):
    whole = estimate_memory(tiny, SMALL)
    model = estimate_memory(tiny, SMALL, offload="model")
    assert model.peak == tensor_bytes(pipe.transformer) + whole.activations["denoise"]
    blocks = Counter()
    for name, parameter in pipe.transformer.named_parameters():
        inside = name.split(".")[:2] if "transformer_blocks" in name else ["outside"]
        blocks[".".join(inside)] += parameter.numel() * 4
    outside = blocks.pop("outside")
    group = estimate_memory(tiny, SMALL, offload="group")
    assert group.peak == outside + 2 * max(blocks.values()) + whole.activations["denoise"]
    largest = max(tensor_bytes(m) for m in pipe.transformer.modules() if not list(m.children()))
    sequential = estimate_memory(tiny, SMALL, offload="sequential")
    assert sequential.peak == pytest.approx(largest + whole.activations["denoise"], rel=0.05)
    assert sequential.peak < group.peak < model.peak < whole.peak


def test_flux_at_its_real_size_is_as_large_as_it_is_said_to_be():
    found = estimate_memory(flux_model(), Call("joint", 1, 512, 512)).weights
    assert found["transformer"] == pytest.approx(2 * 11.90e9, rel=0.001)
    assert found["adapter"] == pytest.approx(2 * 2.354e9, rel=0.001)
    assert found["text_encoder_2"] == pytest.approx(2 * 4.762e9, rel=0.001)  # T5-XXL's encoder


def test_the_watch_counts_storages_once_and_while_they_live():
    with TensorMemory() as memory:
        first = torch.zeros(1000)  # 4,000 bytes
        view = first[10:].view(-1, 10)
        second = first + 1
        del second
        third = view.clone()
        assert (memory.current, memory.peak) == (4000 + third.numel() * 4, 8000)
        del first
        assert memory.current == 4000 + third.numel() * 4  # the view holds it
        del view, third
        assert memory.current == 0

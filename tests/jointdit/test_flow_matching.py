from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.transformers.transformer_flux import FluxPosEmbed, apply_rotary_emb

from jointdit.flow_matching import (
    NORMAL_SHIFT,
    SMALL_SHIFT,
    add_noise,
    joint_flow_matching_loss,
    sample_timesteps,
    sampling_schedule,
    shift_noise_level,
    velocity_target,
)
from jointdit.sampling.solvers import default_scheduler, noise_levels


def test_schedule_of_every_published_length(golden):
    values = golden.numbers("schedule")["values"]
    assert Counter(case["shift"] for case in values) == {True: 24, False: 24}
    for case in values:
        expected = torch.tensor(case["timesteps"])
        scheduler = default_scheduler(guidance_embeds=case["shift"])  # schnell has neither guidance nor a shift
        levels = noise_levels(scheduler, case["num_steps"], case["image_seq_len"])
        torch.testing.assert_close(levels, expected, atol=1e-6, rtol=0)
        if case["shift"]:
            assert torch.equal(sampling_schedule(case["num_steps"], case["image_seq_len"]), levels)


def test_draws_map_to_the_authors_timesteps(golden):
    table = golden.tensors("noising")
    sigmoid = torch.sigmoid(table["normal_draws"])
    torch.testing.assert_close(
        shift_noise_level(sigmoid, NORMAL_SHIFT) * 1000, table["normal_timesteps"], atol=1e-3, rtol=1e-6
    )
    torch.testing.assert_close(
        shift_noise_level(sigmoid, SMALL_SHIFT) * 1000, table["small_timesteps"], atol=1e-3, rtol=1e-6
    )


def test_noising_and_target(golden):
    table = golden.tensors("noising")
    noisy = add_noise(table["latents"], table["noise"], table["timesteps"] / 1000)
    torch.testing.assert_close(noisy, table["noisy"], atol=2e-5, rtol=0)
    torch.testing.assert_close(
        velocity_target(table["latents"], table["noise"]), table["target_velocity"], atol=2e-5, rtol=0
    )


def test_training_noise_levels_have_the_authors_distribution(golden):
    """200,000 pairs against the statistics of the authors' 200,000: each within a few standard errors."""
    expected = golden.numbers("timesteps")["scenarios"]
    t_rgb, t_depth = sample_timesteps(200_000, torch.Generator().manual_seed(3))
    assert t_rgb.min() >= 0
    assert t_rgb.max() <= 1
    equal = t_rgb == t_depth
    assert equal.float().mean().item() == pytest.approx(0.5, abs=0.005)
    for name, t in (("rgb", t_rgb), ("depth", t_depth)):
        assert 1000 * t.mean().item() == pytest.approx(expected[name]["mean"], abs=3)
        assert 1000 * t.std().item() == pytest.approx(expected[name]["std_population"], abs=2)
        for percent, value in expected[name]["percentiles"].items():
            assert np.percentile(1000 * t.numpy(), int(percent)) == pytest.approx(value, abs=7)
    normal = golden.numbers("timesteps")["samplers"]["get_normal_timesteps"]["analytic"]
    assert 1000 * t_rgb[equal].mean().item() == pytest.approx(normal["mean"], abs=3)
    # Unequal pairs are two kinds, half each: noisy RGB with cleaner depth, and the reverse.
    rgb_noisier = (t_rgb > t_depth)[~equal].float().mean().item()
    assert rgb_noisier == pytest.approx(0.5, abs=0.01)
    correlation = np.corrcoef(t_rgb[~equal].numpy(), t_depth[~equal].numpy())[0, 1]
    assert correlation == pytest.approx(-0.66, abs=0.03)


def test_timesteps_repeat_with_their_generator():
    first = sample_timesteps(9, torch.Generator().manual_seed(1))
    again = sample_timesteps(9, torch.Generator().manual_seed(1))
    other = sample_timesteps(9, torch.Generator().manual_seed(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_loss_is_the_float32_mean_over_both_halves(golden):
    step = golden.tensors("training_step_a")
    loss = joint_flow_matching_loss(step["model_pred"], step["target"])
    assert loss.item() == pytest.approx(step["per_sample_loss"].mean().item(), abs=1e-6)
    assert joint_flow_matching_loss(step["model_pred"].bfloat16(), step["target"].bfloat16()).dtype == torch.float32


def test_position_and_time_embeddings_are_the_authors(golden):
    """What we take from diffusers, against the authors' numbers."""
    table = golden.tensors("primitives")
    cos, sin = FluxPosEmbed(theta=10000, axes_dim=[16, 56, 56])(table["rope.ids"][0])
    rotation = table["rope.pe_axes_16_56_56"][0, 0]
    torch.testing.assert_close(cos[:, ::2], rotation[..., 0, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(sin[:, ::2], rotation[..., 1, 0], atol=1e-6, rtol=0)
    rotated = apply_rotary_emb(table["rope.q_in"].transpose(1, 2), (cos, sin), sequence_dim=1).transpose(1, 2)
    torch.testing.assert_close(rotated, table["rope.q_out"], atol=1e-5, rtol=0)
    embedding = get_timestep_embedding(table["temb.t"] * 1000, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(embedding, table["temb.float32"], atol=2e-4, rtol=0)
    norm = torch.nn.RMSNorm(16, eps=1e-6)
    norm.weight.data = table["rmsnorm.scale"]
    torch.testing.assert_close(norm(table["rmsnorm.in"]), table["rmsnorm.out"], atol=2e-5, rtol=1e-6)
    layer_norm = torch.nn.functional.layer_norm(table["layernorm.in"], (16,), eps=1e-6)
    torch.testing.assert_close(layer_norm, table["layernorm.out"], atol=2e-5, rtol=0)

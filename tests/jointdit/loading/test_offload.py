"""Offloaded weights and a tiled VAE against the plain model, on the tiny checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jointdit.flow_matching import sampling_schedule
from jointdit.loading.offload import place
from jointdit.model.latents import decode_latents, encode_image
from jointdit.pipeline import JointDiTPipeline

HEIGHT, WIDTH = 96, 208  # pixels: neither is the checkpoint's size, and the width needs two tiles


@pytest.fixture(scope="module")
def rgb_image():
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    rgb_image = np.stack([rows % 256, columns % 256, (rows * columns) % 256], axis=-1)
    return rgb_image.astype(np.uint8)


@pytest.fixture(scope="module")
def plain(rgb_image):
    return run(JointDiTPipeline.from_pretrained("tiny"), rgb_image)


def run(pipe, rgb_image):
    made = pipe(
        prompt=["a red cube on a blue floor"],
        task="joint",
        seeds=[3],
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=2,
    )
    labelled = pipe(image=rgb_image, task="depth", seeds=[4], num_inference_steps=2)
    return made.rgb, made.disparity, labelled.disparity


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloaded_weights_give_the_plain_models_pixels(offload, rgb_image, plain):
    pipe = JointDiTPipeline.from_pretrained("tiny")
    place(pipe, "cpu", offload)
    for again in range(2):  # what came to the device for the first call has gone back before the second
        for found, expected in zip(run(pipe, rgb_image), plain, strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=f"call {again}")


def test_a_tiled_vae_is_close_to_a_whole_one_at_an_odd_aspect(rgb_image):
    """Tiles are padded at their borders and blended: what differs lies at the seams."""
    pipe = JointDiTPipeline.from_pretrained("tiny")
    images = torch.from_numpy(rgb_image).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = encode_image(pipe.vae, images)
        whole = decode_latents(pipe.vae, latents)
        pipe.vae.enable_tiling()
        tiled_latents, tiled = encode_image(pipe.vae, images), decode_latents(pipe.vae, latents)
    assert tiled_latents.shape == latents.shape == (1, 16, HEIGHT // 8, WIDTH // 8)
    assert tiled.shape == whole.shape == (1, 3, HEIGHT, WIDTH)
    assert 0 < (tiled - whole).abs().mean() < 0.05  # of a range of 2; it was tiled indeed
    assert 0 < (tiled_latents - latents).abs().mean() < 0.25 * latents.std()


@pytest.mark.parametrize(("height", "width"), [(256, 2048), (2048, 256), (96, 208), (1024, 1024)])
def test_the_schedule_follows_the_number_of_tokens_whatever_the_aspect(height, width):
    """FLUX's get_schedule: time_shift(mu, 1, t) with mu through (256, 0.5) and (4096, 1.15)."""
    tokens = height // 16 * (width // 16)
    mu = 0.5 + (tokens - 256) * 0.65 / 3840
    t = torch.linspace(1, 0, 5)[1:-1]
    expected = torch.exp(torch.tensor(mu)) / (torch.exp(torch.tensor(mu)) + 1 / t - 1)
    torch.testing.assert_close(sampling_schedule(4, tokens)[1:-1], expected)

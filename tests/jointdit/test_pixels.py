from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from jointdit.errors import InputError
from jointdit.pixels import (
    disparity_to_vae,
    image_to_vae,
    read_disparities,
    read_images,
    vae_to_disparity,
    vae_to_image,
)


def test_every_eight_bit_value_survives():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = image_to_vae(levels)
    assert (pixels.min().item(), pixels.max().item()) == (-1, 1)
    back, finite = vae_to_image(pixels)
    assert np.array_equal(back, levels)
    assert finite.tolist() == [True]


def test_images_outside_the_range_are_clipped_and_nan_is_flagged():
    decoded = torch.tensor([-3.0, 3.0, 0.0]).view(1, 3, 1, 1).repeat(2, 1, 1, 1)
    decoded[1, 2] = torch.nan
    back, finite = vae_to_image(decoded)
    assert back[0, 0, 0].tolist() == [0, 255, 128]
    assert finite.tolist() == [True, False]


def test_disparity_keeps_more_than_eight_bits():
    maps = np.linspace(0, 1, 4096, dtype=np.float32).reshape(1, 64, 64)
    pixels = disparity_to_vae(maps)
    assert pixels.shape == (1, 3, 64, 64)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    np.testing.assert_allclose(vae_to_disparity(pixels), maps, atol=1e-6)


def test_disparity_is_the_channel_mean_spread_over_each_image():
    generator = torch.Generator().manual_seed(0)
    decoded = torch.randn(2, 3, 8, 8, generator=generator) * torch.tensor([0.1, 5.0]).view(2, 1, 1, 1)
    maps = vae_to_disparity(decoded)
    mean = decoded[1].mean(dim=0).numpy()
    np.testing.assert_allclose(maps[1], (mean - mean.min()) / (mean.max() - mean.min()), atol=1e-6)
    assert maps.min(axis=(1, 2)).tolist() == [0, 0]
    assert maps.max(axis=(1, 2)).tolist() == [1, 1]


def test_a_map_without_relief_and_one_with_nan():
    decoded = torch.full((2, 3, 4, 4), 0.3)
    decoded[1, 0, 0, 0] = torch.nan
    maps = vae_to_disparity(decoded)
    assert not maps[0].any()
    assert np.isnan(maps[1]).all()


def test_inputs_in_every_accepted_form():
    image = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    forms = {
        "uint8": image,
        "PIL": Image.fromarray(image),
        "floats": image.astype(np.float64) / 255,
        "CHW": tensor,
        "uint8 CHW": np.ascontiguousarray(image.transpose(2, 0, 1)),
        "opaque RGBA": Image.fromarray(image).convert("RGBA"),
    }
    for name, given in forms.items():
        assert np.array_equal(read_images(given), image[None]), name
        assert np.array_equal(read_images([given, given]), np.stack([image, image])), name
    assert np.array_equal(read_images(tensor[None].repeat(3, 1, 1, 1)), np.stack([image] * 3))
    grey = Image.fromarray(image[..., 0])
    assert np.array_equal(read_images(grey)[0], image[..., :1].repeat(3, axis=2))


def test_transparency_is_composited_on_white():
    image = np.zeros((16, 16, 4), np.uint8)
    image[:8, :, 3] = 255
    expected = np.where(image[..., 3:] == 255, np.uint8(0), np.uint8(255)).repeat(3, axis=2)
    for given in (image, Image.fromarray(image), torch.from_numpy(image).permute(2, 0, 1) / 255):
        assert np.array_equal(read_images(given)[0], expected)


def test_maps_in_every_accepted_form():
    levels = np.arange(16 * 32, dtype=np.uint16).reshape(16, 32) * 128
    disparity = levels / 65535
    tensor = torch.from_numpy(disparity)
    for given in (disparity, [disparity], Image.fromarray(levels), tensor, tensor[None], tensor[None, None]):
        maps = read_disparities(given)
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps, disparity[None], atol=1e-7)
    assert read_disparities(np.stack([disparity] * 3)[..., None]).shape == (3, 16, 32)
    with pytest.raises(InputError, match="disparity is a PIL image of mode L: give 16 bits"):
        read_disparities(Image.fromarray(levels.astype(np.uint8)))


def test_rounding_of_a_resampled_map_passes_but_not_metres():
    read_disparities(np.array([[-1e-5, 1.0001]]))
    with pytest.raises(InputError, match=r"disparity ranges from 0\.5 to 12"):
        read_disparities(np.array([[0.5, 12.0]]))

from __future__ import annotations

import pytest
import torch

from jointdit.errors import ModelError
from jointdit.loading.official_vae import vae_from_official
from jointdit.model.latents import (
    decode_latents,
    encode_image,
    image_position_ids,
    pack_latents,
    seeded_noise,
    text_position_ids,
    unpack_latents,
)


def test_packing(golden):
    table = golden.tensors("primitives")
    packed = pack_latents(table["pack.latents"])
    assert torch.equal(packed, table["pack.packed"])
    assert torch.equal(unpack_latents(packed, 6, 10), table["pack.latents"])


def test_position_ids(golden):
    assert torch.equal(image_position_ids(3, 5), golden.tensors("primitives")["img_ids.2x3x5"][0])
    assert torch.equal(text_position_ids(4), torch.zeros(4, 3))


def test_noise_of_a_sample_depends_on_its_seed_alone():
    batch = seeded_noise([3, 11, 2**63], (2, 16, 4, 6))
    assert batch.dtype == torch.float32
    assert torch.equal(seeded_noise([11], (2, 16, 4, 6))[0], batch[1])
    assert not torch.equal(batch[0], batch[1])
    assert batch.std().item() == pytest.approx(1, abs=0.05)


@torch.no_grad()
def test_autoencoder_is_the_authors(golden):
    vae, io = vae_from_official(golden.folder / "ae_small.base.safetensors"), golden.tensors("ae_small.io")
    latents = encode_image(vae, io["in.image"])
    torch.testing.assert_close(latents, io["latent_mean"], atol=2e-5, rtol=0)
    sampled = encode_image(vae, io["in.image"], noise=io["eps"])
    torch.testing.assert_close(sampled, io["latent_sampled"], atol=2e-5, rtol=0)
    decoded = decode_latents(vae, io["latent_mean"])
    torch.testing.assert_close(decoded, io["decoded_from_latent_mean"], atol=2e-5, rtol=0)


def test_the_vae_runs_without_tf32_and_the_settings_return(golden):
    """PyTorch's default is TF32 in convolutions; the kernels are chosen by the setting at the time of the call."""
    vae, io = vae_from_official(golden.folder / "ae_small.base.safetensors"), golden.tensors("ae_small.io")
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before, seen = (convolutions.fp32_precision, products.fp32_precision), []
    for part in (vae.encoder, vae.decoder):
        part.register_forward_pre_hook(lambda *_: seen.append((convolutions.fp32_precision, products.fp32_precision)))
    latents = encode_image(vae, io["in.image"])
    decode_latents(vae, latents)
    assert seen == [("ieee", "ieee")] * 2
    decode_latents(vae, latents, allow_tf32=True)
    assert seen[-1] == before == (convolutions.fp32_precision, products.fp32_precision)


@torch.no_grad()
def test_a_vae_without_shift_factor(golden):
    vae, io = vae_from_official(golden.folder / "ae_small.base.safetensors"), golden.tensors("ae_small.io")
    vae.register_to_config(shift_factor=None, scaling_factor=1.0)
    moments = vae.encode(io["in.image"]).latent_dist.mean
    assert torch.equal(encode_image(vae, io["in.image"]), moments)


def test_a_file_that_is_no_autoencoder(golden):
    with pytest.raises(ModelError, match=r"tensor encoder.conv_in.weight is missing, give FLUX's ae.safetensors"):
        vae_from_official(golden.folder / "transformer_a.addons.safetensors")

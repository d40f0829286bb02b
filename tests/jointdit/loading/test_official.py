from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from jointdit import JointDiTTransformer2DModel
from jointdit.errors import ModelError
from jointdit.loading.official import adapter_tensors
from jointdit.loading.official_vae import vae_from_official, vae_to_official
from tests.jointdit.conftest import small_components

BASE = "transformer_a.base.safetensors"
ADAPTER = "transformer_a.addons.safetensors"


@pytest.mark.parametrize("case", ["transformer_a", "transformer_default_ranks"])
def test_round_trip_is_bit_equal(golden, case, tmp_path):
    model = golden.network(case, dtype=None)
    model.to_official(tmp_path / "base.safetensors", tmp_path / "adapter.safetensors")
    for written, published in (("base", f"{case}.base"), ("adapter", f"{case}.addons")):
        ours, theirs = load_file(tmp_path / f"{written}.safetensors"), golden.tensors(published)
        assert sorted(ours) == sorted(theirs)
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype
            assert torch.equal(ours[name], tensor), name


def test_ranks_are_read_from_the_file(golden):
    assert golden.network().config.lora_ranks == {
        "blocks": 4,
        "txt_in": 8,
        "vector_in.in_layer": 6,
        "vector_in.out_layer": 8,
    }
    counts = golden.numbers("transformer_a")["counts"]
    model = golden.network()
    assert sum(p.numel() for p in model.adapter_parameters()) == counts["addon_params"]
    assert sum(p.numel() for p in model.parameters()) == counts["addon_params"] + counts["base_params"]


@pytest.mark.parametrize("guidance_embeds", [True, False], ids=["dev", "schnell"])
def test_names_and_shapes_at_the_real_size(golden, guidance_embeds):
    """On the meta device: 11.90 B parameters of the base and 2.354 B of the adapter without their memory."""
    naming = golden.numbers("flux_naming")
    base_names, adapter_names = dict(naming["base"]), naming["addons"]
    if not guidance_embeds:
        delta = golden.numbers("flux_naming_schnell_delta")
        for name in delta["keys_only_in_dev"]:
            del base_names[name]
        assert delta["schnell_addons_equal_dev"]
    with torch.device("meta"):
        model = JointDiTTransformer2DModel(guidance_embeds=guidance_embeds)
    base, adapter = model.to_official()
    assert {name: list(tensor.shape) for name, tensor in adapter.items()} == adapter_names
    assert {name: list(tensor.shape) for name, tensor in base.items()} == base_names
    assert len(adapter) == 500
    adapter_parameters = sum(p.numel() for p in model.adapter_parameters())
    assert adapter_parameters == naming["addons_param_count"]
    assert round(adapter_parameters / 1e9, 3) == 2.354
    of_guidance = 256 * 3072 + 3072 + 3072 * 3072 + 3072  # two Linears, which schnell lacks
    base_parameters = sum(p.numel() for p in model.parameters()) - adapter_parameters
    assert base_parameters == 11_901_408_320 - (0 if guidance_embeds else of_guidance)


def test_base_alone_is_diffusers_network(golden):
    """The base's names in diffusers are FluxTransformer2DModel's own, each used once."""
    flux = FluxTransformer2DModel(**golden.network_config("transformer_a"))
    model = golden.network()
    ours = {name.replace(".base_layer.", ".") for name in model.state_dict()} - {
        name for names in adapter_tensors(2, 3).values() for name in names
    }
    assert ours == set(flux.state_dict())


def test_from_flux_keeps_dtype_and_takes_the_adapter(golden):
    flux = FluxTransformer2DModel(**golden.network_config("transformer_a")).to(torch.bfloat16)
    model = JointDiTTransformer2DModel.from_flux(flux, golden.folder / ADAPTER)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    published = golden.tensors("transformer_a.addons")
    assert torch.equal(model.to_official()[1]["txt_in.lora_B.weight"], published["txt_in.lora_B.weight"].bfloat16())
    mixed = JointDiTTransformer2DModel.from_flux(flux, lora_ranks=2, torch_dtype=torch.float32)
    assert {p.dtype for p in mixed.adapter_parameters()} == {torch.float32}
    assert mixed.x_embedder.weight.dtype == torch.bfloat16


def changed(source: Path, folder: Path, **changes: torch.Tensor | None) -> Path:
    """A copy of a safetensors file with tensors replaced (or dropped, by None); "__" stands for a dot."""
    tensors = load_file(source)
    for name, tensor in changes.items():
        dotted = name.replace("__", ".")
        tensors.pop(dotted, None)
        if tensor is not None:
            tensors[dotted] = tensor
    path = folder / source.name
    save_file(tensors, path)
    return path


def load(golden, base: Path | None = None, adapter: Path | None = None, **config: object) -> JointDiTTransformer2DModel:
    return JointDiTTransformer2DModel.from_official(
        base or golden.folder / BASE,
        adapter or golden.folder / ADAPTER,
        config={**golden.network_config("transformer_a"), **config},
    )


def test_adapter_of_another_size(golden, tmp_path):
    wide = changed(golden.folder / ADAPTER, tmp_path, txt_in__lora_B__weight=torch.zeros(96, 8))
    with pytest.raises(
        ModelError,
        match=r"addons.safetensors: tensor txt_in.lora_B.weight has shape \(96, 8\) but the network needs \(64, 8\)",
    ):
        load(golden, adapter=wide)


def test_missing_tensors(golden, tmp_path):
    without_joint = changed(golden.folder / ADAPTER, tmp_path, single_blocks__1__joint2__bias=None)
    with pytest.raises(ModelError, match=r"tensor single_blocks.1.joint2.bias of shape \(128,\) is missing"):
        load(golden, adapter=without_joint)
    without_a = changed(golden.folder / ADAPTER, tmp_path, txt_in__lora_A__weight=None)
    with pytest.raises(ModelError, match=r"tensor txt_in.lora_A.weight is missing"):
        load(golden, adapter=without_a)
    without_base = changed(golden.folder / BASE, tmp_path, img_in__bias=None)
    with pytest.raises(ModelError, match=r"base.safetensors: tensor img_in.bias of shape \(64,\) is missing"):
        load(golden, base=without_base)


def test_tensors_without_a_place(golden, tmp_path):
    with pytest.raises(ModelError, match=r"tensor double_blocks.1\S+ \(14 in all\) is not in the network"):
        JointDiTTransformer2DModel.from_flux(
            FluxTransformer2DModel(**{**golden.network_config("transformer_a"), "num_layers": 1}),
            golden.folder / ADAPTER,
        )
    with pytest.raises(ModelError, match=r"tensor guidance_in.in_layer.bias \(4 in all\) is not in the network"):
        load(golden, guidance_embeds=False)


def test_files_that_are_not_safetensors(golden, tmp_path):
    pickled = tmp_path / "adapter.bin"
    torch.save({}, pickled)
    with pytest.raises(ModelError, match=r"adapter.bin: weights load from .safetensors only \(pickled files can run"):
        load(golden, adapter=pickled)
    with pytest.raises(ModelError, match=r"nowhere.safetensors: there is no such file"):
        load(golden, base=tmp_path / "nowhere.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((golden.folder / ADAPTER).read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"cut.safetensors: not a readable safetensors file"):
        load(golden, adapter=cut)


def test_guidance_embedding_is_found_in_the_file(golden, tmp_path):
    """schnell's file has none; the config need not say so."""
    names = [f"guidance_in.{layer}.{kind}" for layer in ("in_layer", "out_layer") for kind in ("weight", "bias")]
    schnell = changed(golden.folder / BASE, tmp_path, **{name.replace(".", "__"): None for name in names})
    config = golden.network_config("transformer_a")
    del config["guidance_embeds"]
    model = JointDiTTransformer2DModel.from_official(schnell, golden.folder / ADAPTER, config=config)
    assert model.config.guidance_embeds is False
    assert golden.network().config.guidance_embeds is True


def test_autoencoder_round_trip_is_bit_equal(golden, tmp_path):
    vae = vae_from_official(golden.folder / "ae_small.base.safetensors")
    vae_to_official(vae, tmp_path / "ae.safetensors")
    ours, published = load_file(tmp_path / "ae.safetensors"), golden.tensors("ae_small.base")
    assert set(ours) == set(published)
    assert all(torch.equal(ours[name], tensor) for name, tensor in published.items())


def test_autoencoder_names_at_the_real_size(golden):
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        with_quant = AutoencoderKL(block_out_channels=(32,))
    official = {name: list(tensor.shape) for name, tensor in vae_to_official(vae).items()}
    assert official == golden.numbers("ae_naming")["params"]
    with pytest.raises(ModelError, match=r"post_quant_conv.bias has no name in BFL's layout"):
        vae_to_official(with_quant)


def test_options_of_the_network_are_honoured_or_refused(tmp_path: Path) -> None:
    """diffusers' loader takes a dtype that is no torch.dtype for float32, and ignores a name that it does not know."""
    network = JointDiTTransformer2DModel.from_flux(small_components()["transformer"], lora_ranks=2)
    network.save_pretrained(tmp_path / "full")
    network.save_pretrained(tmp_path / "half", variant="fp16")
    load = JointDiTTransformer2DModel.from_pretrained
    assert load(tmp_path / "full").dtype == torch.float32
    for options in ({"torch_dtype": "bfloat16"}, {"dtype": torch.bfloat16}, {"dtype": "bfloat16", "torch_dtype": None}):
        assert load(tmp_path / "full", **options).dtype == torch.bfloat16
    assert load(tmp_path / "full", device_map="cpu", low_cpu_mem_usage=True).device.type == "cpu"
    assert load(tmp_path / "half", variant="fp16").config.lora_ranks == network.config.lora_ranks
    for options, message in (
        ({"torch_dtype": "auto"}, "torch_dtype is 'auto': give one type"),
        ({"torch_dtype": {"default": torch.bfloat16}}, r"torch_dtype is \{'default': torch.bfloat16\}: give one type"),
        ({"torch_dtype": torch.float16, "dtype": torch.bfloat16}, "they are the same option, give one"),
        ({"torch_dtyp": torch.bfloat16}, "from_pretrained has no option 'torch_dtyp': did you mean torch_dtype"),
        ({"use_safetensors": False}, "use_safetensors is False, and pickled files can run code"),
        ({"variant": "fp16"}, r"no file named diffusion_pytorch_model.fp16.safetensors"),
    ):
        with pytest.raises(ModelError, match=message):
            load(tmp_path / "full", **options)
    flux = small_components()["transformer"]
    with pytest.raises(ModelError, match="torch_dtype is 'auto': give one type"):
        JointDiTTransformer2DModel.from_flux(flux, lora_ranks=2, torch_dtype="auto")  # type: ignore[arg-type]

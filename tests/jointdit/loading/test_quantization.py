"""Quantised base weights under the depth LoRA and the joint connection.

The libraries are imported by diffusers in every process where they are installed (a second, and log lines), so `make
test-quantization` has them in a folder of their own.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from jointdit.errors import ModelError
from jointdit.loading.quantization import Quantization
from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.pipeline import TINY_CHECKPOINT, JointDiTPipeline
from jointdit.profiling.activations import Call
from jointdit.profiling.memory import estimate_memory, read_model

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # their own, as they load

SETTINGS = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "axes_dims_rope": (8, 12, 12),
}


@pytest.fixture
def folder(tmp_path):
    """A small FLUX as diffusers saves it."""
    torch.manual_seed(0)
    FluxTransformer2DModel(**SETTINGS).save_pretrained(tmp_path / "flux")
    return tmp_path / "flux"


def with_adapter(flux):
    """JointDiT around it, with an adapter that is the same each time and not zero."""
    model = JointDiTTransformer2DModel.from_flux(flux, lora_ranks=4).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.adapter_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@torch.no_grad()
def output(model):
    generator = torch.Generator().manual_seed(2)
    noise, text, pooled = (torch.randn(2, *shape, generator=generator) for shape in ((24, 64), (8, 64), (64,)))
    return model(
        torch.cat([noise, noise]),
        timestep=torch.full((4,), 0.5),
        encoder_hidden_states=torch.cat([text, text]),
        pooled_projections=torch.cat([pooled, pooled]),
        img_ids=torch.zeros(24, 3),
        txt_ids=torch.zeros(8, 3),
    ).sample


def check_close_and_adapted(quantised_flux, plain_flux, tolerance):
    """Within `tolerance` of the plain output, in its deviations; LoRA moves the depth half alone, as in the plain."""
    plain, quantised = with_adapter(plain_flux), with_adapter(quantised_flux)
    expected, found = output(plain), output(quantised)
    error = (found - expected).abs().mean() / expected.std()
    assert 0 < error < tolerance
    for model in (plain, quantised):
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            block.attn.joint_proj.weight.data.zero_()
            block.attn.joint_proj.bias.data.zero_()
    moved = output(quantised) - output(without_lora(quantised))
    wanted = output(plain) - output(without_lora(plain))
    assert moved[:2].abs().max() == 0
    assert (moved[2:] - wanted[2:]).abs().mean() < 4 * tolerance * wanted[2:].std()


def without_lora(model):
    """The same model, whose LoRA is zero from now on."""
    for name, parameter in model.adapter_named_parameters():
        if ".lora_B." in name:
            parameter.data.zero_()
    return model


@needs_torchao
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("Int8WeightOnlyConfig", 0.02), ("Float8WeightOnlyConfig", 0.1)], ids=["int8", "float8"]
)
def test_depth_lora_and_joint_connection_work_on_linears_of_torchao(folder, kind, tolerance):
    config = Quantization("torchao", {"quant_type": kind}).config("transformer", torch.float32)
    quantised = FluxTransformer2DModel.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    weight = quantised.transformer_blocks[0].attn.to_q.weight
    assert weight.qdata.element_size() == 1
    check_close_and_adapted(quantised, FluxTransformer2DModel.from_pretrained(folder), tolerance)


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.3), (8, 0.05)], ids=["nf4", "int8"])
def test_depth_lora_and_joint_connection_work_on_linears_of_bitsandbytes(folder, bits, tolerance):
    """diffusers' loader takes them on a GPU only, so its own replacement of Linears is called here."""
    import bitsandbytes
    from diffusers import BitsAndBytesConfig
    from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear

    plain = FluxTransformer2DModel.from_pretrained(folder)
    config = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        if bits == 4
        else BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    )
    quantised = FluxTransformer2DModel.from_pretrained(folder)
    quantised = replace_with_bnb_linear(quantised, [], quantization_config=config)
    for name, module in quantised.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt):
            source = plain.get_submodule(name)
            kind = type(module.weight)
            kept = {"requires_grad": False}
            if bits == 4:
                kept |= {"quant_type": "nf4", "module": module}
            else:
                kept |= {"has_fp16_weights": False}  # quantised by .to
            module.weight = kind(source.weight.data.clone(), **kept).to("cpu")
            module.bias = torch.nn.Parameter(source.bias.data.clone())
    assert quantised.transformer_blocks[0].attn.to_q.weight.element_size() == 1
    check_close_and_adapted(quantised, plain, tolerance)


@needs_torchao
def test_a_quantised_pipeline_estimates_nearly_the_same_depth():
    plain = JointDiTPipeline.from_pretrained("tiny")
    quantised = JointDiTPipeline.from_pretrained("tiny", quantization=Quantization("torchao"))
    block = quantised.transformer.single_transformer_blocks[0]
    assert block.proj_mlp.base_layer.weight.qdata.dtype == torch.int8
    assert block.attn.joint_proj.weight.dtype == torch.float32
    assert block.proj_mlp.lora_B["depth"].weight.dtype == torch.float32
    attention = quantised.text_encoder_2.encoder.block[0].layer[0].SelfAttention
    assert attention.q.weight.qdata.dtype == torch.int8
    rgb_image = np.tile(np.linspace(0, 255, 128, dtype=np.uint8)[:, None, None], (1, 128, 3))
    found, expected = (
        pipe(image=rgb_image, task="depth", seeds=[1], num_inference_steps=2).disparity for pipe in (quantised, plain)
    )
    assert 0 < np.abs(found - expected).mean() < 0.02


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is installed")
def test_a_missing_library_is_named_with_the_extra_that_has_it():
    with pytest.raises(ModelError, match=r"needs torchao: pip install 'jointdit\[quantization\]'"):
        JointDiTPipeline.from_pretrained(TINY_CHECKPOINT, quantization=Quantization("torchao"))


@pytest.mark.parametrize(
    ("backend", "settings", "components", "sentence"),
    [
        ("torchao", {"quant_type": "int8wo"}, ("transformer",), "quant_kwargs.quant_type of torchao is 'int8wo': use"),
        ("torchao", {"group": True}, ("transformer",), "has no 'group': use quant_type"),
        ("bitsandbytes_8bit", {"quant_type": "nf4"}, ("transformer",), "has no 'quant_type': it has none"),
        ("bitsandbytes_4bit", {"bnb_4bit_use_double_quant": "yes"}, ("transformer",), "use one of False, True"),
        ("torchao", {}, (), "components_to_quantize is empty"),
    ],
)
def test_settings_that_a_backend_does_not_have_are_refused(backend, settings, components, sentence):
    with pytest.raises(ModelError, match=sentence):
        Quantization(backend, settings, components)


@needs_torchao
@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_the_memory_estimate_knows_the_weights_of_torchao(kind):
    quantization = Quantization("torchao", {"quant_type": kind}, ("transformer", "text_encoder", "text_encoder_2"))
    call = Call("joint", 1, 32, 32, torch.bfloat16)
    found = estimate_memory(read_model(TINY_CHECKPOINT), call, quantization).weights
    pipe = JointDiTPipeline.from_pretrained("tiny", torch_dtype=torch.bfloat16, quantization=quantization)
    real = {name: sum(kept_bytes(p) for p in getattr(pipe, name).parameters()) for name in quantization.components}
    assert found["transformer"] + found["adapter"] == pytest.approx(real["transformer"], rel=0.05)
    assert found["text_encoder"] == pytest.approx(real["text_encoder"], rel=0.05)
    assert found["text_encoder_2"] == pytest.approx(real["text_encoder_2"], rel=0.05)


def kept_bytes(parameter):
    """Of a plain tensor, or of what one of torchao's is made of."""
    names = getattr(parameter, "tensor_data_names", None)
    tensors = [getattr(parameter, name) for name in names] if names else [parameter]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@needs_bitsandbytes
@pytest.mark.parametrize("double", [False, True])
def test_the_memory_estimate_knows_the_weights_of_bitsandbytes(double):
    import bitsandbytes

    weight = bitsandbytes.nn.Params4bit(
        torch.randn(512, 320), requires_grad=False, quant_type="nf4", compress_statistics=double
    ).to("cpu")
    state = weight.quant_state
    maxima = [state.absmax, *([state.state2.absmax] if double else [])]
    real = sum(tensor.numel() * tensor.element_size() for tensor in (weight, *maxima))
    settings = {"bnb_4bit_use_double_quant": double}
    assert Quantization("bitsandbytes_4bit", settings).linear_bytes(512, 320) == pytest.approx(real, rel=0.005)

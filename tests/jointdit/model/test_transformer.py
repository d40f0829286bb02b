from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from jointdit.model.joint_attention import joint_weights
from jointdit.model.transformer import JointDiTTransformer2DModel

CASES = ["transformer_a", "transformer_default_ranks"]


def model_inputs(
    io: dict[str, torch.Tensor], run: dict[str, Any], dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    prefix = f"in.{run['inputs']}"
    timestep = torch.tensor(run["timesteps"])
    return {
        "hidden_states": io[f"{prefix}.img"].to(dtype),
        "timestep": timestep.to(dtype),
        "guidance": torch.full_like(timestep, run["guidance"]).to(dtype),
        "encoder_hidden_states": io[f"{prefix}.txt"].to(dtype),
        "pooled_projections": io[f"{prefix}.y"].to(dtype),
        "img_ids": io[f"{prefix}.img_ids"],
        "txt_ids": io[f"{prefix}.txt_ids"],
        "encoder_attention_mask": io[f"{prefix}.txt_attention_mask"] if run["use_mask"] else None,
    }


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_every_run_equals_the_authors_output(golden, case):
    model, io = golden.network(case), golden.tensors(f"{case}.io")
    runs = golden.numbers(case)["runs"]
    assert {f"out.{run['name']}" for run in runs} == {name for name in io if name.startswith("out.")}
    for run in runs:
        sample = model(**model_inputs(io, run)).sample
        torch.testing.assert_close(sample, io[f"out.{run['name']}"], atol=2e-5, rtol=0, msg=run["name"])


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_fresh_adapter_changes_nothing(golden, case):
    """LoRA B and joint Linears start at zero, so each half computes the base network."""
    model, io = golden.network(case, adapter=False), golden.tensors(f"{case}.io")
    runs = {run["name"]: run for run in golden.numbers(case)["runs"]}
    for name in golden.numbers(case)["zero_addons_runs"]:
        sample = model(**model_inputs(io, runs[name])).sample
        torch.testing.assert_close(sample, io[f"out_zero_addons.{name}"], atol=2e-5, rtol=0, msg=name)


@torch.no_grad()
def test_every_intermediate_of_the_traced_run(golden):
    model, io = golden.network(), golden.tensors("transformer_a.io")
    seen: dict[str, torch.Tensor] = {}

    def record(name: str, output: Any) -> None:
        seen[name] = output

    for index, block in enumerate(model.transformer_blocks):
        block.register_forward_hook(lambda _m, _i, out, i=index: record(f"double_blocks.{i}.txt", out[0]))
        block.register_forward_hook(lambda _m, _i, out, i=index: record(f"double_blocks.{i}.img", out[1]))
        block.attn.joint_proj.register_forward_hook(
            lambda _m, _i, out, i=index: record(f"double_blocks.{i}.joint1", out)
        )
    for index, block in enumerate(model.single_transformer_blocks):
        block.register_forward_hook(lambda _m, _i, out, i=index: record(f"single_blocks.{i}", torch.cat(out, dim=1)))
        block.attn.joint_proj.register_forward_hook(
            lambda _m, _i, out, i=index: record(f"single_blocks.{i}.joint2", out)
        )
    embedders = model.time_text_embed
    for name, module in {
        "img_in": model.x_embedder,
        "txt_in": model.context_embedder,
        "time_in": embedders.timestep_embedder,
        "guidance_in": embedders.guidance_embedder,
        "vector_in": embedders.text_embedder,
    }.items():
        module.register_forward_hook(lambda _m, _i, out, n=name: record(n, out))

    run = {**golden.numbers("transformer_a")["trace_run"], "use_mask": False}
    model(**model_inputs(io, run))
    traced = {name.removeprefix("trace."): t for name, t in io.items() if name.startswith("trace.")}
    del traced["trace.pe_embedder".removeprefix("trace.")]
    assert set(traced) == set(seen)
    for name, expected in traced.items():
        torch.testing.assert_close(seen[name], expected, atol=2e-5, rtol=1e-6, msg=name)


@torch.no_grad()
def test_bfloat16_is_as_near_to_the_authors_bfloat16_as_that_is_to_float32(golden):
    """bf16 rounds guidance 3.5 * 1000 to 3504: only another bf16 run compares."""
    case = "transformer_default_ranks"
    model, io = golden.network(case, dtype=torch.bfloat16), golden.tensors(f"{case}.io")
    for run in golden.numbers(case)["runs"]:
        expected = io.get(f"out_bf16.{run['name']}")
        if expected is None:
            continue
        sample = model(**model_inputs(io, run, torch.bfloat16)).sample
        assert sample.dtype == torch.bfloat16
        error = (sample.float() - expected.float()).square().mean().sqrt()
        assert error < 0.02 * expected.float().std(), run["name"]


def test_training_step_equals_the_authors_loss_and_every_gradient(golden):
    from jointdit.flow_matching import add_noise, joint_flow_matching_loss, velocity_target
    from jointdit.loading.official import adapter_tensors, gather_official
    from jointdit.model.latents import pack_latents, unpack_latents

    model, step = golden.network(), golden.tensors("training_step_a")
    t = step["timesteps"] / 1000 if step["timesteps"].max() > 1 else step["timesteps"]
    noisy = add_noise(step["latents"], step["noise"], t)
    torch.testing.assert_close(noisy, step["noisy"], atol=1e-6, rtol=0)
    packed = pack_latents(noisy)
    torch.testing.assert_close(packed, step["packed_noisy"], atol=1e-6, rtol=0)
    prediction = model(
        packed,
        timestep=t,
        guidance=step["guidance"],
        encoder_hidden_states=step["txt"],
        pooled_projections=step["y"],
        img_ids=step["img_ids"],
        txt_ids=step["txt_ids"],
    ).sample
    prediction = unpack_latents(prediction, *step["latents"].shape[-2:])
    torch.testing.assert_close(prediction, step["model_pred"], atol=2e-5, rtol=0)
    target = velocity_target(step["latents"], step["noise"])
    torch.testing.assert_close(target, step["target"], atol=1e-6, rtol=0)
    loss = joint_flow_matching_loss(prediction, target)
    assert loss.item() == pytest.approx(golden.numbers("training_step_a")["loss"], abs=1e-6)
    loss.backward()

    names = adapter_tensors(model.config.num_layers, model.config.num_single_layers)
    gradients = gather_official({name: p.grad for name, p in model.adapter_named_parameters()}, names)
    assert {f"grad.{name}" for name in gradients} == {name for name in step if name.startswith("grad.")}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, step[f"grad.{name}"], atol=1e-6, rtol=0, msg=name)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in model.adapter_parameters()}
    assert (
        sum(p.numel() for p in model.adapter_parameters()) == golden.numbers("transformer_a")["counts"]["addon_params"]
    )


def test_gradient_checkpointing_gives_the_same_gradients(golden):
    gradients = []
    io, run = golden.tensors("transformer_a.io"), golden.numbers("transformer_a")["runs"][0]
    for checkpointing in (False, True):
        model = golden.network()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(**model_inputs(io, run)).sample.square().mean().backward()
        gradients.append([p.grad for p in model.adapter_parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-7, rtol=0)


def test_joint_weights_of_every_pair_of_noise_levels(golden):
    table = golden.tensors("primitives")
    weights = joint_weights(torch.cat([table["blend.t_rgb"], table["blend.t_dep"]]))
    rgb, depth = weights.chunk(2)
    known = (table["blend.t_rgb"] + table["blend.t_dep"]) > 0
    assert known.sum() >= 30
    torch.testing.assert_close(rgb[known], table["blend.gain_on_rgb_output"][known], atol=1e-6, rtol=0)
    torch.testing.assert_close(depth[known], table["blend.gain_on_depth_output"][known], atol=1e-6, rtol=0)
    assert joint_weights(torch.zeros(2)).tolist() == [0.5, 0.5]


@torch.no_grad()
def test_pairs_of_a_batch_do_not_see_each_other(golden):
    model, io = golden.network(), golden.tensors("transformer_a.io")
    run = next(run for run in golden.numbers("transformer_a")["runs"] if run["name"] == "B2_4x4.t0.g3.5")
    inputs = model_inputs(io, run)
    alone = {
        name: value[[1, 3]] if name not in ("img_ids", "txt_ids", "encoder_attention_mask") else value
        for name, value in inputs.items()
    }
    torch.testing.assert_close(model(**inputs).sample[[1, 3]], model(**alone).sample, atol=1e-5, rtol=0)
    spoiled = inputs["hidden_states"].clone()
    spoiled[0] = torch.nan
    sample = model(**{**inputs, "hidden_states": spoiled}).sample
    assert sample[[0, 2]].isnan().all()
    torch.testing.assert_close(sample[[1, 3]], model(**alone).sample, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_flux_network_without_guidance(golden):
    """schnell has no guidance embedding: guidance is None."""
    config = {**golden.network_config("transformer_a"), "guidance_embeds": False}
    torch.manual_seed(0)
    flux = FluxTransformer2DModel(**config).eval()
    io, run = golden.tensors("transformer_a.io"), golden.numbers("transformer_a")["runs"][0]
    inputs = {**model_inputs(io, run), "guidance": None}
    inputs.pop("encoder_attention_mask")
    plain = flux(**{**inputs, "img_ids": inputs["img_ids"][0], "txt_ids": inputs["txt_ids"][0]}).sample
    model = JointDiTTransformer2DModel.from_flux(flux, lora_ranks=4)
    torch.testing.assert_close(model(**inputs).sample, plain, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="this network takes None"):
        model(**{**inputs, "guidance": torch.ones(2)})


def test_wrong_inputs_are_named(golden):
    model, io = golden.network(), golden.tensors("transformer_a.io")
    inputs = model_inputs(io, golden.numbers("transformer_a")["runs"][0])
    with pytest.raises(ValueError, match="guidance is None but this network takes one value per row"):
        model(**{**inputs, "guidance": None})
    with pytest.raises(ValueError, match="one noise level per row"):
        model(**{**inputs, "timestep": torch.ones(1)})
    with pytest.raises(ValueError, match="has 1 rows: give pairs"):
        model(**{**inputs, "hidden_states": inputs["hidden_states"][:1]})


@torch.no_grad()
def test_base_weights_stored_in_eight_bits(golden):
    """diffusers' layerwise casting keeps weights in float8, computes in bfloat16: LoRA and joint layers must follow."""
    io, run = golden.tensors("transformer_a.io"), golden.numbers("transformer_a")["runs"][1]
    inputs = model_inputs(io, run, torch.bfloat16)
    expected = golden.network(dtype=torch.bfloat16)(**inputs).sample
    model = golden.network(dtype=torch.bfloat16)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert model.transformer_blocks[0].attn.to_q.base_layer.weight.dtype == torch.float8_e4m3fn
    sample = model(**inputs).sample
    assert sample.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(sample.flatten().float(), expected.flatten().float(), dim=0) > 0.95


def test_a_float32_adapter_trains_over_a_bfloat16_base(golden):
    flux = FluxTransformer2DModel(**golden.network_config("transformer_a")).to(torch.bfloat16)
    model = JointDiTTransformer2DModel.from_flux(flux, lora_ranks=4, torch_dtype=torch.float32)
    io, run = golden.tensors("transformer_a.io"), golden.numbers("transformer_a")["runs"][0]
    model(**model_inputs(io, run, torch.bfloat16)).sample.float().square().mean().backward()
    joint = model.transformer_blocks[0].attn.joint_proj
    assert joint.weight.dtype == joint.weight.grad.dtype == torch.float32
    assert joint.weight.grad.abs().sum() > 0

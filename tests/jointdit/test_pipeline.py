from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from jointdit import JointDiTPipeline, JointDiTTransformer2DModel
from jointdit.errors import InputError, ModelError

STEPS = 2


def rgb_image(seed: int, height: int = 64, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ramp(height: int = 64, width: int = 48) -> np.ndarray:
    return np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)


def assert_same(one, other, tolerance: float = 1e-3) -> None:
    np.testing.assert_allclose(one.disparity, other.disparity, atol=tolerance, rtol=0)
    # A value on the border between two 8-bit levels may fall to either side.
    assert np.abs(one.rgb.astype(int) - other.rgb.astype(int)).max() <= max(1, round(255 * tolerance))
    assert np.array_equal(one.finite, other.finite)


def row(output, index: int):
    return type(output)(*(getattr(output, name)[index : index + 1] for name in ("rgb", "disparity", "finite")))


def test_joint(small_pipeline):
    out = small_pipeline("a red sphere", seeds=[7, 8], num_inference_steps=STEPS)
    assert out.rgb.shape == (2, 64, 48, 3)
    assert out.rgb.dtype == np.uint8
    assert out.disparity.shape == (2, 64, 48)
    assert out.disparity.dtype == np.float32
    assert out.finite.tolist() == [True, True]
    assert out.disparity.min(axis=(1, 2)).tolist() == [0, 0]
    assert out.disparity.max(axis=(1, 2)).tolist() == [1, 1]
    assert not np.array_equal(out.rgb[0], out.rgb[1])


def test_depth_returns_the_image_itself(small_pipeline):
    images = [rgb_image(0), rgb_image(1)]
    out = small_pipeline(image=images, task="depth", seeds=[3, 3], num_inference_steps=STEPS)
    assert np.array_equal(out.rgb, np.stack(images))
    assert not np.allclose(out.disparity[0], out.disparity[1], atol=1e-3)
    one_for_all = small_pipeline(image=images[0], task="depth", seeds=[3, 4], num_inference_steps=STEPS)
    assert_same(row(one_for_all, 0), row(out, 0))


def test_depth_to_image_returns_the_depth_itself(small_pipeline):
    out = small_pipeline("a box", disparity=ramp(), task="depth-to-image", seeds=[3], num_inference_steps=STEPS)
    assert np.array_equal(out.disparity[0], ramp())
    flipped = small_pipeline(
        "a box", disparity=ramp()[::-1], task="depth-to-image", seeds=[3], num_inference_steps=STEPS
    )
    assert not np.array_equal(out.rgb, flipped.rgb)


def test_a_sample_is_the_same_alone_and_in_a_batch(small_pipeline):
    prompts, seeds = ["a box", None, "a red sphere", "", "x"], [5, 1, 2**40, 9, 5]
    batch = small_pipeline(prompts, seeds=seeds, num_inference_steps=STEPS)
    noise = small_pipeline.prepare_noise(seeds, 64, 48)
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        assert_same(small_pipeline(prompt, seeds=[seed], num_inference_steps=STEPS), row(batch, index))
        alone = small_pipeline.prepare_noise([seed], 64, 48)
        assert torch.equal(alone[0][0], noise[0][index])
        assert torch.equal(alone[1][0], noise[1][index])
    # The empty prompt, None and one space are the same text; other prompts and seeds are not.
    assert_same(small_pipeline(" ", seeds=[1], num_inference_steps=STEPS), row(batch, 1))
    assert not np.array_equal(batch.rgb[0], batch.rgb[4])
    assert not np.array_equal(noise[0][0], noise[1][0])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 80), (96, 48)])
def test_any_size_of_multiples(small_pipeline, height, width):
    out = small_pipeline(None, seeds=[1], height=height, width=width, num_inference_steps=1)
    assert out.rgb.shape == (1, height, width, 3)
    out = small_pipeline(image=rgb_image(0, height, width), task="depth", seeds=[1], num_inference_steps=1)
    assert out.disparity.shape == (1, height, width)


def test_steps_and_guidance_count(small_pipeline):
    def run(**options: float) -> np.ndarray:
        return small_pipeline("a box", seeds=[1], **options).disparity

    reference = run(num_inference_steps=2)
    assert np.abs(run(num_inference_steps=3) - reference).max() > 1e-3
    assert np.abs(run(num_inference_steps=2, guidance_scale=1.0) - reference).max() > 1e-3
    steps: list[int] = []
    small_pipeline("a box", seeds=[1], num_inference_steps=3, on_step=lambda step, *_: steps.append(step))
    assert steps == [0, 1, 2]


def test_one_bad_sample_does_not_spoil_the_batch(small_pipeline):
    maps = [ramp(), ramp(), ramp()]
    maps[1][5, 5] = np.nan
    out = small_pipeline("a box", disparity=maps, task="depth-to-image", seeds=[1, 2, 3], num_inference_steps=1)
    assert out.finite.tolist() == [True, False, True]
    assert np.isnan(out.disparity[1]).all()
    assert not out.rgb[1].any()
    good = small_pipeline("a box", disparity=ramp(), task="depth-to-image", seeds=[3], num_inference_steps=1)
    assert_same(row(out, 2), good)


def test_overflow_in_the_network_is_flagged(small_pipeline):
    broken = copy.deepcopy(small_pipeline)
    torch.nn.init.constant_(broken.transformer.proj_out.bias, torch.nan)
    out = broken("a box", seeds=[1], num_inference_steps=1)
    assert out.finite.tolist() == [False]
    assert np.isnan(out.disparity).all()


def test_refresh_is_for_given_halves_and_one_is_exact(small_pipeline):
    def run(**options: object) -> np.ndarray:
        return small_pipeline(image=rgb_image(0), task="depth", seeds=[1], num_inference_steps=3, **options).disparity

    exact, kept = run(condition_refresh=1), run(condition_refresh=3)
    assert np.array_equal(exact, run())
    assert np.abs(kept - exact).max() > 1e-3
    with pytest.raises(InputError, match="task 'joint' has no clean half"):
        small_pipeline("a box", seeds=[1], condition_refresh=2)
    with pytest.raises(InputError, match="rgb_refresh was renamed: give condition_refresh instead"):
        run(rgb_refresh=2)


def test_kept_texts_are_encoded_once(small_pipeline):
    pipe = copy.deepcopy(small_pipeline)
    texts: list[int] = []
    pipe.text_encoder_2.register_forward_pre_hook(lambda _module, given: texts.append(len(given[0])))
    expected = small_pipeline.encode_prompt(["a box", None, "a box"])
    pipe.encode_prompt(["a box"])
    pipe.encode_prompt(["a box"])
    assert texts == [1, 1], "nothing is kept unless it is asked for"
    pipe.keep_texts(2)
    for prompts in (["a box", None, "a box"], ["", " ", "a box"], ["a ball", "a box"], ["a cat"], ["a box", None]):
        states, pooled = pipe.encode_prompt(prompts)
        alone = [small_pipeline.encode_prompt([prompt]) for prompt in prompts]
        torch.testing.assert_close(states, torch.cat([each[0] for each in alone]), atol=1e-5, rtol=0)
        torch.testing.assert_close(pooled, torch.cat([each[1] for each in alone]), atol=1e-5, rtol=0)
    # Two texts at first; none; the ball; the cat, for which the box stays as the later one used; none.
    assert texts == [1, 1, 2, 1, 1]
    torch.testing.assert_close(pipe.encode_prompt(["a box", None, "a box"])[0], expected[0], atol=1e-5, rtol=0)
    pipe.keep_texts(0)
    pipe.encode_prompt([None])
    assert texts == [1, 1, 2, 1, 1, 1]


def test_under_inference_mode(small_pipeline):
    with torch.inference_mode():
        inside = small_pipeline(image=rgb_image(0), task="depth", seeds=[1], num_inference_steps=1)
    assert_same(inside, small_pipeline(image=rgb_image(0), task="depth", seeds=[1], num_inference_steps=1))


def wrong(message: str, **arguments: object) -> object:
    return pytest.param(arguments, message, id=message[:30])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        wrong("task is 'normals': use one of joint", task="normals"),
        wrong("seeds is empty", seeds=[]),
        wrong("prompt has 3 entries but there are 2 seeds", prompt=["a", "b", "c"], seeds=[1, 2]),
        wrong("height is 70 pixels: use a multiple of 16, such as 64", height=70),
        wrong("width is 8 pixels: use a multiple of 16, such as 16", width=8),
        wrong("num_inference_steps is 0", num_inference_steps=0),
        wrong("task 'depth' needs image, image is missing", task="depth"),
        wrong("task 'depth-to-image' needs disparity, disparity is missing", task="depth-to-image"),
        wrong("task 'joint' does not take image, image is given", image=rgb_image(0)),
        wrong("task 'depth' does not take disparity", task="depth", image=rgb_image(0), disparity=ramp()),
        wrong("image has shape", task="depth", image=[rgb_image(0), rgb_image(0, 32, 32)], seeds=[1, 2]),
        wrong("image has 2 entries but there are 3 seeds", task="depth", image=[rgb_image(0)] * 2, seeds=[1, 2, 3]),
        wrong("image is float32 of shape", task="depth", image=rgb_image(0).astype(np.float32)),
        wrong("image has shape", task="depth", image=[ramp()]),
        wrong("height is 60 pixels", task="depth", image=rgb_image(0, 60, 48)),
        wrong("height x width is 32 x 48 but the input is 64 x 48", task="depth", image=rgb_image(0), height=32),
        wrong("disparity ranges from 0 to 10", task="depth-to-image", disparity=ramp() * 10),
    ],
)
def test_wrong_arguments_are_named(small_pipeline, arguments, message):
    with pytest.raises(InputError) as caught:
        small_pipeline(**{"prompt": "a box", "seeds": [1], **arguments})
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")


def test_save_and_load(small_pipeline, tmp_path):
    small_pipeline.save_pretrained(tmp_path)
    loaded = JointDiTPipeline.from_pretrained(tmp_path)
    assert (loaded.config.default_height, loaded.config.default_width) == (64, 48)
    assert loaded.config.max_sequence_length == small_pipeline.config.max_sequence_length
    assert loaded.transformer.config.lora_ranks == small_pipeline.transformer.config.lora_ranks
    for name, tensor in small_pipeline.transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], tensor), name
    arguments = {"prompt": "a box", "seeds": [4], "num_inference_steps": STEPS}
    assert_same(loaded(**arguments), small_pipeline(**arguments), tolerance=1e-4)
    trainable = {name for name, p in loaded.transformer.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in loaded.transformer.adapter_named_parameters()}
    assert not loaded.transformer.training


def test_bfloat16(small_pipeline, tmp_path):
    """The network and the text encoders in bf16, the VAE in float32: bf16 ruins far depth."""
    small_pipeline.save_pretrained(tmp_path)
    half = JointDiTPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.transformer.dtype == half.text_encoder.dtype == half.text_encoder_2.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32
    arguments = {"image": rgb_image(0), "task": "depth", "seeds": [1], "num_inference_steps": 2, "guidance_scale": 1.0}
    ours, full = half(**arguments), small_pipeline(**arguments)
    assert ours.finite.all()
    assert np.abs(ours.disparity - full.disparity).mean() < 0.05
    assert np.unique(ours.disparity).size > 1000


def test_depth_is_estimated_with_the_checkpoints_own_guidance(small_pipeline, tmp_path):
    def depth(pipe: JointDiTPipeline, **options: float) -> np.ndarray:
        return pipe(image=rgb_image(0), task="depth", seeds=[1], num_inference_steps=2, **options).disparity

    def joint(pipe: JointDiTPipeline, **options: float) -> np.ndarray:
        return pipe("a box", seeds=[1], num_inference_steps=2, **options).disparity

    assert np.array_equal(depth(small_pipeline), depth(small_pipeline, guidance_scale=3.5))
    parts = {name: getattr(small_pipeline, name) for name in small_pipeline.config if name in small_pipeline.components}
    settings = {"default_height": 64, "default_width": 48, "max_sequence_length": 12}
    JointDiTPipeline(**parts, **settings, default_depth_guidance=1.0).save_pretrained(tmp_path)
    loaded = JointDiTPipeline.from_pretrained(tmp_path)
    assert np.array_equal(depth(loaded), depth(loaded, guidance_scale=1.0))
    assert np.abs(depth(loaded) - depth(loaded, guidance_scale=3.5)).max() > 1e-3
    assert np.array_equal(joint(loaded), joint(loaded, guidance_scale=3.5))


def test_flux_by_its_folder_and_a_published_adapter(small_pipeline, flux_folder, tmp_path):
    adapter = tmp_path / "adapter.safetensors"
    small_pipeline.transformer.to_official(adapter=adapter)
    loaded = JointDiTPipeline.from_pretrained(base=flux_folder, adapter=adapter)
    assert loaded.config.default_height == 512
    out = loaded("a box", seeds=[4], height=64, width=48, num_inference_steps=STEPS)
    # FLUX's own text length is 512: the same 12 tokens make the same sample.
    loaded = JointDiTPipeline.from_pretrained(base=flux_folder, adapter=adapter, max_sequence_length=12)
    ours = small_pipeline("a box", seeds=[4], num_inference_steps=STEPS)
    assert_same(loaded("a box", seeds=[4], height=64, width=48, num_inference_steps=STEPS), ours)
    assert out.finite.all()


def test_a_network_without_guidance(small_pipeline, flux_folder, tmp_path):
    components = {name: getattr(small_pipeline, name) for name in small_pipeline.components}
    flux = FluxTransformer2DModel.from_config(
        {**FluxTransformer2DModel.load_config(flux_folder / "transformer"), "guidance_embeds": False}
    )
    components["transformer"] = JointDiTTransformer2DModel.from_flux(flux, lora_ranks=2)
    schnell = JointDiTPipeline(**components, default_height=16, default_width=16, max_sequence_length=12)
    one, other = (schnell("a box", seeds=[1], num_inference_steps=1, guidance_scale=scale) for scale in (1.0, 9.0))
    assert_same(one, other, tolerance=0)


def test_the_packaged_checkpoint():
    tiny = JointDiTPipeline.from_pretrained("tiny")
    out = tiny(prompt="a red sphere", task="joint", seeds=[7], num_inference_steps=1)
    assert out.rgb.shape == (1, tiny.config.default_height, tiny.config.default_width, 3)
    assert out.finite.all()


def test_parts_of_two_checkpoints(small_pipeline):
    components = dict(small_pipeline.components)
    flux = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, axes_dims_rope=(2, 2, 4),
        joint_attention_dim=48, pooled_projection_dim=40,
    )  # fmt: skip
    components["transformer"] = JointDiTTransformer2DModel.from_flux(flux, lora_ranks=2)
    with pytest.raises(ModelError, match=r"text_encoder.hidden_size is 32 but the transformer needs 40"):
        JointDiTPipeline(**components)


def test_import_does_not_wait_for_torch():
    code = (
        "import sys, jointdit; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules); print(jointdit.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "JointDiTPipeline" in done.stdout


def test_the_name_denoise_is_the_function_and_not_its_file():
    import jointdit.denoising

    assert jointdit.denoise is jointdit.denoising.denoise


def test_index_names_our_classes(small_pipeline, tmp_path):
    small_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "JointDiTPipeline"
    assert index["transformer"] == ["jointdit.model.transformer", "JointDiTTransformer2DModel"]

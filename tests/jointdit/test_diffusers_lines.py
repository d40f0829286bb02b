"""What users of diffusers type works, and gives what it gives in diffusers' own pipelines.

Each line of the tables is code as a user types it, and what must be true of its `result`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler
from diffusers.utils import BaseOutput
from PIL import Image

from jointdit import JointDiTPipeline
from jointdit.errors import InputError, ModelError

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
RAMP = np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(64, 48)
WORDS = {
    "np": np,
    "torch": torch,
    "BaseOutput": BaseOutput,
    "DiffusionPipeline": DiffusionPipeline,
    "JointDiTPipeline": JointDiTPipeline,
    "UniPCMultistepScheduler": UniPCMultistepScheduler,
    "pixels": PIXELS,
    "image": Image.fromarray(PIXELS),
    "large": Image.fromarray(PIXELS).resize((70, 50)),
    "ramp": RAMP,
    "short": {"num_inference_steps": 2},
}

CALLS = [
    # noise
    ('pipe("a box", generator=torch.Generator().manual_seed(7), **short).rgb', "same(result, by_seed.rgb)"),
    (
        'pipe("a box", generator=tuple(torch.Generator().manual_seed(s) for s in (7, 8)), **short).disparity',
        "len(result) == 2 and close(result[0], by_seed.disparity[0])",
    ),
    (
        'pipe("a box", latents=torch.cat(pipe.prepare_noise([7], 64, 48)), **short).rgb',
        "same(result, by_seed.rgb)",
    ),
    (
        'torch.manual_seed(3) and pipe("a box", **short).rgb',
        'same(result, pipe("a box", generator=torch.Generator().manual_seed(3), **short).rgb)',
    ),
    # prompts
    ('pipe(prompt=["a box", "a ball"], **short).images', "result.shape == (2, 64, 48, 3)"),
    (
        'pipe(["a box", "a ball"], num_images_per_prompt=2, seeds=[7, 8, 7, 8], **short).disparity',
        "close(result[0], by_seed.disparity[0]) and not close(result[2], result[0])",
    ),
    ('pipe("a box", num_images_per_prompt=3, **short).rgb', "len(result) == 3 and not same(result[0], result[1])"),
    (
        "pipe(prompt_embeds=states, pooled_prompt_embeds=pooled, seeds=[7], **short).rgb",
        "same(result, by_seed.rgb)",
    ),
    (
        "pipe(prompt_embeds=states, pooled_prompt_embeds=pooled, num_images_per_prompt=2, seeds=[7, 8], **short).rgb",
        "len(result) == 2",
    ),
    (
        "without_text(prompt_embeds=states, pooled_prompt_embeds=pooled, seeds=[7], **short).rgb",
        "same(result, by_seed.rgb)",
    ),
    ('pipe("a box", max_sequence_length=6, seeds=[7], **short).disparity', "not close(result, by_seed.disparity)"),
    # outputs
    ('pipe("a box", seeds=[7], output_type="pil", **short).images[0]', "same(np.asarray(result), by_seed.rgb[0])"),
    (
        'pipe("a box", seeds=[7], output_type="pil", **short).disparity[0]',
        "result.mode == 'I;16' and np.abs(np.asarray(result) / 65535 - by_seed.disparity[0]).max() < 8e-6",
    ),
    (
        'pipe("a box", seeds=[7], output_type="pt", **short).rgb',
        "result.shape == (1, 3, 64, 48) "
        "and np.abs(result[0].permute(1, 2, 0).numpy() * 255 - by_seed.rgb[0]).max() < 0.501",
    ),
    (
        'pipe(image=image, task="depth", output_type="pt", **short)',
        "torch.equal(result.rgb[0].permute(1, 2, 0), torch.from_numpy(pixels) / 255) "
        "and result.disparity.shape == (1, 1, 64, 48)",
    ),
    (
        'pipe("a box", seeds=[7], output_type="latent", **short)',
        "torch.equal(result.disparity, pipe('a box', seeds=[7], output_type='latent', **short).disparity) "
        "and result.rgb.shape == (1, 12, 64)",
    ),
    ('pipe("a box", seeds=[7], return_dict=False, **short)', "type(result) is tuple and same(result[0], by_seed.rgb)"),
    ('pipe("a box", seeds=[7], **short)', "isinstance(result, BaseOutput) and same(result['rgb'], result[0])"),
    # callbacks
    (
        'pipe("a box", callback_on_step_end=note, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"], '
        "**short)",
        "notes == [(0, ['latents', 'prompt_embeds'], 1000), (1, ['latents', 'prompt_embeds'], 613)]",
    ),
    (
        'pipe("a box", callback_on_step_end=lambda *_: {"latents": torch.zeros(2, 12, 64)}, output_type="latent", '
        "**short).rgb",
        "not result.any()",
    ),
    (
        'pipe("a box", seeds=[7], callback_on_step_end=stop, num_inference_steps=9)',
        "pipe.num_timesteps == 9 and notes == [0, 1]",
    ),
    # inputs of the tasks
    ('pipe(image=image, task="depth", seeds=[1], **short).disparity', "same(result, by_image.disparity)"),
    (
        'pipe(image=image.convert("RGBA"), task="depth", seeds=[1], **short).disparity',
        "same(result, by_image.disparity)",
    ),
    (
        'pipe(image=torch.from_numpy(pixels).permute(2, 0, 1) / 255, task="depth", seeds=[1], **short).disparity',
        "same(result, by_image.disparity)",
    ),
    (
        'pipe(image=[image, image], task="depth", generator=torch.Generator().manual_seed(1), **short).disparity',
        "len(result) == 2 and close(result[0], by_image.disparity[0]) and not close(result[0], result[1])",
    ),
    (
        'pipe("a box", disparity=torch.from_numpy(ramp)[None], task="depth-to-image", **short).disparity[0]',
        "same(result, ramp)",
    ),
    # Marigold's words
    (
        'pipe(image=large, task="depth", processing_resolution=64, **short)',
        "result.rgb.shape == (1, 50, 70, 3) and result.disparity.shape == (1, 50, 70)",
    ),
    (
        'pipe(image=large, task="depth", processing_resolution=64, match_input_resolution=False, **short).disparity',
        "result.shape == (1, 46, 64)",
    ),
    ('pipe(image=large, task="depth", processing_resolution=0, **short).disparity', "result.shape == (1, 50, 70)"),
    (
        'pipe(image=image, task="depth", seeds=[1], ensemble_size=3, output_uncertainty=True, **short)',
        "same(result.rgb[0], pixels) and result.uncertainty.shape == (1, 64, 48) and result.uncertainty.max() > 0 "
        "and 0 == result.disparity.min() < result.disparity.max() == 1",
    ),
    (
        'pipe(image=[image, image], task="depth", seeds=[1, 1], ensemble_size=2, **short)',
        "result.uncertainty is None and close(result.disparity[0], result.disparity[1])",
    ),
    # components
    (
        'use(pipe, UniPCMultistepScheduler.from_config(pipe.scheduler.config, prediction_type="flow_prediction", '
        'use_flow_sigmas=True))("a box", seeds=[7], num_inference_steps=3).finite.all()',
        "result",
    ),
    (
        "pipe.to(torch.bfloat16)(image=image, task='depth', **short).finite.all()",
        "result and pipe.vae.dtype == torch.float32",
    ),
]


@pytest.fixture(scope="module")
def words(small_pipeline: JointDiTPipeline) -> dict[str, Any]:
    """Names of the lines above, and the results of the engine's own arguments to compare with."""
    small_pipeline.set_progress_bar_config(disable=True)
    states, pooled = (tensor.detach() for tensor in small_pipeline.encode_prompt(["a box"]))
    without_text = JointDiTPipeline(
        **{name: small_pipeline.components[name] for name in ("transformer", "vae", "scheduler")},
        default_height=64,
        default_width=48,
    )
    without_text.set_progress_bar_config(disable=True)
    return {
        **WORDS,
        "same": np.array_equal,
        "close": lambda one, other: np.abs(one - other).max() < 1e-3,
        "states": states,
        "pooled": pooled,
        "without_text": without_text,
        "by_seed": small_pipeline("a box", seeds=[7], num_inference_steps=2),
        "by_image": small_pipeline(image=PIXELS, task="depth", seeds=[1], num_inference_steps=2),
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("line", "check"), CALLS, ids=[line[:90] for line, _ in CALLS])
def test_a_call(words, small_pipeline, line, check):
    pipe = copy.deepcopy(small_pipeline) if "pipe.to(" in line else small_pipeline
    notes: list[Any] = []

    def stop(running: JointDiTPipeline, step: int, _timestep: torch.Tensor, _tensors: dict[str, Any]) -> None:
        notes.append(step)
        running._interrupt = step == 1

    def note(_: JointDiTPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        notes.append((step, list(tensors), round(float(timestep))))
        return tensors

    def use(running: JointDiTPipeline, scheduler: Any) -> JointDiTPipeline:
        other = JointDiTPipeline(**{**running.components, "scheduler": scheduler}, default_height=64, default_width=48)
        other.set_progress_bar_config(disable=True)
        return other

    here = {**words, "pipe": pipe, "notes": notes, "stop": stop, "note": note, "use": use}
    result = eval(line, here)
    assert eval(check, {**here, "result": result}), check


LOADS = [
    ("JointDiTPipeline.from_pretrained(folder).scheduler.config.use_dynamic_shifting", "result"),
    ("JointDiTPipeline.from_pretrained(folder, dtype=torch.bfloat16).transformer.dtype", "result == torch.bfloat16"),
    (
        "JointDiTPipeline.from_pretrained(folder, torch_dtype='bfloat16').text_encoder_2.dtype",
        "result == torch.bfloat16",
    ),
    ("JointDiTPipeline.from_pretrained(folder, device_map='cpu', use_safetensors=True).device.type", "result == 'cpu'"),
    (
        "JointDiTPipeline.from_pretrained(folder, text_encoder_2=None, tokenizer_2=None).text_encoder_2",
        "result is None",
    ),
    (
        "JointDiTPipeline.from_pretrained(folder, transformer=None, vae=None).encode_prompt('a box')[0]",
        "result.shape == (1, 12, 48)",
    ),
    ("JointDiTPipeline.from_pretrained(variant_folder, variant='fp16').vae.dtype", "result == torch.float32"),
    (
        "DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)",
        "type(result) is JointDiTPipeline and result('a box', seeds=[7], **short).finite.all()",
    ),
    (
        "DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True, dtype=torch.float16)"
        "('a box', seeds=[7], **short).finite.all()",
        "result",
    ),
]
REFUSED = [
    ("JointDiTPipeline.from_pretrained(folder, torch_dtyp=torch.bfloat16)", "has no option 'torch_dtyp': did you mean"),
    ("JointDiTPipeline.from_pretrained(folder, torch_dtype='bf16')", "torch_dtype is 'bf16': give one type"),
    ("JointDiTPipeline.from_pretrained(folder, dtype=torch.float16, torch_dtype=torch.bfloat16)", "the same option"),
    ("JointDiTPipeline.from_pretrained(folder, device_map='balanced')", "device_map is 'balanced': give one device"),
    ("JointDiTPipeline.from_pretrained(folder, device_map={'': 0})", "give one device"),
    ("JointDiTPipeline.from_pretrained(folder, device_map='cpu', device='cpu')", "the same option, give one"),
    ("JointDiTPipeline.from_pretrained(folder, use_safetensors=False)", "pickled files can run code"),
    ("JointDiTPipeline.from_pretrained(folder, variant='fp16')", "it has no file *.fp16.safetensors"),
    ("pipe.save_pretrained('nowhere', safe_serialization=False)", "from_pretrained refuses pickled files"),
    ("without_text('a box')", "the pipeline has no text_encoder: give prompt_embeds and pooled_prompt_embeds"),
    ("pipe('a box', prompt_embeds=states, pooled_prompt_embeds=pooled)", "are both given: leave one of them out"),
    ("pipe(prompt_embeds=states)", "belong together, and pooled_prompt_embeds is missing"),
    ("pipe(prompt_embeds=states[0], pooled_prompt_embeds=pooled)", "give (B, T, D) and (B, P)"),
    (
        "pipe(prompt_embeds=pooled[None], pooled_prompt_embeds=pooled)",
        "prompt_embeds has 32 channels but the",
    ),
    ("pipe('a box', seeds=[1], generator=torch.Generator())", "seeds and generator are both given"),
    ("pipe('a box', latents=torch.zeros(1, 12, 64))", "give packed noise (2B, N, C) for B = 1"),
    ("pipe('a box', latents=torch.zeros(2, 13, 64))", "give (2B, N, C) with N, C = (12, 64)"),
    ("pipe(['a', 'b', 'c'], generator=[torch.Generator()] * 2)", "3 entries but there are 2 generators"),
    ("pipe('a box', num_images_per_prompt=0)", "num_images_per_prompt is 0: use at least 1"),
    ("pipe('a box', output_type='numpy')", "output_type is 'numpy': use one of np, pil, pt, latent"),
    ("pipe('a box', callback_on_step_end_tensor_inputs=['image'])", "has 'image': use some of latents, prompt_embeds"),
    ("pipe('a box', callback_on_step_end=lambda *_: {'image': 1}, **short)", "callback_on_step_end returned 'image'"),
    ("pipe('a box', ensemble_size=3)", "task 'joint' has no estimate to merge"),
    ("pipe(image=image, task='depth', output_uncertainty=True)", "give an ensemble_size above 1"),
    ("pipe('a box', processing_resolution=64)", "processing_resolution is 64 for task 'joint'"),
    ("pipe(image=large, task='depth')", "or give processing_resolution, which resizes the input"),
]


@pytest.fixture(scope="module")
def folders(small_pipeline: JointDiTPipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, variant_folder = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("variant")
    small_pipeline.save_pretrained(folder)
    small_pipeline.save_pretrained(variant_folder, variant="fp16")
    return {"folder": str(folder), "variant_folder": str(variant_folder)}


@pytest.mark.parametrize(("line", "check"), LOADS, ids=[line[:90] for line, _ in LOADS])
def test_a_load(words, folders, tmp_path, monkeypatch, line, check):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    result = eval(line, {**words, **folders})
    assert eval(check, {**words, "result": result}), check


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line[:90] for line, _ in REFUSED])
def test_what_is_not_supported_gets_one_sentence(words, small_pipeline, folders, line, message):
    with pytest.raises((InputError, ModelError)) as caught:
        eval(line, {**words, **folders, "pipe": small_pipeline})
    assert message in str(caught.value)
    assert str(caught.value)[-1] in ".?"


def test_a_progress_bar_counts_the_steps(small_pipeline, capsys):
    pipe = JointDiTPipeline(**small_pipeline.components, default_height=64, default_width=48, max_sequence_length=12)
    pipe("a box", num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe("a box", num_inference_steps=3)
    assert not capsys.readouterr().err


def test_a_pipeline_saved_without_text_encoders_loads_without_them(words, tmp_path):
    words["without_text"].save_pretrained(tmp_path)
    assert not (tmp_path / "text_encoder_2").exists()
    loaded = JointDiTPipeline.from_pretrained(tmp_path)
    assert loaded.tokenizer is None
    given = {"prompt_embeds": words["states"], "pooled_prompt_embeds": words["pooled"]}
    out = loaded(**given, seeds=[7], num_inference_steps=2, height=64, width=48)
    np.testing.assert_allclose(out.disparity, words["by_seed"].disparity, atol=1e-4)


def test_other_schedulers_are_saved_and_loaded(small_pipeline, tmp_path):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    JointDiTPipeline(**{**small_pipeline.components, "scheduler": scheduler}).save_pretrained(tmp_path)
    assert type(JointDiTPipeline.from_pretrained(tmp_path).scheduler) is UniPCMultistepScheduler
    text = (tmp_path / "scheduler" / "scheduler_config.json").read_text()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(text.replace("flow_prediction", "epsilon"))
    with pytest.raises(ModelError, match="scheduler is UniPCMultistepScheduler for epsilon"):
        JointDiTPipeline.from_pretrained(tmp_path)

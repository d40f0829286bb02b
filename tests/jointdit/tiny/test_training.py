"""The stages of training at a size that takes seconds: the loss falls, and a stopped run goes on exactly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.train import load_train_spec
from jointdit.errors import SpecError
from jointdit.flow_matching import sample_timesteps
from jointdit.model.joint_attention import joint_weights
from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.pipeline import JointDiTPipeline
from jointdit.tiny import architecture
from jointdit.tiny.ablation import fresh_adapter, run_ablation
from jointdit.tiny.autoencoder import reconstruct, standardise_latents, vae_loss
from jointdit.tiny.base import base_loss, base_timesteps
from jointdit.tiny.data import RenderedScenes, ScenePixels, load_cache, render_cache
from jointdit.tiny.device import compile_blocks, device_of
from jointdit.tiny.guidance import guidance_loss, with_guidance_embedding
from jointdit.tiny.joint import joint_loss
from jointdit.tiny.latent_cache import cached_latents
from jointdit.tiny.loop import fit
from jointdit.tiny.recipe import train
from jointdit.tiny.spec import AblationSpec, StageSpec, TrainSpec
from jointdit.tiny.text import CaptionEncoder, mirrored
from jointdit.training.loss import dropped_share
from jointdit.training.optimizers import StackedMuon


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    assert list(render_cache(folder, 256, 32, 1)) == [0, 256]
    assert list(render_cache(folder, 256, 32, 1)) == [256]  # nothing is rendered twice
    return folder


@pytest.fixture(scope="module")
def scenes(scenes_folder: Path) -> RenderedScenes:
    return load_cache(scenes_folder)


def stage(steps: int, **changes: object) -> StageSpec:
    settings = {"steps": steps, "batch_size": 8, "learning_rate": 2e-3, "warmup": 5, "checkpoint_every": 5, "ema": 0.9}
    return StageSpec.model_validate({**settings, **changes})


def losses_of(lines: list[str]) -> list[float]:
    return [float(line.split("loss ")[1].split()[0]) for line in lines if "loss " in line]


def test_the_cache_holds_what_was_rendered(scenes: RenderedScenes) -> None:
    assert scenes.rgb.shape == (256, 32, 32, 3)
    assert scenes.disparity.min(axis=(1, 2)).tolist() == [0] * 256
    assert scenes.disparity.max(axis=(1, 2)).tolist() == [65535] * 256
    assert len(set(scenes.captions)) > 200


def test_a_stopped_stage_goes_on_to_the_same_weights(scenes: RenderedScenes, tmp_path: Path) -> None:
    def run(folder: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        vae = architecture.build_vae()
        if (folder / "vae.safetensors").exists():  # what it goes on from is the checkpoint, not the start
            torch.nn.init.zeros_(vae.encoder.conv_in.weight)
        calls: list[torch.Generator] = []

        def loss(generator: torch.Generator) -> torch.Tensor:
            calls.append(generator)
            if stop_after is not None and len(calls) > stop_after:
                raise KeyboardInterrupt
            return vae_loss(vae, ScenePixels(scenes), 4, generator)

        spec = stage(10, batch_size=4, autocast="none")
        fit("vae", spec, list(vae.named_parameters()), loss, folder, 0, lambda line: None)
        return {name: value.detach().clone() for name, value in vae.named_parameters()}

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_after=7)  # two steps after its last checkpoint
    stopped = run(tmp_path / "stopped")
    for name, value in whole.items():
        assert torch.equal(value, stopped[name]), name


def test_the_autoencoder_learns_and_keeps_decoding_when_standardised(scenes: RenderedScenes, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = architecture.build_vae()
    shown = ScenePixels(scenes)
    lines: list[str] = []
    fit(
        "vae",
        stage(30),
        list(vae.named_parameters()),
        lambda generator: vae_loss(vae, shown, 8, generator),
        tmp_path,
        0,
        lines.append,
        every=8,
    )
    losses = losses_of(lines)
    assert losses[-1] < 0.9 * losses[0]

    vae.eval()
    pixels = shown.images(slice(16))
    before = reconstruct(vae, pixels)
    standardise_latents(vae, shown, count=64)
    torch.testing.assert_close(reconstruct(vae, pixels), before, atol=1e-4, rtol=0)
    both = torch.cat([shown.images(slice(64)), shown.disparities(slice(64))])
    with torch.no_grad():
        latents = vae.encode(both).latent_dist.mean
    np.testing.assert_allclose(latents.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(latents.std((0, 2, 3)), 1, atol=1e-3)


def test_mirror_images_follow_the_scenes_in_latents_and_words(scenes: RenderedScenes, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = architecture.build_vae().eval()
    first = RenderedScenes(scenes.rgb[:3], scenes.disparity[:3], scenes.captions[:3])
    flipped = RenderedScenes(first.rgb[:, :, ::-1].copy(), first.disparity[:, :, ::-1].copy(), first.captions)
    for modality in ("rgb", "disparity"):
        file = tmp_path / f"{modality}.npy"
        both = cached_latents(vae, ScenePixels(first), modality, file, lambda line: None, mirrored=True)
        alone = cached_latents(vae, ScenePixels(first), modality, tmp_path / "alone.npy", lambda line: None)
        turned = cached_latents(vae, ScenePixels(flipped), modality, tmp_path / "turned.npy", lambda line: None)
        assert torch.equal(both, torch.cat([alone, turned]))
        assert not torch.equal(alone, turned)
        for name in ("alone.npy", "turned.npy"):
            (tmp_path / name).unlink()
    caption = "a red cube on the left to the right of a ring, on a bright upright floor"
    assert mirrored(caption) == "a red cube on the right to the left of a ring, on a bright upright floor"
    assert mirrored(mirrored(caption)) == caption


def test_pixels_are_what_was_rendered(scenes: RenderedScenes) -> None:
    shown = ScenePixels(scenes)
    index = torch.tensor([5, 3])
    rgb, disparity = shown.images(index), shown.disparities(index)
    assert rgb.shape == disparity.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(np.round((rgb.permute(0, 2, 3, 1).numpy() + 1) * 127.5), scenes.rgb[[5, 3]])
    for channel in range(3):
        np.testing.assert_allclose((disparity[:, channel] + 1) * 32767.5, scenes.disparity[[5, 3]], atol=0.01)


def test_stacked_muon_is_torchs() -> None:
    torch.manual_seed(0)
    shapes = [(4, 8), (8, 4), (4, 8), (6, 6), (8, 4)]
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in map(torch.randn, shapes)] for _ in range(2))
    with torch.no_grad():
        for a, b in zip(ours, theirs, strict=True):
            b.copy_(a)
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    stacked, separate = StackedMuon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(4):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = None if (step, i) == (1, 2) else torch.randn(a.shape)
            a.grad, b.grad = gradient, gradient
        stacked.step()
        separate.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)  # bfloat16 products, a step is 0.02


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # inductor's own import
def test_blocks_are_compiled_where_the_spec_says_so_and_a_missing_gpu_is_named() -> None:
    recipe = Path(__file__).parents[3] / "jobs/train_tiny.yaml"
    for value, compiled in (("true", True), ("false", False), ("null", False)):  # null: on a GPU
        spec = load_train_spec(recipe, [f"compile={value}", "device=cpu"])
        assert isinstance(spec, TrainSpec)
        assert device_of(spec) == torch.device("cpu")
        flux = architecture.build_flux()
        compile_blocks(spec, flux)
        blocks = (*flux.transformer_blocks, *flux.single_transformer_blocks)
        assert {block._compiled_call_impl is not None for block in blocks} == {compiled}
    if not torch.cuda.is_available():
        spec = load_train_spec(recipe, ["device=cuda"])
        assert isinstance(spec, TrainSpec)
        with pytest.raises(SpecError, match="PyTorch finds no GPU: set it to auto or cpu"):
            device_of(spec)


@pytest.mark.slow  # tests of the recipe and of adapters train the same steps for less
def test_base_and_adapter_learn_and_the_adapter_leaves_the_base_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    captions = ["a red sphere on a gray floor", "a blue cube on a white floor"] * 8
    clip_tokenizer, t5_tokenizer = architecture.clip_tokenizer(), architecture.t5_tokenizer()
    clip, t5 = architecture.build_clip(clip_tokenizer), architecture.build_t5(t5_tokenizer)
    text = CaptionEncoder(captions, clip_tokenizer, clip, t5_tokenizer, t5)
    prototypes = torch.randn(2, 4, 64)
    rgb = (prototypes.repeat(8, 1, 1) + 0.05 * torch.randn(16, 4, 64)).half()  # as the latent cache keeps them
    disparity = -rgb

    flux = architecture.build_flux()
    named = [(name, p) for m in (flux, clip, t5) for name, p in m.named_parameters()]
    named = [(f"{i}.{name}", p) for i, (name, p) in enumerate(named)]
    lines: list[str] = []
    fit(
        "base",
        stage(12, batch_size=4, checkpoint_every=12),
        named,
        lambda g: base_loss(flux, rgb, text, 4, 0.1, g),
        tmp_path,
        0,
        lines.append,
        every=3,
    )
    assert losses_of(lines)[-1] < 0.8 * losses_of(lines)[0]

    for module in (flux, clip, t5):
        module.requires_grad_(False)
    guided = with_guidance_embedding(flux)

    def distance() -> float:
        with torch.no_grad():
            return float(guidance_loss(guided, flux, rgb, text, 16, 0.1, torch.Generator().manual_seed(1)))

    before = distance()
    fit(
        "guidance",
        stage(20, checkpoint_every=20, learning_rate=5e-4),
        list(guided.named_parameters()),
        lambda g: guidance_loss(guided, flux, rgb, text, 8, 0.1, g),
        tmp_path,
        0,
        lambda line: None,
    )
    assert distance() < 0.8 * before

    model = JointDiTTransformer2DModel.from_flux(guided.requires_grad_(False), lora_ranks=architecture.LORA_RANKS)
    adapter = list(model.adapter_named_parameters())
    names = {name for name, _ in adapter}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if name not in names}
    lines.clear()
    fit(
        "joint",
        stage(20, batch_size=4, checkpoint_every=20),
        adapter,
        lambda g: joint_loss(model, rgb, disparity, text, 4, 0.1, 0.5, g),
        tmp_path,
        0,
        lines.append,
        every=5,
    )
    assert losses_of(lines)[-1] < 0.9 * losses_of(lines)[0]
    for name, value in frozen.items():
        assert torch.equal(value, model.get_parameter(name)), name


@pytest.mark.slow
def test_the_tokenizers_are_the_same_in_every_process() -> None:
    caption = "a large red sphere on the left, on a checkered gray floor in front of a white wall"
    clip_ids = architecture.clip_tokenizer()(caption).input_ids
    words = caption.replace(",", " ,").split()
    assert len(clip_ids) == len(words) + 2  # each vocabulary word is one token, between start and end
    script = (
        "from jointdit.tiny.architecture import clip_tokenizer; "
        f"print(clip_tokenizer()({caption!r}).input_ids == {clip_ids})"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert answer.stdout.strip() == "True", answer.stderr


def test_the_recipe_from_nothing_to_a_checkpoint(scenes_folder: Path, tmp_path: Path) -> None:
    """Every stage of jobs/train_tiny.yaml, shortened: losses fall, a second call only reads, the pipeline works."""
    shutil.copytree(scenes_folder, tmp_path / "scenes")
    short = [f"output={tmp_path}", "scenes.count=256", "scenes.size=32", "scenes.processes=1", "threads=1"]
    short += ["scenes.mirrored=true", "device=cpu"]
    for stage_name, steps in {"vae": 12, "decoder": 1, "base": 12, "guidance": 1, "joint": 1}.items():
        settings = {"steps": steps, "batch_size": 4, "warmup": 2, "autocast": "none", "learning_rate": 2e-3}
        short += [f"{stage_name}.{key}={value}" for key, value in settings.items()]
    spec = load_train_spec(Path(__file__).parents[3] / "jobs/train_tiny.yaml", short)
    assert isinstance(spec, TrainSpec)
    lines: list[str] = []
    made = train(spec, lines.append, every=3)
    for stage_name in ("vae", "base"):
        losses = losses_of([line for line in lines if line.startswith(f"{stage_name}:")])
        assert losses[-1] < 0.9 * losses[0], (stage_name, losses)

    pipe = JointDiTPipeline.from_pretrained(made)
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a red sphere", seeds=[0], num_inference_steps=1)
    assert out.rgb.shape == (1, 32, 32, 3)
    assert out.finite.all()

    lines.clear()
    train(spec, lines.append, every=4)
    assert losses_of(lines) == []  # every stage is finished


@pytest.mark.slow
def test_the_ablation_trains_four_ways_on_one_base_and_goes_on_where_it_stopped(
    scenes_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(scenes_folder, tmp_path / "scenes")
    short = [f"output={tmp_path}", "scenes={count: 256, size: 32, processes: 1}", "threads=1", "seeds=[3]"]
    short += ["joint.steps=2", "joint.batch_size=2", "held_out=3", "prompts=3", "depth_steps=1", "steps=1"]
    spec = load_train_spec(Path(__file__).parents[3] / "jobs/train_ablation.yaml", short)
    assert isinstance(spec, AblationSpec)
    table = run_ablation(spec, lambda line: None).read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        [a, b, "1"] for a, b in (("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"))
    ]
    losses = {row[3] for row in rows}
    assert len(losses) > 1, "noise levels and weights differ, so do losses"

    lines: list[str] = []
    again = "adaptive-off-unbalanced-on-3"
    (tmp_path / f"{again}.json").unlink()
    shutil.rmtree(tmp_path / again)
    assert run_ablation(spec, lines.append).read_text() == table, "the same run again, and no other"
    assert {line.split()[0].rstrip(":") for line in lines if line.startswith("adaptive")} == {
        "adaptive-off-unbalanced-on-3"
    }


def test_what_the_ablation_switches_off() -> None:
    base = JointDiTPipeline.from_pretrained("tiny").transformer.float()
    model = fresh_adapter(base, adaptive=False, seed=0)
    assert model.config.joint_weight_sharpness == 0.0
    assert joint_weights(torch.tensor([0.9, 0.1]), 0.0).tolist() == [0.5, 0.5]
    adapter = dict(model.adapter_named_parameters())
    assert all(parameter.requires_grad for parameter in adapter.values())
    for name, value in base.named_parameters():
        if name not in adapter:
            assert torch.equal(value, model.get_parameter(name)), name
    levels = [sample_timesteps(20_000, torch.Generator().manual_seed(0), unbalanced) for unbalanced in (True, False)]
    assert [round(float((rgb == depth).float().mean()), 1) for rgb, depth in levels] == [0.5, 0.5]
    assert [float((depth < 0.2).float().mean()) > 0.1 for _, depth in levels] == [True, False]


def test_most_noise_levels_of_the_base_lie_where_text_decides() -> None:
    levels = {each: base_timesteps(20_000, torch.Generator().manual_seed(0), each) for each in (True, False)}
    share = {
        each: [((low < t) & (t <= high)).float().mean() for low, high in ((0, 0.5), (0.85, 1))]
        for each, t in levels.items()
    }
    assert all(0 < t.min() < 0.05 and 0.99 < t.max() <= 1 for t in levels.values())
    assert share[True][0] < 0.5 * share[False][0], "fewer near the clean image"
    # a quarter from .85 to 1, an eighth of two fifths from .85 to .9, and the usual ones' own share of the rest
    torch.testing.assert_close(share[True][1], 0.25 + 0.4 / 8 + 0.35 * share[False][1], atol=0.02, rtol=0)


def test_guidance_starts_as_the_base_and_means_nothing_without_a_prompt() -> None:
    """The teacher at guidance 1 and the teacher at an empty prompt are what the copy already computes."""
    torch.manual_seed(0)
    clip_tokenizer, t5_tokenizer = architecture.clip_tokenizer(), architecture.t5_tokenizer()
    clip, t5 = architecture.build_clip(clip_tokenizer), architecture.build_t5(t5_tokenizer)
    text = CaptionEncoder(["a red sphere"] * 4, clip_tokenizer, clip, t5_tokenizer, t5)
    flux, latents = architecture.build_flux(), torch.randn(4, 4, 64)
    guided = with_guidance_embedding(flux)
    assert guided.config.guidance_embeds

    def distance(drop: float) -> float:
        with torch.no_grad():
            return float(guidance_loss(guided, flux, latents, text, 4, drop, torch.Generator().manual_seed(1)))

    assert distance(drop=1.0) < 1e-10
    assert distance(drop=0.0) > 1e-6

    told: list[torch.Tensor] = []
    guided.register_forward_pre_hook(lambda module, args, kwargs: told.append(kwargs["guidance"]), with_kwargs=True)
    distance(drop=0.0)
    assert told[0].tolist()[:2] == [1, 1], "half of a batch at what the adapter is trained with"
    assert all(1 < guidance < 5 for guidance in told[0].tolist()[2:])


def test_captions_are_dropped_where_depth_is_estimated() -> None:
    rgb, disparity = torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0.9, 0.1, 0.5])
    torch.testing.assert_close(dropped_share(rgb, disparity, 0.1, 0.5), torch.tensor([0.5, 0.1, 0.1]))
    torch.testing.assert_close(dropped_share(rgb, disparity, 0.1, None), torch.tensor([0.1, 0.1, 0.1]))

"""The training recipe of the tiny checkpoint, from rendered scenes to a pipeline folder.

    scenes -> autoencoder -> decoder alone -> latents -> text-to-image base -> guidance -> JointDiT adapter -> pipeline

Each stage resumes from its checkpoint. A finished stage is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer, T5Tokenizer

from jointdit.model.transformer import JointDiTTransformer2DModel
from jointdit.pipeline import JointDiTPipeline
from jointdit.tiny import architecture
from jointdit.tiny.autoencoder import decoder_loss, standardise_latents, vae_loss
from jointdit.tiny.base import base_loss
from jointdit.tiny.data import RenderedScenes, ScenePixels, load_cache, render_cache
from jointdit.tiny.device import attention_on, compile_blocks, device_of
from jointdit.tiny.guidance import guidance_loss, with_guidance_embedding
from jointdit.tiny.joint import joint_loss
from jointdit.tiny.latent_cache import cached_latents
from jointdit.tiny.loop import LossFunction, fit
from jointdit.tiny.spec import ScenesSpec, TrainSpec
from jointdit.tiny.text import CaptionEncoder, mirrored
from jointdit.training.checkpoint import NamedParameters, replacing
from jointdit.training.record import Report

Stage = Literal["vae", "decoder", "base", "guidance", "joint"]  # fields of the spec


def train(spec: TrainSpec, report: Report = print, every: int = 50) -> Path:
    """Run all unfinished stages, with a report every `every` steps; returns the pipeline's folder."""
    if spec.threads:
        torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    device = device_of(spec)
    with attention_on(device):
        return run_stages(spec, device, report, every)


def run_stages(spec: TrainSpec, device: torch.device, report: Report, every: int) -> Path:
    """Run all stages in order on one device; returns the pipeline's folder."""
    clip_tokenizer, t5_tokenizer = architecture.clip_tokenizer(), architecture.t5_tokenizer()
    clip, t5 = architecture.build_clip(clip_tokenizer).to(device), architecture.build_t5(t5_tokenizer).to(device)
    vae, flux = architecture.build_vae().to(device), architecture.build_flux().to(device)

    scenes = prepare_scenes(spec.output / "scenes", spec.scenes, report)
    mirror_images = [mirrored(caption) for caption in scenes.captions] if spec.scenes.mirrored else []
    text = CaptionEncoder([*scenes.captions, *mirror_images], clip_tokenizer, clip, t5_tokenizer, t5)
    pixels = ScenePixels(scenes, device)
    train_autoencoder(spec, vae, pixels, report, every)
    train_decoder(spec, vae, pixels, report, every)
    latents = partial(cached_latents, vae, pixels, report=report, mirrored=spec.scenes.mirrored)
    rgb = latents("rgb", spec.output / "latents-rgb.npy")
    compile_blocks(spec, flux)
    train_base(spec, flux, text, rgb, report, every)
    disparity = latents("disparity", spec.output / "latents-disparity.npy")
    guided = train_guidance(spec, flux, text, rgb, report, every)
    transformer = JointDiTTransformer2DModel.from_flux(guided, lora_ranks=architecture.LORA_RANKS).to(device)
    compile_blocks(spec, transformer)
    train_joint(spec, transformer, text, rgb, disparity, report, every)
    return save_pipeline(spec, transformer, vae, text, clip_tokenizer, t5_tokenizer, report)


def save_pipeline(
    spec: TrainSpec,
    transformer: JointDiTTransformer2DModel,
    vae: AutoencoderKL,
    text: CaptionEncoder,
    clip_tokenizer: CLIPTokenizer,
    t5_tokenizer: T5Tokenizer,
    report: Report,
) -> Path:
    """Write `<output>/pipeline`: networks in bfloat16, the VAE in float16 for its precision in far depth."""
    pipeline = JointDiTPipeline(
        transformer=transformer.eval().to("cpu", torch.bfloat16),
        vae=vae.to("cpu", torch.float16),
        text_encoder=text.clip.eval().to("cpu", torch.bfloat16),
        tokenizer=clip_tokenizer,
        text_encoder_2=text.t5.eval().to("cpu", torch.bfloat16),
        tokenizer_2=t5_tokenizer,
        default_height=spec.scenes.size,
        default_width=spec.scenes.size,
        max_sequence_length=t5_tokenizer.model_max_length,
        default_depth_guidance=architecture.DEPTH_GUIDANCE,
    )
    folder = spec.output / "pipeline"
    pipeline.save_pretrained(folder)
    report(f"finished: {folder}")
    return folder


def prepare_scenes(folder: Path, spec: ScenesSpec, report: Report) -> RenderedScenes:
    """Render the missing scenes of the training set, and load it."""
    started, first = time.monotonic(), None
    for ready in render_cache(folder, spec.count, spec.size, spec.processes):
        first = ready if first is None else first
        rate = (ready - first) / max(time.monotonic() - started, 1e-9)
        left = f"  {rate:.1f} scenes/s  {(spec.count - ready) / rate / 60:.0f} min left" if rate else ""
        report(f"scenes: {ready}/{spec.count}{left}")
    return load_cache(folder, spec.count)


def train_autoencoder(
    spec: TrainSpec, vae: AutoencoderKL, scenes: ScenePixels, report: Report, every: int = 50
) -> None:
    """Run stage 1 and standardise the latents; the VAE is frozen afterwards."""
    loss = partial(vae_loss, vae, scenes, spec.vae.batch_size)
    standardise = partial(standardise_latents, vae, scenes)
    train_stage("vae", spec, list(vae.named_parameters()), loss, report, every, standardise)
    vae.requires_grad_(False).eval()


def train_decoder(spec: TrainSpec, vae: AutoencoderKL, scenes: ScenePixels, report: Report, every: int = 50) -> None:
    """Run stage 1b, the decoder alone; the latents do not change."""
    named = [(name, p) for name, p in vae.named_parameters() if name.startswith(("decoder.", "post_quant_conv."))]
    train_stage("decoder", spec, named, partial(decoder_loss, vae, scenes, spec.decoder.batch_size), report, every)
    vae.requires_grad_(False)


def train_base(
    spec: TrainSpec,
    flux: FluxTransformer2DModel,
    text: CaptionEncoder,
    rgb: torch.Tensor,
    report: Report,
    every: int = 50,
) -> None:
    """Run stage 2; network and text encoders are frozen afterwards."""
    modules = {"transformer": flux, "text_encoder": text.clip, "text_encoder_2": text.t5}
    named = [(f"{key}.{name}", p) for key, module in modules.items() for name, p in module.named_parameters()]
    loss = partial(base_loss, flux, rgb, text, spec.base.batch_size, spec.base.text_drop)
    train_stage("base", spec, named, loss, report, every)
    for module in modules.values():
        module.requires_grad_(False).eval()


def train_guidance(
    spec: TrainSpec,
    flux: FluxTransformer2DModel,
    text: CaptionEncoder,
    rgb: torch.Tensor,
    report: Report,
    every: int = 50,
) -> FluxTransformer2DModel:
    """Run stage 3: a copy of the base with guidance as an input, as FLUX.1-dev; frozen afterwards."""
    guided = with_guidance_embedding(flux).to(rgb.device)
    compile_blocks(spec, guided)
    loss = partial(guidance_loss, guided, flux, rgb, text, spec.guidance.batch_size, spec.guidance.text_drop)
    train_stage("guidance", spec, list(guided.named_parameters()), loss, report, every)
    return guided.requires_grad_(False).eval()


def train_joint(
    spec: TrainSpec,
    transformer: JointDiTTransformer2DModel,
    text: CaptionEncoder,
    rgb: torch.Tensor,
    disparity: torch.Tensor,
    report: Report,
    every: int = 50,
) -> None:
    """Run stage 4, which trains only the adapter."""
    shares = spec.joint.text_drop, spec.joint.text_drop_depth
    loss = partial(joint_loss, transformer, rgb, disparity, text, spec.joint.batch_size, *shares)
    train_stage("joint", spec, list(transformer.adapter_named_parameters()), loss, report, every)


def train_stage(
    stage: Stage,
    spec: TrainSpec,
    named: NamedParameters,
    loss: LossFunction,
    report: Report,
    every: int,
    afterwards: Callable[[], None] = lambda: None,
) -> None:
    """Train the named parameters in place, or load them if the stage is finished.

    afterwards: called at the end of the training, before the stage is saved.
    """
    finished = spec.output / f"{stage}-finished.safetensors"
    if read_finished(finished, named):
        return
    for _, parameter in named:
        parameter.requires_grad_(True)
    fit(stage, getattr(spec, stage), named, loss, spec.output, spec.seed, report, every)
    afterwards()
    write_finished(finished, named)


def write_finished(file: Path, named: NamedParameters) -> None:
    """Save a finished stage's weights atomically."""
    with replacing(file) as unfinished:
        save_file({name: parameter.detach().contiguous() for name, parameter in named}, unfinished)


@torch.no_grad()
def read_finished(file: Path, named: NamedParameters) -> bool:
    """Load a finished stage's weights in place; returns False if the stage is not finished."""
    if not file.exists():
        return False
    state = load_file(file)
    for name, parameter in named:
        parameter.copy_(state[name])
    return True

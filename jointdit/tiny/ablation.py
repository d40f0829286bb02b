"""The paper's ablation at the tiny checkpoint's size.

The variants are {adaptive weights} x {unbalanced sampling}. Each of the four variants trains a new adapter on the
same frozen base, with the same pairs, noise and number of steps for each seed. All are evaluated in the three tasks
on the same held-out scenes. The scores of a finished run are stored as JSON, so an interrupted command resumes with
the next run.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from jointdit.tiny.architecture import LORA_RANKS
from jointdit.tiny.data import ScenePixels
from jointdit.tiny.joint import joint_loss
from jointdit.tiny.latent_cache import cached_latents
from jointdit.tiny.loop import fit
from jointdit.tiny.recipe import prepare_scenes
from jointdit.tiny.spec import AblationSpec
from jointdit.tiny.text import CaptionEncoder
from jointdit.training.checkpoint import replacing
from jointdit.training.record import Report

if TYPE_CHECKING:
    from jointdit.model.transformer import JointDiTTransformer2DModel
    from jointdit.pipeline import JointDiTPipeline

Cell = tuple[bool, bool]  # adaptive weights, unbalanced sampling
CELLS: tuple[Cell, ...] = ((True, True), (True, False), (False, True), (False, False))
BATCH = 9


@dataclass(frozen=True)
class Scores:
    """Scores of a trained adapter: AbsRel after alignment in disparity, FID, and the mean loss of the last 50 steps."""

    loss: float
    depth: float
    depth_to_image: float
    self_consistency: float
    fid: float


def run_ablation(spec: AblationSpec, report: Report = print) -> Path:
    """Train and evaluate the missing runs; returns the path of the Markdown table."""
    import transformers

    from jointdit.pipeline import JointDiTPipeline

    if spec.threads:
        torch.set_num_threads(spec.threads)
    transformers.utils.logging.disable_progress_bar()
    pipe = JointDiTPipeline.from_pretrained(spec.model)
    pipe.set_progress_bar_config(disable=True)
    scenes = prepare_scenes(spec.output / "scenes", spec.scenes, report)
    vae = pipe.vae.float().eval()
    pixels = ScenePixels(scenes)
    rgb = cached_latents(vae, pixels, "rgb", spec.output / "latents-rgb.npy", report)
    disparity = cached_latents(vae, pixels, "disparity", spec.output / "latents-disparity.npy", report)
    text = CaptionEncoder(
        scenes.captions,
        pipe.tokenizer,
        pipe.text_encoder.float().eval(),
        pipe.tokenizer_2,
        pipe.text_encoder_2.float().eval(),
    )
    base = pipe.transformer.float()
    for seed, cell in itertools.product(spec.seeds, CELLS):
        scores_file = spec.output / f"{_name(cell, seed)}.json"
        if scores_file.exists():
            continue
        folder = spec.output / _name(cell, seed)
        folder.mkdir(parents=True, exist_ok=True)
        adaptive, unbalanced = cell
        model = fresh_adapter(base, adaptive, seed)
        losses: list[float] = []

        def loss(
            generator: torch.Generator,
            model: JointDiTTransformer2DModel = model,
            unbalanced: bool = unbalanced,
            losses: list[float] = losses,
        ) -> torch.Tensor:
            value = joint_loss(
                model,
                rgb,
                disparity,
                text,
                spec.joint.batch_size,
                spec.joint.text_drop,
                spec.joint.text_drop_depth,
                generator,
                unbalanced,
            )
            losses.append(value.item())
            return value

        def report_run(line: str, name: str = folder.name) -> None:
            report(f"{name} {line}")

        fit("joint", spec.joint, list(model.adapter_named_parameters()), loss, folder, seed, report_run)
        pipe.transformer = model.eval()
        scores = measure(pipe, spec, mean(losses[-50:]))
        with replacing(scores_file) as unfinished:
            unfinished.write_text(json.dumps(asdict(scores)))
        report(f"{folder.name}: {scores}")
    table = spec.output / "table.md"
    table.write_text(ablation_table(spec))
    return table


def fresh_adapter(base: JointDiTTransformer2DModel, adaptive: bool, seed: int) -> JointDiTTransformer2DModel:
    """Return the frozen base with a new adapter: joint Linears and LoRA B are zero, A is drawn from the seed."""
    from jointdit.model.transformer import JointDiTTransformer2DModel

    settings = {name: value for name, value in base.config.items() if not name.startswith("_")}
    settings |= {"lora_ranks": LORA_RANKS}
    if not adaptive:
        settings |= {"joint_weight_sharpness": 0.0}
    torch.manual_seed(seed)
    model = JointDiTTransformer2DModel.from_config(settings)
    adapter = {name for name, _ in model.adapter_named_parameters()}
    with torch.no_grad():
        own = dict(model.named_parameters())
        for name, parameter in base.named_parameters():
            if name not in adapter:
                own[name].copy_(parameter)
    for _, parameter in model.adapter_named_parameters():
        parameter.requires_grad_(True)
    return model.float().train()


@torch.no_grad()
def measure(pipe: JointDiTPipeline, spec: AblationSpec, loss: float) -> Scores:
    """Evaluate the three tasks on held-out scenes, with the same seeds for all adapters."""
    from jointdit.evaluation.agreement import assumed_depth, depth_agreement, typical_range
    from jointdit.evaluation.features import VaeFeatures
    from jointdit.evaluation.generation import frechet_distance
    from jointdit.evaluation.scenes import depth_estimator, held_out_scenes, score_depth
    from jointdit.geometry.depth import disparity_from_depth

    scenes = held_out_scenes(spec.held_out, spec.scenes.size, spec.scenes.size)
    estimate = depth_estimator(pipe, spec.depth_steps, BATCH)
    depth = score_depth(estimate([scene.rgb for scene in scenes]), scenes).abs_rel

    shown = scenes[: spec.prompts]
    restyled: list[NDArray[np.uint8]] = []
    made: list[NDArray[np.uint8]] = []
    maps: list[NDArray[np.float32]] = []
    for start in range(0, len(shown), BATCH):
        batch = shown[start : start + BATCH]
        prompts, seeds = [scene.caption for scene in batch], list(range(start, start + len(batch)))
        given = [disparity_from_depth(scene.depth) for scene in batch]
        restyled += list(
            pipe(
                prompt=prompts, disparity=given, task="depth-to-image", seeds=seeds, num_inference_steps=spec.steps
            ).rgb
        )
        out = pipe(prompt=prompts, seeds=seeds, num_inference_steps=spec.steps)
        made, maps = made + list(out.rgb), maps + list(out.disparity)
    return Scores(
        loss=loss,
        depth=depth,
        depth_to_image=depth_agreement(estimate, restyled, [scene.depth for scene in shown]).abs_rel,
        self_consistency=depth_agreement(estimate, made, assumed_depth(maps, typical_range(scenes))).abs_rel,
        fid=frechet_distance(VaeFeatures(pipe.vae, "the model"), [scene.rgb for scene in scenes], made),
    )


def ablation_table(spec: AblationSpec) -> str:
    """Return a Markdown table with one row per variant: mean and standard deviation over the finished seeds."""
    lines = [
        "| adaptive weights | unbalanced sampling | runs | loss | depth | depth-to-image | self-consistency | FID |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in CELLS:
        files = [spec.output / f"{_name(cell, seed)}.json" for seed in spec.seeds]
        rows = [json.loads(file.read_text()) for file in files if file.exists()]
        if not rows:
            continue
        cells = []
        for key, digits in (("loss", 4), ("depth", 3), ("depth_to_image", 3), ("self_consistency", 3), ("fid", 2)):
            values = [row[key] for row in rows]
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.{digits}f}{spread}")
        yes = ["yes" if on else "no" for on in cell]
        lines.append(f"| {' | '.join([*yes, str(len(rows)), *cells])} |")
    return "\n".join(lines) + "\n"


def _name(cell: Cell, seed: int) -> str:
    adaptive, unbalanced = ("on" if on else "off" for on in cell)
    return f"adaptive-{adaptive}-unbalanced-{unbalanced}-{seed}"

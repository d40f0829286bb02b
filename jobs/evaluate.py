"""How good a checkpoint is on scenes it has not seen: tables of numbers and sheets of unselected samples.

    python -m jobs.evaluate -o evaluation                 (the packaged checkpoint; about 5 minutes on 2 cores)
    python -m jobs.evaluate --model runs/mine/pipeline -o evaluation

Depth on held-out scenes beside wrong pictures and both baselines; the colours that prompts name, in generated pictures;
the VAE alone. `report.json` holds all numbers, `joint.png`, `depth.png` and `depth-to-image.png` the first samples,
a row each of what went in and what came out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from jobs.cli import Folder, Model
from jobs.recolour import recolour
from jobs.report import console
from jointdit.depth import disparity_from_depth
from jointdit.evaluation.scenes import (
    DepthReport,
    VaeReport,
    depth_estimator,
    evaluate_depth,
    evaluate_prompts,
    evaluate_vae,
    held_out_scenes,
)
from jointdit.scenes import Scene

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
    from jointdit.evaluation.colours import ColourReport

BATCH = 9
PROMPTS_AFTER = 1000  # held-out scenes between those whose pictures and those whose captions are used


def evaluate(
    output: Folder,
    model: Model = "tiny",
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="Scenes for depth.")] = 200,
    prompts: Annotated[int, typer.Option(min=2, help="Pictures generated for the colour check, of each task.")] = 36,
    depth_steps: Annotated[int, typer.Option(min=1, help="Sampling steps of depth estimation.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps of pictures.")] = 20,
) -> None:
    """Evaluate a checkpoint on held-out scenes."""
    import transformers

    from jointdit import JointDiTPipeline

    transformers.utils.logging.disable_progress_bar()
    pipe = JointDiTPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    height, width = pipe.config.default_height, pipe.config.default_width
    scenes = held_out_scenes(count, width, height)
    output.mkdir(parents=True, exist_ok=True)

    vae = evaluate_vae(lambda pictures: reconstruct(pipe, pictures), np.stack([s.rgb for s in scenes]))
    show_vae(vae)

    estimate = depth_estimator(pipe, depth_steps, BATCH)
    depth = evaluate_depth(estimate, scenes)
    show_depth(depth)
    shown = scenes[:12]
    found = estimate([scene.rgb for scene in shown])
    save_sheet(output / "depth.png", [(s.rgb, grey(exact(s)), grey(d)) for s, d in zip(shown, found, strict=True)])

    captions = [scene.caption for scene in held_out_scenes(prompts, width, height, skip=PROMPTS_AFTER)]
    pictures, maps = generate(pipe, captions, steps)
    joint = evaluate_prompts(pictures, captions)
    show_colours("joint", *joint)
    save_sheet(output / "joint.png", [(rgb, grey(d)) for rgb, d in zip(pictures, maps, strict=True)])

    sources = scenes[:prompts]
    restyled = [recolour(scene.caption) for scene in sources]
    pictures, _ = generate(pipe, restyled, steps, [exact(scene) for scene in sources])
    depth_to_image = evaluate_prompts(pictures, restyled)
    show_colours("depth-to-image", *depth_to_image)
    save_sheet(output / "depth-to-image.png", [(grey(exact(s)), rgb) for s, rgb in zip(sources, pictures, strict=True)])

    report: dict[str, Any] = {"model": model, "steps": steps, "depth_steps": depth_steps, "size": [width, height]}
    report |= {"vae": asdict(vae), "depth": asdict(depth) | {"error_ratio": depth.error_ratio}}
    report |= {"joint": asdict(joint[0]), "joint_wrong_prompts": asdict(joint[1])}
    report |= {"depth_to_image": asdict(depth_to_image[0]), "depth_to_image_wrong_prompts": asdict(depth_to_image[1])}
    report |= {"joint_prompts": captions, "depth_to_image_prompts": restyled, "seeds": list(range(prompts))}
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"{output / 'report.json'} and three sheets beside it", soft_wrap=True)


def reconstruct(pipe: JointDiTPipeline, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (N, H, W, 3) through the VAE and back."""
    import torch

    from jointdit.pixels import image_to_vae, vae_to_image

    height, width = pictures.shape[1:3]
    batches = []
    with torch.no_grad():
        for start in range(0, len(pictures), BATCH):
            latents = pipe.encode_pixels(image_to_vae(pictures[start : start + BATCH]))
            batches.append(vae_to_image(pipe.decode_pixels(latents, height, width))[0])
    return np.concatenate(batches)


def generate(
    pipe: JointDiTPipeline, prompts: Sequence[str], steps: int, disparities: Sequence[NDArray[np.float32]] | None = None
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.float32]]]:
    """One picture and its disparity a prompt; prompt i gets seed i."""
    pictures: list[NDArray[np.uint8]] = []
    maps: list[NDArray[np.float32]] = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, min(start + BATCH, len(prompts)))
        given: dict[str, Any] = (
            {} if disparities is None else {"task": "depth-to-image", "disparity": list(disparities[part])}
        )
        seeds = list(range(part.start, part.stop))
        out = pipe(prompt=list(prompts[part]), seeds=seeds, num_inference_steps=steps, **given)
        pictures.extend(out.rgb)
        maps.extend(out.disparity)
    return pictures, maps


def exact(scene: Scene) -> NDArray[np.float32]:
    """The scene's relative disparity (H, W)."""
    return disparity_from_depth(scene.depth)


def grey(disparity: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Disparity (H, W) as a picture (H, W, 3), near is bright."""
    return np.repeat(np.rint(np.nan_to_num(disparity) * 255).astype(np.uint8)[..., None], 3, axis=2)


def save_sheet(path: Path, samples: Sequence[tuple[NDArray[np.uint8], ...]], columns: int = 6) -> None:
    """Samples side by side, the pictures (H, W, 3) of each one below the other."""
    cells = [np.concatenate(sample, axis=0) for sample in samples]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)


def show_depth(report: DepthReport) -> None:
    """Depth of the model beside what it is to beat."""
    table = Table(title=f"Depth on {report.scenes} held-out scenes, aligned in disparity")
    for heading in ("", "AbsRel", "delta1", "within 5 %", "AbsRel on objects"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in ("model", "wrong_picture", "mean_disparity", "constant"):
        score = getattr(report, name)
        values = (score.abs_rel, score.delta1, score.within_5_percent, score.object_abs_rel)
        table.add_row(name.replace("_", " "), *(f"{value:.3f}" for value in values))
    console.print(table)
    console.print(f"error over the better baseline's: {report.error_ratio:.2f}")


def show_vae(report: VaeReport) -> None:
    """PSNR, opponent axes and colours of the VAE's round trip."""
    axes = ", ".join(f"{name} {value:.3f}" for name, value in report.opponent_r2.items())
    colours = ", ".join(f"{name} {value:.2f}" for name, value in report.colours_kept.items())
    console.print(f"VAE: {report.psnr_db:.1f} dB; R^2 {axes}")
    console.print(f"     share of each colour's pixels that keep it: {colours}")


def show_colours(task: str, report: ColourReport, chance: ColourReport) -> None:
    """How many of the colours that prompts name are in the pictures."""
    parts = f"floor {report.floor:.0%}, wall {report.wall:.0%}, objects {report.object:.0%}"
    console.print(
        f"{task}: {report.found:.0%} of the named colours found ({parts}); {chance.found:.0%} with wrong prompts"
    )


if __name__ == "__main__":
    typer.run(evaluate)

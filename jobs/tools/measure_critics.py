"""How well scores of other people's models tell right from wrong, written by `python -m jobs.tools.measure_critics`.

text_agreement, depth_critic and metric_fit look through models of transformers. Big ones cannot ship with a package, so
small ones of the real classes are fitted to rendered scenes first (scoring/critics.py), saved, and loaded as any
model is. Then faults are planted in other scenes. The tables show that filter, score and threshold work; a big critic
sees photographs and has other figures.

Two runs of the text critic of the same sizes, on one machine, differed by up to 14 points in a calibrated rate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import torch
import typer

from jobs.report import say
from jobs.tools.filtering.faults import HANDS, Fault, Pair, pair_of
from jobs.tools.filtering.recall import result_of
from jobs.tools.scoring.critics import SIDE, fit_depth_critic, fit_text_critic
from jobs.tools.scoring.separation import Scores, calibrated, columns, rates_table, write_section
from jobs.tools.scoring.sheet import Example, Rgb, depth_images, examples, save_examples
from jobs.tools.scoring.spoilt import CAPTION_FAULTS, DEPTH_FAULTS, planted
from jointdit.evaluation.transformers_depth import TransformersDepth
from jointdit.scenes import Scene, render_scene
from jointdit.scenes.sampling import HELD_OUT_SEED
from pipelines.model.metric_depth import load_calibrator
from pipelines.quality import Filter, Scorer
from pipelines.quality.depth_critic import DepthCritic
from pipelines.quality.metric_fit import MetricFit
from pipelines.quality.model_scored import ScoredBatch
from pipelines.quality.text_agreement import TextAgreement
from pipelines.spec.sections import CalibrateSpec

README = Path(__file__).parents[2] / "pipelines" / "quality" / "README.md"
FITTED_SEED = HELD_OUT_SEED + 3_000_000  # scenes that the critics are fitted to
FIRST_SEED = HELD_OUT_SEED + 4_000_000  # scenes that they are measured on
REJECT = 0.02  # of clean samples, by each threshold that is calibrated


class Part(StrEnum):
    """What a critic looks at beside the image."""

    TEXT = "text"
    DEPTH = "depth"


FITS = {Part.TEXT: fit_text_critic, Part.DEPTH: fit_depth_critic}
NAMES = {Part.TEXT: "CLIP", Part.DEPTH: "GLPN"}


class Critic(NamedTuple):
    """A filter, what measures its scores, and the faults it is to find."""

    rule: Filter
    score: Scorer
    faults: Sequence[Fault]


def measure_critics(
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="Scenes that give the rates.")] = 500,
    text_fitted: Annotated[int, typer.Option(min=32, help="Scenes that the text critic is fitted to.")] = 1500,
    text_steps: Annotated[int, typer.Option(min=1, help="Steps of the text critic's fit.")] = 400,
    depth_fitted: Annotated[int, typer.Option(min=32, help="Scenes that the depth critic is fitted to.")] = 2400,
    depth_steps: Annotated[int, typer.Option(min=1, help="Steps of the depth critic's fit.")] = 1500,
    only: Annotated[Part | None, typer.Option(help="Measure one of the two alone.")] = None,
    readme: Annotated[
        Path,
        typer.Option(help="The Markdown file with the markers; text_critic.png and depth_critic.png lie beside it."),
    ] = README,
) -> None:
    """Fit small critics to scenes, measure their filters on planted faults, and write it into the documentation."""
    torch.set_num_threads(1)  # the tables tell seconds of one core
    sizes = {Part.TEXT: (text_fitted, text_steps), Part.DEPTH: (depth_fitted, depth_steps)}
    half = [render_scene(FIRST_SEED + number, SIDE, SIDE) for number in range(count // 2)]
    tested = [render_scene(FIRST_SEED + len(half) + number, SIDE, SIDE) for number in range(count)]
    for part in [only] if only else list(Part):
        fitted, steps = sizes[part]
        with TemporaryDirectory() as folder:
            started = time.process_time()
            examples = [render_scene(FITTED_SEED + number, SIDE, SIDE) for number in range(fitted)]
            model = FITS[part](Path(folder), examples, steps)
            seconds = time.process_time() - started
            command = (
                f"jobs.tools.measure_critics -n {count} --{part}-fitted {fitted} --{part}-steps {steps} --only {part}"
            )
            texts = [
                f"Measured by `python -m {command}`, on {count} scenes of {SIDE} x {SIDE} pixels with exact depth. "
                f"The critic: a {NAMES[part]} of {millions(model)} parameters, fitted to {fitted} other scenes in "
                f"{seconds:.0f} s of one core, their rendering included. Calibrated: each threshold where it rejects "
                f"{REJECT:.0%} of {count // 2} further clean scenes."
            ]
            critics = [(critic, calibrated_on(critic, half)) for critic in critics_of(part, model)]
            texts += [measured(critic, tuned, tested) for critic, tuned in critics]
            estimator = TransformersDepth(str(model)) if part is Part.DEPTH else None
            rows = [shown(critic, tuned, estimator, tested) for critic, tuned in critics]
            save_examples(readme.with_name(f"{part}_critic.png"), rows)
        written = "\n\n".join(texts)
        for line in written.splitlines():
            say(line)
        write_section(readme, f"{part} critic", written)


def critics_of(part: Part, model: Path) -> Iterator[Critic]:
    """The filters that look through a model, each with its own loaded from the folder."""
    if part is Part.TEXT:
        by_text = TextAgreement(model=str(model))
        yield Critic(by_text, by_text.load("cpu"), CAPTION_FAULTS)
    else:
        by_depth = DepthCritic(model=str(model))
        yield Critic(by_depth, by_depth.load("cpu"), DEPTH_FAULTS)
        yield Critic(MetricFit(), load_calibrator(CalibrateSpec(model=str(model)), "cpu"), DEPTH_FAULTS)


def scores_of(critic: Critic, pairs: Sequence[Pair]) -> list[dict[str, float]]:
    """What a critic makes of pairs."""
    return critic.score(ScoredBatch([result_of(pair) for pair in pairs], None, 1.0))


def calibrated_on(critic: Critic, scenes: Sequence[Scene]) -> Filter:
    """The critic's filter with thresholds by clean scenes."""
    clean = scores_of(critic, [pair_of(scene) for scene in scenes])
    return calibrated(critic.rule, columns(clean, critic.rule.scores), REJECT)


def measured(critic: Critic, tuned: Filter, tested: Sequence[Scene]) -> str:
    """The table of one critic, and what it costs."""
    scored_pairs, started = 0, time.process_time()

    def scored(pairs: Sequence[Pair]) -> Scores:
        nonlocal scored_pairs
        scored_pairs += len(pairs)
        return columns(scores_of(critic, pairs), critic.rule.scores)

    clean = {name: scored([pair_of(drawn(scene)) for scene in tested]) for name, drawn in HANDS.items()}
    spoilt: Mapping[str, Scores] = {name: scored(pairs) for name, pairs in planted(critic.faults, tested)}
    seconds = (time.process_time() - started) / scored_pairs
    return f"{rates_table(critic.rule, clean, spoilt, tuned)} A sample took {seconds * 1e3:.0f} ms of one core."


def shown(critic: Critic, tuned: Filter, estimator: TransformersDepth | None, tested: Sequence[Scene]) -> list[Example]:
    """What the calibrated filter rejects: images with captions; or image, depth and what the estimator sees."""

    def seen(pairs: Sequence[Pair]) -> list[tuple[dict[str, float], tuple[Rgb, ...]]]:
        maps = [() if estimator is None else (pair.disparity, 1 / estimator.estimate(pair.rgb)) for pair in pairs]
        images = [(pair.rgb, *depth_images(*found)) for pair, found in zip(pairs, maps, strict=True)]
        return list(zip(scores_of(critic, pairs), images, strict=True))

    return examples(tuned, seen, critic.faults, tested, with_caption=estimator is None)


def millions(folder: Path) -> str:
    """The parameters of a float32 checkpoint, by the size of its files."""
    return f"{sum(path.stat().st_size for path in folder.glob('*.safetensors')) / 4e6:.2f} M"


if __name__ == "__main__":
    typer.run(measure_critics)

"""How well scores of external models find faults: `python -m jobs.tools.measure_critics`.

The filters text_agreement, depth_critic and metric_fit use models of transformers. Large models cannot ship with the
package, so small ones of the real classes are fitted to rendered scenes (scoring/critics.py), saved, and loaded like
any checkpoint. Then faults are planted in other scenes. The tables show that filter, score and threshold work; a large
critic on photographs has other figures.

Two runs of the text critic with the same sizes on one machine differed by up to 14 points in a calibrated rate.
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
from jobs.tools.filtering.faults import STYLES, Fault, Pair, pair_of
from jobs.tools.filtering.recall import result_of
from jobs.tools.filtering.tables import README, write_section
from jobs.tools.scoring.critics import SIDE, fit_depth_critic, fit_text_critic
from jobs.tools.scoring.model_faults import CAPTION_FAULTS, DEPTH_FAULTS, planted
from jobs.tools.scoring.separation import REJECT, Scores, calibrated, columns, rates_table
from jobs.tools.scoring.sheet import Example, Rgb, depth_images, examples, save_examples
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

FITTED_SEED = HELD_OUT_SEED + 3_000_000  # training scenes of the critics
FIRST_SEED = HELD_OUT_SEED + 4_000_000  # test scenes


class Part(StrEnum):
    """What a critic compares with the image."""

    TEXT = "text"
    DEPTH = "depth"


FITS = {Part.TEXT: fit_text_critic, Part.DEPTH: fit_depth_critic}
NAMES = {Part.TEXT: "CLIP", Part.DEPTH: "GLPN"}


class Critic(NamedTuple):
    """A filter, its scorer, and the faults that it must find."""

    rule: Filter
    score: Scorer
    faults: Sequence[Fault]


def measure_critics(
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="Number of scenes that give the rates.")] = 500,
    text_fitted: Annotated[int, typer.Option(min=32, help="Number of training scenes of the text critic.")] = 1500,
    text_steps: Annotated[int, typer.Option(min=1, help="Training steps of the text critic.")] = 400,
    depth_fitted: Annotated[int, typer.Option(min=32, help="Number of training scenes of the depth critic.")] = 2400,
    depth_steps: Annotated[int, typer.Option(min=1, help="Training steps of the depth critic.")] = 1500,
    only: Annotated[Part | None, typer.Option(help="Measure only this critic.")] = None,
    readme: Annotated[
        Path,
        typer.Option(help="The Markdown file to write; text_critic.png and depth_critic.png go beside it."),
    ] = README,
) -> None:
    """Fit small critics to scenes, measure their filters on planted faults and write the results to the README."""
    torch.set_num_threads(1)  # the tables give seconds of one core
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
                f"{seconds:.0f} s of one core, their rendering included. Calibrated: each threshold rejects "
                f"{REJECT:.0%} of {count // 2} other clean scenes."
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
    """Yield the filters of a part with the model from the folder."""
    if part is Part.TEXT:
        by_text = TextAgreement(model=str(model))
        yield Critic(by_text, by_text.load("cpu"), CAPTION_FAULTS)
    else:
        by_depth = DepthCritic(model=str(model))
        yield Critic(by_depth, by_depth.load("cpu"), DEPTH_FAULTS)
        yield Critic(MetricFit(), load_calibrator(CalibrateSpec(model=str(model)), "cpu"), DEPTH_FAULTS)


def scores_of(critic: Critic, pairs: Sequence[Pair]) -> list[dict[str, float]]:
    """Score pairs with a critic."""
    return critic.score(ScoredBatch([result_of(pair) for pair in pairs], None, 1.0))


def calibrated_on(critic: Critic, scenes: Sequence[Scene]) -> Filter:
    """Return the critic's filter, calibrated on clean scenes."""
    clean = scores_of(critic, [pair_of(scene) for scene in scenes])
    return calibrated(critic.rule, columns(clean, critic.rule.scores))


def measured(critic: Critic, tuned: Filter, tested: Sequence[Scene]) -> str:
    """Return the table and the cost of one critic."""
    scored_pairs, started = 0, time.process_time()

    def scored(pairs: Sequence[Pair]) -> Scores:
        nonlocal scored_pairs
        scored_pairs += len(pairs)
        return columns(scores_of(critic, pairs), critic.rule.scores)

    clean = {name: scored([pair_of(drawn(scene)) for scene in tested]) for name, drawn in STYLES.items()}
    faulty: Mapping[str, Scores] = {name: scored(pairs) for name, pairs in planted(critic.faults, tested)}
    seconds = (time.process_time() - started) / scored_pairs
    return f"{rates_table(critic.rule, clean, faulty, tuned)} A sample took {seconds * 1e3:.0f} ms of one core."


def shown(critic: Critic, tuned: Filter, estimator: TransformersDepth | None, tested: Sequence[Scene]) -> list[Example]:
    """Return rejected samples: images with captions, or image, depth and estimate."""

    def inspect(pairs: Sequence[Pair]) -> list[tuple[dict[str, float], tuple[Rgb, ...]]]:
        maps = [() if estimator is None else (pair.disparity, 1 / estimator.estimate(pair.rgb)) for pair in pairs]
        images = [(pair.rgb, *depth_images(*both)) for pair, both in zip(pairs, maps, strict=True)]
        return list(zip(scores_of(critic, pairs), images, strict=True))

    return examples(tuned, inspect, critic.faults, tested, with_caption=estimator is None)


def millions(folder: Path) -> str:
    """Return the number of parameters of a float32 checkpoint in millions, by file size."""
    return f"{sum(path.stat().st_size for path in folder.glob('*.safetensors')) / 4e6:.2f} M"


if __name__ == "__main__":
    typer.run(measure_critics)

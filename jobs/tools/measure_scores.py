"""How well the scores that the job's own model gives tell right from wrong: `python -m jobs.tools.measure_scores`.

Self-consistency: on rendered scenes, exact depth against planted faults of it; on joint samples of a checkpoint, right
pairs against the same images with the depth of others, and with their own inverted. The spread of an ensemble: on
images of scenes against spoilt ones. What they cost is processor time of the run itself (on a GPU: its time). It
writes its tables and their image into pipelines/quality. Scores of other people's models: measure_critics.py.

To be run again when the checkpoint changes; the same checkpoint, sizes and machine give the same table, but for time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from jobs.report import say
from jobs.tools.filtering.faults import HANDS, Pair, pair_of
from jobs.tools.filtering.recall import result_of
from jobs.tools.scoring.separation import (
    Scores,
    Separation,
    calibrated,
    columns,
    percent,
    rates_table,
    write_section,
)
from jobs.tools.scoring.sheet import TRIED, Rgb, Seen, depth_images, examples, save_examples
from jobs.tools.scoring.spoilt import DEPTH_FAULTS, IMAGE_FAULTS, planted
from jointdit.evaluation.scenes import held_out_scenes
from jointdit.geometry.depth import disparity_from_depth
from pipelines.quality.ensemble_spread import EnsembleSpread
from pipelines.quality.model_scored import ScoredBatch
from pipelines.quality.self_consistency import SelfConsistency
from pipelines.records import Row, Sample, SampleResult

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
    from jointdit.scenes import Scene

README = Path(__file__).parents[2] / "pipelines" / "quality" / "README.md"
BATCH = 8
OTHERS = 5  # an image is paired with the depth of so many others
CAPTIONS_AFTER = 1000  # held-out scenes between those whose images and those whose captions are used
CALIBRATED_AFTER = 3000  # held-out scenes before those that thresholds are calibrated by
REJECT = 0.02  # of clean samples, by each threshold that is calibrated
MISSED = 0.05  # of spoilt images: where a default would find all but these
UNREADABLE = ("pure noise", "tiles in disorder")  # the faults that the spread of an ensemble is there for


class WrongPairs(NamedTuple):
    """Right pairs against images with the depth of others, and with their own turned inside out."""

    swapped: Separation
    inverted: Separation


def measure_scores(
    samples: Annotated[int, typer.Option("-n", "--samples", min=8, help="Joint samples.")] = 80,
    scenes: Annotated[int, typer.Option(min=8, help="Rendered scenes with exact depth.")] = 500,
    images: Annotated[int, typer.Option(min=8, help="Images of each kind that an ensemble looks at.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the joint samples.")] = 20,
    estimate_steps: Annotated[int, typer.Option(min=1, help="Steps of the estimates.")] = 4,
    model: Annotated[str, typer.Option(help="tiny, a checkpoint folder or a hub name.")] = "tiny",
    readme: Annotated[
        Path, typer.Option(help="The Markdown file with the markers; scores.png lies beside it.")
    ] = README,
) -> None:
    """Measure self-consistency and the spread of an ensemble and write them into the documentation."""
    import torch

    from pipelines.model.loading import load_pipeline
    from pipelines.spec.job import ModelSpec

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(ModelSpec(name=model), device)
    rule, spread = SelfConsistency(steps=estimate_steps), EnsembleSpread(steps=estimate_steps)
    made, making = make_joint_samples(pipe, samples, steps)
    generated, scoring = separate_pairs(rule, pipe, made)
    exact = exact_table(rule, pipe, scenes)
    unsure, spreading = spread_table(spread, pipe, images)
    text = "\n\n".join(
        [
            f"Measured with {model} by `python -m jobs.tools.measure_scores -n {samples} --scenes {scenes} --images "
            f"{images} --steps {steps} --estimate-steps {estimate_steps}`; estimates take {estimate_steps} steps. "
            f"Calibrated: each threshold where it rejects {percent(REJECT)} of further clean scenes, half as many.",
            exact,
            f"On {samples} joint samples of the checkpoint, {steps} steps, at the defaults:",
            separation_table(
                rule,
                [(f"depth of {OTHERS} other samples", generated.swapped), ("1 - disparity", generated.inverted)],
            ),
            unsure,
            f"A joint sample of {steps} steps took {making:.2f} s of {'GPU' if device == 'cuda' else 'processor'} "
            f"time, its self-consistency {scoring:.2f} s more: {1 + scoring / making:.2f} times as long with it as "
            f"without. An ensemble of {spread.estimates} took {spreading:.2f} s: {1 + spreading / making:.2f} times.",
        ]
    )
    for line in text.splitlines():
        say(line)
    write_section(readme, "scores", text)
    say(f"{readme} and {save_sheet(readme.with_name('scores.png'), rule, spread, pipe).name}")


def save_sheet(path: Path, rule: SelfConsistency, spread: EnsembleSpread, pipe: JointDiTPipeline) -> Path:
    """What the two filters reject: image, depth and estimate; and image and two estimates."""
    scenes = held_out_scenes(TRIED, pipe.config.default_width, pipe.config.default_height)

    def seen_by(rule: SelfConsistency | EnsembleSpread) -> Seen:
        score = rule.load("cpu")

        def seen(pairs: Sequence[Pair]) -> list[tuple[dict[str, float], tuple[Rgb, ...]]]:
            found = []
            for batch in _batches(pipe, [result_of(pair) for pair in pairs]):
                first = batch.disparities() if rule is not spread else batch.estimate(1, rule.steps)
                maps = zip(score(batch), batch.images(), first, batch.estimate(0, rule.steps), strict=True)
                found += [(scores, (rgb, *depth_images(*both))) for scores, rgb, *both in maps]
            return found

        return seen

    rows = [
        examples(rule, seen_by(rule), DEPTH_FAULTS, scenes),
        examples(spread, seen_by(spread), IMAGE_FAULTS, scenes),
    ]
    return save_examples(path, rows)


def make_joint_samples(pipe: JointDiTPipeline, count: int, steps: int) -> tuple[list[SampleResult], float]:
    """Joint samples of held-out captions, with seeds 0, 1, ..., and the seconds each took."""
    size = pipe.config.default_width, pipe.config.default_height
    captions = [scene.caption for scene in held_out_scenes(count, *size, skip=CAPTIONS_AFTER)]
    results: list[SampleResult] = []
    started = _clock(pipe)
    for start in range(0, count, BATCH):
        seeds = list(range(start, min(start + BATCH, count)))
        prompts = [captions[seed] for seed in seeds]
        out = pipe(prompt=prompts, task="joint", seeds=seeds, num_inference_steps=steps)
        for seed, prompt, rgb, disparity in zip(seeds, prompts, out.rgb, out.disparity, strict=True):
            results.append(_result(seed, prompt, rgb, disparity))
    return results, (_clock(pipe) - started) / count


def as_results(scenes: Sequence[Scene]) -> list[SampleResult]:
    """Scenes as samples whose depth is exact."""
    return [_result(scene.seed, scene.caption, scene.rgb, disparity_from_depth(scene.depth)) for scene in scenes]


def separate_pairs(
    rule: SelfConsistency, pipe: JointDiTPipeline, samples: Sequence[SampleResult]
) -> tuple[WrongPairs, float]:
    """Right pairs against the same images with other depth; the seconds that scoring a sample took."""
    started = _clock(pipe)
    batches = _batches(pipe, samples)
    score = rule.load("cpu")
    right = columns([scores for batch in batches for scores in score(batch)], rule.scores)
    seconds = (_clock(pipe) - started) / len(samples)
    estimates = [found for batch in batches for found in batch.estimate(0, rule.steps)]
    disparities = [found for batch in batches for found in batch.disparities()]
    others = [[*disparities[shift:], *disparities[:shift]] for shift in range(1, OTHERS + 1)]
    swapped = [scores for maps in others for scores in rule.compare(estimates, maps)]
    inverted = rule.compare(estimates, [1 - disparity for disparity in disparities])
    wrong = (Separation(right, columns(found, rule.scores)) for found in (swapped, inverted))
    return WrongPairs(*wrong), seconds


def exact_table(rule: SelfConsistency, pipe: JointDiTPipeline, count: int) -> str:
    """What self-consistency makes of exact depth, and of faults planted in it."""
    size = pipe.config.default_width, pipe.config.default_height
    scenes, more = held_out_scenes(count, *size), held_out_scenes(count // 2, *size, skip=CALIBRATED_AFTER)
    estimates = estimates_of(rule, pipe, as_results(scenes))

    def compared(found: Sequence[NDArray[np.float32]], maps: Sequence[NDArray[np.float32]]) -> Scores:
        return columns(rule.compare(found, maps), rule.scores)

    clean = compared(estimates, [pair_of(scene).disparity for scene in scenes])
    spoilt = {
        name: compared(estimates, [pair.disparity for pair in pairs]) for name, pairs in planted(DEPTH_FAULTS, scenes)
    }
    again = compared(estimates_of(rule, pipe, as_results(more)), [pair_of(scene).disparity for scene in more])
    return rates_table(rule, {"as rendered": clean}, spoilt, calibrated(rule, again, REJECT))


def estimates_of(
    rule: SelfConsistency, pipe: JointDiTPipeline, samples: Sequence[SampleResult]
) -> list[NDArray[np.float32]]:
    """What self-consistency compares the samples' disparity with."""
    return [found for batch in _batches(pipe, samples) for found in batch.estimate(0, rule.steps)]


def spread_table(rule: EnsembleSpread, pipe: JointDiTPipeline, count: int) -> tuple[str, float]:
    """What an ensemble's spread makes of images of scenes, in several hands and spoilt; the seconds of a sample."""
    size = pipe.config.default_width, pipe.config.default_height
    scenes, more = held_out_scenes(count, *size), held_out_scenes(count // 2, *size, skip=CALIBRATED_AFTER)
    score = rule.load("cpu")

    def scores_of(samples: Sequence[SampleResult]) -> Scores:
        return columns([found for batch in _batches(pipe, samples) for found in score(batch)], rule.scores)

    started = _clock(pipe)
    again = scores_of(as_results(more))
    seconds = (_clock(pipe) - started) / len(more)
    drawn = {name: as_results([HANDS[name](scene) for scene in scenes]) for name in ("as rendered", "toon")}
    clean = {name: scores_of(samples) for name, samples in drawn.items()}
    spoilt = {name: scores_of([result_of(pair) for pair in pairs]) for name, pairs in planted(IMAGE_FAULTS, scenes)}
    return f"{rates_table(rule, clean, spoilt, calibrated(rule, again, REJECT))}\n\n{between(clean, spoilt)}", seconds


def between(clean: Mapping[str, Scores], spoilt: Mapping[str, Scores]) -> str:
    """Between which correlations of estimates a default belongs, by this checkpoint."""
    field, score = "min_correlation", EnsembleSpread.scores[1]
    kept = ", ".join(f"{np.nanquantile(found[score], REJECT):.3f} ({name})" for name, found in clean.items())
    found = ", ".join(f"{np.nanquantile(spoilt[name][score], 1 - MISSED):.3f} ({name})" for name in UNREADABLE)
    return (
        f"{field}: {percent(REJECT)} of clean images lie below {kept}; {percent(1 - MISSED)} of those that nobody "
        f"can read lie below {found}; the default is {EnsembleSpread.model_fields[field].default:g}."
    )


def separation_table(rule: SelfConsistency, rows: Sequence[tuple[str, Separation]]) -> str:
    """ROC AUC by each score, and what the filter rejects at its defaults, in Markdown."""
    lines = ["| score | wrong | ROC AUC | rejected of right | rejected of wrong |", "|---|---|---:|---:|---:|"]
    for wrong, separation in rows:
        shares = " | ".join(percent(share) for share in separation.rejected(rule))
        lines += [f"| {name} | {wrong} | {separation.auc(name):.3f} | {shares} |" for name in rule.scores]
    return "\n".join(lines)


def _batches(pipe: JointDiTPipeline, samples: Sequence[SampleResult]) -> list[ScoredBatch]:
    return [ScoredBatch(samples[start : start + BATCH], pipe, None) for start in range(0, len(samples), BATCH)]


def _result(seed: int, prompt: str, rgb: NDArray[np.uint8], disparity: NDArray[np.float32]) -> SampleResult:
    row = Row(str(seed), "held-out scenes", seed, prompt=prompt)
    return SampleResult(Sample(f"{seed}/0", row, 0, 0, seed), rgb=rgb, disparity=disparity)


def _clock(pipe: JointDiTPipeline) -> float:
    """Seconds: of the processor, which others on the machine do not change; on a GPU of the wall."""
    return time.process_time() if pipe.device.type == "cpu" else time.perf_counter()


if __name__ == "__main__":
    typer.run(measure_scores)

"""How well scores of the job's model find faults: `python -m jobs.tools.measure_scores`.

Self-consistency is measured on rendered scenes, exact depth against planted faults, and on joint samples of a
checkpoint, right pairs against the same images with the depth of others or with inverted depth. The spread of an
ensemble is measured on images of scenes against faulty ones. Costs are CPU time, on a GPU wall time. The command writes
its tables and their image to pipelines/quality. measure_critics.py measures scores of external models.

Run it again when the checkpoint changes. Apart from times, the same checkpoint, sizes and machine give the same table.
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
from jobs.tools.filtering.faults import STYLES, Pair, pair_of
from jobs.tools.filtering.recall import result_of
from jobs.tools.filtering.tables import README, percent, write_section
from jobs.tools.scoring.model_faults import DEPTH_FAULTS, IMAGE_FAULTS, planted
from jobs.tools.scoring.separation import REJECT, Scores, Separation, calibrated, columns, rates_table
from jobs.tools.scoring.sheet import CANDIDATES, Inspect, Rgb, depth_images, examples, save_examples
from jointdit.evaluation.scenes import held_out_scenes
from jointdit.geometry.depth import disparity_from_depth
from pipelines.quality.ensemble_spread import EnsembleSpread
from pipelines.quality.model_scored import ScoredBatch
from pipelines.quality.self_consistency import SelfConsistency
from pipelines.records import Row, Sample, SampleResult

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
    from jointdit.scenes import Scene

BATCH = 8
OTHERS = 5  # depth maps of other samples that each image is paired with
CAPTIONS_AFTER = 1000  # first held-out scene whose caption is used
CALIBRATED_AFTER = 3000  # first held-out scene of the calibration
MISSED = 0.05  # share of faulty images that a default may miss
UNREADABLE = ("pure noise", "tiles in disorder")  # faults that the spread of an ensemble must find


class WrongPairs(NamedTuple):
    """Right pairs against images with the depth of others, and with inverted depth."""

    swapped: Separation
    inverted: Separation


def measure_scores(
    samples: Annotated[int, typer.Option("-n", "--samples", min=8, help="Number of joint samples.")] = 80,
    scenes: Annotated[int, typer.Option(min=8, help="Number of rendered scenes with exact depth.")] = 500,
    images: Annotated[int, typer.Option(min=8, help="Number of images of each kind for the ensemble.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps of the joint samples.")] = 20,
    estimate_steps: Annotated[int, typer.Option(min=1, help="Sampling steps of the estimates.")] = 4,
    model: Annotated[str, typer.Option(help="The checkpoint: tiny, a folder or a hub name.")] = "tiny",
    readme: Annotated[Path, typer.Option(help="The Markdown file to write; scores.png goes beside it.")] = README,
) -> None:
    """Measure self-consistency and the spread of an ensemble and write them to the README."""
    import torch

    from pipelines.model.loading import load_pipeline
    from pipelines.spec.job import ModelSpec

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(ModelSpec(name=model), device)
    rule, spread = SelfConsistency(steps=estimate_steps), EnsembleSpread(steps=estimate_steps)
    generated, making = make_joint_samples(pipe, samples, steps)
    pairs, scoring = separate_pairs(rule, pipe, generated)
    exact = exact_table(rule, pipe, scenes)
    spread_text, spreading = spread_table(spread, pipe, images)
    text = "\n\n".join(
        [
            f"Measured with {model} by `python -m jobs.tools.measure_scores -n {samples} --scenes {scenes} --images "
            f"{images} --steps {steps} --estimate-steps {estimate_steps}`; estimates take {estimate_steps} steps. "
            f"Calibrated: each threshold rejects {percent(REJECT)} of other clean scenes, half as many.",
            exact,
            f"On {samples} joint samples of the checkpoint, {steps} steps, at the defaults:",
            separation_table(
                rule,
                [(f"depth of {OTHERS} other samples", pairs.swapped), ("1 - disparity", pairs.inverted)],
            ),
            spread_text,
            f"A joint sample of {steps} steps took {making:.2f} s of {'GPU' if device == 'cuda' else 'CPU'} time. "
            f"Self-consistency took another {scoring:.2f} s, {1 + scoring / making:.2f} times the time in total; an "
            f"ensemble of {spread.estimates} another {spreading:.2f} s, {1 + spreading / making:.2f} times.",
        ]
    )
    for line in text.splitlines():
        say(line)
    write_section(readme, "scores", text)
    say(f"{readme} and {save_sheet(readme.with_name('scores.png'), rule, spread, pipe).name}")


def save_sheet(path: Path, rule: SelfConsistency, spread: EnsembleSpread, pipe: JointDiTPipeline) -> Path:
    """Save the sheet of rejected samples: image, depth and estimate; image and two estimates."""
    scenes = held_out_scenes(CANDIDATES, pipe.config.default_width, pipe.config.default_height)

    def inspect_by(rule: SelfConsistency | EnsembleSpread) -> Inspect:
        score = rule.load("cpu")

        def inspect(pairs: Sequence[Pair]) -> list[tuple[dict[str, float], tuple[Rgb, ...]]]:
            inspected = []
            for batch in _batches(pipe, [result_of(pair) for pair in pairs]):
                first = batch.disparities() if rule is not spread else batch.estimate(1, rule.steps)
                maps = zip(score(batch), batch.images(), first, batch.estimate(0, rule.steps), strict=True)
                inspected += [(scores, (rgb, *depth_images(*both))) for scores, rgb, *both in maps]
            return inspected

        return inspect

    rows = [
        examples(rule, inspect_by(rule), DEPTH_FAULTS, scenes),
        examples(spread, inspect_by(spread), IMAGE_FAULTS, scenes),
    ]
    return save_examples(path, rows)


def make_joint_samples(pipe: JointDiTPipeline, count: int, steps: int) -> tuple[list[SampleResult], float]:
    """Return joint samples of held-out captions with seeds 0, 1, ..., and the seconds per sample."""
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
    """Return scenes as samples with exact depth."""
    return [_result(scene.seed, scene.caption, scene.rgb, disparity_from_depth(scene.depth)) for scene in scenes]


def separate_pairs(
    rule: SelfConsistency, pipe: JointDiTPipeline, samples: Sequence[SampleResult]
) -> tuple[WrongPairs, float]:
    """Return right pairs against the same images with other depth, and the seconds of scoring per sample."""
    started = _clock(pipe)
    batches = _batches(pipe, samples)
    score = rule.load("cpu")
    right = columns([scores for batch in batches for scores in score(batch)], rule.scores)
    seconds = (_clock(pipe) - started) / len(samples)
    estimates = [estimate for batch in batches for estimate in batch.estimate(0, rule.steps)]
    disparities = [disparity for batch in batches for disparity in batch.disparities()]
    others = [[*disparities[shift:], *disparities[:shift]] for shift in range(1, OTHERS + 1)]
    swapped = [scores for maps in others for scores in rule.compare(estimates, maps)]
    inverted = rule.compare(estimates, [1 - disparity for disparity in disparities])
    wrong = (Separation(right, columns(scores, rule.scores)) for scores in (swapped, inverted))
    return WrongPairs(*wrong), seconds


def exact_table(rule: SelfConsistency, pipe: JointDiTPipeline, count: int) -> str:
    """Return the table of self-consistency on exact depth and on planted faults."""
    size = pipe.config.default_width, pipe.config.default_height
    scenes, more = held_out_scenes(count, *size), held_out_scenes(count // 2, *size, skip=CALIBRATED_AFTER)
    estimates = estimates_of(rule, pipe, as_results(scenes))

    def compared(estimates: Sequence[NDArray[np.float32]], maps: Sequence[NDArray[np.float32]]) -> Scores:
        return columns(rule.compare(estimates, maps), rule.scores)

    clean = compared(estimates, [pair_of(scene).disparity for scene in scenes])
    faulty = {
        name: compared(estimates, [pair.disparity for pair in pairs]) for name, pairs in planted(DEPTH_FAULTS, scenes)
    }
    again = compared(estimates_of(rule, pipe, as_results(more)), [pair_of(scene).disparity for scene in more])
    return rates_table(rule, {"as rendered": clean}, faulty, calibrated(rule, again))


def estimates_of(
    rule: SelfConsistency, pipe: JointDiTPipeline, samples: Sequence[SampleResult]
) -> list[NDArray[np.float32]]:
    """Return the estimates that self-consistency compares with the samples' disparity."""
    return [estimate for batch in _batches(pipe, samples) for estimate in batch.estimate(0, rule.steps)]


def spread_table(rule: EnsembleSpread, pipe: JointDiTPipeline, count: int) -> tuple[str, float]:
    """Return the table of the ensemble's spread on clean and faulty images, and the seconds per sample."""
    size = pipe.config.default_width, pipe.config.default_height
    scenes, more = held_out_scenes(count, *size), held_out_scenes(count // 2, *size, skip=CALIBRATED_AFTER)
    score = rule.load("cpu")

    def scores_of(samples: Sequence[SampleResult]) -> Scores:
        return columns([scores for batch in _batches(pipe, samples) for scores in score(batch)], rule.scores)

    started = _clock(pipe)
    again = scores_of(as_results(more))
    seconds = (_clock(pipe) - started) / len(more)
    drawn = {name: as_results([STYLES[name](scene) for scene in scenes]) for name in ("as rendered", "toon")}
    clean = {name: scores_of(samples) for name, samples in drawn.items()}
    faulty = {name: scores_of([result_of(pair) for pair in pairs]) for name, pairs in planted(IMAGE_FAULTS, scenes)}
    return f"{rates_table(rule, clean, faulty, calibrated(rule, again))}\n\n{between(clean, faulty)}", seconds


def between(clean: Mapping[str, Scores], faulty: Mapping[str, Scores]) -> str:
    """Describe the range for the default of min_correlation, by this checkpoint."""
    field, score = "min_correlation", EnsembleSpread.scores[1]
    kept = ", ".join(f"{np.nanquantile(scores[score], REJECT):.3f} ({name})" for name, scores in clean.items())
    rejected = ", ".join(f"{np.nanquantile(faulty[name][score], 1 - MISSED):.3f} ({name})" for name in UNREADABLE)
    return (
        f"{field}: {percent(REJECT)} of clean images lie below {kept}; {percent(1 - MISSED)} of unreadable "
        f"images lie below {rejected}; the default is {EnsembleSpread.model_fields[field].default:g}."
    )


def separation_table(rule: SelfConsistency, rows: Sequence[tuple[str, Separation]]) -> str:
    """Return the table of ROC AUC by score and of rejected shares at the defaults."""
    lines = ["| score | wrong depth | ROC AUC | rejected of right | rejected of wrong |", "|---|---|---:|---:|---:|"]
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
    """Return CPU seconds, which other processes do not affect; on a GPU wall seconds."""
    return time.process_time() if pipe.device.type == "cpu" else time.perf_counter()


if __name__ == "__main__":
    typer.run(measure_scores)

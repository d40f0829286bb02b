"""How well scores that cost a model tell right from wrong: `python -m jobs.measure_scores` writes it into the docs.

Self-consistency is measured on joint samples of a checkpoint, right pairs against the same pictures with the depth of
others, and on rendered scenes, exact depth against that of others; both against inverted depth. The spread of an
ensemble is measured on pictures with something to see against noise. What they cost is processor time of the run
itself (on a GPU: its time). Text agreement and the depth critic need weights that this package does not hold.

To be run again when the checkpoint changes; the same checkpoint, sizes and machine give the same table, but for time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from jobs.report import say
from jointdit.depth import disparity_from_depth
from jointdit.evaluation.scenes import held_out_scenes
from pipelines.quality.ensemble_spread import EnsembleSpread
from pipelines.quality.model_scored import ModelScored, ScoredBatch
from pipelines.quality.self_consistency import SelfConsistency
from pipelines.records import Row, Sample, SampleResult

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline
    from jointdit.scenes import Scene

README = Path(__file__).parents[1] / "pipelines" / "quality" / "README.md"
BEGIN, END = "<!-- scores: begin -->", "<!-- scores: end -->"
BATCH = 8
OTHERS = 5  # a picture is paired with the depth of so many others
CAPTIONS_AFTER = 1000  # held-out scenes between those whose pictures and those whose captions are used
HIGHER_IS_BETTER = ("delta1", "correlation")  # ends of names of scores
Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Separation:
    """Two sets of scores that a filter is to tell apart, by the names of its scores."""

    right: Scores
    wrong: Scores

    def auc(self, score: str) -> float:
        """ROC AUC: how often a wrong sample scores worse than a right one; 0.5 says nothing, 1 never errs."""
        right, wrong = self.right[score], self.wrong[score]
        return roc_auc(wrong, right) if score.endswith(HIGHER_IS_BETTER) else roc_auc(right, wrong)

    def rejected(self, rule: ModelScored) -> tuple[float, float]:
        """Shares of right and of wrong samples that a filter rejects."""
        return _rejected(rule, self.right), _rejected(rule, self.wrong)


class WrongPairs(NamedTuple):
    """Right pairs against pictures with the depth of others, and with their own turned inside out."""

    swapped: Separation
    inverted: Separation


def measure_scores(
    samples: Annotated[int, typer.Option("-n", "--samples", min=8, help="Joint samples.")] = 96,
    scenes: Annotated[int, typer.Option(min=8, help="Rendered scenes with exact depth.")] = 96,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the joint samples.")] = 20,
    estimate_steps: Annotated[int, typer.Option(min=1, help="Steps of the estimates.")] = 4,
    model: Annotated[str, typer.Option(help="tiny, a checkpoint folder or a hub name.")] = "tiny",
    readme: Annotated[Path, typer.Option(help="The Markdown file with the markers.")] = README,
) -> None:
    """Measure self-consistency and the spread of an ensemble and write them into the documentation."""
    import torch

    from pipelines.model import load_pipeline
    from pipelines.spec import ModelSpec

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(ModelSpec(name=model), device)
    rule, spread = SelfConsistency(steps=estimate_steps), EnsembleSpread(steps=estimate_steps)
    rendered = held_out_scenes(scenes, pipe.config.default_width, pipe.config.default_height)
    made, making = make_joint_samples(pipe, samples, steps)
    generated, scoring = separate_pairs(rule, pipe, made)
    exact, _ = separate_pairs(rule, pipe, as_results(rendered))
    looked_at = as_results(rendered[: max(8, scenes // 4)])  # an ensemble takes several times as long
    unsure, spreading = separate_from_noise(spread, pipe, looked_at)
    rows = [
        (
            "self_consistency",
            f"{samples} joint samples, {steps} steps",
            f"depth of {OTHERS} other samples",
            generated.swapped,
        ),
        ("self_consistency", f"{samples} joint samples, {steps} steps", "1 - disparity", generated.inverted),
        ("self_consistency", f"{scenes} scenes, exact depth", f"depth of {OTHERS} other scenes", exact.swapped),
        ("self_consistency", f"{scenes} scenes, exact depth", "1 - disparity", exact.inverted),
        ("ensemble_spread", f"{len(looked_at)} scenes' pictures", "pictures of noise", unsure),
    ]
    text = "\n\n".join(
        [
            f"Measured with {model} by `python -m jobs.measure_scores -n {samples} --scenes {scenes} --steps {steps} "
            f"--estimate-steps {estimate_steps}`; estimates take {estimate_steps} steps.",
            separation_table(rows, {"self_consistency": rule, "ensemble_spread": spread}),
            f"A joint sample of {steps} steps took {making:.2f} s of {'GPU' if device == 'cuda' else 'processor'} "
            f"time, its self-consistency {scoring:.2f} s more: {1 + scoring / making:.2f} times as long with it as "
            f"without. An ensemble of {spread.estimates} took {spreading:.2f} s: {1 + spreading / making:.2f} times.",
        ]
    )
    for line in text.splitlines():
        say(line)
    write_section(readme, text)


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
    """Right pairs against the same pictures with other depth; the seconds that scoring a sample took."""
    started = _clock(pipe)
    batches = [ScoredBatch(samples[start : start + BATCH], pipe, 3.5) for start in range(0, len(samples), BATCH)]
    score = rule.load("cpu")
    right = _columns([scores for batch in batches for scores in score(batch)])
    seconds = (_clock(pipe) - started) / len(samples)
    estimates = [found for batch in batches for found in batch.estimate(0, rule.steps)]
    disparities = [found for batch in batches for found in batch.disparities()]
    others = [[*disparities[shift:], *disparities[:shift]] for shift in range(1, OTHERS + 1)]
    swapped = [scores for maps in others for scores in rule.compare(estimates, maps)]
    inverted = rule.compare(estimates, [1 - disparity for disparity in disparities])
    return WrongPairs(Separation(right, _columns(swapped)), Separation(right, _columns(inverted))), seconds


def separate_from_noise(
    rule: EnsembleSpread, pipe: JointDiTPipeline, samples: Sequence[SampleResult]
) -> tuple[Separation, float]:
    """Pictures against uniform noise of their size; the seconds that scoring a sample took."""
    score, sets = rule.load("cpu"), []
    rng = np.random.default_rng(0)
    noise = [_noise(each, rng) for each in samples]
    started = _clock(pipe)
    for pictures in (samples, noise):
        batches = (ScoredBatch(pictures[start : start + BATCH], pipe, 3.5) for start in range(0, len(samples), BATCH))
        sets.append(_columns([scores for batch in batches for scores in score(batch)]))
    return Separation(*sets), (_clock(pipe) - started) / (2 * len(samples))


def roc_auc(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    """The share of pairs in which a value of `high` exceeds one of `low`, ties counting half."""
    above, below = high[:, None], low[None, :]
    return float(np.mean((above > below) + 0.5 * (above == below)))


def separation_table(
    rows: Sequence[tuple[str, str, str, Separation]], rules: dict[str, SelfConsistency | EnsembleSpread]
) -> str:
    """AUC by each score, and what the filter rejects at its defaults, in Markdown."""
    lines = ["| score | right | wrong | ROC AUC | rejected of right | rejected of wrong |", "|---|---|---|---|---|---|"]
    for kind, right, wrong, separation in rows:
        false, recall = separation.rejected(rules[kind])
        for name in rules[kind].scores:
            lines.append(f"| {name} | {right} | {wrong} | {separation.auc(name):.3f} | {false:.0%} | {recall:.0%} |")
    return "\n".join(lines)


def write_section(path: Path, text: str) -> None:
    """Put a text between the markers of a Markdown file, at its end where it has none."""
    document = path.read_text() if path.exists() else ""
    if BEGIN not in document:
        document = f"{document.rstrip()}\n\n## Scores that cost a model\n\n{BEGIN}\n{END}\n".lstrip()
    before, rest = document.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}")


def _result(seed: int, prompt: str, rgb: NDArray[np.uint8], disparity: NDArray[np.float32]) -> SampleResult:
    row = Row(str(seed), "held-out scenes", seed, prompt=prompt)
    return SampleResult(Sample(f"{seed}/0", row, 0, 0, seed), rgb=rgb, disparity=disparity)


def _noise(result: SampleResult, rng: np.random.Generator) -> SampleResult:
    assert result.rgb is not None
    rgb = rng.integers(0, 256, result.rgb.shape, dtype=np.uint8)
    return SampleResult(result.sample, rgb=rgb, disparity=result.disparity)


def _columns(found: Sequence[dict[str, float]]) -> Scores:
    """Scores by name, (N,); samples that have none are left out."""
    whole = [scores for scores in found if scores]
    return {name: np.array([scores[name] for scores in whole]) for name in whole[0]}


def _rejected(rule: ModelScored, scores: Scores) -> float:
    rows = [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
    return float(np.mean([rule.reject(row) is not None for row in rows]))


def _clock(pipe: JointDiTPipeline) -> float:
    """Seconds: of the processor, which others on the machine do not change; on a GPU of the wall."""
    return time.process_time() if pipe.device.type == "cpu" else time.perf_counter()


if __name__ == "__main__":
    typer.run(measure_scores)

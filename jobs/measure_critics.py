"""How well scores of other people's models tell right from wrong: `python -m jobs.measure_critics` writes it down.

text_agreement, depth_critic and metric_fit look through models of transformers. Big ones cannot ship with a package, so
small ones of the real classes are fitted to rendered scenes first (jobs/scoring/critics.py), saved, and loaded as any
model is. Then faults are planted in other scenes. The tables show that filter, score and threshold work; a big critic
sees photographs and has other figures.

The same sizes give the same table on one machine, but for time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import torch
import typer

from jobs.filtering.faults import HANDS, Fault, Pair, pair_of
from jobs.filtering.recall import result_of
from jobs.report import say
from jobs.scoring.critics import SIDE, fit_depth_critic, fit_text_critic
from jobs.scoring.separation import Scores, calibrated, columns, rates_table, write_section
from jobs.scoring.spoilt import CAPTION_FAULTS, DEPTH_FAULTS, planted
from jointdit.scenes import Scene, render_scene
from jointdit.training.data import HELD_OUT_SEED
from pipelines.metres import load_calibrator
from pipelines.quality import Filter, Scorer
from pipelines.quality.depth_critic import DepthCritic
from pipelines.quality.metric_fit import MetricFit
from pipelines.quality.model_scored import ScoredBatch
from pipelines.quality.text_agreement import TextAgreement
from pipelines.spec_sections import CalibrateSpec

README = Path(__file__).parents[1] / "pipelines" / "quality" / "README.md"
FITTED_SEED = HELD_OUT_SEED + 3_000_000  # scenes that the critics are fitted to
FIRST_SEED = HELD_OUT_SEED + 4_000_000  # scenes that they are measured on
REJECT = 0.02  # of clean samples, by each threshold that is calibrated


class Critic(NamedTuple):
    """A filter, what measures its scores, and the faults it is to find."""

    rule: Filter
    score: Scorer
    faults: Sequence[Fault]


def measure_critics(
    count: Annotated[int, typer.Option("-n", "--count", min=2, help="Scenes that give the rates.")] = 500,
    fitted: Annotated[int, typer.Option(min=32, help="Scenes that the critics are fitted to.")] = 1500,
    depth_steps: Annotated[int, typer.Option(min=1, help="Steps of the depth critic's fit.")] = 500,
    text_steps: Annotated[int, typer.Option(min=1, help="Steps of the text critic's fit.")] = 400,
    readme: Annotated[Path, typer.Option(help="The Markdown file with the markers.")] = README,
) -> None:
    """Fit small critics to scenes, measure their filters on planted faults, and write it into the documentation."""
    torch.set_num_threads(1)  # so that the same sizes give the same critics
    with TemporaryDirectory() as folder:
        started = time.process_time()
        examples = [render_scene(FITTED_SEED + number, SIDE, SIDE) for number in range(fitted)]
        depth = fit_depth_critic(Path(folder, "glpn"), examples, depth_steps)
        text = fit_text_critic(Path(folder, "clip"), examples, text_steps)
        fitting = time.process_time() - started
        parts = [
            f"Measured by `python -m jobs.measure_critics -n {count} --fitted {fitted} --depth-steps {depth_steps} "
            f"--text-steps {text_steps}`, on {count} scenes of {SIDE} x {SIDE} pixels with exact depth. Critics: "
            f"a GLPN of {millions(depth)} and a CLIP of {millions(text)} parameters, fitted to {fitted} other scenes "
            f"in {fitting:.0f} s of one core. Calibrated: each threshold where it rejects {REJECT:.0%} of {count // 2} "
            "further clean scenes."
        ]
        half = [render_scene(FIRST_SEED + number, SIDE, SIDE) for number in range(count // 2)]
        tested = [render_scene(FIRST_SEED + len(half) + number, SIDE, SIDE) for number in range(count)]
        parts += [measured(critic, half, tested) for critic in critics_of(depth, text)]
    written = "\n\n".join(parts)
    for line in written.splitlines():
        say(line)
    write_section(readme, "critics", written)


def critics_of(depth: Path, text: Path) -> Iterator[Critic]:
    """The filters that look through models, each with its own loaded from a folder."""
    by_text, by_depth = TextAgreement(model=str(text)), DepthCritic(model=str(depth))
    yield Critic(by_text, by_text.load("cpu"), CAPTION_FAULTS)
    yield Critic(by_depth, by_depth.load("cpu"), DEPTH_FAULTS)
    yield Critic(MetricFit(), load_calibrator(CalibrateSpec(model=str(depth)), "cpu"), DEPTH_FAULTS)


def measured(critic: Critic, half: Sequence[Scene], tested: Sequence[Scene]) -> str:
    """The table of one critic, calibrated on half of the scenes, and what it costs."""
    scored_pairs, started = 0, time.process_time()

    def scores_of(pairs: Sequence[Pair]) -> Scores:
        nonlocal scored_pairs
        scored_pairs += len(pairs)
        return columns(critic.score(ScoredBatch([result_of(pair) for pair in pairs], None, 1.0)), critic.rule.scores)

    tuned = calibrated(critic.rule, scores_of([pair_of(scene) for scene in half]), REJECT)
    clean = {name: scores_of([pair_of(drawn(scene)) for scene in tested]) for name, drawn in HANDS.items()}
    spoilt: Mapping[str, Scores] = {name: scores_of(pairs) for name, pairs in planted(critic.faults, tested)}
    seconds = (time.process_time() - started) / scored_pairs
    return f"{rates_table(critic.rule, clean, spoilt, tuned)} A sample took {seconds * 1e3:.0f} ms of one core."


def millions(folder: Path) -> str:
    """The parameters of a float32 checkpoint, by the size of its files."""
    return f"{sum(path.stat().st_size for path in folder.glob('*.safetensors')) / 4e6:.2f} M"


if __name__ == "__main__":
    typer.run(measure_critics)

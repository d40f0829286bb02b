"""Depth with few sampling steps, a cached image half or a cached text: error and time.

The tiny checkpoint on held-out scenes, beside 20 steps. Each batch runs with all settings, so it gives one ratio of
times per setting. Errors are over all scenes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.tools.bench.frame import Line, Reach, Settings, Side, Spread, Turn, alternate, timed
from jobs.tools.bench.networks import check_equal, use_all_cores
from jointdit.evaluation.scenes import held_out_scenes, score_depth
from jointdit.scenes import Scene

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline

BATCH = 8
ERROR_LIMIT = 1.02  # AbsRel relative to the reference
SCENES = 64


class Sampling(NamedTuple):
    """Sampling settings."""

    steps: int
    condition_refresh: int = 1

    def __str__(self) -> str:
        refresh = f", condition_refresh {self.condition_refresh}" if self.condition_refresh > 1 else ""
        return f"{self.steps} step{'s' if self.steps > 1 else ''}{refresh}"


REFERENCE = Sampling(20)
SAMPLINGS = [Sampling(1), Sampling(2), Sampling(2, 2), Sampling(4), Sampling(4, 2), Sampling(4, 4)]
SAMPLINGS += [Sampling(8), Sampling(8, 2), Sampling(8, 8), Sampling(20, 2), Sampling(20, 5), Sampling(20, 20)]


def measure(settings: Settings) -> Iterator[Line]:
    """Yield one line per setting, and one for the fastest with an error near that of 20 steps."""
    from jointdit import JointDiTPipeline

    cores = use_all_cores(settings.quick)
    pipe = JointDiTPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    pipe.keep_texts(1)
    scenes = held_out_scenes(1 if settings.quick else SCENES)
    samplings = [Sampling(2), Sampling(2, 2)] if settings.quick else SAMPLINGS
    seconds, maps = _run(pipe, scenes, [*samplings, REFERENCE])
    errors = {sampling: score_depth(predicted, scenes).abs_rel for sampling, predicted in maps.items()}
    lines = {sampling: _line(sampling, seconds, errors, len(scenes)) for sampling in samplings}
    yield from lines.values()
    near = [sampling for sampling in samplings if errors[sampling] <= ERROR_LIMIT * errors[REFERENCE]]
    best = max(near, key=lambda sampling: lines[sampling].figure.median, default=None)
    how = f"{len(scenes)} held-out scenes, batches of {BATCH}, float32, {cores} threads, from images to disparity"
    if best is None:
        nan, what = Spread.of([float("nan")]), "no setting has an AbsRel within 2 %"
        yield Line(what, "s a map", nan, nan, reach=Reach("at least", 5), notes=(how,))
        return
    what = f"the fastest with an AbsRel within 2 %: {best}"
    yield replace(lines[best], what=what, reach=Reach("at least", 5), notes=(how,))


def _run(
    pipe: JointDiTPipeline, scenes: Sequence[Scene], samplings: Sequence[Sampling]
) -> tuple[dict[Sampling, list[float]], dict[Sampling, list[NDArray[np.float32]]]]:
    """Return seconds per map of each batch, and the maps (H, W) of all scenes, by setting."""
    seconds: dict[Sampling, list[float]] = {sampling: [] for sampling in samplings}
    maps: dict[Sampling, list[NDArray[np.float32]]] = {sampling: [] for sampling in samplings}
    for number, start in enumerate(range(0, len(scenes), BATCH)):
        images = [scene.rgb for scene in scenes[start : start + BATCH]]
        seeds = list(range(start, start + len(images)))
        if number == 0 and len(scenes) > BATCH:
            pipe(image=images, task="depth", seeds=seeds, num_inference_steps=1)  # the first call allocates buffers
        for sampling in samplings if number % 2 == 0 else reversed(samplings):
            started = time.perf_counter()
            output = pipe(
                image=images,
                task="depth",
                seeds=seeds,
                num_inference_steps=sampling.steps,
                condition_refresh=sampling.condition_refresh,
            )
            took = time.perf_counter() - started
            seconds[sampling].append(took / len(images))
            maps[sampling] += list(output.disparity)
    return seconds, maps


def _line(sampling: Sampling, seconds: dict[Sampling, list[float]], errors: dict[Sampling, float], scenes: int) -> Line:
    """Return the line of the speed-up over the reference, named with the error."""
    faster = [theirs / ours for ours, theirs in zip(seconds[sampling], seconds[REFERENCE], strict=True)]
    relative = errors[sampling] / errors[REFERENCE]
    return Line(
        f"{sampling}: AbsRel {errors[sampling]:.4f}, {relative:.3f} of {REFERENCE}'",
        "s a map",
        Spread.of(seconds[sampling]),
        Spread.of(faster),
        Spread.of(seconds[REFERENCE]),
        work={"scenes": scenes, "steps": sampling.steps, "condition_refresh": sampling.condition_refresh},
    )


def measure_text(settings: Settings) -> Iterator[Line]:
    """Yield one line per number of steps: the ratio of the times with and without the cache."""
    from jointdit import JointDiTPipeline

    cores = use_all_cores(settings.quick)
    cached, encoding = (JointDiTPipeline.from_pretrained("tiny") for _ in range(2))
    for pipe in (cached, encoding):
        pipe.set_progress_bar_config(disable=True)
    cached.keep_texts(1)
    images = [scene.rgb for scene in held_out_scenes(1 if settings.quick else BATCH)]
    for steps in (1,) if settings.quick else (1, 4):
        maps = [_depth(pipe, images, steps) for pipe in (cached, encoding)]
        check_equal("the disparity", *map(torch.from_numpy, maps))
        turns = alternate(
            _text_side(cached, images, steps),
            _text_side(encoding, images, steps),
            pairs=2 if settings.quick else 15,
            seconds=settings.seconds / 2,
            warm_up=False,
        )
        what = f"depth of {len(images)} images, {steps} step{'s' if steps > 1 else ''}, tiny"
        note = f"so encoding takes {1 - turns.ratio.median:.1%} of the call; {cores} threads"
        yield turns.line(what, "s", None, [note])


def _depth(pipe: JointDiTPipeline, images: list, steps: int):  # type: ignore[no-untyped-def, type-arg]
    seeds = list(range(len(images)))
    return pipe(image=images, task="depth", seeds=seeds, num_inference_steps=steps).disparity


def _text_side(pipe: JointDiTPipeline, images: list, steps: int) -> Side:  # type: ignore[type-arg]
    def side() -> Turn:
        seconds, disparity = timed(lambda: _depth(pipe, images, steps))
        return Turn(seconds, {"maps": len(disparity)})

    return side

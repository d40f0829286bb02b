"""Depth of a batch with cached embeddings of the empty prompt, beside encoding the prompt again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.tools.bench.frame import Line, Settings, Side, Turn, alternate, timed
from jobs.tools.bench.networks import check_equal, use_all_cores
from jointdit.evaluation.scenes import held_out_scenes

if TYPE_CHECKING:
    from jointdit import JointDiTPipeline

BATCH = 8


def measure(settings: Settings) -> Iterator[Line]:
    """Yield one line per number of steps: the ratio of the times with and without the cache."""
    import torch

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
            _side(cached, images, steps),
            _side(encoding, images, steps),
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


def _side(pipe: JointDiTPipeline, images: list, steps: int) -> Side:  # type: ignore[type-arg]
    def side() -> Turn:
        seconds, disparity = timed(lambda: _depth(pipe, images, steps))
        return Turn(seconds, {"maps": len(disparity)})

    return side

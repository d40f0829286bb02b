"""Scores of clean and spoilt samples, and what the filters make of them: recall, false alarms, where thresholds lie.

Scenes alternate between two halves: thresholds are looked for on the calibration half alone, and rates are told of the
other alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jobs.tools.filtering.faults import FAULTS, HANDS, Pair, pair_of, stored
from jointdit.scenes import Scene, render_scene
from pipelines.quality import PIXEL_FILTERS, Filter, decide, load_filters, measure
from pipelines.records import Row, Sample, SampleResult


class Measured(NamedTuple):
    """Scores and caption of one sample: all that a filter decides by."""

    scores: Mapping[str, float]
    caption: str


Samples = dict[str, list[Measured]]  # by the name of a fault or of a hand; position i is of scene i

DEFAULTS: dict[str, Filter] = {kind: load_filters([{"kind": kind}])[0] for kind in PIXEL_FILTERS}


def result_of(pair: Pair) -> SampleResult:
    """A pair as it stands when finish scores it."""
    row = Row("scene", "scenes", 0, prompt=pair.caption)
    return SampleResult(Sample("scene/0", row, 0, 0, 0), rgb=pair.rgb, disparity=pair.disparity)


def measured(pair: Pair) -> Measured:
    """A pair's scores."""
    return Measured(measure(result_of(pair)), pair.caption)


def spoilt(scene: Scene, other: Scene) -> Iterator[tuple[str, Pair]]:
    """(name, pair) for every hand and every fault of a scene; a swapped map is the other scene's."""
    for name, drawn in HANDS.items():
        yield name, stored(pair_of(drawn(scene)))
    for number, fault in enumerate(FAULTS):
        rng = np.random.default_rng([scene.seed, number])
        yield fault.name, fault.plant(pair_of(scene), pair_of(other), rng)


def measure_scenes(first_seed: int, count: int, size: int, samples: Samples) -> Iterator[int]:
    """Score `count` scenes of size x size pixels into `samples`, yielding after each."""
    previous = render_scene(first_seed + count, size, size)
    for number in range(count):
        scene = render_scene(first_seed + number, size, size)
        for name, pair in spoilt(scene, previous):
            samples.setdefault(name, []).append(measured(pair))
        previous = scene
        yield number


def tested(samples: Sequence[Measured]) -> Sequence[Measured]:
    """The half that rates are told of."""
    return samples[1::2]


def rejected_share(samples: Sequence[Measured], kinds: Sequence[str] = tuple(PIXEL_FILTERS)) -> float:
    """The share that one of these filters rejects, at its default thresholds."""
    filters = [DEFAULTS[kind] for kind in kinds]
    return float(np.mean([bool(decide(filters, *sample)) for sample in samples]))


@dataclass(frozen=True)
class Threshold:
    """A threshold, the score it is on, and the fault it is for. Names that begin with min reject what lies below."""

    kind: str
    field: str
    score: str
    fault: str

    @property
    def default(self) -> float:
        """As the filter has it."""
        return float(getattr(DEFAULTS[self.kind], self.field))

    def between(self, samples: Samples) -> tuple[float, float]:
        """(the worst but 0.5 % of clean samples, the mildest but 5 % of faults), on the calibration half."""
        low = self.field.startswith("min")
        clean = [s.scores[self.score] for name in HANDS if name != "pixel art" for s in samples[name][::2]]
        fault = [s.scores[self.score] for s in samples[self.fault][::2]]
        return float(np.quantile(clean, 0.005 if low else 0.995)), float(np.quantile(fault, 0.95 if low else 0.05))


THRESHOLDS: tuple[Threshold, ...] = (
    Threshold("depth_range", "min_span", "depth_span", "constant depth"),
    Threshold("flat_depth", "max_flat", "depth_flat_fraction", "almost flat depth"),
    Threshold("saturated", "max_near", "depth_near_saturated_fraction", "cut-off depth"),
    Threshold("flying_pixels", "max_flying", "flying_pixel_fraction", "blurred depth"),
    Threshold("planarity", "max_roughness", "depth_roughness", "rough depth"),
    Threshold("planarity", "max_specks", "depth_speck_fraction", "salted depth"),
    Threshold("planarity", "min_distinct", "depth_distinct_fraction", "depth banded to 8 bit"),
    Threshold("upright", "min_correlation", "depth_ground_correlation", "inverted depth"),
    Threshold("edge_alignment", "min_alignment", "edge_alignment", "swapped depth"),
    Threshold("edge_alignment", "min_peak", "edge_peak", "shifted depth"),
    Threshold("blank_picture", "min_span", "rgb_span", "blank image"),
    Threshold("noisy_picture", "max_noise", "rgb_noise", "noisy image"),
    Threshold("clipped_picture", "max_clipped", "rgb_clipped_fraction", "clipped image"),
    Threshold("caption", "min_characters", "caption_characters", "no caption"),
    Threshold("caption", "min_letters", "caption_letter_fraction", "caption without letters"),
    Threshold("caption", "max_words", "caption_words", "endless caption"),
)

"""Scores of clean and faulty samples: recall, false alarms, and the range for each threshold.

Scenes alternate between two halves. Thresholds are chosen on the calibration half, rates are measured on the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jobs.tools.filtering.faults import FAULTS, STYLES, Pair, pair_of, stored
from jointdit.scenes import Scene, render_scene
from pipelines.quality import PIXEL_FILTERS, Filter, decide, load_filters, measure
from pipelines.records import Row, Sample, SampleResult


class Measured(NamedTuple):
    """Scores and caption of one sample, the input of a filter."""

    scores: Mapping[str, float]
    caption: str


Samples = dict[str, list[Measured]]  # by the name of a fault or style; item i belongs to scene i

DEFAULTS: dict[str, Filter] = {kind: load_filters([{"kind": kind}])[0] for kind in PIXEL_FILTERS}


def result_of(pair: Pair) -> SampleResult:
    """Return a pair as the sample that finish scores."""
    row = Row("scene", "scenes", 0, prompt=pair.caption)
    return SampleResult(Sample("scene/0", row, 0, 0, 0), rgb=pair.rgb, disparity=pair.disparity)


def measured(pair: Pair) -> Measured:
    """Score a pair."""
    return Measured(measure(result_of(pair)), pair.caption)


def variants(scene: Scene, other: Scene) -> Iterator[tuple[str, Pair]]:
    """Yield (name, pair) for each style and each fault of a scene; faults that mix two scenes use `other`."""
    for name, draw in STYLES.items():
        yield name, stored(pair_of(draw(scene)))
    for number, fault in enumerate(FAULTS):
        rng = np.random.default_rng([scene.seed, number])
        yield fault.name, fault.plant(pair_of(scene), pair_of(other), rng)


def measure_scenes(first_seed: int, count: int, size: int, samples: Samples) -> Iterator[int]:
    """Add the scores of `count` scenes of size x size pixels to `samples`; yield after each scene."""
    previous = render_scene(first_seed + count, size, size)
    for number in range(count):
        scene = render_scene(first_seed + number, size, size)
        for name, pair in variants(scene, previous):
            samples.setdefault(name, []).append(measured(pair))
        previous = scene
        yield number


def tested(samples: Sequence[Measured]) -> Sequence[Measured]:
    """Return the half that gives the rates."""
    return samples[1::2]


def rejected_share(samples: Sequence[Measured], kinds: Sequence[str] = tuple(PIXEL_FILTERS)) -> float:
    """Return the share of samples that any of these filters rejects at its defaults."""
    filters = [DEFAULTS[kind] for kind in kinds]
    return float(np.mean([bool(decide(filters, *sample)) for sample in samples]))


@dataclass(frozen=True)
class Threshold:
    """A threshold, its score and its fault. A threshold whose name begins with `min` rejects lower scores."""

    kind: str
    field: str
    score: str
    fault: str

    @property
    def default(self) -> float:
        """The filter's default."""
        return float(getattr(DEFAULTS[self.kind], self.field))

    def between(self, samples: Samples) -> tuple[float, float]:
        """Return the scores on either side: all but 0.5 % of clean samples, and all but 5 % of faulty ones."""
        low = self.field.startswith("min")
        clean = [s.scores[self.score] for name in STYLES if name != "pixel art" for s in samples[name][::2]]
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

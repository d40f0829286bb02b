"""Filters: each scores a sample and keeps it, or gives a reason to reject it.

Scores and decisions are separate. `measure` computes all scores of pixels and caption, whichever filters the spec
names, and all of them are stored in the column `quality`. A filter decides from scores alone (`caption` also from the
stored caption), so thresholds and filters can be changed later without a GPU. Scores that cost a model are measured by
the worker, and only if `quality.filters` or `quality.scores` names their kind (model_scored.py); `quality.scores`
rejects nothing.

    kind             scores                                         rejects
    depth_range      depth_span                                     depth maps without depth
    flat_depth       depth_flat_fraction                            maps that are almost completely at one distance
    saturated        depth_nonfinite_fraction,                      broken, clipped or blank maps and images
                     depth_saturated_fraction,
                     depth_near_saturated_fraction,
                     rgb_saturated_fraction
    flying_pixels    flying_pixel_fraction                          blurred depth: edges that are ramps planarity
    depth_roughness, depth_speck_fraction,         rough or speckled depth, and depth quantised to 8 bit
                     depth_distinct_fraction
    upright          depth_ground_correlation                       inverted depth: nearest at the top
    edge_alignment   edge_alignment, edge_peak                      shifted depth, depth of another image
    blank_picture    rgb_span                                       images of one colour
    noisy_picture    rgb_noise                                      grain, pure noise
    clipped_picture  rgb_clipped_fraction                           over- and underexposed images
    caption          caption_words, caption_characters,             captions too short or long, without letters, with
                     caption_letter_fraction                        banned words

pipelines/quality/README.md shows how well each filter works on planted faults and clean samples; `python -m
jobs.tools.measure_filters` measures it again. These scores are cheap. Lengths in them are fractions of the image.

    scores that cost a model
    self_consistency  self_consistency_abs_rel,                  depth that differs from what the joint model estimates
                      self_consistency_delta1,                   from the image
                      self_consistency_correlation
    ensemble_spread   ensemble_abs_rel_spread,                   images whose estimated depth differs from seed to seed
                      ensemble_correlation
    text_agreement    text_agreement                             images that do not show their text, by CLIP
    depth_critic      critic_abs_rel, critic_delta1,             depth that differs from an independent depth model's
                      critic_correlation

    where output.points.calibrate converts depth to metres
    metric_fit        calibration_residual,                      depth that does not agree with the metric depth model
                      calibration_inlier_ratio

    of the whole dataset, when a version is published (dataset/decisions.py)
    near_duplicate                                               images that look like an earlier one
    and quality.keep_best (keep_best.py)                         all but the best samples of each row by a score

In a spec: `quality.filters: [{kind: depth_range, min_span: 0.2}]`, `quality.scores: [self_consistency]`. A reason is
"<kind>: <explanation>". Reports count by kind.

To add a filter: write a module here with one class like DepthRange (its fields are the thresholds, with defaults that
keep whatever is usable), name the class in PIXEL_FILTERS below and in the table above, plant the fault that it detects
in jobs/tools/filtering/faults.py, and test it as CONTRIBUTING.md describes. New scores become a column automatically.
They are missing in files that were written before, and a filter rejects a sample whose score is missing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from jointdit.errors import SpecError
from pipelines.quality.blank_picture import BlankPicture
from pipelines.quality.caption import Caption
from pipelines.quality.clipped_picture import ClippedPicture
from pipelines.quality.depth_critic import DepthCritic
from pipelines.quality.depth_range import DepthRange
from pipelines.quality.edge_alignment import EdgeAlignment
from pipelines.quality.ensemble_spread import EnsembleSpread
from pipelines.quality.filter import Filter
from pipelines.quality.flat_depth import FlatDepth
from pipelines.quality.flying_pixels import FlyingPixels
from pipelines.quality.keep_best import KeepBest
from pipelines.quality.metric_fit import MetricFit
from pipelines.quality.model_scored import ModelScored, ScoredBatch, Scorer
from pipelines.quality.near_duplicate import NearDuplicate
from pipelines.quality.noisy_picture import NoisyPicture
from pipelines.quality.planarity import Planarity
from pipelines.quality.saturated import Saturated
from pipelines.quality.self_consistency import SelfConsistency
from pipelines.quality.text_agreement import TextAgreement
from pipelines.quality.upright import Upright
from pipelines.records import SampleResult
from pipelines.store.safe_text import printable

__all__ = [
    "FILTERS",
    "MODEL_FILTERS",
    "PIXEL_FILTERS",
    "SCORES",
    "Filter",
    "KeepBest",
    "ModelScored",
    "NearDuplicate",
    "ScoredBatch",
    "Scorer",
    "decide",
    "load_filters",
    "load_scores",
    "measure",
    "rejects_input",
]

GIVEN: dict[str, frozenset[str]] = {  # parts of a sample that come from the row and not from the seed
    "joint": frozenset({"prompt"}),
    "depth-to-image": frozenset({"prompt", "depth"}),
}

PIXEL_FILTERS: dict[str, type[Filter]] = {
    filter.kind: filter
    for filter in (
        DepthRange,
        FlatDepth,
        Saturated,
        FlyingPixels,
        Planarity,
        Upright,
        EdgeAlignment,
        BlankPicture,
        NoisyPicture,
        ClippedPicture,
        Caption,
    )
}
MODEL_FILTERS: dict[str, type[ModelScored]] = {
    filter.kind: filter for filter in (SelfConsistency, EnsembleSpread, TextAgreement, DepthCritic)
}
FILTERS: dict[str, type[Filter]] = {
    **PIXEL_FILTERS,
    **MODEL_FILTERS,
    **{filter.kind: filter for filter in (MetricFit, NearDuplicate)},
}
SCORES: tuple[str, ...] = tuple(score for filter in FILTERS.values() for score in filter.scores)


def load_filters(settings: Sequence[Mapping[str, Any]]) -> tuple[Filter, ...]:
    """Return the filters of `quality.filters`. Raises SpecError for an unknown kind, key or value."""
    return tuple(_load(f"quality.filters.{position}", setting) for position, setting in enumerate(settings))


def load_scores(
    filters: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]], task: str
) -> tuple[ModelScored, ...]:
    """Return what a worker measures for a task: the kinds in `quality.filters` and `quality.scores` that cost a model.

    Each kind is measured once, with the settings of all its entries combined.

    Raises:
        SpecError: an entry does not fit the task, two entries have different settings, or a score entry is invalid.
    """
    named = [(f"quality.filters.{position}", setting) for position, setting in enumerate(filters)]
    named += [(f"quality.scores.{position}", setting) for position, setting in enumerate(scores)]
    settings_of: dict[str, dict[str, Any]] = {}
    for where, setting in named:
        loaded = _load(where, setting)
        if where.startswith("quality.scores"):
            _check_score(where, setting, loaded)
        if not isinstance(loaded, ModelScored):
            continue
        if refusal := loaded.refusal(task):
            raise SpecError(f"{where}: {loaded.kind} {refusal}.")
        known = settings_of.setdefault(loaded.kind, {})
        for name in loaded.model_fields_set.intersection(loaded.measured_with):
            value = getattr(loaded, name)
            if known.setdefault(name, value) != value:
                raise SpecError(
                    f"{where}.{name} is {value!r:.100} and was {known[name]!r:.100} for {loaded.kind} before: a score "
                    "is measured in one way, so give one value."
                )
    return tuple(MODEL_FILTERS[kind].model_validate(settings) for kind, settings in settings_of.items())


def rejects_input(kind: str, task: str) -> bool:
    """Return whether a filter uses only what the row gave, so that another seed would get the same verdict."""
    return kind in FILTERS and FILTERS[kind].looks_at <= GIVEN.get(task, frozenset())


def measure(result: SampleResult) -> dict[str, float]:
    """Return all scores of a sample's pixels and caption, by name."""
    scores: dict[str, float] = {}
    for kind, filter_ in PIXEL_FILTERS.items():
        with np.errstate(invalid="ignore", over="ignore"):  # scores of broken maps are NaN, which no filter keeps
            measured = filter_.measure(result)
        assert tuple(measured) == filter_.scores, f"{kind} measured {tuple(measured)} and declares {filter_.scores}"
        scores.update(measured)
    return scores


def decide(filters: Sequence[Filter], scores: Mapping[str, float | None], caption: str | None) -> list[str]:
    """Return the reasons to reject a sample with these scores and this caption, if any. No reason means it is kept."""
    reasons = []
    for filter_ in filters:
        missing = [name for name in filter_.scores if scores.get(name) is None]
        if missing:
            reason: str | None = f"{missing[0]} was not computed"
        else:
            used = {name: scores[name] for name in filter_.scores}
            reason = filter_.reject(used) or filter_.reject_caption(caption or "")
        if reason:
            reasons.append(f"{filter_.kind}: {reason}")
    return reasons


def _check_score(where: str, setting: Mapping[str, Any], loaded: Filter) -> None:
    if not isinstance(loaded, ModelScored):
        raise SpecError(f"{where}: {loaded.kind} is measured for every sample: remove it from quality.scores.")
    for name in setting:
        if name not in ("kind", *loaded.measured_with):
            raise SpecError(f"{where}.{name} is a threshold, and quality.scores rejects nothing: use quality.filters.")


def _load(where: str, setting: Mapping[str, Any]) -> Filter:
    kind = setting.get("kind")
    if kind not in FILTERS:
        near = difflib.get_close_matches(str(kind), FILTERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(FILTERS)}."
        raise SpecError(f"{where}.kind is {kind!r:.100}, which is no filter: {hint}")
    thresholds = {name: value for name, value in setting.items() if name != "kind"}
    known = FILTERS[kind].model_fields
    for name in thresholds:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}."
            raise SpecError(f"{where}.{printable(name):.100} is no setting of {kind}: {hint}")
    try:
        return FILTERS[kind].model_validate(thresholds)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{where}.{field} is {first['input']!r:.100}: {first['msg'].lower()}.") from None

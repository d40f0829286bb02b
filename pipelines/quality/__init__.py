"""Filters: each scores a sample and says keep, or a reason.

Scores and decisions are apart. `measure` computes all scores of a sample, whichever filters the spec names, and all are
stored in the column `quality`; a filter decides from scores alone. So thresholds and filters can be changed later
without a GPU.

    kind          scores                                         rejects
    depth_range   depth_span                                     flat depth maps
    saturated     depth_nonfinite_fraction,                      broken, clipped or blank maps and pictures
                  depth_saturated_fraction,
                  rgb_saturated_fraction

In a spec: `quality.filters: [{kind: depth_range, min_span: 0.2}]`. A reason is "<kind>: <what was found>"; the kind is
what reports count by.

To add a filter: write a module here with one class like DepthRange (its fields are the thresholds, with defaults that
keep whatever is usable), name the class in FILTERS below and in the table above, and test in
tests/pipelines/test_quality.py a clean sample that it keeps and a spoilt one that it rejects. New scores become a
column by themselves; in files written before they are missing, and a filter rejects a sample whose score is missing.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from jointdit.errors import SpecError
from pipelines.quality.depth_range import DepthRange
from pipelines.quality.filter import Filter
from pipelines.quality.saturated import Saturated
from pipelines.records import SampleResult

__all__ = ["FILTERS", "SCORES", "Filter", "decide", "load_filters", "measure"]

FILTERS: dict[str, type[Filter]] = {filter.kind: filter for filter in (DepthRange, Saturated)}
SCORES: tuple[str, ...] = tuple(score for filter in FILTERS.values() for score in filter.scores)


def load_filters(settings: Sequence[Mapping[str, Any]]) -> tuple[Filter, ...]:
    """The filters of `quality.filters`. Raises SpecError for an unknown kind, key or value."""
    return tuple(_load(position, setting) for position, setting in enumerate(settings))


def measure(result: SampleResult) -> dict[str, float]:
    """All scores of a sample with pixels, by name."""
    scores: dict[str, float] = {}
    for kind, found in FILTERS.items():
        measured = found.measure(result)
        assert tuple(measured) == found.scores, f"{kind} measured {tuple(measured)} and declares {found.scores}"
        scores.update(measured)
    return scores


def decide(filters: Sequence[Filter], scores: Mapping[str, float | None]) -> list[str]:
    """Reasons to reject a sample with these scores; none means it is kept."""
    reasons = []
    for found in filters:
        missing = [name for name in found.scores if scores.get(name) is None]
        reason = f"{missing[0]} was not computed" if missing else found.reject({n: scores[n] for n in found.scores})
        if reason:
            reasons.append(f"{found.kind}: {reason}")
    return reasons


def _load(position: int, setting: Mapping[str, Any]) -> Filter:
    where = f"quality.filters.{position}"
    kind = setting.get("kind")
    if kind not in FILTERS:
        near = difflib.get_close_matches(str(kind), FILTERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(FILTERS)}."
        raise SpecError(f"{where}.kind is {kind!r}, which is no filter: {hint}")
    thresholds = {name: value for name, value in setting.items() if name != "kind"}
    known = FILTERS[kind].model_fields
    for name in thresholds:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}."
            raise SpecError(f"{where}.{name} is no setting of {kind}: {hint}")
    try:
        return FILTERS[kind].model_validate(thresholds)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{where}.{field} is {first['input']!r}: {first['msg'].lower()}.") from None

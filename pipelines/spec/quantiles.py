"""Thresholds as quantiles: `min_span: {quantile: 0.05}` is the number below which 5 % of a calibration sample lie.

`jointdit calibrate` (score_sample.py) makes a sample and writes its scores to <calibration>/calibration.json;
`quality.calibration` names that folder. The quantile becomes a number when the spec is loaded, before anything is
decided: filters, commits and versions know numbers alone, and `quality.calibrated` records where each came from. So a
calibration that is made anew changes what is decided from then on, and nothing that was decided.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import FiniteFloat, TypeAdapter

from jointdit.errors import SpecError, StoreError
from pipelines.quality import FILTERS, Filter
from pipelines.store.errors import TransientError
from pipelines.store.safe_text import shown_message
from pipelines.store.storage import Storage

FILE = "calibration.json"
FORMAT = 1


class Limit(NamedTuple):
    """A threshold of a filter, and the score that it bounds."""

    field: str
    score: str

    @property
    def is_lower(self) -> bool:
        """Whether scores below it are rejected; else those above."""
        return self.field.startswith("min_")


@dataclass(frozen=True)
class Calibration:
    """The scores of a sample of a job's input."""

    samples: int  # with pixels
    quarantined: int
    scores: dict[str, list[FiniteFloat]]  # finite ones, sorted
    fingerprint: dict[str, Any]  # of the job whose samples they are
    created: str
    format: int = FORMAT

    def quantile(self, score: str, fraction: float) -> float:
        """The value that a fraction of the scores lie below, between two of them by linear interpolation."""
        return float(np.quantile(self.scores[score], fraction))

    def write(self, storage: Storage) -> None:
        """Write it into a folder."""
        storage.write_bytes(FILE, (json.dumps(asdict(self)) + "\n").encode())


CALIBRATION = TypeAdapter(Calibration)


def read_calibration(uri: str) -> Calibration:
    """The calibration of a folder. Raises SpecError where there is none, or what is there is damaged."""
    try:
        fields = json.loads(Storage(uri).read_bytes(FILE))
        if fields["format"] != FORMAT:
            raise ValueError(fields["format"])
        return CALIBRATION.validate_python(fields)
    except FileNotFoundError:
        raise SpecError(
            f"quality.calibration {shown_message(uri)} holds no {FILE}: make it with `jointdit calibrate`, or "
            "correct the address."
        ) from None
    except TransientError as error:
        raise TransientError(shown_message(f"quality.calibration: {error}")) from None
    except (ValueError, TypeError, KeyError, RecursionError, StoreError, OSError) as error:
        raise SpecError(
            f"quality.calibration {shown_message(uri)}: {FILE} cannot be read ({type(error).__name__}): make it again."
        ) from None


def limits_of(kind: type[Filter]) -> tuple[Limit, ...]:
    """The thresholds of a filter that bound one score each: fields min_... and max_..., as `bounds` says.

    Without `bounds` they stand in the order of the scores.
    """
    fields = [name for name in kind.model_fields if name.startswith(("min_", "max_"))]
    if kind.bounds is None:
        if len(fields) != len(kind.scores):
            return ()
        return tuple(Limit(*pair) for pair in zip(fields, kind.scores, strict=True))
    return tuple(Limit(name, kind.bounds[name]) for name in fields if name in kind.bounds)


def value_of(kind: type[Filter], limit: Limit, quantile: float) -> float | int:
    """A quantile as the threshold's own type: whole numbers are rounded to the side that rejects less."""
    if kind.model_fields[limit.field].annotation is int:
        return math.floor(quantile) if limit.is_lower else math.ceil(quantile)
    return quantile


def resolve_quantiles(quality: Any) -> Any:
    """The section `quality` of a spec with numbers in place of quantiles, and `calibrated` about them.

    What is not a section or a list of filters is left to the validation of the spec.

    Raises:
        SpecError: a quantile that is none, of a threshold that has none, or without a calibration that has its score.
    """
    if not isinstance(quality, Mapping) or not isinstance(quality.get("filters"), list | tuple):
        return quality
    filters = [dict(each) if isinstance(each, Mapping) else each for each in quality["filters"]]
    known = quality.get("calibrated") or ()
    if not isinstance(known, list | tuple):
        return quality
    records = [each for each in known if _is_about(filters, each)]
    for position, setting in enumerate(filters):
        if isinstance(setting, dict) and str(setting.get("kind")) in FILTERS:
            for field, value in setting.items():
                if isinstance(value, Mapping):
                    record = _resolve(f"quality.filters.{position}.{field}", setting, field, quality)
                    setting[field] = record["value"]
                    records.append({"filter": position, **record})
    resolved = {**quality, "filters": filters}
    resolved.pop("calibrated", None)
    return {**resolved, "calibrated": records} if records else resolved


def without_quantiles(quality: Any) -> Any:
    """The section `quality` with defaults in place of quantiles: what a calibration itself is made with."""
    if not isinstance(quality, Mapping) or not isinstance(quality.get("filters"), list | tuple):
        return quality
    filters = [
        {name: value for name, value in each.items() if not isinstance(value, Mapping)}
        if isinstance(each, Mapping)
        else each
        for each in quality["filters"]
    ]
    return {name: value for name, value in quality.items() if name != "calibration"} | {"filters": filters}


def _resolve(where: str, setting: Mapping[str, Any], field: str, quality: Mapping[str, Any]) -> dict[str, Any]:
    """The number of a threshold that is given as a quantile, with where it comes from."""
    kind, value, uri = FILTERS[str(setting["kind"])], setting[field], quality.get("calibration")
    fraction = value.get("quantile")
    if set(value) != {"quantile"} or type(fraction) not in (int, float) or not 0 <= fraction <= 1:
        raise SpecError(f"{where} must be a number, or {{quantile: 0.05}} with a quantile from 0 to 1.")
    limits = {limit.field: limit for limit in limits_of(kind)}
    if field not in limits:
        names = ", ".join(limits) or "none"
        raise SpecError(f"{where} cannot be a quantile: the thresholds of {kind.kind} that can are {names}.")
    if not isinstance(uri, str):
        raise SpecError(
            f"{where} is a quantile and quality.calibration is missing: name a folder that `jointdit calibrate` wrote."
        )
    calibration = read_calibration(uri)
    if not calibration.scores.get(limits[field].score):
        raise SpecError(
            f"{where} is a quantile and the calibration {uri} has no {limits[field].score}: name {kind.kind} in the "
            "spec's filters or scores and calibrate again."
        )
    found = value_of(kind, limits[field], calibration.quantile(limits[field].score, fraction))
    record = {"kind": kind.kind, "threshold": field, "quantile": fraction, "value": found}
    return {**record, "samples": calibration.samples, "created": calibration.created}


def _is_about(filters: list[Any], record: Any) -> bool:
    """Whether the threshold that a record is about still has the value that came from the quantile."""
    position = record.get("filter") if isinstance(record, Mapping) else None
    if type(position) is not int or not 0 <= position < len(filters) or not isinstance(filters[position], dict):
        return False
    setting = filters[position]
    return (setting.get("kind"), setting.get(record.get("threshold"))) == (record.get("kind"), record.get("value"))

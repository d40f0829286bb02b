"""Thresholds as quantiles of the scores of a calibration sample.

`min_span: {quantile: 0.05}` is the 5 % quantile. `jointdit calibrate` (pipelines/run/calibrate.py) generates a sample
and writes its scores to <calibration>/calibration.json; `quality.calibration` is that folder. Quantiles are replaced
by numbers when the spec is loaded, and `quality.calibrated` records their source. Filters, commits and versions only
have numbers, so a new calibration affects later decisions, never earlier ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import FiniteFloat, TypeAdapter

from jointdit.errors import SpecError, StoreError
from pipelines.quality import FILTERS, Filter
from pipelines.quality.filter import Limit
from pipelines.store.errors import TransientError
from pipelines.store.safe_text import shown_message
from pipelines.store.storage import Storage

FILE = "calibration.json"
FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """The scores of a sample of a job's input."""

    samples: int  # without quarantined ones
    quarantined: int
    scores: dict[str, list[FiniteFloat]]  # finite ones, sorted
    fingerprint: dict[str, Any]  # of the calibrated job
    created: str
    format: int = FORMAT

    def quantile(self, score: str, fraction: float) -> float:
        """Return the quantile of a score, with linear interpolation."""
        return float(np.quantile(self.scores[score], fraction))

    def write(self, storage: Storage) -> None:
        """Write the calibration to a folder."""
        storage.write_bytes(FILE, (json.dumps(asdict(self)) + "\n").encode())


CALIBRATION = TypeAdapter(Calibration)


def read_calibration(uri: str) -> Calibration:
    """Read the calibration of a folder. Raises SpecError if it is missing or damaged."""
    try:
        fields = json.loads(Storage(uri).read_bytes(FILE))
        if fields["format"] != FORMAT:
            raise ValueError(fields["format"])
        return CALIBRATION.validate_python(fields)
    except FileNotFoundError:
        raise SpecError(
            f"quality.calibration {shown_message(uri)} has no {FILE}: create it with `jointdit calibrate`, or correct "
            "the address."
        ) from None
    except TransientError as error:
        raise TransientError(shown_message(f"quality.calibration: {error}")) from None
    except (ValueError, TypeError, KeyError, RecursionError, StoreError, OSError) as error:
        raise SpecError(
            f"quality.calibration {shown_message(uri)}: {FILE} is unreadable ({type(error).__name__}): create it again."
        ) from None


def value_of(kind: type[Filter], limit: Limit, quantile: float) -> float | int:
    """Convert a quantile to the threshold's type; integers are rounded to reject fewer samples."""
    if kind.model_fields[limit.field].annotation is int:
        return math.floor(quantile) if limit.is_lower else math.ceil(quantile)
    return quantile


def resolve_quantiles(quality: Any) -> Any:
    """Return the section `quality` with numbers instead of quantiles, and their records in `calibrated`.

    Invalid sections and filters are returned unchanged; the validation of the spec reports them.

    Raises:
        SpecError: a quantile is invalid, its threshold does not accept quantiles, or the calibration lacks its score.
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
    """Return the section `quality` with defaults instead of quantiles, as a calibration uses it."""
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
    """Resolve a threshold that is given as a quantile; returns its record for `calibrated`."""
    kind, value, uri = FILTERS[str(setting["kind"])], setting[field], quality.get("calibration")
    fraction = value.get("quantile")
    if set(value) != {"quantile"} or type(fraction) not in (int, float) or not 0 <= fraction <= 1:
        raise SpecError(f"{where} must be a number, or {{quantile: 0.05}} with a quantile from 0 to 1.")
    limits = {limit.field: limit for limit in kind.limits()}
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
    """Whether the threshold of a record still has the value of the quantile."""
    position = record.get("filter") if isinstance(record, Mapping) else None
    if type(position) is not int or not 0 <= position < len(filters) or not isinstance(filters[position], dict):
        return False
    setting = filters[position]
    return (setting.get("kind"), setting.get(record.get("threshold"))) == (record.get("kind"), record.get("value"))

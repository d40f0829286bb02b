"""What every task and actor of a run is told, once, through Ray's object store."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.model.fingerprint import Fingerprint
from pipelines.model.weights.pins import Pin
from pipelines.spec.job import JobSpec
from pipelines.store.storage import Storage


@dataclass(frozen=True)
class RunContext:
    """The run's spec with what was resolved from it."""

    spec: JobSpec
    storage: Storage
    height: int  # pixels, the model's
    width: int
    weights: str  # hash of the weights
    fingerprint: Fingerprint
    code: str
    profile: bool = False  # whether workers time the steps of their calls
    pins: tuple[Pin, ...] = ()  # the files that the weights are

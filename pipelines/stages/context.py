"""The context of a run, which Ray's object store gives to every task and actor."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.model.fingerprint import Fingerprint
from pipelines.model.weights.pins import Pin
from pipelines.spec.job import JobSpec
from pipelines.store.storage import Storage


@dataclass(frozen=True)
class RunContext:
    """The spec of a run with the values resolved from it."""

    spec: JobSpec
    storage: Storage
    height: int  # of the model's input, in pixels
    width: int
    weights: str  # their SHA-256, or the hub's commit
    fingerprint: Fingerprint
    code: str  # version of this code
    profile: bool = False  # whether workers time the steps of their calls
    pins: tuple[Pin, ...] = ()  # the files of the weights

"""The sections of a job spec on the run: retries, resources, budget, price, notify."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipelines.spec.base import Amount, Seconds, Section

MOST_WORKERS = 10_000
MOST_RETRIES = 1_000_000_000


def _auto_or_count(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 1 <= value <= MOST_WORKERS):
        return value
    raise ValueError(
        f"must be auto or a whole number of at least 1 and at most {MOST_WORKERS:,}, found {repr(value)[:100]}"
    )


def _auto_or_gigabytes(value: Any) -> Any:
    if value == "auto" or (type(value) in (int, float) and 1e-3 <= value <= 1e9):
        return value if value == "auto" else float(value)
    raise ValueError(f"must be auto or a number from 0.001 to 1e9, in gigabytes, found {repr(value)[:100]}")


class RetriesSpec(Section):
    """Limits per shard: attempts after infrastructure faults, and workers that it may crash."""

    infrastructure: int = Field(20, ge=0, le=MOST_RETRIES)
    crash: int = Field(3, ge=0, le=MOST_RETRIES)


class ResourcesSpec(Section):
    """Resources of the cluster. `workers: auto` uses all GPUs, also when their number changes, or else all CPUs.

    With GPUs there are never more workers than remaining shards.
    """

    workers: Annotated[int | Literal["auto"], BeforeValidator(_auto_or_count)] = "auto"
    # cuda: wait for GPUs, also if the cluster has none yet because it scales up on demand; `workers` is then the number
    # that it may scale up to.
    device: Literal["auto", "cuda", "cpu"] = "auto"
    gpus_per_worker: float = Field(1.0, ge=0.01)  # below 1 several workers share a GPU
    gpu_memory_gb: float | None = Field(
        None, gt=0, le=1e6
    )  # of one GPU, 1e9 bytes; a model that is too large is refused
    # Read and finish tasks run only on nodes with these Ray labels, to keep them off nodes with GPUs.
    task_labels: dict[str, str] = Field(default_factory=dict)
    shards_in_flight: int = Field(3, ge=1, le=16)  # per worker; more hides storage latency and costs memory
    # The bytes (1e9) that shards in flight may hold in Ray's object store, on all nodes together. auto: 60 % of its
    # size. One shard is always allowed.
    in_flight_gb: Annotated[float | Literal["auto"], BeforeValidator(_auto_or_gigabytes)] = "auto"
    start_seconds: Seconds = 1800.0  # timeout for loading the model; tens of gigabytes from a cold disk take minutes
    stall_seconds: Seconds = 900.0  # a busy worker that finishes no batch for this time is considered dead
    # Speculative execution: a shard that takes this multiple of the run's median is started again on an idle worker,
    # and the first commit wins; never before straggler_seconds. null: never.
    straggler_factor: float | None = Field(3.0, gt=1, le=1e9)
    straggler_seconds: float = Field(30.0, ge=0, le=1e9)

    @field_validator("gpus_per_worker")
    @classmethod
    def _one_gpu(cls, value: float) -> float:
        if value > 1:
            raise ValueError(
                f"must be at most 1, found {value:g}: a worker runs one model on one GPU, so use more workers"
            )
        return value


class BudgetSpec(Section):
    """Limits of one run. It stops after the current shards, and a new run resumes there.

    A row that is regenerated in a later round counts again. GPU-hours count while workers hold GPUs, busy or idle.
    """

    max_rows: int | None = Field(None, ge=1, le=10**15)  # the shard that reaches the limit is finished
    max_gpu_hours: float | None = Field(None, gt=0, le=1e12)
    max_cost: float | None = Field(None, gt=0, le=1e12)  # by `price`


class PriceSpec(Section):
    """Price per hour of a GPU, or of a CPU without GPUs, for `budget.max_cost` and the report of a run."""

    gpu_hour: Amount = 0.0
    cpu_hour: Amount = 0.0
    currency: str = Field("USD", min_length=1, max_length=10)


class NotifySpec(Section):
    """Notification of a new version: signed JSON to an http address (pipelines/run/notify.py).

    `webhook` is the address; `webhook_variable` is the name of an environment variable with the address. The address
    may be a secret, as those of chat services are, so this section is never written (`Spec.notify` is excluded from
    dumps).
    """

    webhook: str | None = Field(None, repr=False, max_length=10_000)
    webhook_variable: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,200}$")

    @field_validator("webhook")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None:
            check_webhook(value)
        return value

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if self.webhook is not None and self.webhook_variable is not None:
            raise ValueError("give webhook or webhook_variable, not both")
        return self


def check_webhook(address: str) -> None:
    """Raise ValueError if the text is not an http address, without repeating it."""
    try:
        is_one = re.fullmatch(r"https?://[!-~]+", address) is not None and bool(urlsplit(address).hostname)
        is_one = is_one and urlsplit(address).port != 0
    except ValueError:  # an invalid port
        is_one = False
    if not is_one:
        raise ValueError("must be an http:// or https:// address of ASCII characters without spaces")

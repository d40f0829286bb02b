"""The sections of a job spec on how it is run: retries, resources, budget, price, notify. None decides a pixel."""

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


class RetriesSpec(Section):
    """Budgets a shard: attempts after infrastructure faults, and workers it may take down."""

    infrastructure: int = Field(20, ge=0, le=MOST_RETRIES)
    crash: int = Field(3, ge=0, le=MOST_RETRIES)


class ResourcesSpec(Section):
    """How much of the cluster: `auto` takes all its GPUs as they come and go, or its CPUs where it has none.

    With GPUs there are never more workers than shards to make.
    """

    workers: Annotated[int | Literal["auto"], BeforeValidator(_auto_or_count)] = "auto"
    # cuda: wait for GPUs, also where the cluster has none yet because it grows when they are asked for: `workers` then
    # is the number that it may grow to.
    device: Literal["auto", "cuda", "cpu"] = "auto"
    gpus_per_worker: float = Field(1.0, ge=0.01)  # below 1 several small models share a GPU
    gpu_memory_gb: float | None = Field(
        None, gt=0, le=1e6
    )  # of one GPU, 1e9 bytes: what cannot fit is refused before it starts
    # Read and finish tasks run only on nodes with these labels of Ray's, which keeps them off nodes with GPUs.
    task_labels: dict[str, str] = Field(default_factory=dict)
    shards_in_flight: int = Field(3, ge=1, le=16)  # a worker; more hides slower storage and costs memory
    start_seconds: Seconds = 1800.0  # to load the model: tens of gigabytes from a cold disk take minutes
    stall_seconds: Seconds = 900.0  # a worker with work that finishes no batch for so long is taken for dead
    # A shard that takes so many times the median of its run is started again on an idle worker, and the first commit
    # wins; never before straggler_seconds. null: never.
    straggler_factor: float | None = Field(3.0, gt=1, le=1e9)
    straggler_seconds: float = Field(30.0, ge=0, le=1e9)

    @field_validator("gpus_per_worker")
    @classmethod
    def _one_gpu(cls, value: float) -> float:
        if value > 1:
            raise ValueError(
                f"must be at most 1, found {value:g}: a worker runs one model on one GPU, so ask for more workers"
            )
        return value


class BudgetSpec(Section):
    """What one run may take: it stops at the border of a shard, and running again goes on from there.

    A row that is made again in a later round counts again. GPU-hours are those that workers hold GPUs, busy or not.
    """

    max_rows: int | None = Field(None, ge=1, le=10**15)  # in whole shards: the one that reaches it is finished
    max_gpu_hours: float | None = Field(None, gt=0, le=1e12)
    max_cost: float | None = Field(None, gt=0, le=1e12)  # by `price`


class PriceSpec(Section):
    """What an hour costs, for `budget.max_cost` and for what is told of a run: of a GPU, and of a CPU where none is."""

    gpu_hour: Amount = 0.0
    cpu_hour: Amount = 0.0
    currency: str = Field("USD", min_length=1, max_length=10)


class NotifySpec(Section):
    """Who is told of a new version: an http address that gets a signed JSON text (pipelines/run/notify.py).

    `webhook` is the address; `webhook_variable` names a variable of the environment that holds it. An address may be a
    secret, as those of chat services are: so this section is written nowhere (`Spec.notify` is left out of each dump).
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
    """Refuse what is no http address, without repeating it. Raises ValueError."""
    try:
        is_one = re.fullmatch(r"https?://[!-~]+", address) is not None and bool(urlsplit(address).hostname)
        is_one = is_one and urlsplit(address).port != 0
    except ValueError:  # of a port that is none
        is_one = False
    if not is_one:
        raise ValueError("must be an http:// or https:// address of ASCII characters without spaces")

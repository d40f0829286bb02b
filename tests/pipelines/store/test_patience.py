"""The driver waits for a busy store, on a real S3 server behind the fault proxy."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from jointdit.errors import PermanentError, StoreError
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import read_latest, version_numbers
from pipelines.run.job import run_job
from pipelines.store.errors import TransientError
from pipelines.store.retries import backoff_seconds, patiently
from tests.chaos.proxy import FaultProxy
from tests.local_job import IDENTITY, LocalJob


def test_backoff_doubles_up_to_a_minute_and_never_comes_twice_the_same() -> None:
    waits = {count: [backoff_seconds(count) for _ in range(200)] for count in (1, 2, 3, 7, 20, 10_000)}
    for count, middle in {1: 1.0, 2: 2.0, 3: 4.0, 7: 60.0, 20: 60.0, 10_000: 60.0}.items():
        assert 0.5 * middle <= min(waits[count]) <= max(waits[count]) <= 1.5 * middle
        assert statistics.pstdev(waits[count]) > 0.1 * middle, "drivers that failed together must not return together"


def test_the_driver_is_patient_with_the_store_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.store.retries.FIRST_BACKOFF_SECONDS", 0.001)
    answers = iter([False, False, True])

    def ask() -> str:
        if not next(answers, False):
            raise TransientError("the store did not answer as it should (SlowDown).")
        return "commits"

    assert patiently(ask, budget=2) == "commits"
    with pytest.raises(PermanentError, match=r"\(SlowDown\), 3 times in a row; what is committed stays"):
        patiently(ask, budget=2)


@pytest.fixture
def proxy(s3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that makes only what a test asks for; the environment points to it, and the client gives up soon."""
    monkeypatch.setattr("pipelines.run.opening.identify_job", lambda spec, recorded: IDENTITY)
    monkeypatch.setattr("pipelines.store.storage.CREATE_ATTEMPTS", 1)
    monkeypatch.setattr("pipelines.store.retries.FIRST_BACKOFF_SECONDS", 0.001)
    with FaultProxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


class Recovery(logging.Handler):
    """Lets the store recover each time the driver says that it waits, and makes the next thing fail."""

    def __init__(self, proxy: FaultProxy, *steps: tuple[str, str]) -> None:
        super().__init__(logging.WARNING)
        self.proxy, self.steps, self.waits = proxy, list(steps), []
        self.next()

    def next(self) -> None:
        self.proxy.forget()
        if self.steps:
            self.proxy.inject("slow-down", *self.steps.pop(0), times=10_000)  # oftener than the client tries by itself

    def emit(self, record: logging.LogRecord) -> None:
        self.waits.append(record.getMessage())
        self.next()


@pytest.fixture
def job(s3, proxy: FaultProxy, make_job, tmp_path: Path) -> LocalJob:
    """Published once; then one of its files lost all its rows, so a run has to plan, commit and publish without Ray."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("one\ntwo\n")
    job = make_job(input={"uri": str(tmp_path / "in")}, output={"uri": s3.make_bucket() + "/out"})
    job.complete()
    (tmp_path / "in" / "b.txt").write_text("")
    job.context.storage.fs.retries = 1  # the process has one connection to an endpoint, and the run takes it too
    return job


@pytest.mark.slow
def test_a_run_outlasts_a_store_that_is_busy_at_each_of_its_steps(job: LocalJob, proxy: FaultProxy) -> None:
    steps = [
        ("PUT", "_plan/"),
        ("GET", "_commits"),
        ("PUT", "_commits/"),
        ("PUT", "version.json"),
        ("PUT", "README.md"),
    ]
    recovery = Recovery(proxy, *steps)
    logging.getLogger("pipelines.store.retries").addHandler(recovery)
    try:
        summary = run_job(job.context.spec)
    finally:
        logging.getLogger("pipelines.store.retries").removeHandler(recovery)
    assert len(recovery.waits) == len(steps), recovery.waits
    assert all("the store" in wait and "retrying in" in wait for wait in recovery.waits)
    assert (summary.version.number, summary.is_new, summary.version.counts["kept"]) == (2, True, 2)
    assert version_numbers(job.context.storage) == [1, 2]
    assert job.ledger.plan_numbers() == [1, 2]
    assert read_latest(job.context.storage) == summary.version
    assert validate(job.context.storage.uri).problems == []


def test_what_is_wrong_at_the_start_is_told_at_once(
    job: LocalJob, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    spec = job.context.spec
    proxy.inject("slow-down", "HEAD", "_job.json", times=10_000)
    with pytest.raises(TransientError, match="the store did not answer as it should"):
        run_job(spec)
    proxy.forget()
    output = spec.output.model_copy(update={"uri": "s3://no-such-bucket/out"})
    with pytest.raises(StoreError, match="the bucket no-such-bucket does not exist"):
        run_job(spec.model_copy(update={"output": output}))
    assert not [record for record in caplog.records if record.name == "pipelines.store.retries"]

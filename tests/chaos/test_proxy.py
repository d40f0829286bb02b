"""Each fault of the proxy as a plain client and as `Storage` see it, on a real S3 server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from pipelines.store.errors import TransientError
from pipelines.store.storage import AlreadyExists, Storage
from tests.chaos.proxy import FAULTS, FaultProxy, draw

pytestmark = pytest.mark.slow  # what the proxy is for, test_commit_faults.py and the storm show


@pytest.fixture
def proxy(s3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy that injects only requested faults; the environment points to it."""
    with FaultProxy(s3.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def bare(proxy: FaultProxy):
    """A client without retries."""
    config = Config(retries={"mode": "standard", "total_max_attempts": 1}, read_timeout=10)
    return botocore.session.get_session().create_client("s3", endpoint_url=proxy.endpoint, config=config)


@pytest.fixture
def storage(s3, proxy: FaultProxy) -> Storage:
    return Storage(s3.make_bucket() + "/out")


def direct(s3, storage: Storage, name: str) -> bytes | None:
    """Read an object from the server, without the proxy."""
    client = botocore.session.get_session().create_client("s3", endpoint_url=s3.endpoint)
    bucket, _, key = storage.path(name).partition("/")
    try:
        return client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except client.exceptions.NoSuchKey:
        return None


def test_without_faults_the_proxy_is_transparent(proxy: FaultProxy, storage: Storage) -> None:
    name = "a folder/ü+&=%41.json"  # the signature covers the encoded path
    storage.create_bytes(name, b"x" * 3_000_000)
    with pytest.raises(AlreadyExists):
        storage.create_bytes(name, b"y")
    assert storage.read_bytes(name) == b"x" * 3_000_000
    assert storage.info(name).size == 3_000_000
    assert storage.names("a folder") == ["ü+&=%41.json"]
    storage.delete(name)
    assert not storage.exists(name)
    assert proxy.requests >= 6
    assert sum(proxy.counts.values()) == 0


@pytest.mark.parametrize(
    ("fault", "code"),
    [("slow-down", "SlowDown"), ("server-error", "InternalError"), ("error-after-write", "InternalError")],
)
def test_an_error_of_the_store(s3, proxy: FaultProxy, storage: Storage, bare, fault: str, code: str) -> None:
    bucket, _, key = storage.path("object").partition("/")
    proxy.inject(fault, "PUT", "object")
    with pytest.raises(ClientError, match=code):
        bare.put_object(Bucket=bucket, Key=key, Body=b"first")
    assert direct(s3, storage, "object") == (b"first" if fault == "error-after-write" else None)
    proxy.inject(fault, "PUT", "object")
    storage.write_bytes("object", b"second")
    assert storage.read_bytes("object") == b"second"
    assert proxy.counts[fault] == 2


@pytest.mark.parametrize("fault", ["reset", "lost-response"])
def test_a_reset_connection(s3, proxy: FaultProxy, storage: Storage, bare, fault: str) -> None:
    bucket, _, key = storage.path("object").partition("/")
    proxy.inject(fault, "PUT", "object")
    with pytest.raises(BotoCoreError):
        bare.put_object(Bucket=bucket, Key=key, Body=b"first")
    assert direct(s3, storage, "object") == (b"first" if fault == "lost-response" else None)
    proxy.inject(fault, "PUT", "created")
    storage.create_bytes("created", b"ours")  # the retry may find the object of the first attempt
    assert direct(s3, storage, "created") == b"ours"
    with pytest.raises(AlreadyExists):
        storage.create_bytes("created", b"theirs")


def test_a_truncated_body_is_read_again(s3, proxy: FaultProxy, storage: Storage, bare) -> None:
    data = bytes(range(256)) * 1000
    storage.write_bytes("object", data)
    bucket, _, key = storage.path("object").partition("/")
    proxy.inject("truncated-body", "GET", "object")
    with pytest.raises(BotoCoreError):
        bare.get_object(Bucket=bucket, Key=key)["Body"].read()
    proxy.inject("truncated-body", "GET", "object")
    assert storage.read_bytes("object") == data
    proxy.inject("truncated-body", "GET", "object")
    with storage.open("object") as file:
        assert file.read() == data
    proxy.inject("truncated-body", "GET", "list-type=2")
    assert storage.names("") == ["object"]
    assert proxy.counts["truncated-body"] == 4


def test_resets_after_a_write_are_resolved_by_reading_back(s3, proxy: FaultProxy, storage: Storage) -> None:
    proxy.inject("lost-response", "PUT", "object", times=12)  # more than the client's retries
    storage.create_bytes("object", b"ours")
    assert direct(s3, storage, "object") == b"ours"
    assert proxy.counts["lost-response"] >= 1
    with pytest.raises(AlreadyExists):
        storage.create_bytes("object", b"theirs")


def test_latency_delays_only(proxy: FaultProxy, storage: Storage) -> None:
    proxy.latency_seconds = 0.05
    proxy.inject("latency", times=3)
    storage.write_bytes("object", b"late")
    assert storage.read_bytes("object") == b"late"
    assert storage.exists("object")
    assert proxy.counts["latency"] == 3


@pytest.mark.parametrize("fault", ["server-error", "reset", "truncated-body"])
def test_a_persistent_fault_is_a_transient_error(proxy: FaultProxy, storage: Storage, fault: str) -> None:
    storage.write_bytes("object", b"data")
    proxy.inject(fault, "GET", "object", times=100)
    with pytest.raises(TransientError, match="did not answer as it should"):
        storage.read_bytes("object")
    assert 3 <= proxy.counts[fault] <= 12, "a limited number of retries"


def test_the_fault_of_a_request_depends_on_seed_number_and_method() -> None:
    rates = dict.fromkeys(FAULTS, 0.1)
    drawn = {seed: [draw(seed, n, "PUT", rates) for n in range(2000)] for seed in (1, 2)}
    assert drawn[1] == [draw(1, n, "PUT", rates) for n in range(2000)]
    assert drawn[1] != drawn[2]
    tally = Counter(drawn[1])
    assert tally["truncated-body"] == 0
    assert all(120 < tally[fault] < 280 for fault in FAULTS if fault != "truncated-body")
    assert not {"lost-response", "error-after-write"} & {draw(1, n, "GET", rates) for n in range(2000)}

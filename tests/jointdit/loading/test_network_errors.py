"""What each library raises at a server that is not there, or is not what it should be: real requests on loopback."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator

import aiohttp
import botocore.config
import botocore.session
import httpx2
import pytest
import requests
import urllib3

from jointdit.loading.network_errors import network_errors, network_reason


def with_aiohttp(address: str) -> None:
    async def get() -> None:
        timeout = aiohttp.ClientTimeout(total=0.2)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(address):
            pass

    asyncio.run(get())


def with_botocore(address: str) -> None:
    config = botocore.config.Config(retries={"max_attempts": 0}, read_timeout=0.2)
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    client = botocore.session.Session().create_client("s3", "us-east-1", endpoint_url=address, config=config, **keys)
    client.list_buckets()


LIBRARIES: dict[str, Callable[[str], object]] = {
    "httpx": lambda address: httpx2.get(address, timeout=0.2),
    "requests": lambda address: requests.get(address, timeout=0.2),
    "urllib3": lambda address: urllib3.PoolManager(retries=False).request("GET", address, timeout=0.2),
    "urllib": lambda address: urllib.request.urlopen(address, timeout=0.2),
    "aiohttp": with_aiohttp,
    "botocore": with_botocore,
}


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> Iterator[int]:
    with socket.socket() as taken:  # bound and not listening, so that nobody else gets it
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_library_says_why_a_server_cannot_be_used(library: str, silent: int, closed: int) -> None:
    request = LIBRARIES[library]
    for address, reason in (
        (f"http://127.0.0.1:{closed}", "connection refused"),
        ("http://nowhere.invalid", "its host name cannot be resolved"),
        (f"http://127.0.0.1:{silent}", "no answer in time"),
    ):
        with pytest.raises(network_errors()) as caught:
            request(address)
        assert network_reason(caught.value) == reason


def test_what_is_no_fault_of_a_server_is_not_among_them() -> None:
    for error in (ValueError("a"), KeyError("b"), FileNotFoundError("c"), PermissionError("d"), RuntimeError("e")):
        assert not isinstance(error, network_errors())
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert not isinstance(caught.value, network_errors())


def test_a_reason_is_one_clause() -> None:
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_message = "self-signed certificate"
    assert network_reason(refused) == "its certificate was refused: self-signed certificate"
    assert network_reason(http.client.IncompleteRead(b"")) == "IncompleteRead(0 bytes read)"
    assert network_reason(ConnectionResetError()) == "ConnectionResetError"

"""Weights by hub name while the hub does not answer: the cache is enough, and what it lacks is told in one sentence."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from jointdit.errors import ModelError
from pipelines.model.weights import hub
from pipelines.model.weights.node_cache import local_path
from pipelines.model.weights.pins import Pin, pin
from pipelines.store.errors import TransientError
from tests.hub_server import Hub, HubModel, running_hub

FIRST, SECOND = "1" * 40, "2" * 40
NAME = "somebody/model"
FILES = {"model_index.json": b"{}", "vae/vae.safetensors": b"weights" * 300}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model of two commits, its cache and ours in a folder of the test."""
    with running_hub() as server:
        server.models[NAME] = HubModel({FIRST: FILES, SECOND: {**FILES, "README.md": b""}}, FIRST)
        point_at(server.endpoint, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("JOINTDIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextlib.contextmanager
def listening() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def closed_port() -> Iterator[str]:
    with socket.socket() as taken:  # bound and not listening, so that nobody else gets it
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


FAILURES = {
    "refused": "connection refused",
    "host": "its host name cannot be resolved",
    "tls": "the TLS handshake failed",
    "status": "it answered with status 503",
    "silent": "no answer in time",
    "address": "",  # the library's own words
}


@pytest.fixture(params=FAILURES)
def failing(request, server: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Callable[[], None]]]:
    """(reason, what breaks the network once it is entered)."""

    def broken() -> None:
        kind = request.param
        if kind == "status":
            server.status = 503
        elif kind == "silent":
            monkeypatch.setattr(hub, "SECONDS", 0.2)
            point_at(stack.enter_context(listening()), monkeypatch)
        else:
            refused = stack.enter_context(closed_port())
            addresses = {"refused": refused, "host": "http://nowhere.invalid", "address": "http://[nowhere"}
            addresses["tls"] = server.endpoint.replace("http:", "https:")
            point_at(addresses[kind], monkeypatch)

    with contextlib.ExitStack() as stack:
        yield FAILURES[request.param], broken


def pinned(value: str = NAME, **options: object) -> Pin:
    return pin("model.name", value, "pipeline", **options)  # type: ignore[arg-type]


def test_what_is_cached_is_used(failing, server: Hub) -> None:
    _, break_network = failing
    first = pinned()
    local_path(first)
    server.models[NAME].main = SECOND
    local_path(pinned())
    break_network()
    for one in (
        pinned(f"{NAME}@{FIRST}"),
        pinned(revision=FIRST),
        pinned(recorded={"value": NAME, "commit": FIRST}),  # the job began with it
    ):
        assert (one.commit, one.files) == (FIRST, first.files)
        assert (local_path(one) / "vae" / "vae.safetensors").read_bytes() == FILES["vae/vae.safetensors"]
    assert pinned().commit == SECOND  # the newest that was seen


def test_what_is_not_cached_is_told_in_one_sentence(failing, server: Hub) -> None:
    reason, break_network = failing
    break_network()
    with pytest.raises(
        TransientError, match=r"^model.name somebody/model is not a local folder and not in the hub's cache"
    ) as caught:
        pinned()
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        TransientError, match=r"tinyy is not a local folder .*: give tiny if you meant that, correct the name, check"
    ):
        pinned("tinyy")


@pytest.mark.slow  # the hub's library tries again for half a minute
def test_a_download_that_fails_is_tried_again_later(failing, server: Hub, monkeypatch) -> None:
    _, break_network = failing
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    one = pinned()
    break_network()
    huggingface_hub.utils.close_session()  # and with it the timeout that it was given
    with pytest.raises(TransientError, match=r"model.name somebody/model.*: cannot be downloaded from the hub now"):
        local_path(one)
    with pytest.raises(TransientError, match="cannot be read from the hub now"):
        hub.range_reader("model.name", NAME, FIRST)("model_index.json", 0, 2)


def test_a_name_that_the_hub_does_not_have_is_an_error_in_the_spec(server: Hub) -> None:
    with pytest.raises(ModelError, match="not an accessible model of the hub: give tiny if you meant that, correct"):
        pinned("tinyy")

"""Weights by hub name: pinned by the driver, downloaded once a node, checked by hash, by huggingface_hub's client."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from jointdit.errors import ModelError, PermanentError
from pipelines.model.identity import identify
from pipelines.model.weights.node_cache import local_path
from pipelines.model.weights.pins import Pin, pin
from pipelines.spec.job import ModelSpec
from tests.hub_server import Hub, HubModel, running_hub

FIRST, SECOND = "1" * 40, "2" * 40
NAME = "somebody/model"


def weights(number: float) -> bytes:
    return save({"a": torch.full((40, 10), number)})


def files(number: float) -> dict[str, bytes]:
    return {
        "model_index.json": json.dumps({"default_height": 48, "default_width": 32}).encode(),
        "transformer/config.json": b"{}",
        "transformer/model.safetensors": weights(number),
        "transformer/pytorch_model.bin": pickle.dumps({}),
        "flux.safetensors": weights(9),  # the same in another program's layout
        "vae/vae.safetensors": weights(3),
        "README.md": b"---\nlicense: apache-2.0\n---\n",
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model of two commits, its cache and ours in a folder of the test."""
    with running_hub() as server:
        server.models[NAME] = HubModel({FIRST: files(1), SECOND: files(2)}, FIRST, {"license": "apache-2.0"})
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("JOINTDIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def pinned(value: str = NAME, **options: object) -> Pin:
    return pin("model.name", value, "pipeline", **options)  # type: ignore[arg-type]


def test_the_driver_pins_a_commit_and_a_worker_loads_no_other(hub: Hub) -> None:
    one = pinned()
    assert (one.commit, one.weights) == (FIRST, FIRST)
    hub.models[NAME].main = SECOND  # somebody pushes between plan and download
    folder = local_path(one)
    assert (folder / "transformer" / "model.safetensors").read_bytes() == weights(1)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "model_index.json",
        "vae.safetensors",
    ]
    assert pinned().commit == SECOND


def test_a_job_stays_at_the_commit_that_it_began_with(hub: Hub) -> None:
    first = identify(ModelSpec(name=NAME))
    assert (first.height, first.width, first.weights) == (48, 32, FIRST)
    hub.models[NAME].main = SECOND
    assert identify(ModelSpec(name=NAME), first.recorded()).weights == FIRST
    assert identify(ModelSpec(name=NAME)).weights == SECOND
    assert identify(ModelSpec(name=NAME, revision=FIRST)).weights == FIRST
    assert identify(ModelSpec(name=f"{NAME}@{FIRST}")).weights == FIRST
    assert identify(ModelSpec(name=f"{NAME}@{SECOND}"), first.recorded()).weights == SECOND  # asked for by name
    with pytest.raises(
        ModelError, match=r"model.name somebody/model.*: the hub has no revision v9 of it: give a commit"
    ):
        identify(ModelSpec(name=NAME, revision="v9"))


def test_what_arrives_spoilt_is_never_used(hub: Hub) -> None:
    hub.spoil.add("vae/vae.safetensors")
    one = pinned()
    with pytest.raises(ModelError, match=r"vae/vae.safetensors differs from the pin after 2 downloads: its hash is"):
        local_path(one)
    assert hub.downloads["vae/vae.safetensors"] == 2
    hub.spoil.clear()
    assert (local_path(one) / "vae" / "vae.safetensors").read_bytes() == weights(3)
    assert hub.downloads["vae/vae.safetensors"] == 3
    assert hub.downloads["transformer/model.safetensors"] == 1  # what was whole stayed


def test_a_file_that_somebody_cut_is_downloaded_again(hub: Hub) -> None:
    one = pinned()
    path = local_path(one) / "transformer" / "model.safetensors"
    path.resolve().write_bytes(b"cut")
    assert (local_path(one) / "transformer" / "model.safetensors").read_bytes() == weights(1)


def fetch(pickled: bytes, environment: dict[str, str], constants: dict[str, object], barrier: object) -> None:
    import huggingface_hub.constants

    os.environ.update(environment)
    for name, value in constants.items():
        setattr(huggingface_hub.constants, name, value)
    barrier.wait()  # type: ignore[attr-defined]
    local_path(pickle.loads(pickled))


def test_two_workers_of_a_node_download_once(hub: Hub, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    import huggingface_hub.constants as constants

    names = ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE", "HF_HUB_OFFLINE", "HF_HUB_CACHE")
    settings = {name: getattr(constants, name) for name in names}
    one, barrier = pickle.dumps(pinned()), context.Barrier(2)
    environment = {"JOINTDIT_CACHE": str(tmp_path / "cache")}
    both = [context.Process(target=fetch, args=(one, environment, settings, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert set(hub.downloads.values()) == {1}


def test_without_a_network_the_cache_is_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    local_path(pinned())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = hub.downloads.total()
    one = pinned(f"{NAME}@{FIRST}")
    assert (one.commit, one.terms.license) == (FIRST, "apache-2.0")
    assert (local_path(one) / "vae" / "vae.safetensors").read_bytes() == weights(3)
    with pytest.raises(ModelError, match=r"nobody/none is not a local folder and not an accessible model of the hub"):
        pinned("nobody/none")
    assert hub.downloads.total() == before


def test_a_gated_repository_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models[NAME].card = {"license": "other", "license_name": "flux-1-dev-non-commercial-license"}
    hub.models[NAME].gated_for = "hf_secret"
    with pytest.raises(ModelError) as caught:
        pinned()
    assert str(caught.value) == (
        f"model.name {NAME} is gated (flux-1-dev-non-commercial-license) or private, and HF_TOKEN is not set: accept "
        f"its terms at {hub.endpoint}/{NAME}, create a read token, and set HF_TOKEN on the driver and on every "
        "node."
    )
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ModelError, match=r"the account of HF_TOKEN has no access: accept its terms at .* with that"):
        pinned()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    one = pinned()
    assert "gated on the hub" in str(one.terms)
    assert local_path(one).is_dir()
    monkeypatch.delenv("HF_TOKEN")
    assert local_path(one).is_dir()  # it is here already


def test_a_worker_without_the_token_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models[NAME].gated_for = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    one = pinned()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelError, match="HF_TOKEN is not set: accept its terms"):
        local_path(one)


def test_an_adapter_is_the_one_file_of_its_repository(hub: Hub) -> None:
    one_file = {"jointdit.safetensors": weights(5), "a.pt": b"x"}
    two_files = {**one_file, "other.safetensors": weights(6)}
    hub.models["somebody/adapter"] = HubModel({FIRST: one_file, SECOND: two_files}, FIRST)
    one = pin("model.adapter", "somebody/adapter", "adapter")
    assert local_path(one).read_bytes() == weights(5)
    with pytest.raises(ModelError, match=r"2 .safetensors files at its top.*: name the file itself"):
        pin("model.adapter", f"somebody/adapter@{SECOND}", "adapter")
    named = pin("model.adapter", f"hf://somebody/adapter@{SECOND}/other.safetensors", "adapter")
    assert local_path(named).read_bytes() == weights(6)
    assert (
        named.weights != pin("model.adapter", f"hf://somebody/adapter@{SECOND}/jointdit.safetensors", "adapter").weights
    )


def test_a_repository_of_pickles_is_refused(hub: Hub) -> None:
    only = {"model_index.json": b"{}", "vae/model.bin": pickle.dumps({})}
    hub.models[NAME].commits[FIRST] = only
    with pytest.raises(PermanentError, match=r"no .safetensors file .*only vae/model.bin, and pickled files can run"):
        pinned()
    assert not hub.downloads

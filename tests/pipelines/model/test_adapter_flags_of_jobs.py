"""The JSON beside a job's adapter: pinned with it, read by the driver, and a part of the fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest

from jointdit.errors import ModelError, SpecError
from jointdit.pipeline import JointDiTPipeline
from pipelines.model.fingerprint import check_same, fingerprint_of
from pipelines.model.identity import identify
from pipelines.model.loading import local_model
from pipelines.model.weights.node_cache import local_path
from pipelines.spec.job import JobSpec, load_spec


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    tiny = JointDiTPipeline.from_pretrained("tiny")
    tiny.save_pretrained(tmp_path / "base")
    tiny.transformer.to_official(adapter=tmp_path / "adapter.safetensors")
    return load_spec(
        {
            "task": "joint",
            "model": {"base": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter.safetensors")},
            "input": {"uri": str(tmp_path / "prompts.txt")},
            "output": {"uri": str(tmp_path / "out")},
        }
    )


def test_inverse_is_a_part_of_the_fingerprint_and_travels_with_the_adapter(spec: JobSpec, tmp_path: Path) -> None:
    plain = identify(spec.model)
    before = fingerprint_of(spec, plain)
    assert "model.depth_transform" not in before
    (tmp_path / "adapter.json").write_text('{"depth_transform": "none"}')
    assert fingerprint_of(spec, identify(spec.model)) == before, "its outputs go on"
    (tmp_path / "adapter.json").write_text('{"depth_transform": "inverse"}')
    identity = identify(spec.model)
    assert identity.weights == plain.weights
    with pytest.raises(SpecError, match=r"differs in model.depth_transform \(null there, inverse here\)"):
        check_same(before, fingerprint_of(spec, identity), "out")
    (pin,) = (each for each in identity.pins if each.field == "model.adapter")
    assert {file.name for file in pin.files} == {"adapter.safetensors", "adapter.json"}
    assert local_path(pin) == tmp_path / "adapter.safetensors"
    assert local_model(spec.model, identity.pins).adapter == str(tmp_path / "adapter.safetensors")


def test_masks_are_refused_before_anything_is_written(spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "adapter.json").write_text('{"is_attnmask_training": true}')
    with pytest.raises(ModelError, match=r"model.adapter .*adapter\.json: is_attnmask_training is true"):
        identify(spec.model)


def test_a_checkpoint_says_it_in_its_config(spec: JobSpec, tmp_path: Path) -> None:
    tiny = JointDiTPipeline.from_pretrained("tiny")
    tiny.transformer.register_to_config(depth_transform="inverse")
    tiny.save_pretrained(tmp_path / "inverse")
    named = load_spec({**spec.as_given(), "model": {"name": str(tmp_path / "inverse")}})
    assert fingerprint_of(named, identify(named.model))["model.depth_transform"] == "inverse"

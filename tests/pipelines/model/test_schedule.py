"""What a base says of its schedule and text length: the driver reads what the workers' pipeline will do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from diffusers import UniPCMultistepScheduler

from jointdit.errors import SpecError
from jointdit.pipeline import JointDiTPipeline
from jointdit.sampling.solvers import default_scheduler, named_scheduler, noise_levels
from pipelines.model.fingerprint import check_same, fingerprint_of
from pipelines.model.identity import check_weights, identify
from pipelines.model.schedule import DEV
from pipelines.spec.job import JobSpec, load_spec
from tests.jointdit.loading.test_base_network import Published


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("published"), request.param)


def spec_of(published: Published, base: Path, **model: str) -> JobSpec:
    return load_spec(
        {
            "task": "joint",
            "model": {"base": str(base), "adapter": str(published.adapter), **model},
            "input": {"uri": str(published.adapter.parent / "prompts.txt")},
            "output": {"uri": str(published.adapter.parent / "out")},
        }
    )


def test_schnell_is_named_in_the_fingerprint_and_dev_is_not(published: Published, tmp_path: Path) -> None:
    is_dev = published.plain.transformer.config.guidance_embeds
    alone = tmp_path / "alone"
    shutil.copytree(published.folder / "transformer", alone)
    without = tmp_path / "without"  # a pipeline that was copied without its scheduler
    shutil.copytree(published.folder, without, ignore=shutil.ignore_patterns("scheduler"))
    for base, model in (
        (published.folder, {}),
        (published.single, {"components": str(published.folder)}),
        (alone, {"components": str(published.folder)}),
        (without, {}),
    ):
        spec = spec_of(published, base, **model)
        identity = identify(spec.model)
        check_weights(spec.model, identity.pins)
        fingerprint = fingerprint_of(spec, identity)
        found = fingerprint.get("model.schedule"), fingerprint.get("model.text_tokens")
        assert found == ((None, None) if is_dev else ({"shift": 1.0}, 256)), base
        loaded = JointDiTPipeline.from_pretrained(base=base, adapter=published.adapter, **model)
        assert loaded.config.max_sequence_length == (found[1] or 512)
        assert noise_levels(loaded.scheduler, 4, 1024).equal(noise_levels(default_scheduler(is_dev), 4, 1024))


def test_an_output_of_schnell_with_the_shift_of_dev_is_refused_by_name(published: Published) -> None:
    spec = spec_of(published, published.folder)
    identity = identify(spec.model)
    recorded = {
        name: value
        for name, value in fingerprint_of(spec, identity).items()
        if name not in ("model.schedule", "model.text_tokens")
    }
    if published.plain.transformer.config.guidance_embeds:
        check_same(recorded, fingerprint_of(spec, identity), "out")
    else:
        with pytest.raises(
            SpecError, match=r'in model.schedule \(null there, {"shift": 1.0} here\), model.text_tokens'
        ):
            check_same(recorded, fingerprint_of(spec, identity), "out")


def test_other_noise_levels_of_a_base_count_and_another_class_does_not(published: Published, tmp_path: Path) -> None:
    """The steps are those of `model.scheduler`."""
    base = tmp_path / "flux"
    shutil.copytree(published.folder, base)
    index = json.loads((base / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", UniPCMultistepScheduler.__name__]
    (base / "model_index.json").write_text(json.dumps(index))
    scheduler = named_scheduler("unipc", default_scheduler())
    for changes, expected in (
        ({}, None),
        ({"max_shift": 1.0}, {**DEV, "max_shift": 1.0}),
        ({"use_dynamic_shifting": False, "flow_shift": 3.0}, {"shift": 3.0}),
    ):
        UniPCMultistepScheduler.from_config({**scheduler.config, **changes}).save_pretrained(base / "scheduler")
        fingerprint = fingerprint_of(spec_of(published, base), identify(spec_of(published, base).model))
        assert fingerprint.get("model.schedule") == expected
        assert "model.text_tokens" not in fingerprint

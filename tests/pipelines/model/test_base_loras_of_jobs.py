"""`model.base_loras` of a job: pinned by their hashes, in the fingerprint with their scales, fused by every worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from jointdit.errors import ModelError, SpecError
from jointdit.pipeline import JointDiTPipeline
from pipelines.model.fingerprint import fingerprint_of
from pipelines.model.identity import check_weights, identify
from pipelines.model.loading import load_pipeline, local_model
from pipelines.spec.job import JobSpec, load_spec
from tests.jointdit.loading.test_base_network import Published


def lora(path: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    name, width = "transformer.transformer_blocks.0.attn.to_q", 48
    a, b = torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator)
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, path)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("published"), guidance_embeds=True)


@pytest.fixture
def files(published: Published, tmp_path: Path) -> dict[str, Any]:
    lora(tmp_path / "a.safetensors", 1)
    lora(tmp_path / "b.safetensors", 2)
    return {"base": str(published.folder), "adapter": str(published.adapter), "dtype": "float32"}


def spec_of(files: dict[str, Any], tmp_path: Path, *loras: tuple[str, float]) -> JobSpec:
    sections = [{"path": str(tmp_path / f"{name}.safetensors"), "scale": scale} for name, scale in loras]
    model = {**files, "base_loras": sections} if loras else files
    return load_spec(
        {
            "task": "joint",
            "model": model,
            "input": {"uri": str(tmp_path / "prompts.txt")},
            "output": {"uri": str(tmp_path / "out")},
        }
    )


def test_files_scales_and_their_order_are_in_the_fingerprint(files: dict[str, Any], tmp_path: Path) -> None:
    def fingerprint(*loras: tuple[str, float]) -> tuple[Any, Any]:
        spec = spec_of(files, tmp_path, *loras)
        identity = identify(spec.model)
        check_weights(spec.model, identity.pins)
        found = fingerprint_of(spec, identity)
        return found["model.weights"], found.get("model.base_loras")

    prints = [
        fingerprint(*loras)
        for loras in (
            (),
            (("a", 1.0),),
            (("a", 0.5),),
            (("b", 1.0),),
            (("a", 1.0), ("b", 1.0)),
            (("b", 1.0), ("a", 1.0)),
        )
    ]
    assert len(set(map(str, prints))) == len(prints)
    assert [scales for _, scales in prints] == [None, [1.0], [0.5], [1.0], [1.0, 1.0], [1.0, 1.0]]
    lora(tmp_path / "a.safetensors", 3)
    assert fingerprint(("a", 1.0)) != prints[1], "the same path, another file"


def test_a_worker_loads_the_pinned_files_and_fuses_them(files: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of(files, tmp_path, ("a", 0.5), ("b", -1.0))
    pins = identify(spec.model).pins
    assert [pin.field for pin in pins[-2:]] == ["model.base_loras.0", "model.base_loras.1"]
    local = local_model(spec.model, pins)
    assert local.base_loras == spec.model.base_loras
    loras = [(tmp_path / "a.safetensors", 0.5), (tmp_path / "b.safetensors", -1.0)]
    expected = JointDiTPipeline.from_pretrained(base=files["base"], adapter=files["adapter"], base_loras=loras)
    found = load_pipeline(local, "cpu").transformer.state_dict()
    for name, tensor in expected.transformer.state_dict().items():
        assert torch.equal(found[name], tensor), name
    assert spec.model.label.endswith("b.safetensors x -1 + " + files["adapter"])
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.base_loras\.1 .*b\.safetensors is missing on this machine"):
        local_model(spec.model, pins)


def test_what_cannot_be_fused_is_refused_before_anything_is_written(files: dict[str, Any], tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    spec = spec_of(files, tmp_path, ("a", 1.0))
    with pytest.raises(ModelError, match=r"a\.safetensors: it has no tensor of a LoRA"):
        check_weights(spec.model)
    for model, message in (
        ({"name": "tiny", "base_loras": [{"path": "/a.safetensors"}]}, "base_loras are fused into base"),
        ({**files, "base_loras": [{"path": "/a.safetensors", "weight": 1}]}, "weight"),
        (
            {**files, "base_loras": [{"path": "/a.safetensors"}], "quantization": {"quant_backend": "torchao"}},
            "base_loras cannot be fused into quantised weights",
        ),
    ):
        with pytest.raises(SpecError, match=message):
            load_spec({"task": "joint", "model": model, "input": {"uri": "/in"}, "output": {"uri": "/out"}})

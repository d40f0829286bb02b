"""Whose adapter is trained: a checkpoint's own, a new one on its base, a new or a published one on a FLUX pipeline."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from jointdit.errors import InputError, ModelError
from jointdit.pipeline import JointDiTPipeline
from jointdit.sampling.solvers import default_scheduler
from jointdit.training.adapter import save_adapter
from jointdit.training.parallel import World
from pipelines.training.run import check_model, error_of_ours, facts_of, identify_source, load_for_training
from pipelines.training.spec import AdapterJob, TrainedModel
from tests.jointdit.conftest import small_components


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    FluxPipeline(scheduler=default_scheduler(), **small_components()).save_pretrained(folder)
    return folder


def load(**fields: Any) -> JointDiTPipeline:
    model = TrainedModel(**fields)
    check_model(model)
    return load_for_training(model, torch.device("cpu"))


def adapter_of(pipe: JointDiTPipeline) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in pipe.transformer.adapter_named_parameters()}


def test_a_new_adapter_on_a_flux_pipeline_is_the_same_on_every_worker(flux: Path) -> None:
    first, second = (load(base=str(flux), lora_ranks=3, dtype="float32") for _ in range(2))
    one, other = adapter_of(first), adapter_of(second)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert {value.shape[0] for name, value in one.items() if ".lora_A." in name} == {3}
    assert all(not value.any() for name, value in one.items() if ".lora_B." in name or ".joint_proj." in name)


def test_a_published_adapter_goes_on(flux: Path, tmp_path: Path) -> None:
    made = load(base=str(flux), lora_ranks=3, dtype="float32")
    for number, parameter in enumerate(made.transformer.adapter_parameters()):
        parameter.data.fill_(number)
    save_adapter(made.transformer, tmp_path / "adapter.safetensors", World())
    again = load(base=str(flux), adapter=str(tmp_path / "adapter.safetensors"), dtype="float32")
    wanted = adapter_of(made)
    assert all(torch.equal(value, wanted[name]) for name, value in adapter_of(again).items())


def test_a_new_adapter_on_the_base_of_a_checkpoint() -> None:
    own, new = load(name="tiny"), load(name="tiny", lora_ranks=2)
    base, same = own.transformer.state_dict(), new.transformer.state_dict()
    names = [name for name in base if ".lora_" not in name and ".joint_proj." not in name]
    assert len(names) > 100
    assert all(torch.equal(base[name], same[name]) for name in names)
    assert all(not value.any() for name, value in adapter_of(new).items() if ".joint_proj." in name)
    assert any(value.any() for name, value in adapter_of(own).items() if ".joint_proj." in name)


def test_an_adapter_that_is_not_there_is_named(flux: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.safetensors"):
        load(base=str(flux), adapter=str(tmp_path / "gone.safetensors"), dtype="float32")
    with pytest.raises(ModelError, match=r"model\.adapter .*does not exist: give the adapter's safetensors file"):
        identify_source("adapter", str(tmp_path / "gone.safetensors"))


def test_an_error_of_ours_is_found_in_what_ray_train_makes_of_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray warns of settings of its own
        from ray.train import WorkerGroupError
        from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    ours = InputError("row 7 is bad.")
    failed = WorkerGroupError("a worker failed", {0: UserExceptionWithTraceback(ours, "a traceback")})
    again = pickle.loads(pickle.dumps(failed))
    found = error_of_ours(again.worker_failures[0])
    assert isinstance(found, InputError)
    assert str(found) == "row 7 is bad."
    assert error_of_ours(RuntimeError("a lost worker")) is None


def test_facts_of_a_run_name_what_its_base_and_adapter_change(flux: Path, tmp_path: Path) -> None:
    """Only where they are not FLUX.1-dev's, and `max` of the maps only if it is given: earlier runs resume."""

    def facts(depth: dict[str, Any], **model: Any) -> dict[str, Any]:
        data = {"kind": "table", "uri": str(tmp_path), "depth": depth}
        job = {"recipe": "adapter", "output": str(tmp_path / "out"), "model": model, "data": data}
        return facts_of(AdapterJob.model_validate({**job, "training": {"steps": 1}}))

    metric = {"kind": "metric", "scale": 0.001}
    plain = facts(metric, base=str(flux))
    assert plain["data.depth"] == {"kind": "metric", "scale": 0.001, "invalid": 0.0}
    assert not {"model.text_tokens", "model.depth_transform"} & plain.keys()
    assert facts({**metric, "max": 9.0}, base=str(flux))["data.depth"]["max"] == 9.0
    schnell = tmp_path / "schnell"
    shutil.copytree(flux, schnell)
    default_scheduler(guidance_embeds=False).save_pretrained(schnell / "scheduler")
    assert facts(metric, base=str(schnell))["model.text_tokens"] == 256
    made = load(base=str(flux), lora_ranks=3, dtype="float32")
    made.transformer.register_to_config(depth_transform="inverse")
    save_adapter(made.transformer, tmp_path / "adapter.safetensors", World())
    inverse = facts(metric, base=str(flux), adapter=str(tmp_path / "adapter.safetensors"))
    assert inverse["model.depth_transform"] == "inverse"

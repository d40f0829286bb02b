"""Every key of the spec is classified, and a change between runs has the effect that its class says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from jointdit.errors import SpecError
from pipelines.ledger.ledger import Ledger
from pipelines.model.fingerprint import fingerprint_of
from pipelines.model.identity import SOURCE_FIELDS, ModelIdentity
from pipelines.spec.base import Section
from pipelines.spec.changes import FREE, PIXELS, VERSION, WRITTEN, check_written
from pipelines.spec.job import TASKS, JobSpec, load_spec
from pipelines.store.storage import Storage

MAPS = ["input.depth={kind: metric}"]
TASK = {
    "input.depth": ("depth-to-image", MAPS),
    "buckets": ("encode", MAPS),
    "caption": ("prepare", ["teachers=[/teacher]"]),
    "model.condition_refresh": ("depth", []),
    "output.rgb": ("depth", []),
}
NF4, INT8 = "{quant_backend: bitsandbytes_4bit}", "{quant_backend: bitsandbytes_8bit}"
OTHER_PIXELS = {
    "seed": "1",
    "model.dtype": "bfloat16",
    "model.steps": "3",
    "model.scheduler": "unipc",
    "model.guidance": "2.0",
    "model.condition_refresh": "2",
    "model.resize": "crop",
    "model.vae_tiling": "true",
    "model.quantization": NF4,
    "input.columns.id": "x",
    "input.columns.prompt": "x",
    "input.columns.image": "x",
    "input.columns.depth": "x",
    "input.samples_per_row": "2",
    "input.prompt": "x",
    "input.depth.kind": "disparity",
    "input.depth.scale": "2.0",
    "input.depth.invalid": "1.0",
    "input.depth.max": "9.0",
    "buckets": "[[32, 64]]",
    "caption_length": "9",
    "captioner": "/captioner",
}
OTHER_WRITTEN = {
    "model.license": "mit",
    "output.image_format": "jpeg",
    "output.rgb": "reference",
    "output.points.format": "ply",
    "output.points.z_near": "0.5",
    "output.points.z_far": "20.0",
    "output.points.fov_degrees": "60.0",
    "output.points.calibrate.model": "/metric",
    "output.points.calibrate.revision": "main",
    "output.points.edge_threshold": "0.1",
    "output.points.normals": "true",
    "output.points.confidence": "true",
    "output.points.voxel": "0.1",
    "output.points.outliers.neighbours": "5",
    "output.points.outliers.ratio": "2.0",
}
NEEDED_WITH = {"output.points.calibrate.revision": ["output.points.calibrate.model=/metric"]}


def keys_of(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if sections:
            yield from keys_of(sections[0], f"{path}{name}.")
        else:
            yield f"{path}{name}"


def spec_for(key: str, *overrides: str) -> JobSpec:
    task, given = next((each for prefix, each in TASK.items() if key.startswith(prefix)), ("joint", []))
    data = {"task": task, "input": {"uri": "/in"}, "output": {"uri": "/out"}}
    return load_spec(data, [*given, *overrides])


def fingerprint(spec: JobSpec) -> dict[str, Any]:
    size = spec.model.height or 128, spec.model.width or 128
    return fingerprint_of(spec, ModelIdentity("0" * 64, 1, *size))


def test_every_key_of_every_task_is_in_one_class() -> None:
    keys = {key for model in TASKS.values() for key in keys_of(model)}
    classified = Counter([*PIXELS, *WRITTEN, *VERSION, *FREE])
    assert keys - classified.keys() == set(), "say in pipelines/spec/changes.py what a change of the new key does"
    assert classified.keys() - keys == set(), "no such key"
    assert [key for key, times in classified.items() if times > 1] == []


def test_the_keys_of_pixels_are_those_of_the_fingerprint() -> None:
    """The weights are in it by their hash, the task and the size by name."""
    by_hash = {"task", "teachers", "model.revision", *(f"model.{name}" for name in SOURCE_FIELDS)}
    sized = {"model.height", "model.width"}
    quantized = {key for key in PIXELS if key.startswith("model.quantization.")}
    loras = {"model.base_loras.path", "model.base_loras.scale"}  # tests/pipelines/model/test_base_loras_of_jobs.py
    assert set(PIXELS) - by_hash - sized - quantized - loras == OTHER_PIXELS.keys() - {"model.quantization"}
    small = "model={height: 32, width: 64}"
    assert fingerprint(spec_for("model.height", small)) != fingerprint(spec_for("model.height"))
    quantizations = [
        NF4,
        INT8,
        "{quant_backend: bitsandbytes_4bit, quant_kwargs: {bnb_4bit_quant_type: fp4}}",
        "{quant_backend: bitsandbytes_4bit, components_to_quantize: [transformer]}",
    ]
    prints = [fingerprint(spec_for("", f"model.quantization={each}")) for each in quantizations]
    assert len({json.dumps(each) for each in prints}) == len(quantizations)


@pytest.mark.parametrize("key", OTHER_PIXELS)
def test_another_value_gives_another_fingerprint(key: str) -> None:
    assert fingerprint(spec_for(key)) != fingerprint(spec_for(key, f"{key}={OTHER_PIXELS[key]}"))


def recorded(spec: JobSpec) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What `_job.json` holds of a spec, as it is read back."""
    given, resolved = json.loads(json.dumps([spec.as_given(), spec.model_dump(mode="json")]))
    return given, resolved


@pytest.mark.parametrize("key", WRITTEN)
def test_another_value_of_what_is_written_is_refused_by_name(key: str) -> None:
    before = spec_for(key, *NEEDED_WITH.get(key, []))
    after = spec_for(key, *NEEDED_WITH.get(key, []), f"{key}={OTHER_WRITTEN[key]}")
    assert fingerprint(before) == fingerprint(after)
    for one, other in ((before, after), (after, before)):
        check_written(*recorded(one), one, "out")
        with pytest.raises(
            SpecError, match=rf"^output\.uri out already holds a job .*{key} \(.* there, .* here\)"
        ) as told:
            check_written(*recorded(one), other, "out")
        assert str(told.value).endswith(": choose another output, or use its values.")


def test_a_range_that_is_given_later_is_refused_because_rows_say_that_it_is_assumed() -> None:
    before = spec_for("output.points")
    after = spec_for("output.points", "output.points={z_near: 1.0, z_far: 10.0}")
    with pytest.raises(SpecError, match=r"output.points.z_near \(1.0, assumed there, 1.0, given here\)"):
        check_written(*recorded(before), after, "out")


@pytest.mark.parametrize("key", [*VERSION, *FREE])
def test_the_other_keys_are_not_in_the_fingerprint(key: str) -> None:
    assert key not in fingerprint(spec_for(key))


def test_an_output_of_earlier_code_is_compared_by_the_keys_that_it_recorded() -> None:
    spec = spec_for("output", "output.image_format=jpeg", "output.points.voxel=0.1")
    given, resolved = recorded(spec_for("output"))
    del resolved["output"]["points"]  # as if these keys did not exist then
    with pytest.raises(SpecError, match=r"by output.image_format \(png there, jpeg here\): choose"):
        check_written(given, resolved, spec, "out")
    del resolved["output"]["image_format"]
    check_written(given, resolved, spec, "out")


def test_a_driver_that_loses_the_race_for_a_new_output_is_refused_too(tmp_path: Path) -> None:
    """Both drivers found no job; the one that writes `_job.json` second finds another image format in it."""
    ledger = Ledger(Storage(str(tmp_path / "out")))
    first, second = spec_for("output"), spec_for("output", "output.image_format=webp")
    assert not ledger.check_job(first, fingerprint(first))
    assert not ledger.check_job(second, fingerprint(second))
    ledger.open_job(first, fingerprint(first))
    with pytest.raises(SpecError, match=r"output.image_format \(png there, webp here\)"):
        ledger.open_job(second, fingerprint(second))

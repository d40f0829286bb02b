from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from jointdit.errors import SpecError
from pipelines.model.fingerprint import check_same, fingerprint_of
from pipelines.model.identity import ModelIdentity
from pipelines.spec.job import load_spec

MINIMAL = {"task": "joint", "input": {"uri": "prompts.txt"}, "output": {"uri": "out"}}
MAPS = {"task": "depth-to-image", "input": {"uri": "maps", "depth": {"kind": "metric"}}, "output": {"uri": "out"}}
EXAMPLE = """
task: joint
name: nightly-indoor
seed: 7
model: {name: tiny, dtype: bfloat16, steps: 20, guidance: 3.5, height: 128, width: 128, batch_size: 8}
input:
  uri: s3://corpus/prompts/*.parquet
  columns: {id: id, prompt: caption, image: image, depth: depth}
  samples_per_row: 2
output:
  uri: s3://datasets/nightly-indoor
  shard_rows: 256
  image_format: png
  points: {format: ply}
quality:
  filters: [{kind: depth_range, min_span: 0.2}]
  regenerate: 2
  max_quarantined_fraction: 0.05
retries: {infrastructure: 20, crash: 3}
resources: {workers: auto, gpus_per_worker: 1}
"""


def changed(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    spec = copy.deepcopy(spec)
    section = spec
    *parents, last = path.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return spec


def test_everything_else_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_spec(MINIMAL)
    assert spec.name == "out"
    assert spec.input.uri == (str(tmp_path / "prompts.txt"),)
    assert spec.output.uri == str(tmp_path / "out")
    assert (spec.input.samples_per_row, spec.quality.filters, spec.quality.regenerate) == (1, (), 0)
    assert (spec.model.name, spec.model.steps, spec.model.height, spec.output.points.format) == (
        "tiny",
        20,
        None,
        "none",
    )
    assert spec.model.dtype == "float32"
    assert load_spec(changed(MINIMAL, "model.name", "some/model")).model.dtype == "bfloat16"


def test_a_file_with_every_key(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(EXAMPLE)
    spec = load_spec(tmp_path / "job.yaml", ["model.steps=4", "input.uri=[a.txt, b.txt]", "output.points=none"])
    assert (spec.name, spec.seed, spec.model.steps, spec.model.dtype) == ("nightly-indoor", 7, 4, "bfloat16")
    assert spec.input.columns.prompt == "caption"
    assert [Path(uri).name for uri in spec.input.uri] == ["a.txt", "b.txt"]
    assert spec.output.uri == "s3://datasets/nightly-indoor"
    assert spec.output.points.format == "none"
    assert spec.quality.filters == ({"kind": "depth_range", "min_span": 0.2},)


def test_a_dumped_spec_loads_again_to_the_same() -> None:
    spec = load_spec(yaml.safe_load(EXAMPLE))
    again = load_spec(spec.as_given())
    assert again == spec
    assert again.input.columns.model_fields_set == spec.input.columns.model_fields_set
    assert load_spec(load_spec(MINIMAL).as_given()).input.columns.model_fields_set == set()


def test_specs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_spec(MINIMAL).model.steps = 3


BAD = {
    "no task": (
        changed(MINIMAL, "task", None),
        "task is missing in the spec: choose one of joint, depth, depth-to-image, encode, prepare.",
    ),
    "unknown task": (
        changed(MINIMAL, "task", "dept"),
        "task 'dept' in the spec is unknown: choose one of joint, depth",
    ),
    "no input": ({"task": "joint", "output": {"uri": "out"}}, "input is missing: add it to the spec."),
    "no input.uri": (changed(MINIMAL, "input", {}), "input.uri is missing: add it to the spec."),
    "no output": ({"task": "joint", "input": {"uri": "in"}}, "output is missing: add it to the spec."),
    "unknown key": (changed(MINIMAL, "model.step", 3), "model.step is not a key of the spec: did you mean steps?"),
    "unknown section": (changed(MINIMAL, "modell", {}), "modell is not a key of the spec: did you mean model?"),
    "unknown deep key": (
        changed(MINIMAL, "output.points", {"frmat": "ply"}),
        "output.points.frmat is not a key of the spec: did you mean format?",
    ),
    "unknown key of an optional section": (
        changed(MAPS, "input.depth.kindd", "metric"),
        "input.depth.kindd is not a key of the spec: did you mean kind?",
    ),
    "nothing near": (
        changed(MINIMAL, "retries.zzz", 1),
        "retries.zzz is not a key of the spec: the keys here are crash, ",
    ),
    "text for a number": (changed(MINIMAL, "model.steps", "many"), "model.steps must be a whole number, found 'many'."),
    "number as text": (changed(MINIMAL, "model.steps", "4"), "model.steps must be a whole number, found '4'."),
    "truth for a number": (changed(MINIMAL, "seed", True), "seed must be a whole number, found True."),
    "fraction for a whole number": (
        changed(MINIMAL, "model.steps", 2.5),
        "model.steps must be a whole number, found 2.5.",
    ),
    "not finite": (changed(MINIMAL, "model.guidance", float("nan")), "model.guidance must be"),
    "list for a section": (changed(MINIMAL, "model", [1]), "model must be a section with keys of its own, found (1,)."),
    "too small": (changed(MINIMAL, "model.steps", 0), "model.steps must be at least 1, found 0."),
    "two GPUs for one model": (
        changed(MINIMAL, "resources.gpus_per_worker", 2.0),
        "resources.gpus_per_worker must be at most 1, found 2: a worker runs one model on one GPU, so use more "
        "workers.",
    ),
    "negative seed": (changed(MINIMAL, "seed", -1), "seed must be at least 0, found -1."),
    "fraction above one": (
        changed(MINIMAL, "quality.max_quarantined_fraction", 2.0),
        "quality.max_quarantined_fraction must be at most 1.0, found 2.0.",
    ),
    "width not a multiple of 16": (
        changed(changed(MINIMAL, "model.width", 100), "model.height", 96),
        "model.width must be a multiple of 16 pixels, found 100: use 96 or 112.",
    ),
    "width alone": (
        changed(MINIMAL, "model.width", 96),
        "model: height and width belong together, and height is missing.",
    ),
    "unknown dtype": (
        changed(MINIMAL, "model.dtype", "int8"),
        "model.dtype must be float32, bfloat16 or float16, found 'int8'.",
    ),
    "unknown image format": (
        changed(MINIMAL, "output.image_format", "gif"),
        "output.image_format must be png, jpeg or webp",
    ),
    "bytes in flight": (
        changed(MINIMAL, "resources.in_flight_gb", "20GB"),
        "resources.in_flight_gb must be auto or a number from 0.001 to 1e9, in gigabytes, found '20GB'",
    ),
    "workers": (changed(MINIMAL, "resources.workers", "all"), "resources.workers must be auto or a whole number"),
    "no workers": (
        changed(MINIMAL, "resources.workers", 0),
        "resources.workers must be auto or a whole number of at least 1",
    ),
    "name and base": (
        changed(changed(MINIMAL, "model.name", "tiny"), "model.base", "x.safetensors"),
        "model: give either name, or base and adapter, not both.",
    ),
    "base alone": (
        changed(MINIMAL, "model.base", "x.safetensors"),
        "model: base and adapter belong together, and adapter is",
    ),
    "no uris": (changed(MINIMAL, "input.uri", []), "input.uri must name at least one file, folder or glob."),
    "uri of another type": (changed(MINIMAL, "input.uri", 3), "input.uri must be a path, an s3:// address or a list"),
    "memory": (changed(MINIMAL, "output.uri", "memory://x"), "output.uri: memory:// lives in one process"),
    "unknown store": (changed(MINIMAL, "input.uri", "ftp://h/x"), "input.uri: ftp:// is not a supported store"),
    "output inside input": (
        changed(changed(MINIMAL, "input.uri", "/data"), "output.uri", "/data/out"),
        "output.uri /data/out is inside input.uri /data: choose a folder outside the input.",
    ),
    "output is input": (
        changed(changed(MINIMAL, "input.uri", "s3://b/x"), "output.uri", "s3://b/x/"),
        "output.uri s3://b/x is inside input.uri s3://b/x: choose a folder outside the input.",
    ),
    "input inside output": (
        changed(changed(MINIMAL, "input.uri", "/out/prompts.txt"), "output.uri", "/out"),
        "input.uri /out/prompts.txt is inside output.uri /out: choose a folder outside the input.",
    ),
    "depth maps without a kind": (
        changed(MAPS, "input", {"uri": "maps"}),
        "input.depth is missing: give the content of the maps, kind: metric or kind: disparity.",
    ),
    "depth maps of no kind": (
        changed(MAPS, "input.depth", {"scale": 0.001}),
        "input.depth.kind is missing: add it to the spec.",
    ),
    "depth maps of an unknown kind": (
        changed(MAPS, "input.depth.kind", "inverse"),
        "input.depth.kind must be metric or disparity, found 'inverse'.",
    ),
    "depth maps where none are read": (
        changed(MINIMAL, "input.depth", {"kind": "metric"}),
        "input.depth describes depth maps, which task joint does not read: remove it.",
    ),
    "reference where images are made": (
        changed(MINIMAL, "output.rgb", "reference"),
        "output.rgb: reference is only for task depth, not for task joint: remove it.",
    ),
    "points the wrong way round": (
        changed(MINIMAL, "output.points", {"z_near": 5.0, "z_far": 2.0}),
        "output.points: z_near must be smaller than z_far, found 5 and 2.",
    ),
    "unknown filter": (changed(MINIMAL, "quality.filters", [{"kind": "depth_rang"}]), "did you mean depth_range?"),
    "filter without a kind": (changed(MINIMAL, "quality.filters", [{"min_span": 1}]), "quality.filters.0.kind"),
    "a secret": (
        changed(MINIMAL, "output.secret_access_key", "hunter2"),
        "output.secret_access_key looks like a credential",
    ),
    "a key id as a value": (
        changed(MINIMAL, "name", "AKIAABCDEFGHIJKLMNOP"),
        "name holds what looks like a credential",
    ),
    "user info in a uri": (changed(MINIMAL, "input.uri", "s3://key:hunter2@b/x"), "input.uri holds what looks like a"),
    "a signed address": (
        changed(MINIMAL, "input.uri", ["https://h/x?X-Amz-Signature=hunter2"]),
        "input.uri.0 holds what looks like a credential",
    ),
}


@pytest.mark.parametrize(("spec", "sentence"), BAD.values(), ids=BAD)
def test_bad_specs_are_one_sentence(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(spec)
    message = str(caught.value)
    assert message.startswith(sentence) or sentence in message
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert "hunter2" not in message
    assert "AKIA" not in message


BAD_FILES = {
    "yaml error": ("task: joint\nmodel: {steps: [1, 2}\n", "line 2, column"),
    "key twice": (
        "task: joint\ntask: depth\n",
        "line 2, column 1: this is not valid YAML, the key 'task' is given twice.",
    ),
    "tab": ("task: joint\ninput:\n\turi: x\n", "line 3, column 1"),
    "nothing": ("", "must hold a mapping of keys such as task, input and output, found nothing."),
    "a list": ("- task: joint\n", "must hold a mapping of keys such as task, input and output, found a list."),
}


@pytest.mark.parametrize(("text", "sentence"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "job.yaml")
    assert str(tmp_path / "job.yaml") in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"missing.yaml does not exist: give the path of a job spec in YAML\."):
        load_spec(tmp_path / "missing.yaml")
    with pytest.raises(SpecError, match="is a folder"):
        load_spec(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read as text"):
        load_spec(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.steps", "is not of the form key=value"),
        ("=4", "is not of the form key=value"),
        ("model..steps=4", "is not of the form key=value"),
        ("model.steps=[", "has a value that is not valid YAML"),
        ("task.x=4", "goes through 'joint', which is not a section"),
        ("quality.filters.3.min_span=0.1", "names item '3' of a list of 1"),
    ],
)
def test_bad_overrides_are_one_sentence(override: str, sentence: str) -> None:
    spec = changed(MINIMAL, "quality.filters", [{"kind": "depth_range"}])
    with pytest.raises(SpecError, match=r"^--set ") as caught:
        load_spec(spec, [override])
    assert sentence in str(caught.value)


def test_overrides_reach_into_lists_and_make_sections_without_touching_the_original() -> None:
    spec = changed(MINIMAL, "quality.filters", [{"kind": "depth_range"}])
    before = copy.deepcopy(spec)
    loaded = load_spec(spec, ["quality.filters.0.min_span=0.3", "model.steps=2", "output.points.z_far=20.0"])
    assert loaded.quality.filters[0]["min_span"] == 0.3
    assert (loaded.model.steps, loaded.output.points.z_far) == (2, 20.0)
    assert spec == before


ADMISSIBLE = [
    ("/data/prompts.txt", "/data/out"),
    ("/data/*.txt", "/data/out"),
    ("/data/a/*.txt", "/data/b"),
    ("s3://b/in", "s3://b/input"),
    ("s3://b/x*/y", "s3://b/z/out"),
]
INSIDE = [
    ("/data", "/data/out"),
    ("/data/**/*.png", "/data/out"),
    ("/data/*/*.png", "/data/out"),
    ("/data/o*/x/*.png", "/data/out/x"),
    ("s3://b/in", "s3://b/in"),
]


@pytest.mark.parametrize(("uri", "output"), ADMISSIBLE)
def test_outputs_that_no_listing_of_the_input_would_find(uri: str, output: str) -> None:
    load_spec({"task": "joint", "input": {"uri": uri}, "output": {"uri": output}})


@pytest.mark.parametrize(("uri", "output"), INSIDE)
def test_outputs_that_a_listing_of_the_input_would_find(uri: str, output: str) -> None:
    with pytest.raises(SpecError, match=r"is inside input\.uri"):
        load_spec({"task": "joint", "input": {"uri": uri}, "output": {"uri": output}})


DECIDES_PIXELS = {
    "seed": 1,
    "model.dtype": "bfloat16",
    "model.steps": 5,
    "model.guidance": 1.0,
    "model.resize": "crop",
    "input.samples_per_row": 2,
    "input.columns": {"prompt": "caption"},
    "input.prompt": "a cube",
}
MAY_CHANGE = {
    "name": "other",
    "model.batch_size": 3,
    "model.compile": True,
    "output.shard_rows": 7,
    "output.points": "ply",
    "quality.filters": [{"kind": "depth_range"}],
    "retries.crash": 1,
    "resources.workers": 2,
    "input.uri": "more.txt",
}
IDENTITY = ModelIdentity(weights="0" * 64, bytes=1, height=128, width=128)


@pytest.mark.parametrize(("path", "value"), DECIDES_PIXELS.items())
def test_what_decides_pixels_is_refused_by_name(path: str, value: Any) -> None:
    first = fingerprint_of(load_spec(MINIMAL), IDENTITY)
    second = fingerprint_of(load_spec(changed(MINIMAL, path, value)), IDENTITY)
    with pytest.raises(SpecError, match=rf"out already holds a job that differs in {path} \("):
        check_same(first, second, "out")


@pytest.mark.parametrize(("path", "value"), MAY_CHANGE.items())
def test_what_does_not_decide_pixels_may_change(path: str, value: Any) -> None:
    first = fingerprint_of(load_spec(MINIMAL), IDENTITY)
    assert first == fingerprint_of(load_spec(changed(MINIMAL, path, value)), IDENTITY)


def test_a_refresh_decides_pixels_and_outputs_of_before_go_on() -> None:
    depth = {**MINIMAL, "task": "depth", "input": {"uri": "images"}}
    exact, kept = (load_spec(changed(depth, "model.condition_refresh", every)) for every in (1, 4))
    assert fingerprint_of(exact, IDENTITY) == fingerprint_of(load_spec(depth), IDENTITY)
    assert "model.rgb_refresh" not in fingerprint_of(exact, IDENTITY), "its shards keep their ids"
    with pytest.raises(SpecError, match=r"differs in model.condition_refresh \(null there, 4 here\)"):
        check_same(fingerprint_of(exact, IDENTITY), fingerprint_of(kept, IDENTITY), "out")
    with pytest.raises(SpecError, match="condition_refresh needs an image or a depth map as input"):
        load_spec(changed(MINIMAL, "model.condition_refresh", 4))


def test_other_weights_are_refused() -> None:
    other = ModelIdentity(weights="1" * 64, bytes=1, height=64, width=128)
    spec = load_spec(MINIMAL)
    with pytest.raises(SpecError, match=r"differs in model.weights \(0000.*, model.height \(128 there, 64 here\)"):
        check_same(fingerprint_of(spec, IDENTITY), fingerprint_of(spec, other), "out")


def test_quantised_and_offloaded_weights_are_checked_with_the_spec():
    quantised = {"quant_backend": "bitsandbytes_4bit", "quant_kwargs": {"bnb_4bit_quant_type": "nf4"}}
    spec = load_spec(changed(MINIMAL, "model.quantization", quantised))
    wanted = spec.model.quantization.settings()
    assert (wanted.backend, wanted.components) == ("bitsandbytes_4bit", ("transformer", "text_encoder_2"))
    assert fingerprint_of(spec, IDENTITY) != fingerprint_of(load_spec(MINIMAL), IDENTITY)
    offloaded = load_spec(changed(MINIMAL, "model.offload", "model"))
    assert fingerprint_of(offloaded, IDENTITY) == fingerprint_of(load_spec(MINIMAL), IDENTITY)
    for model, sentence in (
        ({"quantization": {**quantised, "quant_kwargs": {"quant_type": "nf4"}}}, "has no 'quant_type'"),
        ({"quantization": quantised, "offload": "sequential"}, "sequential cannot move quantised weights"),
        ({"quantization": quantised, "offload": "group"}, "group does not move weights of bitsandbytes_4bit"),
        ({"offload": "disk"}, "model.offload"),
    ):
        with pytest.raises(SpecError, match=sentence):
            load_spec({**MINIMAL, "model": model})

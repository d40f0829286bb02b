"""Specs that nobody wrote: each is accepted, or refused with one sentence, in two seconds; from a seed, so they repeat.

The fields are those of the models themselves, so a new one is fuzzed too. What is accepted must survive what is done
with every spec: it is written as JSON and read back, printed as YAML for another machine and read back, shown, hashed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from jobs.kuberay.manifests import name_of
from jobs.kuberay.yaml_text import yaml_text
from jobs.train import RECIPES, load_train_spec
from jointdit.errors import JointDiTError, SpecError
from pipelines.dataset.decisions import Criteria
from pipelines.dataset.refilter import refilter
from pipelines.dataset.validation.validate import validate
from pipelines.ledger.versions import read_outcomes
from pipelines.model.fingerprint import digest, fingerprint_of
from pipelines.model.identity import ModelIdentity
from pipelines.plan.retry import plan_retry
from pipelines.quality import FILTERS
from pipelines.spec.job import TASKS, JobSpec, load_spec
from pipelines.spec.quantiles import Calibration
from pipelines.spec.yaml_text import parse_yaml
from pipelines.store.safe_text import markdown_text, printable
from pipelines.store.storage import Storage
from tests.local_job import job_in

SECONDS = 2.0  # of one spec, by the CPU's time: other processes may hold the machine
QUICK, MANY = 100, 3000  # specs
IDENTITY = ModelIdentity(weights="0" * 64, bytes=1, height=128, width=128)

UNICODE = [
    "größe",
    "数据集",
    "مجموعة بيانات",
    "עברית",
    "e\u0301te\u0301",
    "🦊👩‍👩‍👧",
    "\u202eexe.gnp",
    "a\u200bb",
    "\ufeffx",
    "ﷺ",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "\U0010ffff",
    "\x85",
    "\u2028",
]
TEXTS = [
    *UNICODE,
    "",
    " ",
    "~",
    "null",
    "no",
    "yes",
    "010",
    "0x10",
    "1e10",
    "1:30",
    "2026-02-30",
    "<<",
    "*a",
    "&a",
    "!!int 3",
    "- x",
    "? x",
    "a: b",
    "# x",
    "%YAML 9",
    "---",
    "{",
    "]",
    "'",
    '"',
    "\\",
    "|",
    ">",
    "@",
    "`",
    "a\nb",
    "\t",
    "x" * 300,
    "x" * 5000,
    "/",
    ".",
    "..",
    "~",
    "~nobody-of-this-name/x",
    "//",
    "s3://",
    "s3://b",
    "s3://b//x?versionId=1",
    "s3:/b",
    "file:///x",
    "memory://x",
    "hf://x",
    "http://[::1",
    "http://h:99999/",
    "https://h/x y",
    "a" * 200 + "/" * 200,
    "/" + "d/" * 2000,
    "*",
    "[",
    "**/{a,b}[!x]",
    "tiny",
    "auto",
    "joint",
    "depth_range",
    "ply",
    "${HOME}",
    "a@b@c",
    "{quantile: 0.5}",
    "\x00",
    "\ud800",
    "<script>",
    "[x](http://y)",
]
NUMBERS = [0, 1, -1, 2, 3, 16, 17, 128, 255, 256, 1000, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**18, 10**400]
FLOATS = [0.0, -0.0, 0.5, 1.0, 1e-300, 5e-324, 1e-9, 0.1, 1e9, 1e10, 1e38, 1e39, 1e300, float("inf"), float("-inf")]
SHAPES: list[Any] = [None, True, False, [], {}, [None], [[]], {"": None}, {"kind": "depth_range"}, {"quantile": 0.5}]


def odd_value(chance: random.Random, depth: int = 0) -> Any:
    """Any value that YAML or JSON can give."""
    kind = chance.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return chance.choice(TEXTS)
    if kind == 1:
        return chance.choice([*NUMBERS, chance.randrange(-(2**70), 2**70)])
    if kind == 2:
        return chance.choice([*FLOATS, float("nan"), chance.uniform(-1e3, 1e3)])
    if kind == 3:
        return chance.choice(SHAPES)
    if kind == 4:
        return "".join(chr(chance.choice([chance.randrange(0x80), chance.randrange(0x110000)])) for _ in range(6))
    if kind == 5:
        return [odd_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 6:
        return {chance.choice(TEXTS): odd_value(chance, depth + 1) for _ in range(chance.randrange(4))}
    nested: Any = odd_value(chance, 3)
    for _ in range(chance.choice([2, 30, 60, 500])):
        nested = [nested] if chance.random() < 0.5 else {"a": nested}
    return nested


def likely_value(annotation: Any, chance: random.Random) -> Any:
    """A value of a field's own type, at its bounds or beyond."""
    if get_origin(annotation) is Literal:
        return chance.choice(get_args(annotation))
    for kind, values in ((bool, [True, False]), (int, NUMBERS), (float, [*FLOATS, *NUMBERS]), (str, TEXTS)):
        if annotation is kind:
            return chance.choice(values)
    inner = [each for each in get_args(annotation) if each not in (type(None), Ellipsis)]
    if get_origin(annotation) is tuple and inner:
        return [likely_value(inner[0], chance) for _ in range(chance.randrange(3))]
    return likely_value(chance.choice(inner), chance) if inner else odd_value(chance)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from models_in(each)


def paths_of(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each field of a spec by its keys, sections and what is in them, with its type."""
    for name, field in model.model_fields.items():
        yield (*prefix, name), field.annotation
        for inner in models_in(field.annotation):
            yield from paths_of(inner, (*prefix, name))


def odd_filter(chance: random.Random) -> dict[str, Any]:
    kind = chance.choice([*FILTERS, "nothing"])
    fields = list(FILTERS[kind].model_fields) if kind in FILTERS else ["x"]
    setting = {name: odd_value(chance, 2) for name in fields if chance.random() < 0.3}
    if chance.random() < 0.2:
        setting[chance.choice(fields)] = {"quantile": chance.choice([0.1, *FLOATS, *SHAPES])}
    return {"kind": kind if chance.random() < 0.9 else odd_value(chance, 2), **setting}


def odd_spec(chance: random.Random) -> dict[Any, Any]:
    """A spec of some task that is right but for a few fields."""
    task = chance.choice(list(TASKS))
    spec: dict[Any, Any] = {"task": task, "input": {"uri": "in"}, "output": {"uri": "out"}}
    if task in ("depth-to-image", "encode"):
        spec["input"]["depth"] = {"kind": chance.choice(["metric", "disparity"])}
    if task == "prepare":
        spec["teachers"] = "teacher"
    paths = list(paths_of(TASKS[task]))
    for _ in range(chance.choice([1, 1, 2, 3])):
        path, annotation = chance.choice(paths)
        put(spec, path, likely_value(annotation, chance) if chance.random() < 0.6 else odd_value(chance))
    if chance.random() < 0.2:
        put(spec, ("quality", "filters"), [odd_filter(chance) for _ in range(2)])
        put(spec, ("quality", "calibration"), chance.choice([None, "calibration", odd_value(chance)]))
    if chance.random() < 0.1:
        put(spec, ("quality", "scores"), [odd_filter(chance)])
    if chance.random() < 0.05:
        spec[chance.choice([*TEXTS, 3, None, True, 1.5])] = odd_value(chance)
    return spec


def put(spec: dict[Any, Any], path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    for name in parents:
        if not isinstance(spec.get(name), dict):
            spec[name] = {}
        spec = spec[name]
    spec[last] = value


def loaded(source: Any, overrides: tuple[str, ...], about: str, load: Callable[..., Any] = load_spec) -> Any:
    """The spec, or None where it is refused with one sentence; anything else fails."""
    started = time.process_time()
    try:
        spec = load(source, overrides)
    except JointDiTError as error:
        message = str(error)
        assert message.endswith((".", "?")), (about, message)
        assert len(message) < 2000, (about, message[:2000])
        assert not set(message) & set("\n\0"), (about, message)
        spec = None
    except Exception as error:
        raise AssertionError(f"{about}: {type(error).__name__}") from error
    assert time.process_time() - started < SECONDS, about
    return spec


def use(spec: JobSpec) -> None:
    """What is done with every spec that is accepted, and must not fail or change it."""
    record = json.loads(json.dumps(spec.as_given(), allow_nan=False))
    assert load_spec(record).model_dump() == spec.model_dump()
    if spec.notify.webhook is None:
        assert load_spec(parse_yaml(yaml_text(spec.as_sent()))) == spec
    json.dumps(spec.model_dump(mode="json"), allow_nan=False).encode()
    digest(fingerprint_of(spec, IDENTITY))
    Criteria.of(spec.quality).to_json()
    assert "\n" not in markdown_text(spec.name)
    assert printable(spec.name).isprintable()
    spec.output.uri.encode()
    with contextlib.suppress(SpecError):
        name_of(spec)


def as_text(spec: Mapping[Any, Any]) -> str | None:
    """The spec as YAML; None where PyYAML cannot write it."""
    try:
        text = yaml.safe_dump(spec, allow_unicode=True)
        text.encode()
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return text


def spoil(text: str, chance: random.Random) -> str:
    """The text with something cut out of it, put in or changed."""
    at = chance.randrange(len(text) + 1)
    piece = chance.choice(
        [*TEXTS, "&a ", "*a ", "<<: ", "!!int ", "!x ", "{", "}", "[", "]", ": ", ", ", "\n", "? ", "- "]
    )
    piece = piece.encode(errors="replace").decode()
    return text[:at] + piece + text[at + chance.choice([0, 0, 1, 5]) :]


def fuzz(seed: int, folder: Path) -> tuple[int, int]:
    """A spec as a dict, as a file, as a spoilt file, and by overrides: how many were taken, and how many refused."""
    chance = random.Random(seed)
    taken = []
    spec = odd_spec(chance)
    taken.append(loaded(spec, (), f"seed {seed}, the dict"))
    file, text = folder / "job.yaml", as_text(spec)
    if text is not None:
        file.write_text(text, newline="")
        taken.append(loaded(file, (), f"seed {seed}, the file"))
        file.write_text(spoil(text, chance), newline="")
        taken.append(loaded(file, (), f"seed {seed}, the spoilt file"))
    task = chance.choice(["joint", "depth"])
    base = {"task": task, "input": {"uri": "in"}, "output": {"uri": "out"}}
    keys, annotation = chance.choice(list(paths_of(TASKS[task])))
    path = ".".join(keys)
    value = as_text({"v": likely_value(annotation, chance) if chance.random() < 0.6 else odd_value(chance)})
    if value is not None:
        taken.append(loaded(base, (f"{path}={value.removeprefix('v:').strip()}",), f"seed {seed}, --set {path}"))
    taken.append(loaded(base, (f"{path}={chance.choice(TEXTS)}",), f"seed {seed}, --set {path} to a text"))
    for found in taken:
        if found is not None:
            use(found)
    return sum(found is not None for found in taken), sum(found is None for found in taken)


def odd_training(chance: random.Random) -> dict[Any, Any]:
    recipe = chance.choice(list(RECIPES))
    spec: dict[Any, Any] = {"recipe": recipe, "output": "out"}
    if recipe == "adapter":
        spec |= {"model": {"name": "tiny"}, "data": {"kind": "scenes"}, "training": {"steps": 1, "optimizer": {}}}
    paths = list(paths_of(RECIPES[recipe]))
    for _ in range(chance.choice([1, 1, 2])):
        path, annotation = chance.choice(paths)
        put(spec, path, likely_value(annotation, chance) if chance.random() < 0.6 else odd_value(chance))
    return spec


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(each)
    elif isinstance(value, float):
        yield value


def fuzz_all(seeds: range, folder: Path) -> None:
    calibration = Calibration(2, 0, {"depth_span": [0.1, 0.2], "rgb_span": []}, {}, "now")
    calibration.write(Storage(str(folder / "calibration")))
    found = [fuzz(seed, folder) for seed in seeds]
    accepted, refused = sum(a for a, _ in found), sum(r for _, r in found)
    assert accepted > len(seeds) / 10, "a fuzzer whose specs are all refused sees little of what lies behind"
    assert refused > len(seeds), "and one whose specs are all right sees no mistake"


def test_odd_specs_are_taken_or_refused_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fuzz_all(range(QUICK), tmp_path)


def test_odd_specs_of_trainings_are_taken_or_refused_with_one_sentence(tmp_path: Path) -> None:
    taken = 0
    for seed in range(QUICK):
        if (text := as_text(odd_training(random.Random(seed)))) is not None:
            (tmp_path / "train.yaml").write_text(text, newline="")
            found = loaded(tmp_path / "train.yaml", (), f"seed {seed}", load_train_spec)
            taken += found is not None
            assert found is None or all(map(math.isfinite, numbers_in(found.model_dump()))), f"seed {seed}"
    assert taken


@pytest.mark.slow
def test_thousands_of_odd_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = int(os.environ.get("SEED", "1")) * 1_000_000
    fuzz_all(range(first, first + MANY), tmp_path)


@pytest.mark.parametrize("text", UNICODE)
def test_names_and_folders_in_any_script_are_taken(text: str) -> None:
    spec = load_spec(
        {
            "task": "joint",
            "name": text,
            "input": {"uri": f"in/{text}", "prompt": text},
            "output": {"uri": f"out/{text}"},
        }
    )
    assert (spec.name, spec.output.uri.rsplit("/", 1)[-1], spec.input.prompt) == (text, text, text)
    use(spec)


def test_a_job_whose_names_are_in_any_script_comes_to_its_versions(tmp_path: Path) -> None:
    """Folder, file, ids, prompts and the job's own name; through all that writes to an output without Ray."""
    name = " ".join(text for text in UNICODE if len(text) < 20)
    folder = tmp_path / name
    folder.mkdir()
    rows = [{"id": f"{number}{text}", "prompt": f"{text} a"} for number, text in enumerate(UNICODE)]
    lines = "".join(json.dumps(row, ensure_ascii=number % 2 == 0) + "\n" for number, row in enumerate(rows))
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    output = {"uri": str(folder / f"out {name}"), "points": "ply", "shard_rows": 100}
    job = job_in(folder, None, name=name, input={"uri": str(folder / f"{name}.jsonl")}, output=output)
    assert sum(job.complete().counts.values()) == len(rows)
    found = refilter(job.context.spec.output.uri, ["quality.filters=[{kind: depth_range, min_span: 0.99}]"])
    assert found.version.counts["kept"] == 0
    assert plan_retry(job.context.spec.output.uri, ["rejected"]).shards == 1
    job.run()
    assert validate(job.context.spec.output.uri).problems == []
    outcomes = read_outcomes(job.context.storage, found.version)["id"].to_pylist()
    assert {identifier.rsplit("/", 1)[0] for identifier in outcomes} == {row["id"] for row in rows}

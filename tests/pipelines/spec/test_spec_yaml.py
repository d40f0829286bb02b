"""YAML of specs: what it says is what is read, and what cannot be read is one sentence, soon."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.kuberay.yaml_text import yaml_text
from jointdit.errors import SpecError
from pipelines.spec.job import load_spec
from pipelines.spec.yaml_text import LARGEST_INT, LONGEST_TEXT, YamlProblem, parse_yaml

SECONDS = 5.0  # on a machine that does other things too; what is refused here took minutes, or never ended
BASE = "task: joint\ninput: {uri: prompts.txt}\noutput: {uri: out}\n"
MINIMAL = {"task": "joint", "input": {"uri": "prompts.txt"}, "output": {"uri": "out"}}


def bomb(levels: int, item: str = "[{}]", first: str = "[x, x]") -> str:
    """Anchors of which each has the one before it ten times."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {item.format(', '.join([f'*a{n - 1}'] * 10))}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "alias bomb": (bomb(10), "with its aliases followed it has more than 20,000 values"),
    "bomb of merges": (bomb(10, "{{<<: [{}]}}", "{x: 1}"), "with its aliases followed it has more than 20,000 values"),
    "aliases, each one level deeper": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000)),
        "with its aliases followed it is more than 40 levels deep",
    ),
    "recursive list": ("name: &a [*a]", "an alias stands inside of the value that it names"),
    "recursive mapping": ("name: &a {b: *a}", "an alias stands inside of the value that it names"),
    "recursive merge": ("name: &a {<<: *a}", "an alias stands inside of the value that it names"),
    "deep flow": ("name: " + "[" * 50_000, "nested more than 40 levels deep"),
    "deep mappings": ("name: " + "{a: " * 50_000, "nested more than 40 levels deep"),
    "deep blocks": ("name:\n" + "- " * 50_000, "nested more than 40 levels deep"),
    "deep keys": ("? " * 50_000, "nested more than 40 levels deep"),
    "very many values": ("name: [" + "a," * 200_000 + "]", "there are more than 20,000 values"),
    "long": ("name: " + "x" * 2 * LONGEST_TEXT, "longer than 512 KiB"),
    "long integer": ("seed: " + "9" * 5000, "a whole number of 5,000 characters is too large"),
    "long hexadecimal": ("seed: 0x" + "f" * 5000, "a whole number of 5,002 characters is too large"),
    "beyond 64 bits": (f"seed: {LARGEST_INT + 1}", "too large: 64 bits must hold it"),
    "list as a key": ("? [a, b]\n: c", "a key must be text, found a list or a mapping"),
    "mapping as a key": ("{a: b}: c", "a key must be text, found a list or a mapping"),
    "number as a key": ("1: c", "a key must be text, found the value '1': quote it"),
    "truth as a key": ("on: c", "a key must be text, found the value 'on': quote it"),
    "key twice": ("seed: 1\nseed: 2", "the key 'seed' is given twice"),
    "key twice, deep": ("model: {steps: 1, steps: 2}", "the key 'steps' is given twice"),
    "merge of a number": ("<<: 3", "<< merges a mapping or a list of mappings"),
    "no integer": ("seed: !!int abc", "the value tagged !!int is not one"),
    "no float": ("seed: !!float abc", "the value tagged !!float is not one"),
    "no truth": ("seed: !!bool 3", "the value tagged !!bool is not one"),
    "no mapping": ("model: !!map [a]", "the value tagged !!map is not one"),
    "binary": ("name: !!binary aGk=", "the tag 'tag:yaml.org,2002:binary' has no meaning in a spec"),
    "timestamp": ("name: !!timestamp 2026-02-30", "has no meaning in a spec"),
    "set": ("name: !!set {a}", "has no meaning in a spec"),
    "python": ("name: !!python/object/apply:os.system [true]", "has no meaning in a spec"),
    "local tag": ("name: !mine x", "has no meaning in a spec"),
    "NUL": ("name: a\0b", "the character U+0000 is not allowed in YAML"),
    "control character": ("name: a\x07b", "the character U+0007 is not allowed in YAML"),
    "no such character": ('name: "\\UFFFFFFFF"', "the text cannot be parsed"),
    "no such version": ("%YAML " + "9" * 5000 + ".1\n--- a", "the text cannot be parsed"),
    "directives": ("%FOO\n" * 80_000 + "--- a", "there are more than 10 directives"),
    "two documents": ("a: b\n---\nc: d", "expected a single document in the stream"),
    "unknown alias": ("name: *a", "found undefined alias"),
    "tab": ("model:\n\tsteps: 1", "found character '\\t'"),
}


def sentence_of(error: BaseException) -> str:
    message = str(error)
    assert len(message) < 1000, "values are cut"
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_a_spec_is_one_sentence_and_soon(name: str, tmp_path: Path) -> None:
    text, problem = HOSTILE[name]
    started = time.perf_counter()
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "job.yaml")
    assert problem in sentence_of(caught.value)
    with pytest.raises(SpecError) as caught:
        load_spec(MINIMAL, [f"model={text}"])
    assert sentence_of(caught.value).startswith("--set model has a value that is not valid YAML: ")
    assert time.perf_counter() - started < 2 * SECONDS


def test_the_command_line_says_it_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text("name: &a [*a]")
    assert main(["plan", str(tmp_path / "job.yaml")]) == 1
    (tmp_path / "job.yaml").write_text(BASE)
    assert main(["plan", str(tmp_path / "job.yaml"), "--set", "seed=" + "9" * 5000]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("Error: ") for line in errors] == [True, True]


def test_files_that_are_none_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SpecError, match="is not a regular file"):
        load_spec(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SpecError, match="cannot be read as text"):
        load_spec(tmp_path / "loop")
    with pytest.raises(SpecError, match="cannot be read as text"):
        load_spec("x" * 5000)
    with pytest.raises(SpecError, match="cannot be read as text"):
        load_spec("x\0")
    (tmp_path / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
    with pytest.raises(SpecError, match=r"byte 8 is not UTF-8; save it in UTF-8\.$"):
        load_spec(tmp_path / "latin.yaml")
    (tmp_path / "wide.yaml").write_text(BASE, encoding="utf-16")
    with pytest.raises(SpecError, match=r"byte 0 is not UTF-8"):
        load_spec(tmp_path / "wide.yaml")
    (tmp_path / "marked.yaml").write_text(BASE, encoding="utf-8-sig")
    assert load_spec(tmp_path / "marked.yaml").name == "out"


def test_a_pipe_that_the_shell_gives_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, BASE.encode())
    os.close(writer)
    try:
        assert load_spec(f"/dev/fd/{reader}").name == "out"
    finally:
        os.close(reader)


NUMBERS: dict[str, Any] = {
    "1e10": 10**10,
    "1E10": 10**10,
    "1e+10": 10**10,
    "1.0e+10": 10**10,
    "1e-3": 0.001,
    "1E-3": 0.001,
    "-2.5e-1": -0.25,
    ".5": 0.5,
    "4.": 4.0,
    "1_000": 1000,
    "+12": 12,
    "-0": 0,
    "0x1F": 31,
    "0b101": 5,
    "0o17": 15,
    ".inf": math.inf,
    "-.inf": -math.inf,
    "1e400": math.inf,
    "!!int '7'": 7,
    "!!float 7": 7.0,
    "!!str 7": "7",
    "'1e10'": "1e10",
    "010": "010",
    "1:30": "1:30",
    "1:30.5": "1:30.5",
    "2026-02-30": "2026-02-30",
    "2026-01-01T10:00:00Z": "2026-01-01T10:00:00Z",
    "1e": "1e",
    "e1": "e1",
    "0b": "0b",
    "0x": "0x",
    "_1": "_1",
    "1.2.3": "1.2.3",
    "yes": True,
    "Off": False,
    "y": "y",
    "~": None,
    "": None,
    "<<": "<<",
}


@pytest.mark.parametrize(("text", "value"), NUMBERS.items(), ids=list(NUMBERS))
def test_a_value_is_what_its_writer_meant(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}")["a"]
    assert found == value
    assert isinstance(found, type(value))
    if text:
        assert parse_yaml(f"[{text}]") == [value]
    assert parse_yaml(yaml_text({"a": value})) == {"a": value}, "what is written for another machine reads the same"


def test_numbers_are_numbers_in_a_file_and_in_an_override(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(BASE + "seed: 1e10\nresources: {stall_seconds: 1e3, straggler_seconds: 1E-1}\n")
    spec = load_spec(tmp_path / "job.yaml", ["model.guidance=35e-1", "budget.max_rows=1.0e+6"])
    assert (spec.seed, spec.resources.stall_seconds, spec.resources.straggler_seconds) == (10**10, 1000.0, 0.1)
    assert (spec.model.guidance, spec.budget.max_rows) == (3.5, 1_000_000)


def test_what_readers_of_yaml_do_not_agree_on_is_text_and_no_number() -> None:
    assert load_spec(MINIMAL, ["name=010"]).name == "010"
    assert load_spec(MINIMAL, ["name=2026-02-30"]).name == "2026-02-30"
    for override in ("seed=010", "seed=1:30", "resources.stall_seconds=10:00"):
        with pytest.raises(SpecError, match=r"found '.*': YAML readers do not agree on this number; write it in decim"):
            load_spec(MINIMAL, [override])
    with pytest.raises(
        SpecError, match="name must be text, found False: quote it, because YAML reads yes, no, on and off"
    ):
        load_spec(MINIMAL, ["name=no"])
    for text in (".inf", "-.inf", ".nan", "1e400"):
        with pytest.raises(SpecError, match=r"resources.stall_seconds must be a finite number"):
            load_spec(MINIMAL, [f"resources.stall_seconds={text}"])


def test_merge_keys_work(tmp_path: Path) -> None:
    text = """
task: joint
input: {uri: prompts.txt}
output: {uri: out, points: &cloud {format: ply, z_near: 2.0, z_far: 5.0}}
resources: &shared {workers: 2}
"""
    more = """
    x: {<<: *cloud, z_far: 7.0}
    y: {z_far: 7.0, <<: [*shared, {z_near: 3.0}, *cloud]}
    z: {<<: {}}
    """
    (tmp_path / "job.yaml").write_text(text)
    assert load_spec(tmp_path / "job.yaml").resources.workers == 2
    found = parse_yaml(text.strip() + "\n" + "\n".join(line.strip() for line in more.strip().splitlines()))
    assert found["x"] == {"format": "ply", "z_near": 2.0, "z_far": 7.0}
    assert found["y"] == {"workers": 2, "format": "ply", "z_near": 3.0, "z_far": 7.0}
    assert found["z"] == {}
    assert load_spec(MINIMAL, ["output.points={<<: &p {format: ply}, z_far: 7.0}"]).output.points.format == "ply"


def test_aliases_work_and_share_nothing() -> None:
    found = parse_yaml("a: &a [1, {b: 2}]\nc: *a\nd: [*a, *a]")
    assert found == {"a": [1, {"b": 2}], "c": [1, {"b": 2}], "d": [[1, {"b": 2}]] * 2}
    found["c"][1]["b"] = 3
    assert found["a"][1]["b"] == 2


def test_a_problem_says_where() -> None:
    with pytest.raises(YamlProblem) as caught:
        parse_yaml("a: 1\nb:\n  c: \0")
    assert (caught.value.where, caught.value.may_quote) == (", line 3, column 6", False)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({**MINIMAL, "name": "a\0b"}, "name contains a NUL or a surrogate"),
        ({**MINIMAL, "name": "\ud800"}, "name contains a NUL or a surrogate"),
        ({**MINIMAL, "na\0me": "x"}, "contains a NUL or a surrogate"),
        ({**MINIMAL, "seed": 10**5000}, "seed is a number that does not fit in 64 bits"),
        ({**MINIMAL, "input": {"uri": "in", "prompt": "x" * 200_000}}, "input.prompt has 200,000 characters"),
        ({**MINIMAL, 3: "x"}, "the spec has the key 3, which is not text"),
        ({**MINIMAL, "model": {True: 1}}, "model has the key True, which is not text"),
        ({**MINIMAL, "name": {"x" * 500: {"y" * 500: 1}}}, "name must be text"),
    ],
)
def test_a_spec_as_a_dict_is_held_to_the_same(spec: dict[Any, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(spec)
    assert sentence in sentence_of(caught.value)


def test_a_dict_that_holds_itself_is_refused() -> None:
    endless: dict[str, Any] = {**MINIMAL}
    endless["model"] = endless
    with pytest.raises(SpecError, match="is nested more than 40 levels deep"):
        load_spec(endless)


def test_a_spec_that_is_sent_elsewhere_reads_the_same() -> None:
    texts = {"id": "1e10", "prompt": "0o17", "image": "010", "depth": "2026-01-01"}
    spec = load_spec({**MINIMAL, "name": "yes", "input": {"uri": "in", "columns": texts, "prompt": "line\n  two \n"}})
    assert load_spec(parse_yaml(yaml_text(spec.as_sent()))) == spec
    assert load_spec(json.loads(json.dumps(spec.as_given()))) == spec

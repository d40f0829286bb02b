"""Bad input at the command line: one clear sentence on stderr, exit code 1, nothing written."""

import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml
from PIL import Image

from jobs.cli import main
from pipelines.fingerprint import fingerprint_of
from pipelines.ledger import Ledger
from pipelines.model import identify
from pipelines.spec import load_spec
from pipelines.storage import Storage

PROMPTS = ["a red cube on a blue floor in front of a white wall", "a green sphere on a gray floor"]
JOINT = {"task": "joint", "input": {"uri": "in/prompts.txt"}, "output": {"uri": "out"}}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A working directory with small inputs of every kind."""
    monkeypatch.chdir(tmp_path)
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (inputs / "empty.txt").write_text("")
    (inputs / "captions.jsonl").write_text(json.dumps({"name": "a", "caption": PROMPTS[0]}) + "\n")
    (inputs / "twice.jsonl").write_text("".join(json.dumps({"id": "same", "prompt": p}) + "\n" for p in PROMPTS))
    (inputs / "maps").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(inputs / "maps" / "a.png")
    (inputs / "maps" / "a.txt").write_text(PROMPTS[0])
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(inputs / "picture.png")
    (inputs / "text.png").write_text("no picture")
    return tmp_path


def files_below(folder):
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*")}


def spec_with(**changes):
    spec = json.loads(json.dumps(JOINT))
    for path, value in changes.items():
        section = spec
        *parents, last = path.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return yaml.safe_dump(spec)


BAD_SPECS = {
    "YAML error with its line": ("task: joint\ninput: [unclosed\n", ["spec.yaml, line", "not valid YAML"]),
    "unknown key": (spec_with(model__step=3), ["model.step", "did you mean steps?"]),
    "wrong type": (spec_with(model__steps="many"), ["model.steps", "whole number", "'many'"]),
    "width not a multiple of 16": (spec_with(model__width=100, model__height=96), ["model.width", "100", "96 or 112"]),
    "unknown task": (spec_with(task="jont"), ["task 'jont'", "joint, depth, depth-to-image"]),
    "output inside input": (spec_with(output__uri="in/out", input__uri="in"), ["output.uri", "inside input.uri"]),
    "depth maps without a kind": (
        spec_with(task="depth-to-image", input__uri="in/maps"),
        ["input.depth", "kind: metric or kind: disparity"],
    ),
    "no rows in the input": (spec_with(input__uri="in/empty.txt"), ["in/empty.txt", "no rows"]),
    "input that does not exist": (spec_with(input__uri="in/none.txt"), ["in/none.txt", "does not exist"]),
    "missing column": (spec_with(input__uri="in/captions.jsonl"), ["column 'prompt'", "name, caption"]),
    "duplicate ids": (spec_with(input__uri="in/twice.jsonl"), ["'same'", "id"]),
    "model folder without weights": (spec_with(model__name="./in"), ["model.name", "without weights"]),
    "model that does not exist": (spec_with(model__name="./none"), ["model.name", "does not exist"]),
    "credentials in the spec": (spec_with(input__secret_key="hush"), ["input.secret_key", "credential"]),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("name", BAD_SPECS)
def test_bad_spec(name, command, workspace, capsys):
    text, fragments = BAD_SPECS[name]
    Path("spec.yaml").write_text(text)
    assert_refused([command, "spec.yaml"], fragments, capsys)


BAD_CALLS = {
    "spec file missing": (["run", "none.yaml"], ["none.yaml does not exist"]),
    "spec is a folder": (["plan", "in"], ["in is a folder"]),
    "override without a value": (["plan", "good.yaml", "--set", "model.steps"], ["--set 'model.steps'"]),
    "override of an unknown key": (["run", "good.yaml", "--set", "model.stepps=4"], ["did you mean steps?"]),
    "status of no dataset": (["status", "in"], ["in"]),
    "validate of no dataset": (["validate", "in"], ["in"]),
    "empty prompt": (["generate", " ", "-o", "out"], ["prompt is empty"]),
    "odd size": (["generate", "a cube", "-o", "out", "--height", "40", "--width", "40"], ["height", "32 or 48"]),
    "height alone": (["generate", "a cube", "-o", "out", "--height", "64"], ["width is missing"]),
    "generate without weights": (["generate", "a cube", "-o", "out", "--model", "./in"], ["without weights"]),
    "picture missing": (["depth", "in/none.png", "-o", "out"], ["in/none.png cannot be read"]),
    "no picture": (["depth", "in/text.png", "-o", "out"], ["in/text.png", "no known picture format"]),
    "two pictures of one name": (["depth", "in/picture.png", "picture.jpg", "-o", "out"], ["called picture"]),
    "coloured depth map": (["restyle", "in/picture.png", "a cube", "-o", "out"], ["in/picture.png", "mode RGB"]),
    "depth map of unknown kind": (["restyle", "in/depth.npy", "a cube", "-o", "out"], ["--kind disparity"]),
    "scenes into a full folder": (["scenes", "-n", "1", "-o", "in"], ["in is not an empty folder"]),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call(name, workspace, capsys):
    Path("good.yaml").write_text(spec_with())
    arguments, fragments = BAD_CALLS[name]
    assert_refused(arguments, fragments, capsys)


def test_output_that_holds_another_job(workspace, capsys):
    spec = load_spec(yaml.safe_load(spec_with(model__steps=20)))
    Ledger(Storage(spec.output.uri)).open_job(spec, fingerprint_of(spec, identify(spec.model)))
    Path("spec.yaml").write_text(spec_with(model__steps=4))
    for command in ("run", "plan"):
        assert_refused([command, "spec.yaml"], ["already holds a job", "model.steps (20 there, 4 here)"], capsys)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_bucket_missing(command, s3, workspace, capsys):
    Path("spec.yaml").write_text(spec_with(output__uri="s3://no-such-bucket/out"))
    assert_refused([command, "spec.yaml"], ["bucket no-such-bucket does not exist"], capsys)


def test_no_access(s3, workspace, monkeypatch, capsys):
    bucket = s3.make_bucket()
    Path("spec.yaml").write_text(spec_with(output__uri=f"{bucket}/out"))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3.reader_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader_secret)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        assert_refused(["run", "spec.yaml"], [bucket, "no access"], capsys)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert Storage(bucket).list("") == [], "nothing is written"


@pytest.mark.parametrize("command", ["run", "plan", "status"])
def test_endpoint_down(command, s3_environment, workspace, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    Path("spec.yaml").write_text(spec_with(output__uri="s3://bucket/out"))
    argument = "s3://bucket/out" if command == "status" else "spec.yaml"
    assert_refused([command, argument], ["http://127.0.0.1:9 cannot be reached"], capsys)


def assert_refused(arguments, fragments, capsys):
    before = files_below(".")
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Error: ")
    assert printed.err.count("\n") == 1, "one sentence, on one line"
    for fragment in fragments:
        assert fragment in printed.err
    assert "Traceback" not in printed.err
    assert files_below(".") == before, "nothing is written or changed"


def test_debug_shows_the_traceback_wherever_it_stands(workspace):
    for arguments in (["--debug", "plan", "none.yaml"], ["plan", "none.yaml", "--debug"]):
        with pytest.raises(Exception, match=r"none\.yaml does not exist"):
            main(arguments)


@pytest.mark.parametrize("arguments", [["scenes", "-n", "0", "-o", "x"], ["runn", "x.yaml"], ["generate", "a cube"]])
def test_wrong_usage_says_so_with_exit_code_2(arguments, workspace, capsys):
    assert main(arguments) == 2
    assert "Usage: jointdit" in capsys.readouterr().err
    assert not os.path.exists("x")

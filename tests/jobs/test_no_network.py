"""Each command that takes a model, with a hub name and no network: one sentence, exit code 1, nothing written."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from jobs.cli import main

NAME = "somebody/model"
REASON = "cannot be reached (connection refused)"
COMMANDS = {
    "plan": (["plan", "joint.yaml"], "model.name"),
    "run": (["run", "joint.yaml"], "model.name"),
    "run, base": (["run", "base.yaml"], "model.base"),
    "run, components": (["run", "components.yaml"], "model.components"),
    "run, encode": (["run", "encode.yaml"], "model.name"),
    "calibrate": (["calibrate", "joint.yaml", "-n", "4", "--reject", "0.1"], "model.name"),
    "generate": (["generate", "a cube", "-o", "out", "--model", NAME], "model.name"),
    "depth": (["depth", "map.png", "-o", "out", "--model", NAME], "model.name"),
    "restyle": (["restyle", "map.png", "a cube", "-o", "out", "--kind", "disparity", "--model", NAME], "model.name"),
    "prepare": (["prepare", "map.png", "-o", "out", "--teacher", NAME], "teachers.0"),
    "prepare, captioner": (
        ["prepare", "map.png", "-o", "out", "--teacher", "teacher", "--captioner", NAME],
        "captioner",
    ),
    "train": (["train", "train.yaml"], "model.name"),
    "evaluate": (["evaluate", "-o", "out", "--model", NAME], "model.name"),
    "evaluate, base": (["evaluate", "-o", "out", "--base", NAME, "--adapter", "a.safetensors"], "model.base"),
    "evaluate, baseline": (["evaluate", "-o", "out", "--baseline", NAME], "--baseline"),
    "evaluate, features": (["evaluate", "-o", "out", "--features", NAME], "--features"),
    "evaluate, clip": (["evaluate", "-o", "out", "--clip", NAME], "--clip"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with specs and inputs, and a hub whose port is closed."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("JOINTDIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "prompts.txt").write_text("a red cube\n")
        Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save("map.png")
        depth = {"input": {"uri": "prompts.txt", "depth": {"kind": "disparity"}}}
        job = {"task": "joint", "input": {"uri": "prompts.txt"}, "output": {"uri": "out"}}
        for name, model in (
            ("joint", {"name": NAME}),
            ("base", {"base": NAME, "adapter": "a.safetensors"}),
            ("components", {"base": "b.safetensors", "adapter": "a.safetensors", "components": NAME}),
        ):
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**job, "model": model}))
        (tmp_path / "encode.yaml").write_text(
            yaml.safe_dump({**job, "task": "encode", **depth, "model": {"name": NAME}})
        )
        training = {"recipe": "adapter", "data": {"kind": "scenes", "count": 4}, "training": {"steps": 1}}
        (tmp_path / "train.yaml").write_text(yaml.safe_dump({**training, "model": {"name": NAME}, "output": "out"}))
        (tmp_path / "teacher").mkdir()
        (tmp_path / "teacher" / "config.json").write_text("{}")
        for path in ("a.safetensors", "b.safetensors", "teacher/model.safetensors"):
            save_file({"a": np.zeros(1, np.float32)}, path)
        yield tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_one_sentence_names_the_field_and_the_reason(command: str, folder: Path, capsys) -> None:
    words, field = COMMANDS[command]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {field} {NAME} is not a local folder")
    assert REASON in error
    assert error.count("\n") == 1
    assert not (folder / "out").exists()


def test_an_ascii_terminal_shows_escapes(tmp_path: Path) -> None:
    """In its own process, because the streams belong to the interpreter."""
    (tmp_path / "größe.txt").write_text("a red cube\n")
    spec = {"task": "joint", "name": "数据", "input": {"uri": "größe.txt"}, "output": {"uri": "größe-out"}}
    (tmp_path / "größe.yaml").write_text(yaml.safe_dump({**spec, "model": {"name": "tiny"}}, allow_unicode=True))
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": paths}
    planned = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "plan", "größe.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=100,
    )
    assert (planned.returncode, planned.stderr) == (0, b"")
    assert rb"gr\xf6\xdfe" in planned.stdout

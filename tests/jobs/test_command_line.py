"""What all commands share: version, completion, exit codes, JSON on stdout; and the specs of `jointdit init`."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs import as_json
from jobs.cli import main
from jobs.init import Example
from pipelines.spec.job import TASKS, load_spec
from tests.local_job import LocalJob

ROOT = Path(__file__).parents[2]
SMALL = ["--steps", "1", "--height", "32", "--width", "32"]


@pytest.fixture
def job(make_job) -> LocalJob:
    """Four samples, one of them rejected, in version 1."""
    job = make_job(["a", "FLAT", "b", "c"], quality={"filters": [{"kind": "depth_range"}]})
    job.complete()
    return job


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"jointdit {version('jointdit')}"  # Ray may print before


def test_a_shell_completes_commands() -> None:
    """Bash asks the program, as the script that --install-completion installs does."""
    code = "import sys; from jobs.cli import main; sys.exit(main([]))"
    asked = {"_JOINTDIT_COMPLETE": "complete_bash", "COMP_WORDS": "jointdit re", "COMP_CWORD": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**asked, "PYTHONPATH": str(ROOT)}
    )
    assert set(answer.stdout.split()) == {"retry", "refilter", "restyle"}, answer.stderr


def test_exit_codes_of_errors_and_of_wrong_usage(tmp_path: Path, capsys) -> None:
    assert main(["plan", str(tmp_path / "missing.yaml")]) == 1
    assert capsys.readouterr().err.startswith("Error: ")
    assert main(["plan"]) == 2
    assert main(["nothing"]) == 2
    assert main(["--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 done, 1 error, 2 wrong usage, 3 stopped at a limit with work left, 130 interrupted" in printed


@pytest.fixture
def limited(tmp_path: Path) -> Path:
    """A spec of six prompts whose budget ends after the first shard."""
    (tmp_path / "prompts.txt").write_text("".join(f"a red cube {number}\n" for number in range(6)))
    spec = tmp_path / "spec.yaml"
    settings = {
        "task": "joint",
        "model": {"steps": 1, "height": 32, "width": 32},
        "input": {"uri": str(tmp_path / "prompts.txt")},
        "output": {"uri": str(tmp_path / "out"), "shard_rows": 2},
        "resources": {"workers": 1},
        "budget": {"max_rows": 1},
    }
    spec.write_text(yaml.safe_dump(settings))
    return spec


def test_a_run_that_stops_at_a_budget_exits_with_3(ray_cluster, limited: Path, capsys) -> None:
    spec = limited
    assert main(["plan", str(spec), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["pending_samples"], plan["committed_samples"], plan["new_shards"]) == (6, 0, 3)
    assert plan["memory"]["bytes"] > plan["weights_bytes"] > 0

    assert main(["run", str(spec), "--json"]) == 3
    stopped = json.loads(capsys.readouterr().out)
    assert stopped["version"] is None
    assert stopped["stopped"]["reason"] == "budget.max_rows 1 is reached"
    assert stopped["stopped"]["samples"] == 6 - stopped["samples_now"]


@pytest.mark.slow  # two more workers load the model
def test_schedulers_may_take_a_limit_for_success_and_the_end_is_one_json_object(
    ray_cluster, limited: Path, capsys
) -> None:
    spec = limited
    assert main(["run", str(spec), "--zero-at-limit"]) == 0
    assert "budget.max_rows 1 is reached" in capsys.readouterr().out

    assert main(["run", str(spec), "--set", "budget={}", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["version"], done["is_new"], done["stopped"]) == (1, True, None)
    assert done["counts"] == {"kept": 6, "rejected": 0, "quarantined": 0}
    assert done["cpu_hours"] > 0


def test_validate_export_and_refilter_print_one_json_object(job: LocalJob, tmp_path: Path, capsys) -> None:
    uri = job.context.storage.uri
    assert main(["validate", uri, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["is_whole"], found["version"], found["counts"]["kept"]) == (True, 1, 3)

    command = ["export", uri, "--webdataset", str(tmp_path / "tars"), "--hf", str(tmp_path / "hf"), "--json"]
    assert main(command) == 0
    captured = capsys.readouterr()
    exports = json.loads(captured.out)
    assert {kind: made["samples"] for kind, made in exports.items()} == {"webdataset": 3, "hf": 3}
    assert f"{tmp_path / 'hf'}: 3 samples of version 1" in captured.err

    assert main(["refilter", uri, "--set", "quality.filters=[]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["is_new"], found["version"]["number"], found["version"]["counts"]["kept"]) == (True, 2, 4)

    table = min((Path(uri) / "data").glob("*.parquet"))
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    assert main(["validate", uri, "--json"]) == 1
    damaged = json.loads(capsys.readouterr().out)
    assert not damaged["is_whole"]
    assert any(table.name in problem for problem in damaged["problems"])


def test_what_is_printed_beside_the_json_goes_to_stderr(capsys) -> None:
    with as_json.stdout_for_json(True):
        print("of a library")
    as_json.show_json({"a": 1})
    captured = capsys.readouterr()
    assert (json.loads(captured.out), captured.err) == ({"a": 1}, "of a library\n")


@pytest.mark.parametrize("task", Example)
def test_init_writes_a_spec_that_loads(task: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", task]) == 0
    path = tmp_path / f"{task}.yaml"
    assert f"jointdit run {path.name}" in capsys.readouterr().out
    text = path.read_text()
    assert f"jobs/{task.replace('-', '_')}.yaml" not in text, "its comments name the new file"
    assert "#" in text
    assert load_spec(path).task == task
    assert main(["init", task]) == 1
    assert f"{task}.yaml exists already: give another file with -o." in capsys.readouterr().err
    assert path.read_text() == text


def test_the_examples_ship_in_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert ("jobs" in wheel["packages"], wheel["exclude"]) == (True, ["jobs/tools"])
    assert [task for task in Example if not (ROOT / "jobs" / f"{task.replace('-', '_')}.yaml").is_file()] == []


def test_init_knows_every_task(tmp_path: Path, capsys) -> None:
    assert set(Example) == set(TASKS)
    assert main(["init", "joint", "-o", str(tmp_path / "deeper" / "a.yaml")]) == 0
    assert main(["plan", str(tmp_path / "deeper" / "a.yaml")]) == 0, "its prompts ship in the package"
    assert main(["init", "photos"]) == 2


def test_depth_takes_a_folder_and_keeps_its_subfolders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    gradient = np.linspace(0, 255, 32 * 32 * 3).astype(np.uint8).reshape(32, 32, 3)
    for name in ("photos/b.png", "photos/a/b.JPG", "photos/.hidden/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(gradient).save(tmp_path / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    for _ in range(2):  # the results of the first call are no images of the second
        assert main(["depth", "photos/", "-o", "photos", *SMALL]) == 0
        written = capsys.readouterr().out.split()
        assert written == [f"photos/{name}" for name in ("a/b.disparity.png", "a/b.ply", "b.disparity.png", "b.ply")]
        assert all((tmp_path / name).is_file() for name in written)
    assert main(["depth", "empty", "-o", "out"]) == 1
    assert "empty has no images: give a folder with .png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prompts_that_differ_only_in_signs_have_files_of_their_own(tmp_path: Path) -> None:
    prompts = ["a red cube", "A red cube", "a red cube!", "a red-cube", "?", "!", "x" * 70, "x" * 71]
    for count, prompt in enumerate(prompts, 1):
        assert main(["generate", prompt, "-o", str(tmp_path), *SMALL]) == 0
        assert len(list(tmp_path.glob("*.ply"))) == count, prompt
    assert (tmp_path / "a-red-cube-0.png").exists()

"""Each command does what its help says. Jobs through Ray are in test_jobs.py."""

import contextlib
import functools
import json
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from jobs.report import JsonFormatter
from jointdit.geometry.depth import decode_depth_png, disparity_from_depth, encode_depth_png
from jointdit.scenes import render_scene
from pipelines.records import Row
from pipelines.spec.job import load_spec
from pipelines.stages.readers import check_columns, list_files, read_rows

COMMANDS = ["init", "run", "plan", "status", "validate", "retry", "gc", "versions", "diff", "submit"]
COMMANDS += ["generate", "depth", "restyle", "train", "evaluate", "scenes"]
PROMPT = "a large red sphere on a blue floor in front of a white wall"
PLY_HEADER = b"ply\nformat binary_little_endian 1.0\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_starts_with_the_command(command, capsys):
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: jointdit {command} " in text


def test_help_does_not_wait_for_the_heavy_libraries():
    script = (
        "import sys\n"
        "from jobs.cli import main\n"
        "main(['--help'])\n"
        "heavy = {'torch', 'ray', 'open3d', 'numpy', 'pyarrow', 'transformers', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert all(f" {command} " in answer.stdout for command in COMMANDS)


def test_scenes_are_exact_and_read_by_the_readers_of_every_task(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["scenes", "-n", "3", "-o", "scenes", "--seed", "41", "--width", "64", "--height", "48"]) == 0
    assert "3 scenes in scenes" in capsys.readouterr().out

    lines = [json.loads(line) for line in (tmp_path / "scenes" / "metadata.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [41, 42, 43]
    truth = render_scene(42, 64, 48)
    found = lines[1]
    assert found["caption"] == truth.caption
    assert (found["fx"], found["cx"]) == (truth.fx, 32.0)
    folder = tmp_path / "scenes"
    np.testing.assert_array_equal(np.asarray(Image.open(folder / found["rgb"])), truth.rgb)
    np.testing.assert_array_equal(np.load(folder / found["depth"]), truth.depth)
    disparity = decode_depth_png((folder / found["disparity"]).read_bytes())
    np.testing.assert_allclose(disparity, disparity_from_depth(truth.depth), atol=1 / 65535)

    table = {"uri": "scenes/metadata.jsonl"}
    for task, settings in {
        "joint": table | {"columns": {"prompt": "caption"}},
        "depth": table | {"columns": {"image": "rgb"}},
        "depth-to-image": table | {"columns": {"prompt": "caption"}, "depth": {"kind": "metric"}},
    }.items():
        rows = read_all(load_spec({"task": task, "input": settings, "output": {"uri": "out"}}))
        assert [row.id for row in rows] == ["000000", "000001", "000002"]
    np.testing.assert_array_equal(rows[1].depth, truth.depth)
    assert rows[1].prompt == truth.caption


def read_all(spec):
    files = list_files(spec.input, spec.task)
    check_columns(files, spec.input, spec.task)
    rows = [row for file in files for row in read_rows(file, [range(3)], spec.input, spec.task)]
    assert all(isinstance(row, Row) for row in rows), rows
    return rows


def interrupt_scenes(folder):
    """Return exit code and stderr of a command that gets Ctrl-C while it works."""
    command = [sys.executable, "-m", "jobs.cli", "scenes", "-n", "100000", "-o", str(folder)]
    errors = None
    # A shell starts background jobs with SIGINT ignored, and children inherit that: reset it as in a terminal.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heed, **pipes) as process:
        try:
            while process.poll() is None and not (folder / "depth" / "000000.npy").exists():
                os.sched_yield()
            while errors is None:  # a signal inside a destructor is lost, so send it again
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    _, errors = process.communicate(timeout=15)
        finally:
            process.kill()
    return process.returncode, errors


def test_ctrl_c_ends_a_command_without_a_traceback(tmp_path):
    assert interrupt_scenes(tmp_path / "scenes") == (130, "")


def test_an_interruption_that_a_library_turns_into_its_own_error_exits_with_130(monkeypatch, capsys, tmp_path):
    def interrupted(*arguments: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise OSError("encoder error") from None

    monkeypatch.setattr("jobs.scenes.render_scene", interrupted)
    assert main(["scenes", "-n", "1", "-o", str(tmp_path / "scenes")]) == 130
    assert "encoder error" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_generate_writes_image_disparity_and_points_for_each_seed(tmp_path, capsys):
    assert main(["generate", PROMPT, "-o", str(tmp_path / "out"), "-n", "2", "--seed", "5", "--steps", "1"]) == 0
    written = capsys.readouterr().out.split()
    assert len(written) == 6
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.rsplit("/", 1)[1] for path in written}
    for seed in (5, 6):
        stem = tmp_path / "out" / f"a-large-red-sphere-on-a-blue-floor-in-front-of-a-white-wall-{seed}"
        rgb = np.asarray(Image.open(stem.with_suffix(".png")))
        disparity = decode_depth_png(stem.with_suffix(".disparity.png").read_bytes())
        assert rgb.shape == (*disparity.shape, 3)
        assert (disparity.min(), disparity.max()) == (0.0, 1.0)
        assert stem.with_suffix(".ply").read_bytes().startswith(PLY_HEADER)


def test_a_prompt_in_any_script_names_its_files(tmp_path, capsys):
    prompt = f"数据, e\u0301ine Größe: {'字' * 200}"
    assert main(["generate", prompt, "-o", str(tmp_path), "--steps", "1", "--height", "32", "--width", "32"]) == 0
    assert [path.name for path in tmp_path.glob("*.ply")] == [f"数据-éine-größe-{'字' * 46}-4578eb1d-0.ply"]
    assert main(["generate", "a cube \udcff", "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "Error: the prompt is not valid Unicode: give it in UTF-8.\n"


def test_the_same_seed_gives_the_same_files(tmp_path):
    for folder in ("one", "two"):
        assert main(["generate", PROMPT, "-o", str(tmp_path / folder), "--seed", "3", "--steps", "1"]) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_depth_has_the_size_of_the_image(tmp_path):
    photo = np.asarray(Image.fromarray(render_scene(7).rgb).resize((1000, 700)))
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    assert main(["depth", str(tmp_path / "photo.jpg"), "-o", str(tmp_path / "out"), "--steps", "1"]) == 0
    assert decode_depth_png((tmp_path / "out" / "photo.disparity.png").read_bytes()).shape == (700, 1000)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["photo.disparity.png", "photo.ply"]


def test_restyle_keeps_the_depth_it_was_given(tmp_path):
    scene = render_scene(9, 96, 80)
    np.save(tmp_path / "depth.npy", scene.depth)
    command = ["restyle", str(tmp_path / "depth.npy"), "a green cube", "--kind", "metric", "--steps", "1"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    disparity = decode_depth_png((tmp_path / "out" / "a-green-cube-0.disparity.png").read_bytes())
    np.testing.assert_allclose(disparity, disparity_from_depth(scene.depth), atol=1 / 65535)
    with Image.open(tmp_path / "out" / "a-green-cube-0.png") as image:
        assert image.size == (96, 80)
    header = (tmp_path / "out" / "a-green-cube-0.ply").read_bytes().split(b"end_header")[0].decode()
    assert f"z_near {scene.depth.min():.9g} z_far {scene.depth.max():.9g} (given)" in header


def test_restyle_reads_the_metres_of_integers_by_their_scale(tmp_path, capsys):
    """TUM's maps: 5000 a metre, 0 where nothing was measured."""
    stored = np.tile(np.linspace(5000, 10_000, 96).astype(np.uint16), (80, 1))
    stored[0, 0], stored[0, 1] = 0, 65535
    Image.fromarray(stored).save(tmp_path / "tum.png")
    command = ["restyle", str(tmp_path / "tum.png"), "a green cube", "--steps", "1", "-o", str(tmp_path / "out")]
    assert main([*command, "--kind", "metric"]) == 1
    assert "--scale: 0.001 for millimetres" in capsys.readouterr().err
    assert main(command) == 1
    assert "give --kind disparity (near is high) or --kind metric" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--kind", "metric", "--scale", "0.0002", "--max", "5"]) == 0
    header = (tmp_path / "out" / "a-green-cube-0.ply").read_bytes().split(b"end_header")[0].decode()
    assert "z_near 1 z_far 2 (given)" in header
    levels = np.asarray(Image.open(tmp_path / "out" / "a-green-cube-0.disparity.png"))
    assert levels[0, :2].tolist() == [0, 0], "holes"
    assert levels[1:].min() > 0


def test_a_disparity_map_of_this_package_says_what_it_is(tmp_path, capsys):
    disparity = np.tile(np.linspace(0, 1, 48, dtype=np.float32), (32, 1))
    valid = np.ones((32, 48), dtype=bool)
    valid[:4, :4] = False
    (tmp_path / "map.png").write_bytes(encode_depth_png(disparity, valid))
    command = ["restyle", str(tmp_path / "map.png"), "a green cube", "--steps", "1", "-o", str(tmp_path / "out")]
    assert main([*command, "--kind", "metric", "--scale", "0.001"]) == 1
    assert "leave out --scale, --invalid and --max" in capsys.readouterr().err
    assert main([*command, "--kind", "metric"]) == 1
    assert "is relative disparity, as its text chunk says, not metres" in capsys.readouterr().err
    assert main(command) == 0
    given, written = (
        np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("map.png", "out/a-green-cube-0.disparity.png")
    )
    assert np.array_equal(written == 0, given == 0), "its holes are still holes"
    np.testing.assert_allclose(written, given, atol=1)


def test_train_refuses_a_bad_spec_in_one_sentence(tmp_path, capsys):
    (tmp_path / "train.yaml").write_text("sead: 3\n")
    assert main(["train", str(tmp_path / "train.yaml")]) == 1
    assert "did you mean seed?" in capsys.readouterr().err


def test_log_lines_are_json_objects_on_request(monkeypatch, capsys):
    monkeypatch.setenv("A_TOKEN", "not-for-the-log")
    record = logging.LogRecord("pipelines.shards", logging.INFO, "", 0, "shard %s, %s", ("ab", "not-for-the-log"), None)
    record.shard, record.attempt = "ab", "0123"
    line = json.loads(JsonFormatter().format(record))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "pipelines.shards",
        "message": "shard ab, ***",
        "shard": "ab",
        "attempt": "0123",
    }

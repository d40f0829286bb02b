"""`jointdit evaluate`: its parts on few scenes with the packaged checkpoint, benchmarks, baselines, bad arguments."""

import csv
import functools
import json

import pytest
from PIL import Image

from jobs.cli import main
from jobs.evaluate import SCENE_PARTS
from jointdit.evaluation.baselines import mean_training_disparity
from jointdit.evaluation.benchmarks import BENCHMARKS, evaluate_benchmark
from jointdit.evaluation.scenes import held_out_scenes, score_depth
from jointdit.evaluation.transformers_depth import TransformersDepth
from tests.small_models import save_dpt

SMALL = ["-n", "3", "--prompts", "2", "--depth-steps", "1", "--steps", "2"]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """A small random DPT of transformers."""
    return save_dpt(tmp_path_factory.mktemp("models") / "dpt-small")


def tables_of(folder):
    report = json.loads((folder / "report.json").read_text())
    return {table["title"]: {row["method"]: row["values"] for row in table["rows"]} for table in report["tables"]}


def test_depth_styles_and_points_of_the_model_and_a_baseline(baseline, tmp_path, monkeypatch, capsys):
    few = functools.partial(mean_training_disparity, seeds=range(16))  # rendering all 256 takes most of a test's time
    monkeypatch.setattr("jobs.evaluation.context.mean_training_disparity", few)
    parts = [word for part in ("vae", "depth", "styles", "lifting") for word in ("--part", part)]
    arguments = [
        "evaluate",
        "-o",
        str(tmp_path / "out"),
        *SMALL,
        *parts,
        "--ensemble",
        "2",
        "--baseline",
        str(baseline),
    ]
    assert main(arguments) == 0
    assert str(tmp_path / "out" / "report.md") in capsys.readouterr().out.replace("\n", "")
    tables = tables_of(tmp_path / "out")
    assert list(tables) == [
        "Autoencoder",
        "Depth on 3 scenes",
        "Depth on 3 scenes by style",
        "3D lifting of 3 scenes",
    ]
    depth = tables["Depth on 3 scenes"]
    scenes = held_out_scenes(3)
    estimator = TransformersDepth(str(baseline))
    own = score_depth([estimator.estimate(scene.rgb) for scene in scenes], scenes, "disparity")
    assert depth["dpt-small"]["AbsRel"] == pytest.approx(own.abs_rel)
    assert depth["tiny"]["AbsRel"] < depth["constant"]["AbsRel"]
    assert list(tables["Depth on 3 scenes by style"]) == [
        "tiny, as rendered",
        "tiny, toon",
        "dpt-small, toon",
        "tiny, pixel-art",
        "dpt-small, pixel-art",
        "mean training disparity",
    ]
    assert tables["Autoencoder"]["tiny"]["PSNR, dB"] > 25
    for sheet, rows in (("depth", 3), ("styles", 4), ("uncertainty", 3)):
        with Image.open(tmp_path / "out" / f"{sheet}.png") as picture:
            assert picture.size == (6 * 128, rows * 128)
    assert "NaN" not in (tmp_path / "out" / "report.json").read_text()
    text = (tmp_path / "out" / "report.md").read_text()
    assert "ensemble of 2" in text
    assert "uncertainty and error of the ensemble: correlation" in text


@pytest.mark.slow
def test_steps_are_compared(tmp_path):
    arguments = ["-n", "2", "--prompts", "2", "--steps", "2", "--part", "steps"]
    assert main(["evaluate", "-o", str(tmp_path), *arguments]) == 0
    tables = tables_of(tmp_path)
    steps = tables["Sampling steps"]
    assert list(steps) == ["tiny, 4 steps", "tiny, 8 steps", "tiny, 20 steps"]
    assert min(row["s/depth map"] for row in steps.values()) > 0
    assert len({row["AbsRel"] for row in steps.values()}) == 3
    assert {path.name for path in tmp_path.glob("*.png")} == {"steps.png"}


def test_generated_images_are_measured_beside_shuffled_ones_and_published_figures(tmp_path):
    parts = ["--part", "joint", "--part", "restyle", "--features", "vae"]
    assert main(["evaluate", "-o", str(tmp_path), *SMALL, *parts]) == 0
    tables = tables_of(tmp_path)
    fidelity = tables["Depth fidelity of depth-to-image"]
    assert fidelity["tiny, estimated by tiny"]["AbsRel over shuffled"] == pytest.approx(
        fidelity["tiny, estimated by tiny"]["AbsRel"] / fidelity["shuffled pairs, estimated by tiny"]["AbsRel"]
    )
    consistency = tables["Self-consistency of joint samples"]["tiny, estimated by tiny"]
    assert 0 < consistency["AbsRel"] < 1
    assert tables["Generated images"]["tiny"]["FID"] > 0
    assert tables["Generated images"]["tiny"]["IS"] is None
    assert {"Named colours found: joint", "Named colours found: depth-to-image", "Prompts with two objects"} <= set(
        tables
    )
    assert tables["Published: depth to image"]["ControlNet"]["AbsRel %"] == 9.85
    assert tables["Published: text to image and depth"]["LDM3D"]["FID"] == 27.82
    assert {path.name for path in tmp_path.glob("*.png")} == {"joint.png", "depth-to-image.png"}


def test_a_benchmark_stands_beside_the_published_figures_and_the_baseline(baseline, tmp_path, capsys):
    assert main(["scenes", "-n", "3", "-o", str(tmp_path / "scenes"), "--width", "96", "--height", "64"]) == 0
    arguments = ["evaluate", "-o", str(tmp_path / "out"), "--depth-steps", "1", "--baseline", str(baseline)]
    arguments += ["--benchmark", f"scenes={tmp_path / 'scenes'}", "--limit", "2"]
    assert main(arguments) == 0
    tables = tables_of(tmp_path / "out")
    assert next(iter(tables)) == "Depth on benchmarks"
    assert not any("on 3 scenes" in title for title in tables)
    depth = tables["Depth on benchmarks"]
    by_hand = evaluate_benchmark(BENCHMARKS["scenes"], tmp_path / "scenes", TransformersDepth(str(baseline)), limit=2)
    row = depth["dpt-small, first 2 images"]
    assert row["Rendered scenes AbsRel %"] == pytest.approx(100 * by_hand.metrics["abs_rel"])
    assert row["NYUv2 AbsRel %"] is None
    assert depth["JointDiT (FLUX)"]["NYUv2 AbsRel %"] == 4.9
    with (tmp_path / "out" / "scenes-dpt-small.csv").open() as file:
        images = list(csv.DictReader(file))
    assert [float(image["abs_rel"]) for image in images] == [m["abs_rel"] for m in by_hand.by_image.values()]
    capsys.readouterr()

    (tmp_path / "scenes" / "depth" / "000001.npy").write_bytes(b"torn")
    assert main(arguments) == 1
    assert "depth/000001.npy is not an array file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--part", "colour"], "--part colour: use one of vae, depth, styles, "),
        (["--benchmark", "sintel=data"], "--benchmark sintel=data: give NAME=PATH with a name of nyuv2, kitti, "),
        (["--benchmark", "nyuv2"], "--benchmark nyuv2: give NAME=PATH"),
        (["--benchmark", "nyuv2=nowhere"], "nowhere does not exist: give the folder or the tar archive"),
        (["--list", "kitti=list.txt"], "--list kitti=list.txt: give --benchmark kitti=PATH too"),
        (["--baseline", "./nowhere"], "./nowhere: no depth model of transformers"),
        (["--features", "./inception.pth"], "./inception.pth is a pickle"),
        (["--clip", "./nowhere"], "./nowhere: no CLIP model of transformers"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--base", "flux"], "adapter is missing"),
    ],
)
def test_bad_arguments_are_one_sentence_before_anything_is_computed(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "-o", "out", *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in error
    assert error.startswith("Error: ")
    assert not (tmp_path / "out").exists()


def test_help_names_every_part_and_benchmark(capsys):
    assert main(["evaluate", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(name in text for name in [*SCENE_PARTS, *BENCHMARKS])


def test_json_is_the_report_with_its_path(tmp_path, capsys):
    assert main(["evaluate", "-o", str(tmp_path), "-n", "2", "--part", "vae", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found.pop("report") == str(tmp_path / "report.md")
    assert found == json.loads((tmp_path / "report.json").read_text())
    assert "Autoencoder" in captured.err

"""Bad input of every kind in one table: one sentence that says what was found and what to do, and nothing lost.

A command is refused: the sentence on stderr, exit code 1, nothing written or changed. A row is set aside: its sentence
in its place, and the rows before and after it are read. Checkpoints that do not fit are in test_bad_model.py.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.cli import main
from pipelines.records import BadRow, Row
from pipelines.spec.job import InputSpec
from pipelines.stages.readers import count_rows, list_files, read_rows
from tests.bad_inputs import (
    BOMB,
    COLOURS,
    GREY,
    NOWHERE,
    PLAN,
    RUN,
    Refused,
    SetAside,
    npy,
    png,
    refused,
    row,
)

BAD: dict[str, Refused | SetAside] = {
    # --- the spec as a file
    "spec missing": refused("run none.yaml", "none.yaml does not exist", "give the path of a job spec"),
    "spec is a folder": refused("plan in", "in is a folder", "give the path"),
    "spec is no text": refused("plan in/image.png", "in/image.png", "cannot be read as text"),
    "spec is no YAML": refused(PLAN, "spec.yaml, line 3", "not valid YAML", spec="task: joint\ninput: [unclosed\n"),
    "a key given twice": refused(PLAN, "line 2", "'task' is given twice", spec="task: joint\ntask: depth\n"),
    "an empty spec": refused(PLAN, "spec.yaml must hold a mapping", "found nothing", spec="\n"),
    "a list for a spec": refused(RUN, "spec.yaml must hold a mapping", "found a list", spec="- task: joint\n"),
    "--set without a value": refused(f"{PLAN} --set model.steps", "'model.steps'", "model.steps=4"),
    "--set of no YAML": refused(f"{PLAN} --set model.steps=[", "--set model.steps", "not valid YAML: quote it"),
    "--set of an unknown key": refused(f"{RUN} --set model.stepps=4", "model.stepps", "did you mean steps?"),
    "--set through a value": refused(f"{PLAN} --set task.kind=x", "task.kind", "'joint', which is not a section"),
    # --- the spec's fields
    "no task": refused(PLAN, "task is missing", "joint, depth, depth-to-image", task=None),
    "unknown task": refused(RUN, "task 'jont'", "joint, depth, depth-to-image", task="jont"),
    "no input": refused(PLAN, "input is missing: add it", input=None),
    "no output.uri": refused(PLAN, "output.uri is missing: add it", output__uri=None),
    "unknown key": refused(RUN, "model.step", "did you mean steps?", model__step=3),
    "unknown section": refused(PLAN, "modell", "did you mean model?", modell={}),
    "a word for a number": refused(RUN, "model.steps must be a whole number, found 'many'", model__steps="many"),
    "a number for a section": refused(PLAN, "model must be a section", "found 3", model=3),
    "too few steps": refused(PLAN, "model.steps must be at least 1, found 0", model__steps=0),
    "guidance that is no number": refused(PLAN, "model.guidance must be", model__guidance=float("nan")),
    "width not a multiple of 16": refused(
        RUN, "model.width", "found 100: use 96 or 112", model__width=100, model__height=96
    ),
    "height alone": refused(PLAN, "height and width belong together", "width is missing", model__height=64),
    "unknown dtype": refused(
        PLAN, "model.dtype must be float32, bfloat16 or float16, found 'int8'", model__dtype="int8"
    ),
    "unknown image format": refused(PLAN, "output.image_format must be png", output__image_format="gif"),
    "no workers": refused(PLAN, "resources.workers must be auto or", "found 0", resources__workers=0),
    "a fraction above one": refused(
        PLAN, "max_quarantined_fraction must be at most 1.0, found 2.0", quality__max_quarantined_fraction=2.0
    ),
    "unknown filter": refused(
        PLAN, "depth_rang", "did you mean depth_range?", quality__filters=[{"kind": "depth_rang"}]
    ),
    "self-consistency of task depth": refused(
        PLAN, "self_consistency compares", "use ensemble_spread", task="depth", quality__scores=["self_consistency"]
    ),
    "a critic that does not exist": refused(
        RUN, "depth_critic", "no such folder", quality__scores=[{"kind": "depth_critic", "model": "./none"}]
    ),
    "text agreement without a model": refused(
        PLAN,
        "text_agreement needs a CLIP model",
        "give model, a folder or a hub name",
        quality__scores="text_agreement",
    ),
    "points the wrong way round": refused(
        PLAN, "z_near must be smaller than z_far, found 5 and 2", output__points={"z_near": 5.0, "z_far": 2.0}
    ),
    "name and base": refused(PLAN, "either name, or base and adapter", model={"name": "tiny", "base": "x.safetensors"}),
    "base alone": refused(PLAN, "adapter is missing", model={"base": "x.safetensors"}),
    "depth maps without a kind": refused(
        RUN, "input.depth is missing", "kind: metric or kind: disparity", task="depth-to-image", input__uri="in/maps"
    ),
    "depth maps where none are read": refused(
        PLAN, "input.depth", "task joint does not read: remove it", input__depth={"kind": "metric"}
    ),
    "a reference to made images": refused(
        PLAN, "output.rgb: reference is only for task depth", output__rgb="reference"
    ),
    "output inside input": refused(RUN, "output.uri", "inside input.uri", output__uri="in/out", input__uri="in"),
    "input inside output": refused(PLAN, "input.uri", "inside output.uri", output__uri="in"),
    "no such kind of store": refused(PLAN, "ftp:// is not a supported store", input__uri="ftp://host/x"),
    "a store in memory": refused(RUN, "memory:// lives in one process", "s3://bucket/prefix", output__uri="memory://x"),
    "no bucket": refused(PLAN, "output.uri: 's3://' names no folder or bucket", output__uri="s3://"),
    "a credential in a field": refused(RUN, "input.secret_key looks like a credential", input__secret_key="hush"),
    "a credential in an address": refused(
        f"{PLAN} --set output.uri=s3://key:hush@bucket/out", "output.uri holds what looks like a credential"
    ),
    # --- the model
    "a model folder without weights": refused(RUN, "model.name", "without weights", model__name="./in"),
    "a model that does not exist": refused(RUN, "model.name", "none does not exist", model__name="./none"),
    "a hub model that cannot be reached": refused(
        PLAN, "nobody/nothing", "correct the name", model__name="nobody/nothing"
    ),
    "a model's index that is no JSON": refused(
        PLAN, "model_index.json is not a JSON object", "save the pipeline again", model__name="./no-json"
    ),
    "a model without a size": refused(PLAN, "default_height", "'big': give pixels", model__name="./no-size"),
    "a model's guidance that is no number": refused(
        PLAN, "default_depth_guidance", "'much': give a number", model__name="./no-guidance"
    ),
    "a pickle for weights": refused(RUN, "pickled files can run code", model__name="./pickled"),
    "an adapter that does not exist": refused(
        PLAN, "model.adapter", "does not exist", model={"base": "./pickled", "adapter": "./none.safetensors"}
    ),
    # --- the input as a whole
    "input that does not exist": refused(RUN, "in/none.txt does not exist", input__uri="in/none.txt"),
    "input of another kind": refused(RUN, "in/page.html is of no kind", ".parquet", input__uri="in/page.html"),
    "a glob that finds nothing": refused(PLAN, "in/*.jpeg has no file that this task reads", input__uri="in/*.jpeg"),
    "an empty folder": refused(PLAN, "in/nothing has no file", "give one of .txt", input__uri="in/nothing"),
    "no rows": refused(RUN, "in/empty.txt has no rows", input__uri="in/empty.txt"),
    "a missing column": refused(
        RUN, "no column 'prompt'", "it has name, caption", "correct input.columns", input__uri="in/captions.jsonl"
    ),
    "ids that come twice": refused(RUN, "rows with the same id", "'same'", input__uri="in/twice.jsonl"),
    "an id that names another row": refused(
        PLAN, "rows with the same id", "'prompts.txt:0'", input__uri=["in/prompts.txt", "in/named.jsonl"]
    ),
    "images and their table": refused(PLAN, "in/mixed", "name one kind", task="depth", input__uri="in/mixed"),
    "a Parquet file that is none": refused(PLAN, "bad.parquet", "not a readable Parquet", input__uri="in/bad.parquet"),
    "a cut .gz": refused(PLAN, "cut.txt.gz is damaged", "repair the file", input__uri="in/cut.txt.gz"),
    "a table without a header": refused(PLAN, "empty.csv has no header", input__uri="in/empty.csv"),
    "a tar that is none": refused(PLAN, "bad.tar is not a readable tar", input__uri="in/bad.tar"),
    "paths to nothing": refused(
        RUN, "all 2 sampled rows of .jsonl files", "gone.png does not exist", task="depth", input__uri="in/paths.jsonl"
    ),
    "images that are text": refused(
        PLAN, "sampled row of images in ", "unknown format", task="depth", input__uri="in/text.png"
    ),
    "a pipe": refused(PLAN, "pipe.jsonl is no regular file: give a file", input__uri="in/pipe.jsonl"),
    # --- the store and what it holds
    "a bucket that does not exist": refused(RUN, "bucket no-such-bucket does not exist", output__uri=NOWHERE),
    "a bucket that cannot be": refused(RUN, "'No_Bucket!'", "correct the address", output__uri="s3://No_Bucket!/out"),
    "an input in no bucket": refused(
        PLAN, "no-such-bucket", "correct the address", input__uri="s3://no-such-bucket/x.txt"
    ),
    "a file for an output": refused(
        RUN, "in/text.png", "a file is where a folder is needed", output__uri="in/text.png"
    ),
    "an output under a file": refused(
        RUN, "in/page.html/out", "a file is where a folder is needed", output__uri="in/page.html/out"
    ),
    "a resume with other steps": refused(
        RUN, "already holds a job", "model.steps (20 there, 4 here)", output__uri="started", model__steps=4
    ),
    "a resume with another image format": refused(
        RUN,
        "writes its samples",
        "output.image_format (png there, jpeg here): choose another output, or use its values",
        output={"uri": "started", "image_format": "jpeg"},
    ),
    "a plan with another seed": refused(
        PLAN, "already holds a job", "seed (0 there, 7 here)", output__uri="started", seed=7
    ),
    "a ledger that is damaged": refused(PLAN, "_job.json is not valid JSON", "backup", output__uri="damaged"),
    "a ledger of another version": refused("status newer", "_job.json has format 99", "use the version that wrote it"),
    "status of no dataset": refused("status in", "in holds no job", "check the address"),
    "status of no bucket": refused(f"status {NOWHERE}", "s3://no-such-bucket/out"),
    "validate of no dataset": refused("validate in", "in holds no job", "check the address"),
    "validate of no store": refused("validate ftp://host/out", "ftp:// is not a supported store"),
    # --- what looks after a dataset
    "a scheduled run of a bad spec": refused(f"{RUN} --if-idle", "model.step", "did you mean steps?", model__step=3),
    "a scheduled run of another job": refused(
        f"{RUN} --if-idle", "already holds a job", "(20 there, 4 here)", output__uri="started", model__steps=4
    ),
    "watching no dataset": refused("status in --watch", "in holds no job", "check the address"),
    "retry of no dataset": refused("retry in --quarantined", "in holds no job", "check the address"),
    "retry in no bucket": refused(f"retry {NOWHERE} --rejected", "s3://no-such-bucket/out"),
    "garbage of no dataset": refused("gc in", "in holds no job", "check the address"),
    "garbage of no store": refused("gc memory://x --dry-run", "memory:// lives in one process"),
    "garbage of no age": refused("gc started --older-than soon", "'soon' is no age", "such as 12h"),
    "versions of no dataset": refused("versions in", "in holds no job", "check the address"),
    "versions in no bucket": refused(f"versions {NOWHERE}", "s3://no-such-bucket/out"),
    "a difference of no versions": refused("diff started 1 2", "started has no version 1: it has none"),
    "a difference of no dataset": refused("diff in 1 2", "in holds no job", "check the address"),
    # --- one image at a time, scenes, training, evaluation
    "an empty prompt": refused("generate ' ' -o out", "the prompt is empty: describe what the image shows"),
    "an odd size": refused("generate cube -o out --height 40 --width 40", "height", "found 40: use 32 or 48"),
    "height alone on the command line": refused("generate cube -o out --height 64", "width is missing"),
    "weights for one image": refused("generate cube -o out --model ./in", "without weights"),
    "an image that is missing": refused("depth in/none.png -o out", "in/none.png cannot be read", "give the path"),
    "a folder for a map": refused("restyle in/maps cube -o out --kind metric", "in/maps cannot be read", "directory"),
    "a folder without images": refused("depth in/nothing -o out", "in/nothing has no images", "a folder with .png"),
    "text for an image": refused("depth in/text.png -o out", "in/text.png", "image has an unknown format"),
    "two images of one name": refused("depth in/image.png image.jpg -o out", "called image", "different folders"),
    "a file for the results": refused("depth in/image.png -o in/page.html", "in/page.html", "is a file: give a folder"),
    "a map in colours": refused(
        "restyle in/image.png cube -o out --kind metric", "in/image.png", "mode RGB", "one grey channel"
    ),
    "a map of unknown kind": refused("restyle in/maps/a.png cube -o out", "in/maps/a.png", "--kind disparity"),
    "a map of integers without a unit": refused("restyle in/maps/a.png cube -o out --kind metric", "a.png", "--scale"),
    "a map with no scale": refused("restyle in/maps/a.png cube -o out --kind metric --scale -1", "scale", "-1"),
    "a map that is missing": refused("restyle in/none.png cube -o out", "in/none.png cannot be read"),
    "a map and no prompt": refused("restyle in/maps/a.png '' -o out", "the prompt is empty"),
    "scenes into a full folder": refused("scenes -n 1 -o in", "in is not an empty folder: give a new one"),
    "training without a spec": refused("train none.yaml", "none.yaml does not exist"),
    "training with an unknown key": refused("train spec.yaml", "sead", "did you mean seed?", spec="sead: 3\n"),
    "training for no steps": refused(
        "train spec.yaml", "vae.steps must be greater than 0, found 0", spec="output: out\nvae: {steps: 0}\n"
    ),
    "training with a credential": refused(
        "train spec.yaml", "hf_token looks like a credential", spec="hf_token: hush\noutput: out\n"
    ),
    "images prepared beside themselves": refused("prepare in -o in/out --teacher x", "inside input.uri"),
    "a teacher that does not exist": refused("prepare in/maps -o out --teacher ./none", "there is no such folder"),
    "training by no recipe": refused("train spec.yaml", "recipe 'big'", "tiny, adapter", spec="recipe: big\n"),
    "an adapter of no model": refused(
        "train spec.yaml", "model is missing: add it", spec="recipe: adapter\noutput: out\n"
    ),
    "an evaluation on no benchmark": refused(
        "evaluate -o out --benchmark nyuv3=x", "nyuv3=x", "a name of nyuv2, kitti"
    ),
    "an evaluation of no data": refused(
        "evaluate -o out --benchmark nyuv2=none", "none does not exist", "give the folder"
    ),
    "an evaluation of half a model": refused("evaluate -o out --base x", "adapter is missing"),
    "an evaluation of no part": refused("evaluate -o out --part colours", "--part colours: use one of"),
    # --- rows: prompts
    "a line that is no JSON": row("joint", b"{'prompt': 'x'}", "line is not valid JSON", "column 2"),
    "a line that is blank": row("joint", b"", "line is blank"),
    "a line that is a list": row("joint", b'["a cube"]', "valid JSON but not an object"),
    "a line that is no UTF-8": row("joint", b'{"prompt": "\xff"}', "not valid UTF-8"),
    "no prompt": row("joint", {"id": "x"}, "prompt is missing", "input.prompt for all rows"),
    "a prompt without words": row("joint", {"prompt": " \n"}, "prompt is empty"),
    "a number for a prompt": row("joint", {"prompt": 5}, "prompt is 5: give text"),
    "a prompt without end": row("joint", {"prompt": "x" * 100_001}, "100001 characters", "limit of 100000"),
    "half a letter": row("joint", {"prompt": "\ud800"}, "prompt is not valid UTF-8 text"),
    "an id without letters": row("joint", {"id": "", "prompt": "x"}, "id is empty"),
    "an id that is a truth": row("joint", {"id": True, "prompt": "x"}, "id is True: give text or a whole number"),
    "an id without end": row("joint", {"id": "x" * 1001, "prompt": "x"}, "1001 characters", "limit of 1000"),
    # --- rows: images and maps
    "a path to nothing": row("depth", {"image": "gone.png"}, "gone.png does not exist, or is no file"),
    "a path into another store": row("depth", {"image": "s3://b/x.png"}, "another kind of store", "put both in one"),
    "a path to a device": row("depth", {"image": "/dev/zero"}, "/dev/zero does not exist, or is no file"),
    "an image of zero bytes": row("depth", b"", "image has zero bytes"),
    "an image that is text": row("depth", b"hello", "image has an unknown format"),
    "a cut image": row(
        "depth", png(np.random.default_rng(0).integers(0, 256, COLOURS.shape, np.uint8))[:300], "decoded"
    ),
    "an image of gigapixels": row("depth", BOMB, "million pixels, the limit: scale it"),
    "an image of program text": row("depth", b"%!PS-Adobe-3.0 EPSF-3.0\n", "image has an unknown format"),
    "a map in many colours": row("depth-to-image", png(COLOURS), "mode RGB: give one grey channel"),
    "a map of one value": row("depth-to-image", npy(np.full((4, 4), 3.0)), "constant at 3"),
    "a map of holes": row("depth-to-image", npy(np.zeros((4, 4))), "no valid pixel: check input.depth"),
    "a map of Python objects": row("depth-to-image", npy(np.array([[None]])), "object: give real numbers"),
    "a map of three axes": row("depth-to-image", npy(np.zeros((2, 2, 3))), "shape (2, 2, 3): give one map (H, W)"),
}


def files_below(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


NEED_THE_STORE = [
    name for name, case in BAD.items() if isinstance(case, Refused) and "bucket" in case.command + case.spec
]


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, workspace: Path, request: pytest.FixtureRequest, monkeypatch, capsys, tmp_path) -> None:
    case = BAD[name]
    if isinstance(case, SetAside):
        assert_set_aside(case, tmp_path)
        return
    if name in NEED_THE_STORE:
        request.getfixturevalue("s3")
    monkeypatch.chdir(workspace)
    (workspace / "spec.yaml").write_text(case.spec)
    assert_refused(shlex.split(case.command), case.parts, capsys)


def test_there_are_enough_kinds() -> None:
    assert len(BAD) >= 60


def assert_refused(arguments: list[str], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(Path.cwd())
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert_sentence(printed.err.removeprefix("Error: ").removesuffix("\n"), parts)
    assert printed.err.startswith("Error: ")
    assert files_below(Path.cwd()) == before, "nothing is written or changed"


def assert_set_aside(case: SetAside, folder: Path) -> None:
    """The bad row is between two good ones, in a table of JSON lines or in a folder."""
    fields: dict[str, Any] = {}
    if case.task == "depth-to-image":
        fields = {"depth": {"kind": "metric"}, "prompt": "a cube"}
    is_line = case.task == "joint" or case.data.startswith(b"{")
    if is_line:
        good = {"joint": {"prompt": "a cube"}, "depth": {"image": "good.png"}}[case.task]
        lines = [json.dumps(good).encode(), case.data, json.dumps(good).encode()]
        (folder / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        (folder / "good.png").write_bytes(png(COLOURS))
    else:
        good = png(COLOURS) if case.task == "depth" else png(GREY)
        suffix = "npy" if case.data.startswith(b"\x93NUMPY") else "png"
        for name, data in (("a.png", good), (f"b.{suffix}", case.data), ("c.png", good)):
            (folder / name).write_bytes(data)
    spec_input = InputSpec.model_validate({"uri": str(folder / "rows.jsonl" if is_line else folder), **fields})
    files = list_files(spec_input, case.task)
    rows = [
        row for file in files for row in read_rows(file, [range(count_rows(file, spec_input))], spec_input, case.task)
    ]
    assert [type(row) for row in rows] == [Row, BadRow, Row]
    assert isinstance(rows[1], BadRow)
    assert_sentence(rows[1].error, case.parts)


def assert_sentence(text: str, parts: tuple[str, ...]) -> None:
    for part in parts:
        assert part in text
    assert text.isprintable(), "one sentence, on one line"
    assert text.endswith((".", "?"))
    assert "Traceback" not in text
    assert "hush" not in text
    assert len(text) < 500
